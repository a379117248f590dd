"""Telling the kernel to forget entries whose answer changed, in a task that nothing waits for.

The kernel takes a notification only when no look-up in that directory is under way: one slow one
held it up for 1.8 s. Nor does it take one while it renames there itself, and waits for our answer: whoever
notifies it then can't even be killed, and were we killed, the rename would never end. So changes are kept as
a set of entries, which cannot overflow; none is made known before such a rename is answered, nor waited for.
"""

from __future__ import annotations

import functools
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from namefs.model import Change, Place

log = logging.getLogger(__name__)


_FORGOTTEN_WITHIN_S = 2.0
"""The kernel takes a notification when no look-up is under way in the directory: 1.8 s were seen."""


class Invalidator:
    """Withdraws entries through ``withdraw``, which blocks and may raise OSError."""

    def __init__(self, withdraw: Callable[[Place], None]) -> None:
        self._withdraw = withdraw
        self._due: set[Place] = set()
        self._wake = trio.Event()
        self._news = trio.Event()
        self._runs = False
        self._is_idle = True
        self._renames = 0

    async def done(self) -> None:
        """Wait until the kernel has forgotten all that was submitted, or can't be told before it is answered;
        2 s at most.

        Before this runs nothing is mounted, and the kernel knows of nothing.
        """
        with trio.move_on_after(_FORGOTTEN_WITHIN_S):
            while self._runs and not self._is_idle and not self._renames:
                await self._news.wait()

    @contextmanager
    def kernel_renames(self) -> Iterator[None]:
        """While this lasts the kernel waits for us with a rename of its own, and is told nothing.

        Nor does anybody see a new name there meanwhile: the kernel lets no look-up into the directory. What
        waits for its end goes on after the answer, if nothing is awaited in between.
        """
        self._renames += 1
        self._tell()
        try:
            yield
        finally:
            self._renames -= 1
            self._tell()

    def submit(self, changes: Sequence[Change]) -> None:
        """Have these changes made known. An entry that did not exist was never told to the kernel."""
        self._due.update(change.place for change in changes if change.before is not None)
        if self._due:
            self._is_idle = False
            self._wake.set()

    async def run(self) -> None:
        """Make changes known until cancelled."""
        self._runs = True
        while True:
            await self._wake.wait()
            while self._renames:
                await self._news.wait()
            self._wake = trio.Event()
            due, self._due = self._due, set()
            await trio.to_thread.run_sync(functools.partial(self._withdraw_all, sorted(due)))
            if not self._due:
                self._is_idle = True
                self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def _withdraw_all(self, places: list[Place]) -> None:
        for place in places:
            try:
                self._withdraw(place)
            except OSError as error:
                # Its lifetime is finite, so the kernel asks again by itself.
                log.warning("the kernel may show %r up to an hour longer: %s", place.entry, error)
