"""The index as it is published: what requests see, replaced by one assignment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from namefs.guest import Guest
from namefs.index import Index

if TYPE_CHECKING:
    from collections.abc import Callable

    from namefs.layout.directories import Directories
    from namefs.model import Key


class View:
    """The present index. `changed_ns` is when the root directory last changed."""

    def __init__(self, places: Callable[[str], Directories | None]) -> None:
        self.index = Index()
        self.changed_ns = 0
        self._places = places

    def publish(self, index: Index, now_ns: int) -> None:
        """Show this index from now on."""
        if index.by_entry != self.index.by_entry:
            self.changed_ns = now_ns
        self.index = index

    def guest(self, key: Key) -> Guest | None:
        """The domain of that key as of now, with all that finding its files takes."""
        return guest_in(self.index, key, self._places)


def guest_in(index: Index, key: Key, places: Callable[[str], Directories | None]) -> Guest | None:
    """The domain of that key in an index."""
    record = index.records.get(key)
    if record is None:
        return None
    return Guest(record, places(record.domain.connection), index.former.get(key, ()), index)
