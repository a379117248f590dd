"""Where stock libvirt keeps what belongs to a domain, nearly all of it under the domain's name.

The rules follow libvirt 9.0 to 11.3: qemu_conf.c, qemu_domain.c, qemu_process.c, qemu_tpm.c,
qemu_virtiofs.c, and virrotatingfile.c for the rotated pieces. Pure: nothing here looks at a disk.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from namefs.layout.directories import Directories
    from namefs.model import Domain

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

_ROTATION = rb"(?P<rotation>(?:\.\d{1,4}|-\d{8}(?:-\d+)?)?(?:\.(?:gz|xz|bz2|zst))?)"
"""virtlogd's ``.0``, logrotate's ``.1.gz`` and, with dateext, ``-20261124.gz``."""

_ROTATED = re.compile(_ROTATION)


class Kind(Enum):
    """How an artefact is shown."""

    FILE = "its content, as a regular file"
    LINK = "a symlink to its path"
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
        return None if match is None else match.groupdict(b"")

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


def artefacts(
    domain: Domain, former_names: tuple[str, ...], places: Directories, subdir: bytes
) -> Iterator[Artefact]:
    """What the domain may have in ``subdir`` of its directory; whether it is there is for others to see.

    ``former_names`` are the names that libvirt may have left files under, the latest last.
    """
    rule = _RULES.get(subdir)
    if rule is not None:
        yield from rule(domain, former_names, places)


def bytes_of(name: str) -> bytes:
    """A name as the bytes of a file name."""
    return name.encode("utf-8", "surrogateescape")


def str_of(entry: bytes) -> str:
    """The bytes of a file name as a name."""
    return entry.decode("utf-8", "surrogateescape")


def _at(path: str) -> tuple[str, bytes]:
    """An explicit path as base and file: its directory is the administrator's choice."""
    directory, entry = posixpath.split(path)
    return directory, bytes_of(entry)


def _top(domain: Domain, _former: tuple[str, ...], places: Directories) -> Iterator[Artefact]:
    definition = bytes_of(domain.name) + b".xml"
    yield Artefact(TOP, "config.xml", Kind.FILE, places.etc, definition)
    yield Artefact(TOP, "autostart.xml", Kind.FILE, places.etc, definition, below=(b"autostart",))
    yield Artefact(TOP, "status.xml", Kind.FILE, places.run, definition)


def _log(domain: Domain, former: tuple[str, ...], places: Directories) -> Iterator[Artefact]:
    for name in (domain.name, *reversed(former)):
        yield from _logs_called(name, "" if name == domain.name else f"@{name}", domain, places)
    for log in domain.logs:
        base, file = _at(places.translate(log.path))
        yield _rotated(f"{log.name}.log", Kind.FILE, base, file, "")


def _logs_called(name: str, at: str, domain: Domain, places: Directories) -> Iterator[Artefact]:
    stem = bytes_of(name)
    yield _rotated(f"qemu{at}.log", Kind.QEMU_LOG, places.log, stem + b".log", name)
    yield _rotated(f"swtpm{at}.log", Kind.NAMED_LOG, places.swtpm_log, stem + b"-swtpm.log", name)
    # Only aliases that libvirt would give or that the definition names: with any alias allowed,
    # web's pattern would match web-db's logs.
    aliases = b"|".join([rb"fs\d+", *(re.escape(bytes_of(a)) for a in sorted(domain.filesystems))])
    pattern = b"(?P<alias>" + aliases + rb")-virtiofsd\.log" + _ROTATION
    yield Artefact(
        b"log",
        f"virtiofsd-\0alias\0{at}.log\0rotation\0",
        Kind.NAMED_LOG,
        places.log,
        re.compile(pattern, re.DOTALL),
        prefix=stem + b"-",
        name=name,
    )


def _rotated(shown: str, kind: Kind, base: str, file: bytes, name: str) -> Artefact:
    return Artefact(b"log", f"{shown}\0rotation\0", kind, base, _ROTATED, prefix=file, name=name)


