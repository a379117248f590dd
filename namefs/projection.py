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

from namefs.index import Applied, Index, apply

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from namefs.model import Change, Key, Listed, Mark, Observed, Record
    from namefs.view import View

log = logging.getLogger(__name__)


class Journal(Protocol):
    """Where the index is saved."""

    def save(self, index: Index, touched: Collection[Key]) -> None:
        """Save what the index says of these keys; blocks."""


class Projection:
    """Applies observations to the view, one after the other."""

    def __init__(
        self,
        view: View,
        journal: Journal,
        measure: Callable[[Record], tuple[Mark, ...]],
        announce: Callable[[Sequence[Change]], None],
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._view = view
        self._journal = journal
        self._measure = measure
        self._announce = announce
        self._now_ns = now_ns
        self._writing = trio.Lock()

    async def apply(self, *seen: Observed | Listed) -> None:
        """Make the view show what was seen. Raises NamefsError if it can't be saved: then it is not shown."""
        async with self._writing:
            before, now_ns = self._view.index, self._now_ns()
            applied = apply(before, seen, now_ns)
            if not applied.touched:
                return
            await trio.to_thread.run_sync(self._journal.save, applied.index, applied.touched)
            self._view.publish(applied.index, now_ns)
            self._announce(applied.changes)
            if applied.released:
                # Afterwards, as it looks at files: it took half a millisecond of every rename.
                marked = await trio.to_thread.run_sync(self._marked, before, applied)
                self._view.publish(marked, now_ns)
            for change in applied.changes:
                log.debug("%r: %s -> %s", change.entry, change.before, change.after)

    def _marked(self, before: Index, applied: Applied) -> Index:
        marks = {
            (key, former.until_ns): self._measure(before.records[key])
            for key, _domain, former in applied.released
        }
        index = applied.index.marked(marks)
        self._journal.save(index, {key for key, _until_ns in marks})
        return index
