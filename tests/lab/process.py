"""The end of processes that need not be children of this one."""

from __future__ import annotations

import os
import select


def wait_ended(pid: int, timeout_s: float) -> None:
    """Return once process ``pid`` has ended, reaped or not. Raises TimeoutError after ``timeout_s``."""
    if not has_ended(pid, timeout_s):
        raise TimeoutError(f"process {pid} still lives after {timeout_s:g} s")


def has_ended(pid: int, timeout_s: float = 0) -> bool:
    """Whether process ``pid`` has ended, or does so within ``timeout_s`` seconds. A zombie has ended."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], timeout_s)[0])
    finally:
        os.close(process)
