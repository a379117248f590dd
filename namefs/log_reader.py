"""Reads the log of a guest's whole life: what is in the store and what is not copied yet. Changes nothing."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from namefs import lifelog
from namefs.lifefile import LifeFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from namefs.guest import Guest
    from namefs.lifelog import Source
    from namefs.log_sources import LogSources

_PIECE_BYTES = 1 << 20


class LogReader:
    """Reads logs from the store at ``store_log`` and from libvirt's files. Blocks."""

    def __init__(self, store_log: str, sources: LogSources) -> None:
        self._store_log = store_log
        self._sources = sources

    def read(self, guest: Guest, name: str, at: int) -> Iterator[tuple[int, bytes]]:
        """The life of a log from a position on: what is in the store, and what is not copied yet.

        Comes in pieces, each with its own position; changes nothing.
        """
        file = LifeFile(os.path.join(self._store_log, str(guest.record.key.uuid)), name, 0)
        file.load(repair=False)
        at = max(at, file.first)
        while at < file.end:
            data = file.kept(at, min(file.end, at + _PIECE_BYTES))
            if not data:
                break
            yield at, data
            at += len(data)
        pieces = [
            piece for piece in self._sources.settled(guest, name) if self._sources.is_certain(guest, piece)
        ]
        with ExitStack() as stack, suppress(FileNotFoundError):
            found = [self._sources.source(piece, stack) for piece in pieces]
            yield from _uncopied([source for source in found if source is not None], file, at)


def _uncopied(sources: list[Source], file: LifeFile, at: int) -> Iterator[tuple[int, bytes]]:
    """What copying would append beyond ``at``, were it done."""
    origins, end = file.origins, file.end

    def life(begin: int, until: int) -> bytes | None:
        return file.kept(begin, until) if until <= file.end else None

    while copies := lifelog.plan(sources, origins, end, life):
        copy, source = copies[0], sources[copies[0].source]
        run = lifelog.run_of(source, copy.begin, end)
        origins = lifelog.Origins(origins.files, (*origins.runs, run))
        offset = copy.begin
        while offset < copy.end:
            data = source.read(offset, min(_PIECE_BYTES, copy.end - offset))
            if not data:
                return
            offset, end = offset + len(data), end + len(data)
            if end > at:
                yield max(at, end - len(data)), data[-(end - at) :] if end - len(data) < at else data
                at = end
