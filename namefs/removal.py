"""Removing a file that libvirt may be about to write to.

Between any look at a file and its removal somebody can open it, and what is written then is lost. A read
lease (fcntl(2), F_SETLEASE) is only given while nobody has the file open for writing, and makes who opens it
after that wait and be known; readers are not in the way.
"""

from __future__ import annotations

import fcntl
import os
import signal
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ASIDE = b".namefs-removes"
_ENTRY_MAX_BYTES = 255
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def remove_unwritten(directory: int, files: Sequence[bytes], may_go: Callable[[], bool]) -> bool:
    """Remove these regular files, the first one first; False if they are not (all) removed.

    ``may_go`` is asked once nobody can write to any of them. Where a file system has no leases, they stay.
    """
    with ExitStack() as leases:
        held = []
        for file in files:
            try:
                fd = os.open(file, _FILE, dir_fd=directory)
            except OSError:
                return False
            leases.callback(os.close, fd)
            if not _leased(fd):
                return False
            held.append((file, fd))
        return may_go() and all(_removed(directory, file, fd) for file, fd in held)


def _leased(fd: int) -> bool:
    try:
        # Who waits for it is announced by SIGIO, which would end the process; SIGURG does nothing.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    return True


def put_back(directory: int) -> None:
    """Undo a removal that a kill interrupted."""
    for entry in os.listdir(directory):
        aside = os.fsencode(entry)
        if aside.startswith(b".") and aside.endswith(_ASIDE):
            _put_back(directory, aside, aside[1 : -len(_ASIDE)])


def _removed(directory: int, file: bytes, fd: int) -> bool:
    aside = b"." + file + _ASIDE
    if len(aside) > _ENTRY_MAX_BYTES:
        return False
    try:
        if os.lstat(file, dir_fd=directory).st_ino != os.fstat(fd).st_ino:
            return False
        # First out of the way of whoever comes now; then, if somebody came before, back where he found it.
        os.rename(file, aside, src_dir_fd=directory, dst_dir_fd=directory)
        if fcntl.fcntl(fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
            _put_back(directory, aside, file)
            return False
        os.unlink(aside, dir_fd=directory)
    except OSError:
        return False
    return True


def _put_back(directory: int, aside: bytes, file: bytes) -> None:
    # A log that was begun meanwhile is in nobody's way.
    with suppress(FileExistsError):
        os.link(aside, file, src_dir_fd=directory, dst_dir_fd=directory)
        os.unlink(aside, dir_fd=directory)
