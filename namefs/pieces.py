"""The pieces of a domain's logs: libvirt's files, of present and former names, and which bytes are whose.

Everything here may block on a disk and is called in threads; it changes nothing but its own cache.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from namefs import logs
from namefs.layout import libvirt
from namefs.layout.artefact import Artefact, Kind
from namefs.logs import Start
from namefs.model import Mark
from namefs.packed import is_packed, unpacked
from namefs.scans import Scans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from uuid import UUID

    from namefs.backing import Backing, Directory
    from namefs.guest import Guest
    from namefs.logs import Extent

WHOLE: tuple[Extent, ...] = ((0, None),)
NAMED = (Kind.QEMU_LOG, Kind.NAMED_LOG)
"""The kinds of logs that are called by a libvirt name."""
_PACKED_MAX = 4096


@dataclass(frozen=True, slots=True)
class Piece:
    """One file of a log. ``extents`` are the domain's; ``head`` owns what precedes a QEMU log's first start.

    ``log`` is what the view calls the log that it is a piece of: ``qemu.log``. Of a packed file extents and
    starts are those of what is in it.
    """

    artefact: Artefact
    directory: str
    file: bytes
    groups: dict[str, bytes]
    info: os.stat_result
    extents: tuple[Extent, ...]
    head: UUID | None
    starts: tuple[Start, ...]
    told: bool
    """Whether the lines themselves tell whose they are; else the index does."""
    is_taken: bool
    """Whether somebody has the name that it is called by."""
    connection: str = ""
    """Whose libvirt's it is."""
    has_more: bool = False
    """Whether it has lines that may be the domain's, which is not known yet."""

    @property
    def log(self) -> str:
        """What the view calls the log that it is a piece of: ``qemu.log``."""
        return log_of(self.artefact, self.groups)

    @property
    def path(self) -> str:
        """Where it is."""
        return os.path.join(self.directory, os.fsdecode(self.file))

    @property
    def is_packed(self) -> bool:
        """Whether what is in it has to be unpacked."""
        return is_packed(self.file)

    @property
    def is_live(self) -> bool:
        """Whether libvirt writes to it, when it writes."""
        return not self.groups.get("rotation")


class Written(NamedTuple):
    """A file of a log, and what says who wrote it: the starts in it, and whose the next older file ends with.

    ``starts`` are None where they can't tell: in other logs than QEMU's, and in what can't be unpacked.
    """

    file: bytes
    groups: dict[str, bytes]
    info: os.stat_result
    starts: tuple[Start, ...] | None
    before: UUID | None


