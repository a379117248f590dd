"""QEMU's processes, as proc(5) tells of them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from uuid import UUID

_ANCESTORS_MOST = 64


@dataclass(frozen=True, slots=True)
class Process:
    """What ps(1) would say of one: processor time used, memory in RAM, and how long it has been there."""

    pid: int
    cpu_s: float
    rss_bytes: int
    elapsed_s: float


def look(pid: int) -> Process | None:
    """The process as it is now; None if it is gone."""
    fields = _stat(pid)
    if fields is None:
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    started_s = int(fields[19]) / ticks
    return Process(
        pid,
        (int(fields[11]) + int(fields[12])) / ticks,
        int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s),
    )


def guest_of(pid: int) -> tuple[UUID, int] | None:
    """The UUID in the command line of the process, or its nearest ancestor that has one; and whose it is."""
    for _ in range(_ANCESTORS_MOST):
        uuid = _uuid(pid)
        if uuid is not None:
            return uuid, pid
        fields = _stat(pid)
        if fields is None or int(fields[1]) <= 1:
            return None
        pid = int(fields[1])
    return None


def _stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from the third, the state, on."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second is the command in parentheses, which may hold anything.
            return file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _uuid(pid: int) -> UUID | None:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
        return UUID(words[words.index(b"-uuid") + 1].decode())
    except (OSError, ValueError, IndexError):
        return None
