"""Which of libvirt's files the log of a guest's whole life comes from, and which bytes of these are its own.

Everything here may block on a disk and is called in threads; it changes nothing but what it remembers.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from namefs import lifelog, logs
from namefs.faces import faces
from namefs.layout import libvirt
from namefs.layout.artefact import Kind, str_of
from namefs.lifelog import Segment, Source
from namefs.model import Role
from namefs.packed import unpacked
from namefs.pieces import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import ExitStack
    from uuid import UUID

    from namefs.guest import Guest
    from namefs.layout.directories import Directories
    from namefs.pieces import Piece, Pieces

UNMARKED_NS = 2 * 10**9
"""Longer than it takes `projection` to measure what was written under a name that was lost."""
_LOOKS = 8
_COMING_NS = 10 * 10**9
"""Longer than it takes a target from its log's first line to its status file: its hooks run in between."""
LOG = re.compile(rb"(?s)(.+?)\.log(?:[.-].*)?")
"""The entry of a log of libvirt's, or of a piece of one, and the name that it may be called by."""


class LogSources:
    """The sources of all guests' logs; thread-safe. ``places`` is by connection."""

    def __init__(self, pieces: Pieces, places: Callable[[str], Directories | None]) -> None:
        self.pieces = pieces
        self._places = places
        pieces.on_stranger = self.note_stray
        self._lock = threading.Lock()
        self._strays: dict[tuple[UUID, str], dict[str, None]] = {}
        self._found: set[UUID] = set()
        self.certain: set[str] = set()
        """The connections whose libvirt has been asked who has which name. Until then, only what QEMU's log
        itself says of its lines counts."""

    def note_stray(self, uuid: UUID, connection: str, name: str) -> None:
        """A domain has written to a log of that name on a connection."""
        with self._lock:
            names = self._strays.setdefault((uuid, connection), {})
            if name not in names:
                names[name] = None
                self._found.add(uuid)

    def take_found(self) -> set[UUID]:
        """The domains of which such a name was found since this was last asked."""
        with self._lock:
            found, self._found = self._found, set()
        return found

    def find_strays(self, label: str, guest: Guest) -> None:
        """Read all of a connection's logs: a guest may have had any name unwatched. Blocks.

        It does not matter which guest is given.
        """
        places = self._places(label)
        if places is None:
            return
        with self.pieces.backing.directory(places.log) as opened_directory:
            if opened_directory is None:
                return
            entries = self.pieces.backing.starting_with(opened_directory, b"")
            names = {str_of(match[1]) for match in map(LOG.fullmatch, entries) if match is not None}
            for name in sorted(names):
                artefact = next(libvirt.logs_called(name, guest.record.domain, places))
                for written in self.pieces.written(artefact, opened_directory):
                    for start in written.starts or ():
                        if start.uuid is not None:
                            self.note_stray(start.uuid, label, name)

    def strays(self, guest: Guest) -> Iterable[str]:
        """Libvirt names that the guest had unseen, as what QEMU wrote under them says."""
        return tuple(self._strays.get((guest.record.key.uuid, guest.record.domain.connection), ()))

    def forget(self, uuid: UUID) -> None:
        """Of this guest nothing is kept any more."""
        with self._lock:
            for at in [at for at in self._strays if at[0] == uuid]:
                del self._strays[at]

    def names(self, guest: Guest) -> list[str]:
        """The libvirt names that the guest's logs may be under, in the order in which it had them."""
        names = dict.fromkeys((*self.strays(guest), *guest.former_names))
        names.pop(guest.record.domain.name, None)
        return [*names, guest.record.domain.name]

    def faces(self, guest: Guest) -> list[Guest]:
        """The guest on each connection that it is or was on, as far as its lines there count now."""
        return faces(guest, self._places, time.time_ns())

    def of(self, guest: Guest, log: str | None) -> Iterator[Piece]:
        """The guest's pieces on all its connections, of one log or of all."""
        for face in self.faces(guest):
            coming = _coming_since(guest, face, time.time_ns())
            for piece in self.pieces.of(face, self.names(face), log):
                yield piece if coming is None else _without_starts_since(piece, coming)

    def settled(self, guest: Guest, name: str) -> list[Piece]:
        """The pieces as they were at one moment: a rotation during a look shows one of them twice, or not."""
        seen: list[Piece] = []
        for _ in range(_LOOKS):
            before, seen = seen, list(self.of(guest, name))
            if seen and [_place(piece) for piece in before] == [_place(piece) for piece in seen]:
                break
        return seen

    def is_certain(self, guest: Guest, piece: Piece) -> bool:
        """Whether it is known whose it is: libvirt has been asked, and a lost name's files measured."""
        if piece.told:
            return True
        held = guest.index.holders.get(piece.artefact.name, ())
        holders = [one for one in held if one[1].connection in ("", piece.connection)]
        just_lost = bool(holders) and time.time_ns() - holders[-1][1].until_ns < UNMARKED_NS
        return piece.connection in self.certain and not (just_lost and not holders[-1][1].marks)

    def source(self, piece: Piece, stack: ExitStack) -> Source | None:
        """A piece to read from; None if it is packed and can't be unpacked."""
        fd = opened(self.pieces.backing, piece)
        stack.callback(os.close, fd)
        content = unpacked(fd, piece.file) if piece.is_packed else None
        if content is None:
            if piece.is_packed:
                return None
            size = os.fstat(fd).st_size
            read: lifelog.Read = lambda offset, count: os.pread(fd, count, offset)  # noqa: E731
        else:
            size = len(content)
            read = lambda offset, count: content[offset : offset + count]  # noqa: E731
        # What came since it was looked at may be another guest's.
        until = min(size, piece.info.st_size) if content is None else size
        if piece.is_live and piece.is_taken and piece.artefact.kind is Kind.QEMU_LOG:
            begin = max(0, until - logs.LINE_BYTES)
            until = begin + logs.settled(read(begin, until - begin))
        data = _data(fd, until) if content is None else [(0, until)]
        segments = tuple(part for whole in _segments(piece, until) for part in _within(whole, data))
        name = f"{piece.connection}/{piece.artefact.name}"
        return Source(name, piece.info.st_ino, size, piece.is_live, segments, read)


