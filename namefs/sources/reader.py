"""From hints to observations: what may have changed is read from libvirt, once, and passed on.

A hint is a UUID or a libvirt name and claims nothing else. Hints are kept as a set: they coalesce,
so they can neither overflow nor come in a wrong order.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import trio

from namefs.errors import ExitCode, NamefsError
from namefs.model import Asked, Domain, Key, Listed, Observed
from namefs.name_sources import NameSources, renamed
from namefs.sources.libvirt import Connection, Unreachable, start_events

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from namefs.index import Index

log = logging.getLogger(__name__)
R = TypeVar("R")
Hint = UUID | str

RELIST_S = 3600.0
"""How often all domains are compared, as a net below lost hints."""

_RETRY_FIRST_S, _RETRY_MOST_S = 0.1, 2.0
_READ_AGAIN_S = 2.0

_FILES_SETTLE_S = 0.05

_TRIES = 5

_FACTS_AFTER_S = 0.005
"""After a new name is shown, the rest is read this much later: to parse a definition holds Python's lock
for a millisecond or two, and the kernel is still to be told of the name."""

_CALLS_MAX = 4
"""libvirtd takes 5 calls at a time from one client (max_client_requests in libvirtd.conf)."""

# Renamed in trio 0.23; a thread stuck in a call to a libvirtd that hangs must not keep us from ending.
_ABANDON = (
    "abandon_on_cancel"
    if "abandon_on_cancel" in inspect.signature(trio.to_thread.run_sync).parameters
    else "cancellable"
)


@dataclass(frozen=True, slots=True)
class State:
    """How a connection is: since when (seconds since the epoch), and the last error."""

    connected: bool
    since_s: float
    error: str | None = None


class _Unknown(Exception):
    """The name alone does not tell what to show."""


class Reader:
    """Keeps one libvirt connected and turns its hints into observations."""

    def __init__(
        self,
        uri: str,
        label: str,
        apply: Callable[..., Awaitable[None]],
        index: Callable[[], Index],
        connected: Callable[[], None],
        sources: NameSources,
    ) -> None:
        self.uri = uri
        self.label = label
        self.state = State(False, time.time())
        self._apply = apply
        self._index = index
        self._connected = connected
        self._sources = sources
        self._connection: Connection | None = None
        self._hints: set[Hint] = set()
        self._again: set[Hint] = set()
        self._reading: set[Hint] = set()
        self._wake = trio.Event()
        self._own_changes = 0
        self._heard: list[set[Hint]] = []
        # What we change and a list of all exclude each other: made before and applied after a change, a list
        # would turn that back, which looks as if somebody else had.
        self._changing = trio.Lock()
        self._limiter = trio.CapacityLimiter(_CALLS_MAX)

    def hint(self, what: Hint) -> None:
        """Have this domain read again soon."""
        self._hints.add(what)
        for heard in self._heard:
            heard.add(what)
        self._wake.set()

    async def run(self) -> None:
        """Connect, list, follow, and do it again when the connection is gone; until cancelled."""
        start_events()
        retry_s = _RETRY_FIRST_S
        while True:
            try:
                await self._follow()
                retry_s = _RETRY_FIRST_S
            except (Unreachable, NamefsError) as error:
                if str(error) != self.state.error:
                    log.info(
                        "libvirt at %s is not there, the view shows what was last known: %s", self.uri, error
                    )
                self.state = State(False, self.state.since_s, str(error))
            finally:
                connection, self._connection = self._connection, None
                if connection is not None:
                    with trio.CancelScope(shield=True), trio.move_on_after(2):
                        await self._call(connection.close)
            await trio.sleep(retry_s)
            retry_s = min(retry_s * 2, _RETRY_MOST_S)

    async def _follow(self) -> None:
        token, closed = trio.lowlevel.current_trio_token(), trio.Event()

        def soon(call: Callable[..., object], *args: object) -> None:
            try:
                token.run_sync_soon(functools.partial(call, *args))
            except trio.RunFinishedError:
                log.debug("an event came after the end")

        def lost(reason: str) -> None:
            log.info("libvirt at %s closed the connection: %s", self.uri, reason)
            soon(closed.set)

        connection = await self._call(
            Connection, self.uri, self.label, lambda uuid: soon(self.hint, uuid), lost, self._sources
        )
        self._connection = connection
        # Hints that come while the list is made are served after it: they may be newer.
        await self._list(connection)
        self.state = State(True, time.time())
        self._connected()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve_hints, nursery)
            nursery.start_soon(self._relist, connection)
            await closed.wait()
            nursery.cancel_scope.cancel()
        self.state = State(False, time.time(), "the connection was closed")

    async def _relist(self, connection: Connection) -> None:
        while True:
            await trio.sleep(RELIST_S)
            try:
                present = await self._call(connection.names)
            except Unreachable as error:
                log.info("listing failed: %s", error)
                continue
            known = {uuid for uuid, connection in self._index().domains if connection == self.label}
            for uuid in present | known:
                self.hint(uuid)

    async def _serve_hints(self, nursery: trio.Nursery) -> None:
        self._reading.clear()
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            hints, self._hints = self._hints, set()
            for what in hints:
                if what in self._reading:
                    self._again.add(what)
                else:
                    self._reading.add(what)
                    nursery.start_soon(self._read_hint, what)

    async def _read_hint(self, what: Hint) -> None:
        try:
            if isinstance(what, str):
                await self._resolve(what)
            else:
                await self.read(what)
        except Unreachable as error:
            log.debug("%s was not read: %s", what, error)
            await trio.sleep(_READ_AGAIN_S)
            self._again.add(what)
        except NamefsError as error:
            log.error("%s", error)
            await trio.sleep(_READ_AGAIN_S)
            self._again.add(what)
        except Exception:
            # One domain that we can't read is no reason to take the view of all from everybody.
            log.exception("%s was not read", what)
        finally:
            self._reading.discard(what)
            if what in self._again:
                self._again.discard(what)
                self.hint(what)

    async def _resolve(self, name: str) -> None:
        """Have those read that have the name, or had it when last seen.

        A file that changed tells less than the event that mostly comes with it. So it gives way: read
        at once, a rename took twice the time.
        """
        await trio.sleep(_FILES_SETTLE_S)
        connection = self._connection
        if connection is None:
            return
        found = await self._call(connection.uuid_of, name)
        for uuid in {*self._holder(name), *(() if found is None else (found,))}:
            self.hint(uuid)

    async def read(self, uuid: UUID) -> None:
        """Read a domain now, and whichever others its name concerns, and apply that as one.

        Its name comes first and alone, if it is another: all the rest takes libvirt six calls.
        Raises Unreachable, and NamefsError where it can't be saved.
        """
        connection = self._there()
        if await self._apply_seen(uuid, functools.partial(self._renamed, connection)):
            await trio.sleep(_FACTS_AFTER_S)
        await self._apply_seen(uuid, functools.partial(self._call, connection.by_uuid))

    async def _apply_seen(self, uuid: UUID, look: Callable[[UUID], Awaitable[Domain | None]]) -> bool:
        seen: dict[Key, Observed] = {}
        due = [uuid]
        before = self._own_changes
        while due:
            key = Key(due.pop())
            if key not in seen:
                try:
                    due += self._note(seen, key, await look(key.uuid))
                except _Unknown:
                    return False
        if self._own_changes != before:
            # Begun before a rename of ours and done after it: applied, this would turn it back for a moment.
            self.hint(uuid)
            return False
        await self._apply(*seen.values())
        for key in seen:
            if key.uuid != uuid:
                # Whoever reads that one for its own sake may have been later and yet done sooner.
                self.hint(key.uuid)
        return True

    async def _renamed(self, connection: Connection, uuid: UUID) -> Domain | None:
        """What is on record of a domain, with its name as it is now."""
        known = self._index().domains.get((uuid, self.label))
        if known is None:
            raise _Unknown
        name = await self._call(connection.name_of, uuid)
        if name == known.name:
            raise _Unknown
        return None if name is None else renamed(known, name)

    def _note(self, seen: dict[Key, Observed], key: Key, domain: Domain | None) -> list[UUID]:
        """Note what was read; returns who is on record with the same name.

        libvirt gives a name to one domain at a time. So that one has lost it, and is read too: both
        change in one transaction, and no reader sees the name twice.
        """
        seen[key] = Observed(key, self.label, domain)
        return [] if domain is None else [uuid for uuid in self._holder(domain.name) if uuid != key.uuid]

    def _holder(self, name: str) -> list[UUID]:
        key = self._index().by_name.get((self.label, name))
        return [] if key is None else [key.uuid]

    async def look(self, uuid: UUID) -> Domain | None:
        """What libvirt says of a domain now; None: it has no such one. Raises Unreachable."""
        return await self._call(self._there().by_uuid, uuid)

    async def rename(self, uuid: UUID, new: str) -> None:
        """Have libvirt rename a domain, and return once the view shows it.

        Raises Refused, Unreachable, and NamefsError where the change can't be saved.
        """
        connection = self._there()
        async with self._changing:
            await self._call(connection.rename, uuid, new)
            await self._apply_own(uuid, functools.partial(self._renamed, connection))
        self.hint(uuid)

    async def refresh(self) -> None:
        """List all domains and compare, and return once the view shows them. Raises NamefsError."""
        heard: set[Hint] = set()
        self._heard.append(heard)
        try:
            await self._list(self._there())
        except Unreachable as error:
            raise NamefsError(ExitCode.LIBVIRT_UNREACHABLE, str(error)) from error
        finally:
            self._heard.remove(heard)
            # They may be newer than the list, and yet have been served before it.
            for what in heard:
                self.hint(what)

    async def set_asked(self, uuid: UUID, asked: Asked | None) -> None:
        """Have the domain's metadata say what was asked for, and return once the view knows it.

        Raises Refused, Unreachable, and NamefsError where the change can't be saved.
        """
        connection = self._there()
        async with self._changing:
            await self._call(connection.set_asked, uuid, asked)
            await self._apply_own(uuid, functools.partial(self._call, connection.by_uuid))

    async def _apply_own(self, uuid: UUID, look: Callable[[UUID], Awaitable[Domain | None]]) -> None:
        """Apply what we have just changed; again if another change of ours came in between."""
        self._own_changes += 1
        for _ in range(_TRIES):
            before = self._own_changes
            if await self._apply_seen(uuid, look) or before == self._own_changes:
                break

    async def _list(self, connection: Connection) -> None:
        async with self._changing:
            await self._apply(Listed(self.label, await self._call(connection.listed)))

    def _there(self) -> Connection:
        if self._connection is None:
            raise Unreachable(self.state.error or "not connected")
        return self._connection

    async def _call(self, call: Callable[..., R], *args: object) -> R:
        options: dict[str, Any] = {_ABANDON: True, "limiter": self._limiter}
        result: R = await trio.to_thread.run_sync(functools.partial(call, *args), **options)
        return result
