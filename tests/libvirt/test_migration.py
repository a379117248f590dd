"""A guest that is migrated between two libvirts of this machine, seen by readers that never stop looking.

``foo`` and ``foo-incoming``; then, at once, ``foo`` is the target and ``foo-outgoing`` the source; then that
goes. Whatever happens to the migration: never two ``foo``, never none, no swap that did not happen.
"""

from __future__ import annotations

import os
import signal
from contextlib import closing
from typing import TYPE_CHECKING
from uuid import UUID

import libvirt
import pytest

from tests.lab import altered, guests
from tests.lab.migrating import qemu_pid, status
from tests.lab.seen_migrations import COPYING, FAILED, HERE, MIGRATED, SWAPPED, THERE, Lab, possible
from tests.lab.two_hosts import AS_ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.lab.histories import Stage
    from tests.lab.mounted import Mounted
    from tests.lab.two_hosts import TwoHosts

OTHER = UUID("00000000-0000-4000-8000-000000000bad")

PERSISTENT = libvirt.VIR_MIGRATE_PERSIST_DEST
UNDEFINE = libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
PEER_TO_PEER = libvirt.VIR_MIGRATE_PEER2PEER

VETO = """\
#!/bin/sh
cat >/dev/null
[ "$1 $2" != "foo {operation}" ]
"""


@pytest.fixture
def lab(hosts: TwoHosts, mount_both: Callable[..., Mounted]) -> Lab:
    return Lab(hosts, mount_both())


@pytest.mark.parametrize(
    "flags",
    [0, PERSISTENT | UNDEFINE, PERSISTENT | PEER_TO_PEER],
    ids=["stays defined there", "moved", "peer to peer"],
)
def test_foo_is_the_source_until_at_once_it_is_the_target(lab: Lab, flags: int) -> None:
    lab.start_foo()
    with lab.readers() as readers, lab.migration(flags) as migration:
        migration.await_copying()
        lab.shows(COPYING)
        migration.hurry()
        migration.succeeds()
        lab.shows(THERE)
    possible(readers, MIGRATED, COPYING)


def test_with_another_name_on_the_target_each_goes_by_its_own(lab: Lab) -> None:
    lab.start_foo(transient=True)
    copying, there = {"foo": "a", "bar-incoming": "b"}, {"bar": "b"}
    names = ("bar", "bar-incoming", "bar-outgoing")
    with (
        lab.readers(*names, target_name="bar") as readers,
        lab.migration(PERSISTENT, target_name="bar") as migration,
    ):
        migration.await_copying()
        lab.shows(copying)
        migration.hurry()
        migration.succeeds()
        lab.shows(there)
    possible(
        readers, [HERE, copying, {"bar": "b", "foo-outgoing": "a"}, there], ["foo", "bar-incoming", "bar"]
    )


@pytest.mark.parametrize("paused", ["by its user", "at its end"])
def test_one_that_arrives_paused_has_arrived(lab: Lab, paused: str) -> None:
    """libvirt announces no resumption then, and of a source that its user paused nothing at all."""
    lab.start_foo()
    if paused == "by its user":
        lab.a.virsh("suspend", "foo")
    with (
        lab.readers() as readers,
        lab.migration(libvirt.VIR_MIGRATE_PAUSED | PERSISTENT | UNDEFINE) as migration,
    ):
        migration.await_copying()
        lab.shows(COPYING)
        migration.hurry()
        migration.succeeds()
        lab.shows(THERE)
        assert lab.b.virsh("domstate", "foo", "--reason").strip() == "paused (user)"
    possible(readers, MIGRATED, COPYING)


def test_a_guest_that_is_off_goes_over_without_a_process(lab: Lab) -> None:
    lab.start_foo()
    lab.a.virsh("destroy", "foo")
    with (
        lab.readers() as readers,
        lab.migration(libvirt.VIR_MIGRATE_OFFLINE | PERSISTENT | UNDEFINE, live=False) as migration,
    ):
        migration.succeeds()
        lab.shows(THERE)
    possible(readers, [HERE, THERE])


def test_a_guest_is_nowhere_only_when_no_libvirt_has_it(
    hosts: TwoHosts, mount_both: Callable[..., Mounted]
) -> None:
    """The source has it no more, and of the target nothing was heard yet: it is asked."""
    lab = Lab(hosts, mount_both(command=altered.command(altered.deaf)))
    lab.start_foo()
    lab.a.virsh("destroy", "foo")
    with (
        lab.readers() as readers,
        lab.migration(libvirt.VIR_MIGRATE_OFFLINE | PERSISTENT | UNDEFINE, live=False) as migration,
    ):
        migration.succeeds()
        lab.shows(THERE)
    possible(readers, [HERE, THERE])


@pytest.fixture
def hosts_as_root(hosts: TwoHosts) -> Iterator[TwoHosts]:
    """Hosts whose QEMUs may do what post-copy takes."""
    before = {}
    for host in (hosts.a, hosts.b):
        file = host.root / "etc/libvirt/qemu.conf"
        before[file] = file.read_text()
        file.write_text(before[file] + AS_ROOT)
        host.restart_libvirtd()
    yield hosts
    for host in (hosts.a, hosts.b):
        file = host.root / "etc/libvirt/qemu.conf"
        file.write_text(before[file])
        host.restart_libvirtd()


