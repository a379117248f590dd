"""``namefs links DIR``: the view as a tree of symlinks, without FUSE and without the daemon."""

from __future__ import annotations

import functools
import logging
import signal
import sys
import time
from typing import TYPE_CHECKING

import trio

from namefs import journal, log
from namefs.applying import apply
from namefs.backing import Backing
from namefs.errors import ExitCode, NamefsError
from namefs.guest import Shelf
from namefs.index import Index
from namefs.links.guests import trees
from namefs.links.tree import Writer
from namefs.model import Listed
from namefs.places import places_of
from namefs.sources.libvirt import Unreachable
from namefs.sources.once import listed
from namefs.sources.reader import Reader
from namefs.statuses import Statuses, concerned

if TYPE_CHECKING:
    from namefs.config import Config
    from namefs.model import Seen

_log = logging.getLogger(__name__)

_SETTLE_S = 0.05
_FILES_S = 10.0
"""How often files are looked for that come and go without an event of libvirt's: logs, snapshots."""


def links(config: Config, directory: str, *, watch: bool) -> int:
    """Write the tree; with ``watch`` keep it current until SIGTERM or SIGINT. Raises NamefsError."""
    tree = _Tree(config, Writer(directory))
    if watch:
        log.setup()
        trio.run(tree.watch)
    else:
        tree.write(tree.now())
    return ExitCode.OK


class _Tree:
    def __init__(self, config: Config, writer: Writer) -> None:
        self._config = config
        self._writer = writer
        self._places = places_of(config)
        backing = Backing(config.mountpoint)
        self._shelf = Shelf(backing)
        self._statuses = Statuses(self._places, backing)
        self._index = _saved(config)
        self._changed = trio.Event()
        self._failed = ""

    def write(self, index: Index) -> None:
        changed = self._writer.write(trees(index, self._places, self._shelf))
        if changed:
            _log.info("%d links and directories changed", changed)

    def now(self) -> Index:
        """What libvirt has now; of a connection that can't be reached, what the saved index has."""
        index = self._index
        for connection in self._config.connections:
            try:
                seen = Listed(connection.label, listed(connection))
                runs = self._statuses.read(concerned(index, [seen]))
                index = apply(index, [seen], time.time_ns(), runs).index
            except Unreachable as error:
                if not index.records:
                    raise NamefsError(ExitCode.LIBVIRT_UNREACHABLE, str(error)) from error
                print(f"namefs: {connection.label}: as last known, since {error}", file=sys.stderr)
        return index

    async def watch(self) -> None:
        async with trio.open_nursery() as nursery:
            for connection in self._config.connections:
                reader = Reader(
                    connection.uri,
                    connection.label,
                    self._apply,
                    lambda: self._index,
                    lambda: None,
                    connection.names,
                )
                nursery.start_soon(reader.run)
            nursery.start_soon(self._follow)
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _number in signals:
                    nursery.cancel_scope.cancel()
                    return

    async def _apply(self, *seen: Seen) -> None:
        due = concerned(self._index, seen)
        runs = await trio.to_thread.run_sync(self._statuses.read, due)
        self._index = apply(self._index, seen, time.time_ns(), runs).index
        self._changed.set()

    async def _follow(self) -> None:
        while True:
            with trio.move_on_after(_FILES_S):
                await self._changed.wait()
                # An event seldom comes alone.
                await trio.sleep(_SETTLE_S)
            self._changed = trio.Event()
            await trio.to_thread.run_sync(functools.partial(self._write_or_say, self._index))

    def _write_or_say(self, index: Index) -> None:
        failed = ""
        try:
            self.write(index)
        except NamefsError as error:
            # A full disk, or somebody's file in the way, ends: it is tried again, and said once.
            failed = str(error)
            if failed != self._failed:
                _log.warning("%s", failed)
        self._failed = failed


def _saved(config: Config) -> Index:
    """The daemon's saved index, if there is one: it knows what was asked for, and who had a name first."""
    try:
        return journal.read(config.journal)
    except NamefsError as error:
        if error.exit_code is not ExitCode.NOT_FOUND:
            raise
        return Index()
