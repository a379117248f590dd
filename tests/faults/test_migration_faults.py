"""Either libvirtd, or namefs, ended and started again in each phase of a migration, while readers look.

Phases are held up by hooks, which libvirt waits for, so that none is over before it was looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import libvirt
import pytest

from tests.lab.migrating import Status, status
from tests.lab.seen_migrations import COPYING, FAILED, HERE, MIGRATED, SWAPPED, THERE, Lab, possible
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted
    from tests.lab.readers import Readers
    from tests.lab.two_hosts import TwoHosts

SOON_S = 30.0
LEFT = Status("paused", "migration", "none", "none")
PEER_TO_PEER = libvirt.VIR_MIGRATE_PEER2PEER
MOVED = libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE


@pytest.fixture
def lab(hosts: TwoHosts, mount_both: Callable[..., Mounted]) -> Lab:
    return Lab(hosts, mount_both())


def kill_namefs(lab: Lab, readers: Readers) -> None:
    """Kill namefs, and start it again. The readers meet the dead view, which ends them, and start again."""
    lab.mounted.kill()
    readers.end()
    lab.mounted.start()
    readers.start()


def test_namefs_killed_in_each_phase_goes_on_with_what_is_true_then(lab: Lab) -> None:
    lab.start_foo()
    starting, ending = lab.hold(lab.b, "started"), lab.hold(lab.a, "stopped")
    with lab.readers() as readers, lab.migration(MOVED) as migration:
        lab.shows(COPYING)
        kill_namefs(lab, readers)
        lab.shows(COPYING)

        starting.release()
        migration.await_copying()
        kill_namefs(lab, readers)
        lab.shows(COPYING)

        migration.hurry()
        lab.shows(SWAPPED)
        kill_namefs(lab, readers)
        lab.shows(SWAPPED)

        ending.release()
        migration.succeeds()
        lab.shows(THERE)
    possible(readers, MIGRATED, {**SWAPPED, **COPYING})


def test_what_changed_while_namefs_was_dead_is_shown_when_it_lives_again(lab: Lab) -> None:
    lab.start_foo()
    ending = lab.hold(lab.a, "stopped")
    with lab.readers() as readers, lab.migration(MOVED) as migration:
        migration.await_copying()
        lab.shows(COPYING)
        lab.mounted.kill()
        readers.end()
        migration.hurry()
        until(lambda: is_running(lab.b), SOON_S, "the target is the guest")
        lab.mounted.start()
        # At once, before libvirt was asked: its calls wait for the hook.
        with readers:
            lab.shows(SWAPPED)
            ending.release()
            migration.succeeds()
            lab.shows(THERE)
    possible(readers, MIGRATED, {**SWAPPED, **COPYING})


def is_running(host: Host) -> bool:
    its = status(host, "foo")
    return its is not None and its.state == "running"


@pytest.mark.parametrize("phase", ["starting", "copying"])
@pytest.mark.parametrize("victim", ["source", "target"])
def test_with_either_libvirtd_killed_before_the_swap_there_is_none(lab: Lab, victim: str, phase: str) -> None:
    lab.start_foo()
    starting = lab.hold(lab.b, "started")
    host = lab.a if victim == "source" else lab.b
    with lab.readers() as readers, lab.migration() as migration:
        lab.shows(COPYING)
        if phase == "copying":
            starting.release()
            migration.await_copying()
        host.kill_libvirtd()
        starting.release()
        host.start_libvirtd()
        migration.fails()
        lab.shows(HERE)
        lab.is_in_state("foo", b"running")
    possible(readers, FAILED, COPYING)


@pytest.mark.parametrize("victim", ["source", "target"])
def test_with_either_libvirtd_killed_after_the_swap_it_stays(lab: Lab, victim: str) -> None:
    lab.start_foo()
    ending = lab.hold(lab.a, "stopped")
    host = lab.a if victim == "source" else lab.b
    with lab.readers() as readers, lab.migration(libvirt.VIR_MIGRATE_PERSIST_DEST) as migration:
        migration.await_copying()
        lab.shows(COPYING)
        migration.hurry()
        ending.await_reached()
        lab.shows(SWAPPED)
        host.kill_libvirtd()
        lab.shows(SWAPPED)
        ending.release()
        host.start_libvirtd()
        lab.shows(THERE)
        lab.is_in_state("foo", b"running")
    possible(readers, MIGRATED, {**SWAPPED, **COPYING})


def test_a_source_that_is_left_behind_stopped_is_outgoing_until_somebody_ends_it(lab: Lab) -> None:
    """Its libvirtd was killed when all was copied: the next one does not know whether the target runs."""
    lab.start_foo()
    with lab.readers() as readers, lab.migration(libvirt.VIR_MIGRATE_PERSIST_DEST) as migration:
        migration.await_copying()
        lab.shows(COPYING)
        # Stopped, it does not start the target yet.
        lab.b.freeze_libvirtd()
        migration.hurry()
        migration.await_switch()
        lab.shows(COPYING)
        lab.a.kill_libvirtd()
        lab.b.thaw_libvirtd()
        lab.shows(SWAPPED)
        lab.a.start_libvirtd()
        until(lambda: migration.statuses[0] == LEFT, SOON_S, "the source's libvirtd leaves it as it is")
        lab.shows(SWAPPED)
        lab.a.virsh("destroy", "foo")
        lab.shows(THERE)
    possible(readers, MIGRATED, {**SWAPPED, **COPYING})


def test_with_the_targets_libvirtd_restarted_while_it_copies_the_source_stays_foo(lab: Lab) -> None:
    lab.start_foo()
    with lab.readers() as readers, lab.migration(PEER_TO_PEER) as migration:
        migration.await_copying()
        lab.shows(COPYING)
        lab.b.restart_libvirtd()
        migration.fails()
        lab.shows(HERE)
        lab.is_in_state("foo", b"running")
    possible(readers, FAILED, COPYING)
