"""Metadata and libvirt's own names follow what was asked for, as soon as libvirt allows it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NamedTuple

import trio

from namefs import naming
from namefs.errors import NamefsError
from namefs.following import Done, Rename, Step, Wait, Write, libvirts_step, step
from namefs.model import Asked, Key, Wished
from namefs.sources.libvirt import Refused, Unreachable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from namefs.model import Domain, Record
    from namefs.sources.reader import Reader
    from namefs.view import View

log = logging.getLogger(__name__)

_AGAIN_S = 10.0
"""After a refusal. What changes the reason mostly comes with a change that wakes us; a managed save image
that is removed does not."""


class _Refusal(NamedTuple):
    """A step that was refused: of a domain as it was then, when (of time.monotonic), and why."""

    due: Step
    domain: Domain
    at_s: float
    why: str


class Pending:
    """Names that were asked for. ``in_the_way`` tells what libvirt would destroy by a rename."""

    def __init__(
        self,
        view: View,
        readers: Mapping[str, Reader],
        apply: Callable[..., Awaitable[None]],
        in_the_way: Callable[[Record, str], Awaitable[str | None]],
    ) -> None:
        self._view = view
        self._readers = readers
        self._apply = apply
        self._in_the_way = in_the_way
        self._wake = trio.Event()
        self._refused: dict[Key, _Refusal] = {}

    def wake(self) -> None:
        """Something changed: look whether anything is to be done."""
        self._wake.set()

    def why(self) -> dict[Key, str]:
        """The domains whose libvirt name is yet to follow, and why it has not."""
        waiting: dict[Key, str] = {}
        for key in self._view.index.asked:
            due, refused = libvirts_step(self._view.index, key), self._refused.get(key)
            if isinstance(due, Wait):
                waiting[key] = due.why
            elif isinstance(due, Rename):
                waiting[key] = refused.why if refused else "libvirt is being asked to"
        return waiting

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            with trio.move_on_after(_AGAIN_S):
                await self._wake.wait()
            self._wake = trio.Event()
            for key in list(self._view.index.asked):
                await self._follow(key)

    async def _follow(self, key: Key) -> None:
        due, record = step(self._view.index, key), self._view.index.owner(key.uuid)
        if due is None or isinstance(due, Wait) or record is None:
            return
        reader = self._readers[record.domain.connection]
        if not reader.state.connected:
            return
        last = self._refused.get(key)
        # Of the domain as it is: what is refused while a guest is about to stop is not once it has.
        is_again = last is not None and (last.due, last.domain) == (due, record.domain)
        if last is not None and is_again and time.monotonic() - last.at_s < _AGAIN_S:
            return
        try:
            await self._take(due, reader)
        except (Refused, Unreachable, NamefsError) as error:
            if last is None or last.due != due:
                log.info("%s: %s", naming.display(record.name), error)
            self._refused[key] = _Refusal(due, record.domain, time.monotonic(), str(error))
        except Exception as error:
            # A bug that one guest brings to light must not keep the others' names from following.
            log.exception("what was asked for of %s", key.uuid)
            self._refused[key] = _Refusal(due, record.domain, time.monotonic(), repr(error))
        else:
            self._refused.pop(key, None)

    async def _take(self, due: Write | Rename | Done, reader: Reader) -> None:
        if isinstance(due, Write):
            await reader.set_asked(due.key.uuid, due.asked)
        elif isinstance(due, Rename):
            record = self._view.index.owner(due.key.uuid)
            left = None if record is None else await self._in_the_way(record, due.new)
            if left is not None:
                raise Refused(left, 0)
            await reader.rename(due.key.uuid, due.new)
            log.info("libvirt calls %s now %s, as was asked for", due.key.uuid, naming.display(due.new))
        else:
            asked = self._view.index.asked[due.key]
            await self._apply(
                Wished(due.key, Asked(None, max(time.time_ns(), asked.asked_ns + 1), asked.follows), asked)
            )
