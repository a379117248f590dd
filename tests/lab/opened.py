"""Whether anybody opens a file, by inotify(7)."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

IN_OPEN = 0x20
EVENT_BYTES = 16
"""Of an event of a watched file itself, which carries no entry."""


class Opened:
    """Counts how often watched files were opened. Opening one by O_PATH is none."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._fd)

    def watch(self, path: Path) -> None:
        """Count from now on how often the file at ``path`` is opened."""
        if self._libc.inotify_add_watch(self._fd, os.fsencode(path), IN_OPEN) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(path))

    def count(self) -> int:
        """How often any of them was opened since the last count."""
        try:
            return len(os.read(self._fd, 1 << 16)) // EVENT_BYTES
        except BlockingIOError:
            return 0
