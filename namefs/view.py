"""The index as it is published: what requests see, replaced by one assignment."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from namefs.guest import Guest
from namefs.index import Index
from namefs.model import OWNER
from namefs.tree import Extras, Names

if TYPE_CHECKING:
    from collections.abc import Callable

    from namefs.layout.directories import Directories
    from namefs.model import Key


class View:
    """The present index. `changed_ns` is when a directory of names last changed."""

    def __init__(self, places: Callable[[str], Directories | None], extras: Extras = Extras()) -> None:  # noqa: B008 - frozen
        self.index = Index()
        self.changed_ns = 0
        self._places = places
        self._extras = extras

    @property
    def names(self) -> Names:
        """The directories of names, as of now."""
        return Names(self.index, self._extras, time.time_ns())

    def publish(self, index: Index, now_ns: int) -> None:
        """Show this index from now on."""
        if index.by_place != self.index.by_place:
            self.changed_ns = now_ns
        self.index = index

    def is_fleeting(self, key: Key) -> bool:
        """Whether the entry of the domain may be another's in the next moment, so that nobody may keep it."""
        return key not in self.index.records or self.index.is_fleeting(key.uuid)

    def guest(self, key: Key) -> Guest | None:
        """The domain of that key as of now, with all that finding its files takes.

        A key of generation `OWNER` is whichever domain has the guest's name.
        """
        return guest_in(self.index, key, self._places)


def guest_in(index: Index, key: Key, places: Callable[[str], Directories | None]) -> Guest | None:
    """The domain of that key in an index; also one that is gone, while something of it is kept."""
    record = index.owner(key.uuid) if key.generation == OWNER else index.records.get(key)
    if record is None and not index.keys_of.get(key.uuid) and (departed := index.departed.get(key.guest)):
        record = departed.record
    if record is None:
        return None
    return Guest(record, places(record.domain.connection), index.former.get(key.guest, ()), index)
