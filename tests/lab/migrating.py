"""Migrations between two lab hosts, of guests whose copying takes as long as the test wants."""

from __future__ import annotations

import os
import threading
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree as ET

import libvirt

from tests.lab import guests
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType
    from uuid import UUID

    from tests.lab.host import Host
    from tests.lab.two_hosts import TwoHosts

PHASE_S = 30.0
END_S = 60.0

FILLED_MIB = 32
SLOW_MIB_S = 1
"""So that memory takes half a minute to copy: each test hurries it on when it has seen what it waits for."""
FAST_MIB_S = 1 << 20

LIVE = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_UNSAFE
"""Unsafe: to libvirt a local file system is none that two hosts share."""


HOLD = """\
#!/bin/sh
cat >/dev/null
[ "$1 $2" = "{name} {operation}" ] || exit 0
: >{file}.reached
while [ -e {file} ]; do sleep 0.02; done
"""


class Status(NamedTuple):
    """What libvirt's status file says of a running domain, in libvirt's own words."""

    state: str
    reason: str
    job: str
    phase: str


def status_file(host: Host, name: str) -> Path:
    """Where a domain's status file is, while it runs."""
    return host.outside(f"/run/libvirt/qemu/{name}.xml")


def status(host: Host, name: str) -> Status | None:
    """The status of a domain; None if it does not run."""
    try:
        root = ET.fromstring(status_file(host, name).read_bytes())
    except FileNotFoundError:
        return None
    job = root.find("job")
    of_job = {} if job is None else job.attrib
    return Status(
        root.attrib["state"], root.attrib["reason"], of_job.get("async", "none"), of_job.get("phase", "none")
    )


def qemu_pid(host: Host, name: str) -> int:
    """Process id of a running domain."""
    return int(host.outside(f"/run/libvirt/qemu/{name}.pid").read_text())


def start_guest(hosts: TwoHosts, name: str, uuid: UUID, *, transient: bool = False, **options: Any) -> None:  # noqa: ANN401 - guests.xml's
    """Run a guest on host A with memory to copy and an image that both hosts see."""
    memory = hosts.shared / "memory"
    if not memory.exists():
        memory.write_bytes(os.urandom(FILLED_MIB << 20))
    image = hosts.shared / f"{name}.qcow2"
    guests.make_disk(image)
    definition = guests.xml(name, uuid, disks={"vda": str(image)}, memory_file=str(memory), **options)
    with closing(hosts.a.connect()) as connection:
        if transient:
            connection.createXML(definition)
        else:
            connection.defineXML(definition).create()


class Hold:
    """A hook of a host that holds up an operation on a guest until it is released.

    libvirt waits for the hook, and whoever asks libvirt for that guest waits with it. ``directory`` is one
    that the host sees by the same path.
    """

    def __init__(self, host: Host, name: str, operation: str, directory: Path) -> None:
        self._file = directory / f"hold-{operation}"
        self._reached = directory / f"{self._file.name}.reached"
        self._file.touch()
        host.install_hook(HOLD.format(name=name, operation=operation, file=self._file), f"hold-{operation}")

    def await_reached(self) -> None:
        """Return when libvirt waits for the hook."""
        until(self._reached.exists, PHASE_S, f"libvirt comes to {self._file.name}")

    def release(self) -> None:
        """Let it go on; as often as one likes."""
        self._file.unlink(missing_ok=True)


