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

from namefs import __version__, answers, control_server, fuse, mounts, naming
from namefs.answers import iso
from namefs.backing import Backing
from namefs.browse import Browser
from namefs.config import Config, check_overlap
from namefs.errors import ExitCode, NamefsError, sole_error
from namefs.guest import Shelf
from namefs.invalidation import Invalidator
from namefs.journal import Journal
from namefs.places import places_of
from namefs.projection import Projection
from namefs.renaming import Renaming
from namefs.sources.files import Files
from namefs.sources.reader import Reader
from namefs.view import View

if TYPE_CHECKING:
    from collections.abc import Callable

    from namefs.layout.directories import Directories
    from namefs.model import Mark, Record

log = logging.getLogger(__name__)

_CHECKPOINT_S = 60.0


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
    return [places.etc, places.run, places.lib, places.log, places.swtpm_log, places.swtpm_state]


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
        # One connection, until the index knows what to make of a UUID that is on two.
        (self._connection,) = config.connections
        label = self._connection.label
        self._view = View(places)
        self._view.publish(journal.load(), self._started_ns)
        self._shelf = Shelf(Backing(config.mountpoint))
        self._invalidator = Invalidator(fuse.withdraw)
        self._projection = Projection(self._view, journal, self._measure, self._invalidator.submit)
        self._reader = Reader(
            self._connection.uri, label, self._projection.apply, lambda: self._view.index, self._on_connected
        )
        self._files = Files(
            places(label),
            config.spool,
            label,
            lambda: self._view.index,
            self._reader.hint,
            self._projection.apply,
            self._hint_all,
        )
        self._renaming = Renaming(self._view, self._reader, places, self._shelf, self._invalidator.submit)

    def _measure(self, record: Record) -> tuple[Mark, ...]:
        return self._shelf.measure(self._places(record.domain.connection), record)

    def _on_connected(self) -> None:
        self._files.watch()
        log.info("connected to %s: %d guests", self._connection.uri, len(self._view.index.records))

    def _hint_all(self) -> None:
        for key in self._view.index.records:
            self._reader.hint(key.uuid)

    async def run(self) -> None:
        clean = False
        operations = fuse.Operations(self._view, Browser(self._view, self._shelf), self._renaming.by_entry)
        try:
            async with trio.open_nursery() as nursery:
                # The control socket first: it is what tells two daemons apart.
                await nursery.start(control_server.serve, self._config.control_socket, self._answer)
                await nursery.start(self._files.run)
                self._mount(operations)
                nursery.start_soon(self._stop_on_signal)
                nursery.start_soon(self._invalidator.run)
                nursery.start_soon(self._projection.run)
                nursery.start_soon(self._checkpoint)
                nursery.start_soon(self._reader.run)
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
        if request["op"] == "rename":
            return await self._renaming.by_request(request)
        return await trio.to_thread.run_sync(
            functools.partial(
                answers.answer, request, self._view.index, self._places, self._shelf, self._config.mountpoint
            )
        )

    def _status(self) -> dict[str, Any]:
        state = self._reader.state
        called_s = self._files.last_call_s
        collisions = [r for r in self._view.index.records.values() if r.entry != naming.encode(r.domain.name)]
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
            "connections": [
                {
                    "label": self._reader.label,
                    "uri": self._reader.uri,
                    "state": "connected" if state.connected else "waiting",
                    "since": iso(int(state.since_s * 1e9)),
                    "error": state.error,
                }
            ],
            "hook": {
                "spool": self._config.spool,
                "last_call": None if called_s is None else iso(int(called_s * 1e9)),
                "installed": self._hook_installed(),
            },
            "journal": self._config.journal,
            "warnings": warnings,
        }

    def _hook_installed(self) -> bool:
        places = self._places(self._reader.label)
        if places is None:
            return False
        hooks = os.path.join(os.path.dirname(places.etc), "hooks", "qemu.d")
        try:
            return any("namefs" in entry for entry in os.listdir(hooks))
        except OSError:
            return False


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