def test_with_post_copy_the_target_is_foo_while_its_memory_is_fetched(
    hosts_as_root: TwoHosts, lab: Lab
) -> None:
    lab.start_foo()
    with (
        lab.readers() as readers,
        lab.migration(libvirt.VIR_MIGRATE_POSTCOPY | PERSISTENT | UNDEFINE) as migration,
    ):
        migration.await_copying()
        lab.shows(COPYING)
        migration.go_post_copy()
        lab.shows(SWAPPED)
        assert status(lab.a, "foo") is not None, "most of the memory is still there"
        migration.succeeds()
        lab.shows(THERE)
    possible(readers, MIGRATED, COPYING)


def test_aborted_the_source_was_foo_all_the_time(lab: Lab) -> None:
    lab.start_foo()
    with lab.readers() as readers, lab.migration() as migration:
        migration.await_copying()
        lab.shows(COPYING)
        migration.abort()
        migration.fails()
        lab.shows(HERE)
    possible(readers, FAILED, COPYING)


@pytest.mark.parametrize("killed", ["source", "target"])
def test_with_either_qemu_killed_the_source_is_foo_running_or_not(lab: Lab, killed: str) -> None:
    lab.start_foo()
    with lab.readers() as readers, lab.migration(PERSISTENT) as migration:
        migration.await_copying()
        lab.shows(COPYING)
        os.kill(qemu_pid(lab.a if killed == "source" else lab.b, "foo"), signal.SIGKILL)
        migration.fails()
        lab.shows(HERE)
        expected = b"shut off" if killed == "source" else b"running"
        lab.is_in_state("foo", expected)
    possible(readers, FAILED, COPYING)


@pytest.mark.parametrize("operation", ["migrate", "prepare", "started"])
def test_what_a_hook_of_the_target_refuses_has_not_arrived(lab: Lab, operation: str) -> None:
    lab.start_foo()
    lab.b.install_hook(VETO.format(operation=operation))
    with lab.readers() as readers, lab.migration() as migration:
        migration.fails()
        lab.shows(HERE)
    # Only "started" is asked when there is a target.
    possible(readers, FAILED if operation == "started" else [HERE])


def test_it_goes_back_again_as_it_came(lab: Lab) -> None:
    """The source that stayed defined is the target of the way back, and never shown beside the guest."""
    lab.start_foo()
    inodes = [lab.inode("foo")]
    for to, stages in ("b", MIGRATED), ("a", [swapped(stage) for stage in MIGRATED]):
        with lab.readers(to=to) as readers, lab.migration(PERSISTENT, to=to) as migration:
            migration.await_copying()
            lab.shows(stages[1])
            inodes.append(lab.inode("foo-incoming"))
            migration.hurry()
            migration.succeeds()
            lab.shows(stages[-1])
        possible(readers, stages, COPYING)
        assert lab.inode("foo") == inodes[-1], "who is in the directory stays in it when its name changes"
    assert inodes[0] == inodes[2] != inodes[1], "two generations, to and fro"


def swapped(stage: Stage) -> Stage:
    """The same, the other way."""
    return {name: {"a": "b", "b": "a"}[who] for name, who in stage.items()}


def test_saved_and_restored_it_is_migrated_nowhere(lab: Lab) -> None:
    """A restore goes through the states of a migration's target."""
    lab.start_foo()
    file = lab.a.root / "var/lib/libvirt/images/saved"
    with lab.readers(to=None) as readers:
        lab.a.virsh("managedsave", "foo")
        lab.a.virsh("start", "foo")
        lab.a.virsh("save", "foo", lab.a.inside(file))
        lab.a.virsh("restore", lab.a.inside(file))
        lab.is_in_state("foo", b"running")
    possible(readers, [HERE])


def test_a_guest_that_is_really_called_foo_incoming_keeps_its_name(lab: Lab) -> None:
    with closing(lab.a.connect()) as connection:
        connection.defineXML(guests.xml("foo-incoming", OTHER))
    lab.shows({"foo-incoming": "a"})
    inode = lab.inode("foo-incoming")
    lab.start_foo(besides={"foo-incoming": "a"})
    at_first: Stage = {"foo": "a", "foo-incoming": "a"}
    copying = {**at_first, "foo-incoming~00000000": "b"}
    with lab.readers("foo-incoming~00000000") as readers, lab.migration() as migration:
        migration.await_copying()
        lab.shows(copying)
        migration.hurry()
        migration.succeeds()
        lab.shows({**at_first, "foo": "b"})
    swap: Stage = {**at_first, "foo": "b", "foo-outgoing": "a"}
    possible(readers, [at_first, copying, swap, {**at_first, "foo": "b"}], copying)
    assert lab.inode("foo-incoming") == inode
