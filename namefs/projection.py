"""The one writer: what was seen becomes a new index, which is saved, then shown, then made known.

The order is the point. Saved before shown: the view never shows what a restart would forget. Shown
before the kernel is told to forget: its next question cannot bring the old answer back. Nothing
waits for that telling: it can take seconds, behind a look-up in the same directory.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

import trio

from namefs.applying import apply
from namefs.errors import NamefsError
from namefs.statuses import concerned

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from namefs.index import Index
    from namefs.model import Change, Domain, Key, Mark, Seen
    from namefs.statuses import Statuses
    from namefs.view import View

log = logging.getLogger(__name__)


_MARKED_AFTER_S = 0.02


class Journal(Protocol):
    """Where the index is saved."""

    def save(self, index: Index, touched: Collection[Key], durably: bool = False) -> None:
        """Save what the index says of these keys; blocks. ``durably``: not even a power cut takes it back."""


class Projection:
    """Applies observations to the view, one after the other."""

    def __init__(
        self,
        view: View,
        journal: Journal,
        measure: Callable[[Domain], tuple[Mark, ...]],
        announce: Callable[[Sequence[Change]], None],
        statuses: Statuses,
        forgotten: Callable[[], Awaitable[None]],
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._view = view
        self._journal = journal
        self._measure = measure
        self._announce = announce
        self._statuses = statuses
        self._forgotten = forgotten
        self._now_ns = now_ns
        self._writing = trio.Lock()
        self._unmarked: dict[tuple[Key, int], Domain] = {}
        self._lost = trio.Event()

    async def apply(self, *seen: Seen) -> None:
        """Make the view show what was seen. Raises NamefsError if it can't be saved: then it is not shown."""
        async with self._writing:
            before = self._view.index
            # Read here, where nothing else is applied meanwhile: what was read earlier may be older than
            # what is known already, and would turn a swap back.
            due = concerned(before, seen)
            runs = await trio.to_thread.run_sync(self._statuses.read, due) if due else {}
            now_ns = self._now_ns()
            applied = apply(before, seen, now_ns, runs)
            if not applied.touched:
                return
            if any(map(_goes_over, applied.changes)):
                # An entry goes over to another domain. The kernel was told to forget it when the guest
                # began to be two, and keeps none of these since.
                await self._forgotten()
            await trio.to_thread.run_sync(self._journal.save, applied.index, applied.touched, applied.asked)
            self._view.publish(applied.index, now_ns)
            self._announce(applied.changes)
            for change in applied.changes:
                log.debug("%r: %s -> %s", change.place, change.before, change.after)
        if applied.released:
            self._unmarked.update(
                {(key, former.until_ns): domain for key, domain, former in applied.released}
            )
            self._lost.set()

    async def run(self) -> None:
        """Measure what was written under names that were lost, until cancelled.

        A little later, as it looks at files and saves once more: done at once, it kept the kernel
        from hearing of the change for 1.3 ms. No guest of the same name writes a log as soon.
        """
        while True:
            await self._lost.wait()
            await trio.sleep(_MARKED_AFTER_S)
            self._lost = trio.Event()
            due, self._unmarked = self._unmarked, {}
            async with self._writing:
                try:
                    index = await trio.to_thread.run_sync(self._marked, self._view.index, due)
                except NamefsError as error:
                    log.error("whose lines are whose in some old logs is not saved: %s", error)
                else:
                    self._view.publish(index, self._view.changed_ns)

    def _marked(self, index: Index, due: dict[tuple[Key, int], Domain]) -> Index:
        marked = index.marked({lost: self._measure(domain) for lost, domain in due.items()})
        self._journal.save(marked, {key for key, _until_ns in due})
        return marked


def _goes_over(change: Change) -> bool:
    return None not in (change.before, change.after) and change.before != change.after
