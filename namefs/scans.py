"""Searching QEMU logs for starts, each byte once, however large the log has grown.

virtlogd keeps a log below 2 MiB, but with ``stdio_handler = "file"`` nobody does.
"""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass, field

from namefs import logs

_SCANS_MAX = 8192
_PIECE_BYTES = 1 << 22
_LINE_BYTES = 256
"""More than what a start's line is told by."""
_COMMAND_BYTES = 1 << 20
"""Where ``-uuid`` must come after its start; a Linux command line can't be much longer."""
_HEAD_BYTES = 64


@dataclass(slots=True)
class _Scan:
    size: int = 0
    mtime_ns: int = 0
    head: bytes = b""
    starts: tuple[logs.Start, ...] = ()
    scanning: threading.Lock = field(default_factory=threading.Lock)


class Scans:
    """The starts found so far, by device and inode; thread-safe."""

    def __init__(self) -> None:
        self._scans: dict[tuple[int, int], _Scan] = {}
        self._lock = threading.Lock()

    def known(self, info: os.stat_result) -> tuple[logs.Start, ...] | None:
        """The starts of a file that has been searched to its end; None if it is to be opened for that."""
        scan = self._scans.get((info.st_dev, info.st_ino))
        # The time too: a new file may have the inode of one that went, and its size.
        is_same = scan is not None and (scan.size, scan.mtime_ns) == (info.st_size, info.st_mtime_ns)
        return scan.starts if scan is not None and is_same else None

    def starts(self, fd: int, info: os.stat_result) -> tuple[logs.Start, ...]:
        """The starts in an open log. Only what was appended since the last time is read."""
        with self._lock:
            if len(self._scans) >= _SCANS_MAX:
                self._scans.clear()
            scan = self._scans.setdefault((info.st_dev, info.st_ino), _Scan())
        # A lock for each file: others need not wait for a long one.
        with scan.scanning:
            if (scan.size, scan.mtime_ns) != (info.st_size, info.st_mtime_ns):
                head = os.pread(fd, _HEAD_BYTES, 0)
                if scan.size > info.st_size or not head.startswith(scan.head) or not _still_there(fd, scan):
                    # Cut short, and maybe written anew beyond where it was.
                    scan.size, scan.starts = 0, ()
                scan.head = head
                scan.starts = _searched(fd, scan.starts, scan.size, info.st_size)
                scan.size, scan.mtime_ns = info.st_size, info.st_mtime_ns
            return scan.starts


def _still_there(fd: int, scan: _Scan) -> bool:
    if not scan.starts:
        return True
    offset = scan.starts[-1].offset
    return bool(logs.starts(os.pread(fd, _LINE_BYTES, offset)))


def _searched(fd: int, known: tuple[logs.Start, ...], at: int, end: int) -> tuple[logs.Start, ...]:
    """``known`` and what starts there are between ``at`` and ``end``."""
    while (at := _data_from(fd, at, end)) < end:
        begin = max(0, at - _LINE_BYTES)
        if known and known[-1].uuid is None and at - known[-1].offset < _COMMAND_BYTES:
            begin = min(begin, known[-1].offset)
        piece = os.pread(fd, min(_PIECE_BYTES, end - begin), begin)
        if begin + len(piece) <= at:
            # Cut short meanwhile: the next look sees another size.
            break
        at = begin + len(piece)
        if begin > 0 and not (known and known[-1].offset == begin):
            # The middle of a line, as a rule.
            skipped = piece.find(b"\n") + 1 or len(piece)
            begin, piece = begin + skipped, piece[skipped:]
        known = (*(start for start in known if start.offset < begin), *logs.starts(piece, begin))
    return known


def _data_from(fd: int, at: int, end: int) -> int:
    """Where data goes on from ``at``: a log cut short under a writer that does not append has a hole."""
    try:
        return os.lseek(fd, at, os.SEEK_DATA) if at < end else end
    except OSError as error:
        if error.errno == errno.ENXIO:
            return end
        if error.errno == errno.EINVAL:
            # A file system that does not tell.
            return at
        raise
