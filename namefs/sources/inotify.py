"""inotify(7) for trio. No library that is in Debian 12 offers it without threads or asyncio of its own."""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass

import trio

MODIFY = 0x2
CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
ONLYDIR = 0x01000000
IGNORED = 0x8000
OVERFLOW = 0x4000

_HEADER = struct.Struct("iIII")
_BUFFER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to ``entry`` in a watched directory; an OVERFLOW names none."""

    path: str
    mask: int
    entry: bytes


class Inotify:
    """An inotify instance, watching directories."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._call(self._libc.inotify_init1, os.O_NONBLOCK | os.O_CLOEXEC)
        self._paths: dict[int, str] = {}

    def _call(self, function: ctypes._NamedFuncPointer, *args: object) -> int:
        result: int = function(*args)
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def watch(self, path: str, mask: int) -> bool:
        """Watch a directory for entries; False if it is not there. Watching one twice does nothing."""
        if path in self._paths.values():
            return True
        try:
            watch = self._call(self._libc.inotify_add_watch, self._fd, os.fsencode(path), mask | ONLYDIR)
        except (FileNotFoundError, NotADirectoryError):
            return False
        self._paths[watch] = path
        return True

    async def events(self) -> list[Event]:
        """Wait for something to happen, and say what."""
        while True:
            try:
                data = os.read(self._fd, _BUFFER_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._fd)
                continue
            return self._parsed(data)

    def _parsed(self, data: bytes) -> list[Event]:
        events, at = [], 0
        while at < len(data):
            watch, mask, _cookie, size = _HEADER.unpack_from(data, at)
            at += _HEADER.size
            entry = data[at : at + size].rstrip(b"\0")
            at += size
            path = self._paths.get(watch, "")
            if mask & IGNORED:
                # The directory went: watched again when it comes back.
                self._paths.pop(watch, None)
            events.append(Event(path, mask, entry))
        return events

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)
