"""Of a guest that one libvirt has no more, the others are asked before its loss is shown.

A guest that is off is migrated without a word from its source but a file that is gone (``--offline
--undefinesource``), and the target's event may come later than that: it was nowhere for some milliseconds.
"""

from __future__ import annotations

import logging
from itertools import chain
from typing import TYPE_CHECKING

import trio

from namefs.model import Key, Listed, Observed
from namefs.sources.libvirt import Unreachable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
    from uuid import UUID

    from namefs.index import Index
    from namefs.model import Seen
    from namefs.sources.reader import Reader

log = logging.getLogger(__name__)

_ANSWERED_WITHIN_S = 1.0
"""A libvirtd that runs a hook answers nobody meanwhile. It tells of the guest itself, then."""


class Elsewhere:
    """Passes on what a connection tells; ``readers`` are all of them, by label."""

    def __init__(
        self,
        apply: Callable[..., Awaitable[None]],
        index: Callable[[], Index],
        readers: Mapping[str, Reader],
    ) -> None:
        self._apply = apply
        self._index = index
        self._readers = readers

    async def apply(self, *seen: Seen) -> None:
        """Apply what was seen, with what the others have of guests that it takes away. Raises NamefsError."""
        found = [await self._others(uuid, label) for uuid, label in self._lost(seen)]
        await self._apply(*seen, *chain.from_iterable(found))

    def _lost(self, seen: Sequence[Seen]) -> Iterator[tuple[UUID, str]]:
        """The guests that are known of nowhere else, and the connection that has them no more."""
        domains = self._index().domains
        for one in seen if len(self._readers) > 1 else ():
            if isinstance(one, Observed) and one.domain is None:
                before, now = {one.key.uuid}, set()
            elif isinstance(one, Listed):
                before = {uuid for uuid, connection in domains if connection == one.connection}
                now = {domain.uuid for domain in one.domains}
            else:
                continue
            for uuid in before - now:
                if [label for label in self._readers if (uuid, label) in domains] == [one.connection]:
                    yield uuid, one.connection

    async def _others(self, uuid: UUID, lost_by: str) -> list[Observed]:
        found = []
        for label, reader in self._readers.items():
            if label == lost_by:
                continue
            domain = None
            with trio.move_on_after(_ANSWERED_WITHIN_S):
                try:
                    domain = await reader.look(uuid)
                except Unreachable as error:
                    log.debug("%s was not asked for on %s: %s", uuid, label, error)
            if domain is not None:
                found.append(Observed(Key(uuid), label, domain))
        return found
