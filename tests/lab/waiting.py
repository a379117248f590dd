"""Waiting for a condition, where there is nothing to be woken by."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

INTERVAL_S = 0.005


def until(condition: Callable[[], T], timeout_s: float, what: str) -> T:
    """Ask ``condition`` until its answer is true, and return that answer.

    Raises TimeoutError, saying ``what`` was waited for and the last answer, after ``timeout_s`` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what} (last answer: {answer!r})")
        time.sleep(INTERVAL_S)
    return answer
