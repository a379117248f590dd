"""What libvirt's own files and the hook's spool tell, as it happens.

Much that libvirt does is announced by no event (autostart, ``attach --config``, an external
snapshot), but ends in a new file under the domain's name: that is a hint. The hook's record says more:
libvirt stands still while the hook runs, so its name and UUID are the truth of that moment.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

import trio

from namefs import domxml, migration
from namefs.errors import NamefsError
from namefs.model import Domain, Key, Observed, Sighted
from namefs.sources import hook, inotify

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from namefs.index import Index
    from namefs.layout.directories import Directories
    from namefs.model import Seen
    from namefs.statuses import Statuses

log = logging.getLogger(__name__)

_REWATCH_S = 10.0
_SWEEP_AGE_S = 3600.0
_RECORD_MAX_BYTES = 1 << 16

_ARRIVALS = inotify.CREATE | inotify.MOVED_TO
_DEFINITIONS = inotify.MOVED_TO | inotify.MOVED_FROM | inotify.DELETE | inotify.CLOSE_WRITE
_LINKS = inotify.CREATE | inotify.MOVED_TO | inotify.MOVED_FROM | inotify.DELETE

_BEGINNING = ("prepare", "start", "started")
"""Operations for a domain that exists. (``migrate`` runs before libvirt has checked name and UUID.)"""


class Files:
    """Watches the directories of one connection, and the spool."""

    def __init__(
        self,
        places: Directories | None,
        spool: str,
        label: str,
        index: Callable[[], Index],
        hint: Callable[[UUID | str], None],
        apply: Callable[..., Awaitable[None]],
        lost: Callable[[], None],
        statuses: Statuses,
    ) -> None:
        self._spool = spool
        self._label = label
        self._index = index
        self._hint = hint
        self._apply = apply
        self._lost = lost
        self._statuses = statuses
        self._places = places
        self._inotify = inotify.Inotify()
        self._watched = (
            {}
            if places is None
            else {
                # libvirt makes places.etc for its first guest, and autostart for the first of those.
                os.path.dirname(places.etc): _ARRIVALS,
                places.etc: _DEFINITIONS | inotify.CREATE,
                os.path.join(places.etc, "autostart"): _LINKS,
                places.run: _DEFINITIONS,
            }
        )
        self.last_call_s: float | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pass on what happens until cancelled. Started once the spool is watched."""
        try:
            os.makedirs(self._spool, mode=0o700, exist_ok=True)
            self._inotify.watch(self._spool, inotify.CLOSE_WRITE | inotify.MOVED_TO)
            self.watch()
            task_status.started()
            await trio.to_thread.run_sync(self._sweep)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._rewatch)
                while True:
                    for event in await self._inotify.events():
                        await self._happened(event)
        finally:
            self._inotify.close()

    def watch(self) -> None:
        """Watch what is there by now: libvirt makes its directories when it first starts."""
        for path, mask in self._watched.items():
            self._inotify.watch(path, mask)

    async def _rewatch(self) -> None:
        while True:
            await trio.sleep(_REWATCH_S)
            self.watch()
            os.makedirs(self._spool, mode=0o700, exist_ok=True)
            self._inotify.watch(self._spool, inotify.CLOSE_WRITE | inotify.MOVED_TO)

    async def _happened(self, event: inotify.Event) -> None:
        if event.mask & inotify.OVERFLOW:
            log.info("more happened than the kernel keeps; everything is listed again")
            self._lost()
        elif event.path == self._spool:
            await self._called(event.entry)
        elif event.mask & _ARRIVALS and (path := self._path_of(event)) in self._watched:
            self.watch()
            # What was put there before it was watched is told by nobody.
            with suppress(FileNotFoundError, NotADirectoryError):
                for entry in os.listdir(path):
                    self._hint_of(os.fsencode(entry))
        else:
            if self._places is not None and event.path == self._places.run:
                await self._changed(self._places, event.entry)
            self._hint_of(event.entry)

    async def _changed(self, places: Directories, entry: bytes) -> None:
        """A status file came, was replaced or went. Of a guest that is migrated it says at once what is what.

        libvirt tells of a target only seconds later (it holds the domain's lock while the hooks run),
        and of a target's becoming the guest over another socket than of the source's end.
        """
        if not entry.endswith(b".xml"):
            return
        index, name = self._index(), os.fsdecode(entry[: -len(b".xml")])
        status = await trio.to_thread.run_sync(self._statuses.file, places, entry)
        key = index.by_name.get((self._label, name))
        seen: Seen | None = None if key is None else Sighted(key.uuid)
        try:
            if status is not None:
                uuid, run = domxml.parse_run(status)
                if run.job == migration.IN and (uuid, self._label) not in index.domains:
                    seen = Observed(Key(uuid), self._label, domxml.parse_running(self._label, status))
            if seen is not None:
                await self._apply(seen)
        except domxml.NotADomain as error:
            log.debug("%r: %s", entry, error)
        except NamefsError as error:
            log.error("%s", error)

    def _path_of(self, event: inotify.Event) -> str:
        return os.path.join(event.path, os.fsdecode(event.entry))

    def _hint_of(self, entry: bytes) -> None:
        if entry.endswith(b".xml"):
            self._hint(os.fsdecode(entry[: -len(b".xml")]))

    async def _called(self, entry: bytes) -> None:
        try:
            record = await trio.to_thread.run_sync(functools.partial(self._read, entry))
            call = hook.parse(record)
        except (OSError, hook.Incomplete) as error:
            # Cut short by a full disk or a kill. It was a call all the same, of the UUID it is called by.
            log.info("a record of the hook, %r, can't be read: %s", entry, error)
            with suppress(ValueError):
                self._hint(UUID(os.fsdecode(entry.partition(b".")[0])))
            return
        self.last_call_s = time.time()
        key = Key(call.uuid)
        known = self._index().domains.get((call.uuid, self._label))
        if call.operation in _BEGINNING and (known is None or known.name != call.name):
            if known is not None:
                domain = replace(known, name=call.name)
            else:
                domain = Domain(call.uuid, call.name, self._label, persistent=False)
            try:
                await self._apply(Observed(key, self._label, domain))
            except NamefsError as error:
                log.error("%s", error)
        self._hint(call.uuid)

    def _read(self, entry: bytes) -> bytes:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(os.path.join(os.fsencode(self._spool), entry), flags)
        with os.fdopen(fd, "rb") as file:
            return file.read(_RECORD_MAX_BYTES)

    def _sweep(self) -> None:
        """Remove old records of domains that are gone.

        The others stay: the hook writes into the record that is there, and one that was unlinked
        under its hand would take the call with it. What was called while nobody watched needs no
        reading: everything is listed at the start.
        """
        known = {str(key.uuid) for key in self._index().records}
        with os.scandir(self._spool) as records:
            for record in records:
                age_s = time.time() - record.stat(follow_symlinks=False).st_mtime
                if age_s > _SWEEP_AGE_S and record.name.partition(".")[0] not in known:
                    os.unlink(record.path)