def _disks(domain: Domain, _former: tuple[str, ...], places: Directories) -> Iterator[Artefact]:
    for disk in domain.disks:
        base, file = _at(places.translate(disk.path))
        backing = None if disk.backing is None else tuple(places.translate(path) for path in disk.backing)
        yield Artefact(
            b"disks", disk.target, Kind.IMAGE, base, file, image_format=disk.format, backing=backing
        )


def _nvram(domain: Domain, former: tuple[str, ...], places: Directories) -> Iterator[Artefact]:
    if domain.nvram is not None:
        path = places.translate(domain.nvram)
        base, file = _at(path)
        suffix = posixpath.splitext(path)[1] or ".fd"
        yield Artefact(b"nvram", f"VARS{suffix}", Kind.FILE, base, file)
    else:
        path = posixpath.join(places.lib, "nvram", f"{domain.name}_VARS.fd")
        file = bytes_of(domain.name) + b"_VARS.fd"
        yield Artefact(b"nvram", "VARS.fd", Kind.FILE, places.lib, file, below=(b"nvram",))
    # Where libvirt chooses the firmware, a rename makes it start with fresh variables and leave these.
    for name in former:
        file = bytes_of(name) + b"_VARS.fd"
        left = Artefact(
            b"nvram", f"VARS@{name}.fd", Kind.FILE, places.lib, file, below=(b"nvram",), name=name
        )
        if not left.claims(path):
            yield left


def _run(domain: Domain, _former: tuple[str, ...], places: Directories) -> Iterator[Artefact]:
    pid_file = bytes_of(domain.name) + b".pid"
    yield Artefact(b"run", "pid", Kind.FILE, places.run, pid_file)
    yield Artefact(b"run", "process", Kind.PROCESS, places.run, pid_file)


def _save(domain: Domain, _former: tuple[str, ...], places: Directories) -> Iterator[Artefact]:
    file = bytes_of(domain.name) + b".save"
    yield Artefact(b"save", "managed.save", Kind.FILE, places.lib, file, below=(b"save",))


_STATE = re.compile(rb"(?P<file>[^.].*)", re.DOTALL)
"""TPM state; swtpm's ``.lock`` beside it is none."""

_XML = re.compile(rb"(?P<file>.+\.xml)", re.DOTALL)


def _snapshots(domain: Domain, _former: tuple[str, ...], places: Directories) -> Iterator[Artefact]:
    below = (b"snapshot", bytes_of(domain.name))
    yield Artefact(b"snapshots", "\0file\0", Kind.FILE, places.lib, _XML, below=below)


def _checkpoints(domain: Domain, _former: tuple[str, ...], places: Directories) -> Iterator[Artefact]:
    below = (b"checkpoint", bytes_of(domain.name))
    yield Artefact(b"checkpoints", "\0file\0", Kind.FILE, places.lib, _XML, below=below)


def _sockets(domain: Domain, _former: tuple[str, ...], places: Directories) -> Iterator[Artefact]:
    status = bytes_of(domain.name) + b".xml"
    yield Artefact(b"sockets", "monitor", Kind.MONITOR, places.run, status)
    for socket in domain.sockets:
        base, file = _at(places.translate(socket.path))
        yield Artefact(b"sockets", socket.name, Kind.LINK, base, file)


def _tpm(domain: Domain, _former: tuple[str, ...], places: Directories) -> Iterator[Artefact]:
    for version in (b"tpm2", b"tpm1.2"):
        below = (str(domain.uuid).encode(), version)
        yield Artefact(
            b"tpm",
            "\0file\0",
            Kind.FILE,
            places.swtpm_state,
            _STATE,
            below=below,
        )


_RULES = {
    TOP: _top,
    b"checkpoints": _checkpoints,
    b"disks": _disks,
    b"log": _log,
    b"nvram": _nvram,
    b"run": _run,
    b"save": _save,
    b"snapshots": _snapshots,
    b"sockets": _sockets,
    b"tpm": _tpm,
}
