"""Copies the lines of each guest from libvirt's logs to the log of its whole life, as they appear."""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from namefs import lifelog
from namefs.guest import Looked
from namefs.lifefile import LifeFile

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from namefs.guest import Guest
    from namefs.lifelog import Source
    from namefs.log_sources import LogSources
    from namefs.pieces import Piece

log = logging.getLogger(__name__)

_PIECE_BYTES = 1 << 20
_TRIES = 8
AGAIN_S = 1.0
"""How long a log that couldn't be written is left alone."""

_Identity = tuple[int, int, int, int]


@dataclass(slots=True)
class _Life:
    """One log as it is known here: ``done`` is what the pieces were when all of them was copied.

    ``joined`` are the pieces that are in it by now as far as they are the guest's, by device and inode.
    """

    file: LifeFile
    lock: threading.Lock = field(default_factory=threading.Lock)
    done: tuple[object, ...] | None = None
    joined: frozenset[tuple[int, int]] = frozenset()
    unpacked: set[_Identity] = field(default_factory=set)
    failed_s: float | None = None


class _Moved(Exception):
    """A piece was renamed, cut short or removed between two looks."""


class Copier:
    """The logs of one connection's guests, in the directory ``store_log``; thread-safe.

    ``keep_bytes`` (0: no limit) is when a log goes on in a new file; one older part is kept.
    """

    def __init__(self, store_log: str, sources: LogSources, keep_bytes: int) -> None:
        self._store_log = store_log
        self._sources = sources
        self._keep_bytes = keep_bytes
        self._lives: dict[tuple[UUID, str], _Life] = {}
        self._lock = threading.Lock()
        self._failing: set[tuple[UUID, str]] = set()

    def look(self, guest: Guest, log: str | None = None) -> Looked:
        """Copy what is new, of one log or of all. Blocks; costs little if nothing is."""
        found: dict[str, list[Piece]] = {}
        for piece in self._sources.of(guest, log):
            found.setdefault(piece.log, []).append(piece)
        joined: set[tuple[int, int]] = set()
        failing = set()
        undecided = False
        for name, pieces in found.items():
            life = self._copied(guest, name, pieces)
            if life is None:
                failing.add(name)
            else:
                joined |= life.joined
                undecided |= life.done is None
        return Looked(frozenset(joined), frozenset(failing), undecided)

    def _life_file(self, guest: Guest, name: str) -> LifeFile:
        directory = os.path.join(self._store_log, str(guest.record.key.uuid))
        return LifeFile(directory, name, self._keep_bytes)

    def _copied(self, guest: Guest, name: str, pieces: list[Piece]) -> _Life | None:
        """Have the store hold all of the pieces. None if it can't be written."""
        identity = (guest.record.key.uuid, name)
        with self._lock:
            life = self._lives.get(identity)
            if life is None:
                life = self._lives[identity] = _Life(self._life_file(guest, name))
        state = _state(pieces)
        if life.done != state or not life.file.is_as_loaded():
            if life.failed_s is not None and time.monotonic() < life.failed_s + AGAIN_S:
                return None
            with life.lock:
                try:
                    self._copy(guest, name, life)
                except OSError as error:
                    # What was written of a line or of a draft is for a new look at all of it.
                    life.file = self._life_file(guest, name)
                    self._fails(identity, life, error)
                    return None
                self._goes_on(identity, life)
        return life

    def sync(self, guest: Guest) -> None:
        """Have on the disk what was copied of a guest's logs."""
        uuid = guest.record.key.uuid
        with self._lock:
            lives = [life for (of, _name), life in self._lives.items() if of == uuid]
        for life in lives:
            with life.lock:
                if life.file.exists:
                    life.file.sync()

    def forget(self, uuid: UUID) -> None:
        """Of this guest nothing is kept any more."""
        with self._lock:
            for identity in [one for one in self._lives if one[0] == uuid]:
                del self._lives[identity]
                self._failing.discard(identity)

    def _fails(self, identity: tuple[UUID, str], life: _Life, error: OSError) -> None:
        life.failed_s, life.done = time.monotonic(), None
        with self._lock:
            first = not self._failing
            self._failing.add(identity)
        if first:
            where = os.path.join(self._store_log, str(identity[0]), identity[1])
            log.warning("%s can't be kept, and libvirt's own files are shown: %s", where, error.strerror)

    def _goes_on(self, identity: tuple[UUID, str], life: _Life) -> None:
        if life.failed_s is None:
            return
        life.failed_s = None
        with self._lock:
            self._failing.discard(identity)
            last = not self._failing
        if last:
            log.info("logs are copied to %s again", self._store_log)

    def _copy(self, guest: Guest, name: str, life: _Life) -> None:
        """Copy one log's pieces. The log is this thread's alone."""
        for _ in range(_TRIES):
            if not life.file.is_as_loaded():
                life.file.load()
            pieces = self._sources.settled(guest, name)
            state = _state(pieces)
            if state == life.done and life.file.exists:
                return
            certain = [piece for piece in pieces if self._sources.is_certain(guest, piece)]
            try:
                kept = self._copy_once(life, certain)
            except (_Moved, FileNotFoundError):
                # If that is so again and again, nothing is lost: there will be a next look.
                continue
            is_all = len(certain) == len(pieces) and not any(piece.has_more for piece in pieces)
            life.done = state if is_all else None
            inodes = ((piece.info.st_dev, piece.info.st_ino) for piece in kept)
            life.joined = frozenset(inodes)
            return

    def _copy_once(self, life: _Life, pieces: list[Piece]) -> list[Piece]:
        with ExitStack() as stack:
            read, kept = [], []
            for piece in pieces:
                if piece.is_packed and _identity(piece) in life.unpacked:
                    kept.append(piece)
                    continue
                source = self._sources.source(piece, stack)
                if source is not None:
                    read.append(source)
                    kept.append(piece)
            file = life.file
            while copies := lifelog.plan(read, file.origins, file.end, file.kept):
                _append(file, read[copies[0].source], copies[0])
                if len(copies) == 1:
                    break
            if kept:
                life.file.make()
        life.unpacked = {_identity(piece) for piece in kept if piece.is_packed}
        return kept


def _append(file: LifeFile, source: Source, copy: lifelog.Copy) -> None:
    offset = copy.begin
    while offset < copy.end:
        data = source.read(offset, min(_PIECE_BYTES, copy.end - offset))
        if not data:
            raise _Moved
        if not lifelog.goes_on(file.origins, file.end, source, offset):
            file.begin(lifelog.run_of(source, offset, file.end))
        file.append(data)
        offset += len(data)


def _state(pieces: Iterable[Piece]) -> tuple[object, ...]:
    return tuple((piece.path, _identity(piece), piece.extents, piece.is_taken) for piece in pieces)


def _identity(piece: Piece) -> _Identity:
    info = piece.info
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns
