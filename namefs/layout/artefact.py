"""What a layout says: which files a domain may have, and how the view shows each. Pure."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import re
    from collections.abc import Mapping

TOP = b""
"""The subdirectory name that stands for the domain's directory itself."""

SUBDIRECTORIES = (
    b"checkpoints",
    b"disks",
    b"log",
    b"nvram",
    b"run",
    b"save",
    b"snapshots",
    b"sockets",
    b"tpm",
)


class Kind(Enum):
    """How an artefact is shown."""

    FILE = "its content, as a regular file"
    LINK = "a symlink to its path"
    DIRECTORY = "a symlink to a directory"
    IMAGE = "a symlink to a disk image, and one to each of its backing images"
    PROCESS = "a symlink to the process that a pid file names"
    MONITOR = "a symlink to the monitor socket that a status file names"
    QEMU_LOG = "those lines of a log that are this domain's, told by libvirt's -uuid"
    NAMED_LOG = "those lines of a log that are this domain's, told by who had the name when"


@dataclass(frozen=True, slots=True)
class Artefact:
    """One file that a domain may have, or a family of files of one directory.

    ``base`` is where libvirt's part begins: symlinks on the way there are the administrator's, below
    it none is followed. ``below`` leads on to the directory, and ``file`` is the file's entry there;
    of a family, what follows ``prefix`` in such entries matches it. ``entry`` is what the view calls
    it; of a family, each is called ``entry`` with the groups of its match filled in where NULs (no
    name holds one) enclose a group's name.
    """

    subdir: bytes
    entry: str
    kind: Kind
    base: str
    file: bytes | re.Pattern[bytes]
    below: tuple[bytes, ...] = ()
    prefix: bytes = b""
    """What all entries of a family start with. It is no part of the pattern, which guests then share:
    compiling one for each guest took 1 ms a request, as `re` keeps 512 patterns and no more."""
    name: str = ""
    """The libvirt name that the file is called by, where whose lines it holds depends on the name."""
    image_format: str = "raw"
    backing: tuple[str, ...] | None = None
    besides: tuple[Artefact, ...] = ()
    """Of a family: what is one of these is none of it."""

    @property
    def directory(self) -> str:
        """The path of the directory that the file lies in."""
        return posixpath.join(self.base, *(str_of(part) for part in self.below))

    def claims(self, path: str) -> bool:
        """Whether the file at ``path`` would be this artefact, or one of this family."""
        directory, entry = posixpath.split(path)
        if directory != self.directory:
            return False
        return self.groups_of(bytes_of(entry)) is not None

    def groups_of(self, file: bytes) -> Mapping[str, bytes] | None:
        """The groups of an entry's match (of one file: none), or None if it is not this artefact's."""
        if isinstance(self.file, bytes):
            return {} if file == self.file else None
        match = self.file.fullmatch(file, len(self.prefix)) if file.startswith(self.prefix) else None
        if match is None or any(other.claims(self._path_of(file)) for other in self.besides):
            return None
        return match.groupdict(b"")

    def _path_of(self, file: bytes) -> str:
        return posixpath.join(self.directory, str_of(file))

    def shown_as(self, groups: Mapping[str, bytes]) -> str:
        """What the view calls the file whose match has these groups."""
        shown = self.entry
        for group, value in groups.items():
            shown = shown.replace(f"\0{group}\0", str_of(value))
        return shown

    def may_show(self, name: str) -> bool:
        """Whether anything of this artefact could be called ``name`` in the view; False is certain."""
        head, family, _ = self.entry.partition("\0")
        if family or self.kind is Kind.IMAGE:
            return name.startswith(head)
        return name == head


def bytes_of(name: str) -> bytes:
    """A name as the bytes of a file name."""
    return name.encode("utf-8", "surrogateescape")


def str_of(entry: bytes) -> str:
    """The bytes of a file name as a name."""
    return entry.decode("utf-8", "surrogateescape")


def at_path(path: str) -> tuple[str, bytes]:
    """An explicit path as base and file: its directory is the administrator's choice."""
    directory, entry = posixpath.split(path)
    return directory, bytes_of(entry)