def _coming_since(guest: Guest, face: Guest, now_ns: int) -> bytes | None:
    """From when on a start on a connection may be that of a target that comes in; None: none is.

    Where the guest is off but was before, its log is read. A start there, while it runs elsewhere, is that
    of a target that has no status file yet, which comes 30 ms after the log's first line. Its lines wait as
    if it were known already: on the way back from a migration they came before the source's last ones.
    """
    index, uuid, label = guest.index, guest.record.key.uuid, face.record.domain.connection
    if (uuid, label) not in index.shadows or guest.record.role not in (Role.ACTIVE, Role.OUTGOING):
        return None
    moved_ns = [move.at_ns for move in index.moves.get(guest.record.key.guest, ())]
    since_s = max(now_ns - _COMING_NS, *moved_ns, 0) / 1e9
    return datetime.fromtimestamp(since_s, UTC).strftime("%Y-%m-%d %H:%M:%S.%f").encode()


def _without_starts_since(piece: Piece, time: bytes) -> Piece:
    begin = next((start.offset for start in piece.starts if start.time > time), None)
    if begin is None:
        return piece
    extents = ((first, begin if last is None else min(last, begin)) for first, last in piece.extents)
    kept = tuple((first, last) for first, last in extents if first < last)
    return replace(piece, extents=kept, has_more=True)


def _segments(piece: Piece, until: int) -> Iterator[Segment]:
    """The guest's own parts of a piece, each from one start to the next."""
    times = {start.offset: start.time for start in piece.starts}
    for begin, end in piece.extents:
        stop = until if end is None else min(end, until)
        cuts = [offset for offset in times if begin < offset < stop]
        for first, last in zip([begin, *cuts], [*cuts, stop], strict=True):
            if first < last:
                yield Segment(first, last, times.get(first, b""))


def _within(whole: Segment, data: Iterable[tuple[int, int]]) -> Iterator[Segment]:
    """What of a segment is data. The time is of its beginning."""
    for begin, end in data:
        first, last = max(whole.begin, begin), min(whole.end, end)
        if first < last:
            yield Segment(first, last, whole.time if first == whole.begin else b"")


def _data(fd: int, size: int) -> list[tuple[int, int]]:
    """Where there is data. A log that is cut short under a writer that does not append has a hole as long as
    it was: no lines, and maybe more than the disk holds."""
    found: list[tuple[int, int]] = []
    at = 0
    try:
        while at < size:
            begin = os.lseek(fd, at, os.SEEK_DATA)
            at = os.lseek(fd, begin, os.SEEK_HOLE)
            found.append((begin, min(at, size)))
    except OSError as error:
        if error.errno == errno.EINVAL:
            # A file system that does not tell.
            return [(0, size)]
        if error.errno != errno.ENXIO:
            raise
    return found


def _place(piece: Piece) -> tuple[str, int, int]:
    return piece.path, piece.info.st_dev, piece.info.st_ino
