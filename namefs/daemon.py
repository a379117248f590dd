"""The daemon: puts the parts together, starts them in order, and stops them.

Readiness comes last and does not wait for libvirt: until it answers, the saved index is shown.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import signal
import socket
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import trio

from namefs import __version__, answers, control_server, expiry, fuse, mounts, naming
from namefs.answers import iso
from namefs.backing import Backing
from namefs.browse import Browser
from namefs.config import Config, check_overlap
from namefs.elsewhere import Elsewhere
from namefs.errors import ExitCode, NamefsError, sole_error
from namefs.guest import Shelf
from namefs.invalidation import Invalidator
from namefs.journal import Journal
from namefs.keeper import Keeper
from namefs.model import Sighted
from namefs.pending import Pending
from namefs.places import places_of
from namefs.projection import Projection
from namefs.renaming import Renaming
from namefs.served import Served
from namefs.statuses import Statuses
from namefs.tree import Extras
from namefs.view import View

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from uuid import UUID

    from namefs.layout.directories import Directories
    from namefs.model import Change, Domain, Key, Mark, Place
    from namefs.sources.reader import Reader

log = logging.getLogger(__name__)

_CHECKPOINT_S = 60.0
_DAY_NS = 86400 * 10**9


def run(config: Config) -> int:
    """Mount the view and serve it until SIGTERM, SIGINT or an unmount. Raises NamefsError."""
    places = places_of(config)
    served = [d for c in config.connections if (p := places(c.label)) is not None for d in _served(p)]
    check_overlap(config.mountpoint, served)
    _prepare_mountpoint(config.mountpoint)
    _raise_descriptor_limit()
    try:
        with closing(Journal(config.journal)) as journal:
            trio.run(_Daemon(config, places, journal).run)
    except BaseExceptionGroup as group:
        raise sole_error(group) from group
    return ExitCode.OK


def _served(places: Directories) -> list[str]:
    return [
        *(places.etc, places.run, places.lib, places.log, places.swtpm_log, places.swtpm_state),
        *(places.store, places.store_log),
    ]


def _prepare_mountpoint(mountpoint: str) -> None:
    mount = mounts.find(mountpoint)
    if mount is not None and mount.is_namefs:
        if not mounts.is_dead(mountpoint):
            raise NamefsError(ExitCode.MOUNT_FAILED, f"{mountpoint} is mounted: namefs umount ends that")
        log.info("%s was left by a daemon that died: detached", mountpoint)
        mounts.detach(mountpoint)
    try:
        os.makedirs(mountpoint, exist_ok=True)
        with os.scandir(mountpoint) as entries:
            if next(entries, None) is not None:
                what = f"{mountpoint} is not empty: the mount would hide what is there"
                raise NamefsError(ExitCode.MOUNT_FAILED, what)
    except OSError as error:
        raise NamefsError(ExitCode.MOUNT_FAILED, f"{mountpoint}: {error.strerror}") from error


def _raise_descriptor_limit() -> None:
    import resource

    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Daemon:
    def __init__(self, config: Config, places: Callable[[str], Directories | None], journal: Journal) -> None:
        self._config = config
        self._places = places
        self._journal = journal
        self._started_ns = time.time_ns()
        self._view = View(places, _extras(config))
        self._view.publish(journal.load(), self._started_ns)
        backing = Backing(config.mountpoint)
        self._shelf = Shelf(backing)
        self._keeper = self._kept()
        self._invalidator = Invalidator(self._withdraw)
        self._browser = Browser(self._view, self._shelf)
        statuses = Statuses(places, backing)
        self._projection = Projection(
            self._view, journal, self._measure, self._announce, statuses, self._invalidator.done
        )
        readers: dict[str, Reader] = {}
        elsewhere = Elsewhere(self._projection.apply, lambda: self._view.index, readers)
        self._served = [
            Served(
                connection,
                places(connection.label),
                config.spool_of(connection),
                self._view,
                elsewhere.apply,
                statuses,
                self._on_connected,
            )
            for connection in config.connections
        ]
        readers |= {one.label: one.reader for one in self._served}
        self._renaming = Renaming(
            self._view, readers, places, self._shelf, self._projection.apply, self._invalidator
        )
        self._pending = Pending(self._view, readers, self._projection.apply, self._renaming.in_the_way)

    def _announce(self, changes: Sequence[Change]) -> None:
        self._invalidator.submit(changes)
        self._pending.wake()
        if self._keeper is not None:
            self._keeper.wake(key for one in changes for key in (one.before, one.after) if key is not None)

    def _kept(self) -> Keeper | None:
        places = {one.label: here for one in self._config.connections if (here := self._places(one.label))}
        if not places:
            return None
        keeper = Keeper(places, self._shelf, lambda: self._view.index, self._config.log_keep_mib << 20)
        self._shelf.lives |= dict.fromkeys(places, keeper)
        return keeper

    def _on_connected(self, label: str) -> None:
        self._pending.wake()
        if self._keeper is not None:
            self._keeper.trust(label)

    def _remove_logs(self, uuids: Collection[UUID]) -> None:
        if self._keeper is not None:
            self._keeper.expire(uuids)

    def _has_logs(self, uuid: UUID) -> bool:
        return self._keeper is not None and self._keeper.has_logs(uuid)

    def _withdraw(self, place: Place) -> None:
        directory = self._browser.directory_of(place)
        if directory is not None:
            fuse.withdraw(directory, place.entry)

    def _measure(self, domain: Domain) -> tuple[Mark, ...]:
        return self._shelf.measure(self._places(domain.connection), domain)

    async def run(self) -> None:
        clean = False
        operations = fuse.Operations(
            self._view, self._browser, self._renaming.by_place, self._renaming.swap_places
        )
        try:
            async with trio.open_nursery() as nursery:
                # The control socket first: it is what tells two daemons apart.
                await nursery.start(control_server.serve, self._config.control_socket, self._answer)
                # What happened while nobody looked: a migration may have ended.
                await self._projection.apply(*map(Sighted, self._view.index.keys_of))
                self._mount(operations)
                nursery.start_soon(self._stop_on_signal)
                nursery.start_soon(self._invalidator.run)
                nursery.start_soon(self._projection.run)
                nursery.start_soon(self._pending.run)
                nursery.start_soon(self._checkpoint)
                nursery.start_soon(
                    expiry.run,
                    self._view,
                    self._projection.apply,
                    self._remove_logs,
                    self._has_logs,
                    self._config.deleted_days * _DAY_NS,
                )
                if self._keeper is not None:
                    nursery.start_soon(self._keeper.run)
                for one in self._served:
                    await one.start(nursery)
                nursery.start_soon(self._announce_ready)
                await fuse.serve()
                nursery.cancel_scope.cancel()
            clean = True
        finally:
            if self._mounted:
                # After a failure the mount stays, saying ENOTCONN: an empty directory would look as
                # if every guest had been deleted, and a mirror would follow suit.
                fuse.close(unmount=clean)
        log.info("unmounted")

    _mounted = False

    def _mount(self, operations: fuse.Operations) -> None:
        try:
            fuse.mount(operations, self._config.mountpoint, _mount_options(self._config))
        except RuntimeError as error:
            raise NamefsError(
                ExitCode.MOUNT_FAILED, f"{self._config.mountpoint} can't be mounted: {error}"
            ) from error
        self._mounted = True

    async def _checkpoint(self) -> None:
        while True:
            await trio.sleep(_CHECKPOINT_S)
            try:
                await trio.to_thread.run_sync(self._journal.checkpoint)
            except NamefsError as error:
                log.error("%s", error)

    async def _stop_on_signal(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                log.info("%s: unmounting", signal.Signals(number).name)
                fuse.stop()

    async def _announce_ready(self) -> None:
        # A request that went to the kernel and back: whoever waits for READY may use the view.
        await trio.to_thread.run_sync(os.statvfs, self._config.mountpoint)
        _notify(f"READY=1\nSTATUS=serving {self._config.mountpoint}")
        log.info("serving %s", self._config.mountpoint)

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["op"] == "status":
            return self._status()
        if request["op"] == "refresh":
            for one in self._served:
                await one.reader.refresh()
            return {}
        if request["op"] == "rename":
            return await self._renaming.by_request(request)
        return await trio.to_thread.run_sync(
            functools.partial(
                answers.answer, request, self._view.index, self._places, self._shelf, self._config.mountpoint
            )
        )

    def _status(self) -> dict[str, Any]:
        collisions = [r for r in self._view.index.records.values() if r.entry != naming.encode(r.name)]
        warnings = [
            f"{naming.display(os.fsdecode(r.entry))} is shown so since its name is another's"
            for r in collisions
        ]
        return {
            "version": __version__,
            "pid": os.getpid(),
            "mountpoint": self._config.mountpoint,
            "since": iso(self._started_ns),
            "guests": len(self._view.index.records),
            "deleted": len(self._view.index.departed),
            "connections": (connections := [one.status() for one in self._served]),
            # As it was when there was one connection.
            "hook": connections[0]["hook"],
            "journal": self._config.journal,
            "pending": [self._pending_of(key, why) for key, why in self._pending.why().items()],
            "migrations": self._migrations(),
            "warnings": warnings,
        }

    def _migrations(self) -> list[dict[str, str]]:
        index = self._view.index
        owners = (record for uuid in index.keys_of if (record := index.owner(uuid)) is not None)
        phases = ((record, answers.migration_of(index, record)) for record in owners)
        return [
            {"name": record.name, "uuid": str(record.key.uuid), "phase": phase}
            for record, phase in phases
            if phase is not None
        ]

    def _pending_of(self, key: Key, why: str) -> dict[str, str]:
        record = self._view.index.owner(key.uuid)
        assert record is not None
        return {
            "name": record.name,
            "libvirt_name": record.domain.name,
            "uuid": str(key.uuid),
            "why": why,
        }


def _extras(config: Config) -> Extras:
    return Extras(
        deleted=config.deleted_days > 0,
        by_uuid=".by-uuid" in config.extra_directories,
        by_libvirt_name=".by-libvirt-name" in config.extra_directories,
        former_ns=config.former_days * _DAY_NS or None,
    )


def _mount_options(config: Config) -> list[str]:
    # Others may look, under the kernel's own permission checks; without root, fuse.conf decides.
    return ["allow_other", *config.mount_options] if os.geteuid() == 0 else list(config.mount_options)


def _notify(message: str) -> None:
    """sd_notify(3), whose library would be a dependency for these lines."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        try:
            notify.connect("\0" + address[1:] if address.startswith("@") else address)
            notify.sendall(message.encode())
        except OSError as error:
            log.warning("the service manager can't be told: %s", os.strerror(error.errno or errno.EIO))
