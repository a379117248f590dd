"""Sees to it that all guests' logs are kept, also those that nobody looks at.

What is written is copied soon, so that neither a rotation nor another guest of the same name takes it away.
Once all that is in the files of a name that nobody has any more is in the store, they go, and the next guest
of that name begins a file of its own.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import threading
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

import trio

from namefs import logs
from namefs.copying import Copier
from namefs.layout import libvirt
from namefs.layout.artefact import Kind, str_of
from namefs.log_sources import LOG, UNMARKED_NS, LogSources
from namefs.model import OWNER, Key
from namefs.pieces import mark
from namefs.removal import put_back, remove_unwritten
from namefs.sources import inotify
from namefs.view import guest_in

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from uuid import UUID

    from namefs.backing import Directory
    from namefs.guest import Guest, Looked, Shelf
    from namefs.index import Index
    from namefs.layout.artefact import Artefact
    from namefs.layout.directories import Directories
    from namefs.pieces import Written

R = TypeVar("R")

log = logging.getLogger(__name__)

_COALESCED_S = 0.05
_AGAIN_S = UNMARKED_NS / 1e9 + 0.5
_ALL_S = 3600.0
_REWATCH_S = 10.0
_EVENTS = inotify.MODIFY | inotify.CREATE | inotify.MOVED_TO


class Keeper:
    """The logs of all guests. What blocks is done in one thread of its own.

    ``places`` are the directories of the connections whose files are on this host, by label.
    """

    def __init__(
        self,
        places: Mapping[str, Directories],
        shelf: Shelf,
        index: Callable[[], Index],
        keep_bytes: int,
    ) -> None:
        self._places = places
        self._pieces = shelf.pieces
        self._index = index
        self._store_log = next(iter(places.values())).store_log
        self._sources = LogSources(shelf.pieces, places.get)
        self._copier = Copier(self._store_log, self._sources, keep_bytes)
        self._dirty: set[Key] = set()
        self._woken = trio.Event()
        self._thread = trio.CapacityLimiter(1)
        self._said: set[str] = set()
        self._searched = False
        self._searching = threading.Lock()

    def look(self, guest: Guest, log: str | None = None) -> Looked:
        """Copy what is new, of one log or of all. Blocks; costs little if nothing is. Thread-safe."""
        self._find_strays_first()
        return self._copier.look(guest, log)

    def trust(self, label: str) -> None:
        """The index is what this libvirt says: it decides whose lines are that do not tell themselves."""
        self._sources.certain.add(label)
        self.wake(self._all())

    def wake(self, keys: Iterable[Key]) -> None:
        """Something happened to these domains or their logs."""
        self._dirty.update(keys)
        self._woken.set()

    async def run(self) -> None:
        """Copy what appears, until cancelled."""
        with closing(inotify.Inotify()) as happening:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._copy_all)
                nursery.start_soon(self._watch, happening)
                nursery.start_soon(self._copy_woken, nursery)
                while True:
                    for event in await happening.events():
                        if event.mask & inotify.OVERFLOW:
                            self.wake(self._all())
                        else:
                            self.wake(self._written_by(event))

    def take_found(self) -> set[UUID]:
        """The domains of which a log was found, since the last call, under a name that they had unseen."""
        return self._sources.take_found()

    def expire(self, uuids: Collection[UUID]) -> None:
        """Remove the logs of these guests, those excepted that libvirt has. Blocks. Raises OSError."""
        for uuid in uuids:
            if uuid not in self._index().keys_of:
                self._copier.forget(uuid)
                self._sources.forget(uuid)
                directory = os.path.join(self._store_log, str(uuid))
                if os.path.isdir(directory):
                    shutil.rmtree(directory)

    def has_logs(self, uuid: UUID) -> bool:
        """Whether the store has any log of a guest's. Blocks."""
        try:
            return bool(os.listdir(os.path.join(self._store_log, str(uuid))))
        except FileNotFoundError:
            return False

    def _all(self) -> list[Key]:
        index = self._index()
        return [Key(uuid) for uuid in {*index.keys_of, *(key.uuid for key in index.departed)}]

    def _written_by(self, event: inotify.Event) -> Iterator[Key]:
        """Whose log the file may be that an event is about."""
        match = LOG.fullmatch(event.entry)
        if match is None:
            return
        index = self._index()
        parts = match[1].split(b"-")
        stems = {match[1]}
        if len(parts) > 1 and parts[-1] in (b"swtpm", b"virtiofsd"):
            # Any alias may be between name and end.
            stems |= {b"-".join(parts[:count]) for count in range(1, len(parts))}
        for stem in stems:
            name = str_of(stem)
            for label, places in self._places.items():
                if event.path in (places.log, places.swtpm_log) and (label, name) in index.by_name:
                    yield index.by_name[label, name].guest
            yield from (holder for holder, _former in index.holders.get(name, ())[-1:])

    async def _watch(self, happening: inotify.Inotify) -> None:
        while True:
            # libvirt makes its directories when it first starts, or a guest does.
            for path in self._log_directories():
                happening.watch(path, _EVENTS)
            await trio.sleep(_REWATCH_S)

    def _log_directories(self) -> set[str]:
        return {path for places in self._places.values() for path in (places.log, places.swtpm_log)}

    async def _copy_all(self) -> None:
        await self._in_thread(self._put_back)
        while True:
            self.wake(self._all())
            await trio.sleep(_ALL_S)
            await self._in_thread(self.find_strays)

    async def _copy_woken(self, nursery: trio.Nursery) -> None:
        while True:
            await self._woken.wait()
            await trio.sleep(_COALESCED_S)
            self._woken = trio.Event()
            keys, self._dirty = self._dirty, set()
            again: set[Key] = set()
            for key in keys:
                if await self._in_thread(self.keep, key) is False:
                    again.add(key)
            if again:
                nursery.start_soon(self._wake_later, again)
            if found := self.take_found():
                self.wake(map(Key, found))

    async def _in_thread(self, call: Callable[..., R], *arguments: object) -> R | None:
        """What the call returns; None if it meets a file that can't be used, which is said once."""
        try:
            return await trio.to_thread.run_sync(functools.partial(call, *arguments), limiter=self._thread)
        except OSError as error:
            if str(error) not in self._said:
                self._said.add(str(error))
                log.warning("a log can't be kept: %s", error)
        except Exception:
            # One log that we can't read is no reason to take the view of all from everybody.
            log.exception("a log was not kept")
        return None

    async def _wake_later(self, keys: set[Key]) -> None:
        await trio.sleep(_AGAIN_S)
        self.wake(keys)

    def keep(self, key: Key) -> bool:
        """Copy a guest's logs, and remove what is left under names of nobody's. Blocks. False: try again."""
        guest = self._guest(key)
        if guest is None:
            return True
        self._find_strays_first()
        looked = self._copier.look(guest)
        tidied = [
            self._tidied(face, name)
            for face in self._sources.faces(guest)
            for name in {*face.lost_names, *self._sources.strays(face)}
        ]
        # While it is migrated, what the target writes waits for the source's end.
        is_whole = not self._index().is_fleeting(key.uuid)
        return is_whole and not looked.undecided and not looked.failing and all(tidied)

    def _guest(self, key: Key) -> Guest | None:
        return guest_in(self._index(), Key(key.uuid, OWNER), self._places.get)

    def _tidied(self, guest: Guest, name: str) -> bool:
        """Remove the files of a name that nobody has, if all of them is kept. False: try again."""
        label, places = guest.record.domain.connection, guest.places
        if places is None or self._is_taken(label, name):
            return True
        done = True
        for artefact in libvirt.logs_called(name, guest.record.domain, places):
            with self._pieces.backing.directory(artefact.base, artefact.below) as directory:
                if directory is not None:
                    # The newest first: it may hold lines that only the older ones tell whose they are.
                    files = [written.file for written in self._pieces.written(artefact, directory)][::-1]
                    may_go = functools.partial(self._is_kept, label, artefact, directory)
                    if files and may_go():
                        done &= remove_unwritten(directory.fd, files, may_go)
        return done

    def _is_taken(self, label: str, name: str) -> bool:
        return label not in self._sources.certain or (label, name) in self._index().by_name

    def _is_kept(self, label: str, artefact: Artefact, directory: Directory) -> bool:
        """Whether all lines under a name that nobody has are in the logs of whom they belong to."""
        owned: dict[UUID, set[tuple[int, int]]] = {}
        for written in self._pieces.written(artefact, directory):
            if written.info.st_size:
                owners = self._owners(label, artefact, written)
                if not owners or None in owners:
                    return False
                for uuid in filter(None, owners):
                    owned.setdefault(uuid, set()).add((written.info.st_dev, written.info.st_ino))
        for uuid, inodes in owned.items():
            guest = self._guest(Key(uuid))
            if guest is None:
                return False
            looked = self._copier.look(guest)
            if looked.undecided or looked.failing or not inodes <= looked.joined:
                return False
            self._copier.sync(guest)
        return not self._is_taken(label, artefact.name)

    def _owners(self, label: str, artefact: Artefact, written: Written) -> set[UUID | None]:
        held, file = self._index().holders.get(artefact.name, ()), mark(written.info)
        holders = [one for one in held if one[1].connection in ("", label)]
        if artefact.kind is Kind.NAMED_LOG:
            keys = {key for key, _former in holders}
            return {key.uuid for key in keys if logs.by_marks(file, holders, None, key.uuid)}
        if written.starts is None:
            return set()
        owners = {start.uuid for start in written.starts}
        if not written.starts or written.starts[0].offset > 0:
            owners.add(written.before or logs.head_owner(file, holders, None))
        return owners

    def find_strays(self) -> None:
        """Find the names that guests had while nobody watched, which their logs tell. Blocks."""
        guest = next(filter(None, map(self._guest, self._all())), None)
        if guest is not None:
            for label in self._places:
                self._sources.find_strays(label, guest)
            self._searched = True

    def _find_strays_first(self) -> None:
        """Before anything is copied: what was written first under another name is to come first."""
        if not self._searched:
            with self._searching:
                if not self._searched:
                    self.find_strays()

    def _put_back(self) -> None:
        for path in self._log_directories():
            with self._pieces.backing.directory(path) as directory:
                if directory is not None:
                    put_back(directory.fd)