class Pieces:
    """Finds pieces of logs; thread-safe."""

    def __init__(self, backing: Backing) -> None:
        self.backing = backing
        self.scans = Scans()
        self.on_stranger: Callable[[UUID, str, str], None] | None = None
        """Told whom a start names, and what the log is called by, where it is not who is asked for."""
        self._packed: dict[tuple[int, int, int, int], tuple[Start, ...] | None] = {}

    def files(
        self, directory: Directory, artefact: Artefact
    ) -> Iterator[tuple[bytes, dict[str, bytes], os.stat_result]]:
        """The files of an artefact that are there, each with the groups of its match."""
        if isinstance(artefact.file, bytes):
            entries = [artefact.file]
        else:
            entries = self.backing.starting_with(directory, artefact.prefix)
        for entry in entries:
            groups = artefact.groups_of(entry)
            if groups is not None and (info := self.backing.stat(directory, entry)) is not None:
                yield entry, dict(groups), info

    def of(self, guest: Guest, names: Iterable[str], log: str | None = None) -> Iterator[Piece]:
        """The domain's pieces under these libvirt names, in that order, each name's oldest first.

        ``log``: of this log alone.
        """
        if guest.places is None:
            return
        for name in names:
            for artefact in libvirt.logs_called(name, guest.record.domain, guest.places):
                if log is None or _may_be_of(artefact, log):
                    with self.backing.directory(artefact.base, artefact.below) as directory:
                        if directory is not None:
                            found = self.lines(guest, artefact, directory)
                            yield from (piece for piece in found if log in (None, piece.log))

    def lines(self, guest: Guest, artefact: Artefact, directory: Directory) -> Iterator[Piece]:
        """The regular files of a log called by a name that have anything of the domain's, oldest first."""
        uuid, held = guest.record.key.uuid, guest.holders_of(artefact.name)
        for file, groups, info, starts, before in self.written(artefact, directory):
            if self.on_stranger is not None:
                for stranger in {start.uuid for start in starts or ()} - {None, uuid}:
                    if stranger is not None:
                        self.on_stranger(stranger, guest.record.domain.connection, artefact.name)
            head = before or logs.head_owner(mark(info), *held)
            if starts is None:
                extents = logs.by_marks(mark(info), *held, uuid)
            else:
                extents = logs.owned(starts, uuid, head)
            if extents:
                told = starts is not None and (before is not None or starts[:1] == (Start(0, uuid),))
                taken = held[1] is not None
                at = directory.path
                yield Piece(
                    artefact,
                    at,
                    file,
                    groups,
                    info,
                    extents,
                    head,
                    starts or (),
                    told,
                    taken,
                    guest.record.domain.connection,
                )

    def written(self, artefact: Artefact, directory: Directory) -> Iterator[Written]:
        """The regular files of a log called by a name, oldest first, and what says who wrote them."""
        files = sorted(
            self.files(directory, artefact),
            key=lambda one: (one[1].get("alias", b""), logs.age(one[1].get("rotation", b""))),
        )
        before: UUID | None = None
        for file, groups, info in files:
            if not stat.S_ISREG(info.st_mode):
                continue
            is_qemus = artefact.kind is Kind.QEMU_LOG
            starts = self._starts_of(directory, file, info) if is_qemus else None
            yield Written(file, groups, info, starts, before)
            before = next((start.uuid for start in reversed(starts or ()) if start.uuid), before)

    def extents(
        self, guest: Guest, artefact: Artefact, file: bytes, info: os.stat_result, head: UUID | None, fd: int
    ) -> tuple[Extent, ...]:
        """Which parts of an open file are the domain's."""
        if artefact.kind not in NAMED:
            return WHOLE if guest.has_left(artefact.name) else ()
        uuid = guest.record.key.uuid
        if artefact.kind is Kind.QEMU_LOG and not is_packed(file):
            return logs.owned(self.scans.starts(fd, info), uuid, head)
        return logs.by_marks(mark(info), *guest.holders_of(artefact.name), uuid)

    def _starts_of(self, directory: Directory, file: bytes, info: os.stat_result) -> tuple[Start, ...] | None:
        """The starts in a QEMU log; None if it is packed and can't be unpacked."""
        if is_packed(file):
            return self._starts_in_packed(directory, file, info)
        known = self.scans.known(info)
        if known is not None:
            return known
        try:
            fd = self.backing.open(directory, file)
        except FileNotFoundError:
            return ()
        try:
            return self.scans.starts(fd, os.fstat(fd))
        finally:
            os.close(fd)

    def _starts_in_packed(
        self, directory: Directory, file: bytes, info: os.stat_result
    ) -> tuple[Start, ...] | None:
        identity = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
        if identity not in self._packed:
            if len(self._packed) >= _PACKED_MAX:
                self._packed.clear()
            fd = self.backing.open(directory, file)
            try:
                content = unpacked(fd, file)
            finally:
                os.close(fd)
            self._packed[identity] = None if content is None else tuple(logs.starts(content))
        return self._packed[identity]


def opened(backing: Backing, piece: Piece) -> int:
    """A descriptor of a piece. FileNotFoundError if another file has its name by now."""
    with backing.directory(piece.artefact.base, piece.artefact.below) as directory:
        if directory is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), piece.path)
        fd = backing.open(directory, piece.file)
    info = os.fstat(fd)
    if (info.st_dev, info.st_ino) != (piece.info.st_dev, piece.info.st_ino):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), piece.path)
    return fd


def log_of(artefact: Artefact, groups: dict[str, bytes]) -> str:
    """What the view calls the log that a file is a piece of, whichever name it was written under."""
    shown = artefact.shown_as({**groups, "rotation": b""})
    at = f"@{artefact.name}.log"
    return shown.removesuffix(at) + ".log" if shown.endswith(at) else shown


def _may_be_of(artefact: Artefact, log: str) -> bool:
    head = artefact.entry.partition("\0")[0]
    return log.startswith(head.removesuffix(f"@{artefact.name}.log").removesuffix(".log"))


def mark(info: os.stat_result) -> Mark:
    """How far a file is written now."""
    return Mark(info.st_dev, info.st_ino, info.st_size)