class Migration:
    """A migration of a guest, in a thread, from when this is entered; at the end it is aborted, if it lasts.

    ``flags`` are libvirt's besides ``LIVE``; VIR_MIGRATE_PEER2PEER makes the source's libvirtd the one that
    manages it. ``name`` is its name on the source, ``target_name`` on the target if another. ``held`` is
    what holds it up: released when the migration is to end. ``xml`` and ``persistent_xml`` are the
    definitions that it gets there, if others.
    """

    def __init__(
        self,
        source: Host,
        target: Host,
        sockets: Path,
        name: str,
        flags: int = 0,
        *,
        target_name: str | None = None,
        mib_s: int = SLOW_MIB_S,
        live: bool = True,
        held: Sequence[Hold] = (),
        xml: str | None = None,
        persistent_xml: str | None = None,
    ) -> None:
        self.source, self.target = source, target
        self.name, self.target_name = name, target_name or name
        self.error: libvirt.libvirtError | None = None
        self._held = held
        self._flags = flags | (LIVE if live else libvirt.VIR_MIGRATE_UNSAFE)
        self._settings: dict[str, Any] = {}
        if not flags & libvirt.VIR_MIGRATE_OFFLINE:
            self._settings[libvirt.VIR_MIGRATE_PARAM_URI] = f"unix://{sockets}/{name}"
            self._settings[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = mib_s
        if target_name is not None:
            self._settings[libvirt.VIR_MIGRATE_PARAM_DEST_NAME] = target_name
        if xml is not None:
            self._settings[libvirt.VIR_MIGRATE_PARAM_DEST_XML] = xml
        if persistent_xml is not None:
            self._settings[libvirt.VIR_MIGRATE_PARAM_PERSIST_XML] = persistent_xml
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Migration:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: object, _trace: TracebackType | None
    ) -> None:
        for hold in self._held:
            hold.release()
        if self._thread.is_alive():
            with suppress(libvirt.libvirtError):
                self.abort()
        self._thread.join(END_S)
        assert not self._thread.is_alive(), "the migration does not end"

    @property
    def statuses(self) -> tuple[Status | None, Status | None]:
        """What the status files say on the source and on the target."""
        return status(self.source, self.name), status(self.target, self.target_name)

    def await_copying(self) -> None:
        """Return when memory is being copied: the target is there, and waits."""

        def copying() -> bool:
            self._still_going()
            ours, theirs = self.statuses
            return (
                ours is not None
                and (ours.job, ours.phase) == ("migration out", "perform3")
                and theirs is not None
                and (theirs.state, theirs.reason, theirs.job) == ("paused", "migration", "migration in")
            )

        until(copying, PHASE_S, "memory is copied")

    def await_switch(self) -> None:
        """Return when all is copied and the source has stopped: whether the target runs, it does not know."""

        def switching() -> bool:
            ours, _theirs = self.statuses
            return ours is not None and (ours.state, ours.phase) == ("paused", "perform3_done")

        until(switching, PHASE_S, "all is copied")

    def hurry(self) -> None:
        """Have the rest of the memory copied as fast as it goes."""
        with closing(self.source.connect()) as connection:
            connection.lookupByName(self.name).migrateSetMaxSpeed(FAST_MIB_S)

    def abort(self) -> None:
        """Have the source's libvirtd give it up."""
        with closing(self.source.connect()) as connection:
            connection.lookupByName(self.name).abortJob()

    def go_post_copy(self) -> None:
        """Have the target run now, and fetch the rest of its memory while it does."""
        with closing(self.source.connect()) as connection:
            connection.lookupByName(self.name).migrateStartPostCopy()

    def succeeds(self) -> None:
        """Return when it has ended. Raises libvirtError if it has failed."""
        self._join()
        if self.error is not None:
            raise self.error

    def fails(self) -> libvirt.libvirtError:
        """Return why it failed, when it has."""
        self._join()
        assert self.error is not None, "it was to fail"
        return self.error

    def _join(self) -> None:
        self._thread.join(END_S)
        assert not self._thread.is_alive(), f"the migration lasts: {self.statuses}"

    def _still_going(self) -> None:
        if not self._thread.is_alive():
            raise AssertionError(f"the migration has ended: {self.error}")

    def _run(self) -> None:
        try:
            with closing(self.source.connect()) as connection:
                domain = connection.lookupByName(self.name)
                if self._flags & libvirt.VIR_MIGRATE_PEER2PEER:
                    domain.migrateToURI3(self.target.uri, self._settings, self._flags)
                else:
                    with closing(self.target.connect()) as target:
                        domain.migrate3(target, self._settings, self._flags)
        except libvirt.libvirtError as error:
            self.error = error
