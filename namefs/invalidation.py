"""Telling the kernel to forget entries whose answer changed, in a task that nothing waits for.

The kernel takes a notification only when no look-up in that directory is under way: one slow one
held it up for 1.8 s. So changes are kept as a set of entries, which cannot overflow.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from namefs.model import Change, Place

log = logging.getLogger(__name__)


class Invalidator:
    """Withdraws entries through ``withdraw``, which blocks and may raise OSError."""

    def __init__(self, withdraw: Callable[[Place], None]) -> None:
        self._withdraw = withdraw
        self._due: set[Place] = set()
        self._wake = trio.Event()
        self._idle = trio.Event()
        self._idle.set()

    async def done(self) -> None:
        """Wait until the kernel has been told all that was submitted."""
        await self._idle.wait()

    def submit(self, changes: Sequence[Change]) -> None:
        """Have these changes made known. An entry that did not exist was never told to the kernel."""
        self._due.update(change.place for change in changes if change.before is not None)
        if self._due:
            if self._idle.is_set():
                self._idle = trio.Event()
            self._wake.set()

    async def run(self) -> None:
        """Make changes known until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            due, self._due = self._due, set()
            await trio.to_thread.run_sync(functools.partial(self._withdraw_all, sorted(due)))
            if not self._due:
                self._idle.set()

    def _withdraw_all(self, places: list[Place]) -> None:
        for place in places:
            try:
                self._withdraw(place)
            except OSError as error:
                # Its lifetime is finite, so the kernel asks again by itself.
                log.warning("the kernel may show %r up to an hour longer: %s", place.entry, error)
