"""The lab's two hosts: that what the tests of migrations stand on is what libvirt really does."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING
from uuid import UUID

import libvirt

from tests.lab.migrating import Migration, qemu_pid, start_guest, status
from tests.lab.process import has_ended

if TYPE_CHECKING:
    from tests.lab.two_hosts import TwoHosts

FOO = UUID("00000000-0000-4000-8000-000000000f00")


def test_a_guest_goes_over_while_its_image_stays_the_targets(hosts: TwoHosts) -> None:
    start_guest(hosts, "foo", FOO)
    image = hosts.shared / "foo.qcow2"
    first, owner = qemu_pid(hosts.a, "foo"), image.stat().st_uid
    with Migration(hosts.a, hosts.b, hosts.sockets, "foo") as migration:
        migration.await_copying()
        second = qemu_pid(hosts.b, "foo")
        assert not has_ended(first)
        assert first != second
        migration.hurry()
        migration.succeeds()
    assert has_ended(first)
    assert qemu_pid(hosts.b, "foo") == second
    there = status(hosts.b, "foo")
    assert there is not None
    assert there[:3] == ("running", "migrated", "none")
    assert status(hosts.a, "foo") is None
    assert image.stat().st_uid == owner, "the source did not take the image from the target"


def test_a_migration_that_is_given_up_leaves_the_guest_where_it_was(hosts: TwoHosts) -> None:
    start_guest(hosts, "foo", FOO, transient=True)
    with Migration(hosts.a, hosts.b, hosts.sockets, "foo", libvirt.VIR_MIGRATE_PEER2PEER) as migration:
        migration.await_copying()
        migration.abort()
        assert migration.fails().get_error_code() == libvirt.VIR_ERR_OPERATION_ABORTED
    assert status(hosts.b, "foo") is None
    with closing(hosts.a.connect()) as connection:
        assert connection.lookupByName("foo").isActive()
