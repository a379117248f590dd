"""A guest that runs is renamed in the view at once, and libvirt's own name follows when libvirt allows it."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING
from uuid import UUID

import libvirt
import pytest

from namefs import journal
from namefs.errors import ExitCode, NamefsError
from namefs.model import Key
from tests.lab import guests, names
from tests.lab.names import in_metadata, swap
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

A = UUID("00000000-0000-4000-8000-00000000000a")
B = UUID("00000000-0000-4000-8000-00000000000b")
SOON_S = 20.0


@pytest.fixture
def connection(libvirt_host: Host) -> Iterator[libvirt.virConnect]:
    with closing(libvirt_host.connect()) as connection:
        yield connection


def define(connection: libvirt.virConnect, name: str, uuid: UUID, **facts: str) -> libvirt.virDomain:
    return connection.defineXML(guests.xml(name, uuid, **facts))  # type: ignore[arg-type]


@pytest.fixture
def web(connection: libvirt.virConnect, mounted: Mounted) -> libvirt.virDomain:
    """A guest that runs."""
    domain = define(connection, "web", A)
    domain.create()
    until(lambda: state_of(mounted, "web") == "running", SOON_S, "it is shown running")
    return domain


def state_of(mounted: Mounted, name: str) -> str:
    try:
        return os.getxattr(mounted.path / name, "user.namefs.state").decode()
    except FileNotFoundError:
        return ""


def ask(mounted: Mounted, **request: object) -> dict[str, object]:
    return names.ask(mounted, op="rename", **request)


def pending(mounted: Mounted) -> list[dict[str, str]]:
    found = names.ask(mounted, op="status")["pending"]
    assert isinstance(found, list)
    return found


def libvirt_names(connection: libvirt.virConnect) -> dict[UUID, str]:
    return {UUID(domain.UUIDString()): domain.name() for domain in connection.listAllDomains()}


def settled(mounted: Mounted, connection: libvirt.virConnect, wanted: dict[UUID, str]) -> None:
    """Wait until libvirt, metadata and view agree on these names."""
    until(lambda: libvirt_names(connection) == wanted, SOON_S, f"libvirt has {wanted}")
    until(lambda: sorted(mounted.names()) == sorted(wanted.values()), SOON_S, "so has the view")
    config = libvirt.VIR_DOMAIN_AFFECT_CONFIG
    domains = [connection.lookupByUUIDString(str(uuid)) for uuid in wanted]
    until(lambda: not any(in_metadata(domain, config) for domain in domains), SOON_S, "nothing is pending")


def test_a_running_guest_is_renamed_at_once_and_in_libvirt_when_it_is_off(
    mounted: Mounted, connection: libvirt.virConnect, web: libvirt.virDomain
) -> None:
    number = os.stat(mounted.path / "web").st_ino
    with (mounted.path / "web" / "log" / "qemu.log").open() as log:
        before = os.fstat(log.fileno()).st_ino
        os.rename(mounted.path / "web", mounted.path / "shop")
        assert mounted.names() == ["shop"]
        assert os.stat(mounted.path / "shop").st_ino == number
        assert os.fstat(log.fileno()).st_ino == before
        assert log.read().count("starting up") == 1
    both = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
    until(lambda: {in_metadata(web, flags) for flags in both} == {"shop"}, SOON_S, "the metadata says so")
    assert libvirt_names(connection) == {A: "web"}
    (waiting,) = pending(mounted)
    assert (waiting["name"], waiting["libvirt_name"]) == ("shop", "web")
    assert "running" in waiting["why"]
    web.destroy()
    settled(mounted, connection, {A: "shop"})
    assert pending(mounted) == []
    index = journal.read(os.fspath(mounted.journal))
    assert [former.name for former in index.was_shown[Key(A)]] == ["web"], "it was not web again for a moment"
    assert [former.name for former in index.former[Key(A)]] == ["web"]


def test_libvirts_name_follows_a_guest_that_stopped_while_namefs_was_down(
    mounted: Mounted, connection: libvirt.virConnect, web: libvirt.virDomain
) -> None:
    ask(mounted, old="web", new="shop")
    mounted.kill()
    web.destroy()
    mounted.start()
    settled(mounted, connection, {A: "shop"})


def test_a_name_asked_for_is_kept_when_namefs_is_killed_before_the_metadata_says_it(
    mounted: Mounted, libvirt_host: Host, connection: libvirt.virConnect, web: libvirt.virDomain
) -> None:
    libvirt_host.freeze_libvirtd()
    ask(mounted, old="web", new="shop")
    mounted.kill()
    libvirt_host.thaw_libvirtd()
    assert in_metadata(web, libvirt.VIR_DOMAIN_AFFECT_LIVE) is None
    mounted.start()
    assert mounted.names() == ["shop"]
    until(lambda: in_metadata(web, libvirt.VIR_DOMAIN_AFFECT_LIVE) == "shop", SOON_S, "the metadata says so")


def test_a_managed_save_image_is_waited_for(
    mounted: Mounted, connection: libvirt.virConnect, web: libvirt.virDomain
) -> None:
    web.managedSave()
    until(lambda: state_of(mounted, "web") == "shut off", SOON_S, "it is shown off")
    os.rename(mounted.path / "web", mounted.path / "shop")
    assert mounted.names() == ["shop"]
    until(lambda: "managed" in pending(mounted)[0]["why"], SOON_S, "it says what it waits for")
    web.create()
    web.destroy()
    settled(mounted, connection, {A: "shop"})


def test_what_was_asked_for_can_be_taken_back(
    mounted: Mounted, connection: libvirt.virConnect, web: libvirt.virDomain
) -> None:
    with pytest.raises(NamefsError, match="nothing is pending") as refused:
        ask(mounted, old="web", cancel=True)
    assert refused.value.exit_code is ExitCode.LIBVIRT_REFUSED
    ask(mounted, old="web", new="shop")
    until(lambda: in_metadata(web, libvirt.VIR_DOMAIN_AFFECT_LIVE) == "shop", SOON_S, "the metadata says so")
    ask(mounted, old="shop", cancel=True)
    assert mounted.names() == ["web"]
    until(lambda: in_metadata(web, libvirt.VIR_DOMAIN_AFFECT_LIVE) is None, SOON_S, "nor does the metadata")
    web.destroy()
    settled(mounted, connection, {A: "web"})


def test_a_name_that_libvirt_gave_to_another_meanwhile_stays_in_the_view(
    mounted: Mounted, connection: libvirt.virConnect, web: libvirt.virDomain
) -> None:
    ask(mounted, old="web", new="shop")
    other = define(connection, "shop", B)
    until(lambda: len(mounted.names()) == 2, SOON_S, "the other is shown")
    assert sorted(mounted.names()) == ["shop", "shop~00000000"]
    assert os.getxattr(mounted.path / "shop", "user.namefs.uuid").decode() == str(A)
    web.destroy()
    until(lambda: str(B) in pending(mounted)[0]["why"], SOON_S, "it says who has the name")
    assert libvirt_names(connection) == {A: "web", B: "shop"}
    other.undefine()
    settled(mounted, connection, {A: "shop"})


def test_a_transient_guest_keeps_its_name_while_it_lives(
    mounted: Mounted, connection: libvirt.virConnect, web: libvirt.virDomain
) -> None:
    web.undefine()
    until(lambda: not web.isPersistent(), SOON_S, "it is transient")
    os.rename(mounted.path / "web", mounted.path / "shop")
    until(lambda: in_metadata(web, libvirt.VIR_DOMAIN_AFFECT_LIVE) == "shop", SOON_S, "the metadata says so")
    until(lambda: "transient" in pending(mounted)[0]["why"], SOON_S, "it says what keeps libvirt's name")
    mounted.terminate()
    mounted.start()
    until(lambda: mounted.names() == ["shop"], SOON_S, "it is called so after a restart")
    web.destroy()
    until(lambda: mounted.names() == [], SOON_S, "it is gone")


def test_a_snapshot_from_before_does_not_bring_the_old_name_back(
    mounted: Mounted, libvirt_host: Host, connection: libvirt.virConnect
) -> None:
    guests.make_disk(libvirt_host.images / "web.qcow2")
    disks = {"vda": "/var/lib/libvirt/images/web.qcow2"}
    domain = connection.defineXML(guests.xml("web", A, disks=disks))
    domain.snapshotCreateXML("<domainsnapshot><name>before</name></domainsnapshot>")
    domain.create()
    until(lambda: state_of(mounted, "web") == "running", SOON_S, "it is shown running")
    os.rename(mounted.path / "web", mounted.path / "shop")
    until(
        lambda: in_metadata(domain, libvirt.VIR_DOMAIN_AFFECT_CONFIG) == "shop",
        SOON_S,
        "the metadata says so",
    )
    # While it runs: else libvirt's own name would have followed by the time of the revert.
    domain.revertToSnapshot(domain.snapshotLookupByName("before"), libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING)
    config = libvirt.VIR_DOMAIN_AFFECT_CONFIG
    until(lambda: in_metadata(domain, config) == "shop", SOON_S, "the metadata says so again")
    assert mounted.names() == ["shop"]


def test_a_rename_by_libvirt_is_the_later_wish(
    mounted: Mounted, connection: libvirt.virConnect, web: libvirt.virDomain
) -> None:
    define(connection, "taken", B)
    web.managedSave()
    until(lambda: state_of(mounted, "web") == "shut off", SOON_S, "it is shown off")
    ask(mounted, old="web", new="shop")
    mounted.kill()
    web.managedSaveRemove()
    web.rename("store")
    mounted.start()
    settled(mounted, connection, {A: "store", B: "taken"})


@pytest.mark.parametrize("running", [(), (A,), (A, B)])
def test_two_guests_change_names(
    mounted: Mounted, connection: libvirt.virConnect, running: tuple[UUID, ...]
) -> None:
    domains = {A: define(connection, "web", A), B: define(connection, "shop", B)}
    for uuid in running:
        domains[uuid].create()
    until(lambda: len(mounted.names()) == 2, SOON_S, "both are shown")
    wanted = ["running" if uuid in running else "shut off" for uuid in (A, B)]
    until(lambda: [state_of(mounted, name) for name in ("web", "shop")] == wanted, SOON_S, "as they are")
    swap(mounted.path / "web", mounted.path / "shop")
    assert os.getxattr(mounted.path / "web", "user.namefs.uuid").decode() == str(B)
    assert os.getxattr(mounted.path / "shop", "user.namefs.uuid").decode() == str(A)
    for uuid in running:
        domains[uuid].destroy()
    settled(mounted, connection, {A: "shop", B: "web"})


def test_names_that_wait_for_each_other_follow_after_a_kill(
    mounted: Mounted, connection: libvirt.virConnect, web: libvirt.virDomain
) -> None:
    define(connection, "shop", B)
    until(lambda: len(mounted.names()) == 2, SOON_S, "both are shown")
    ask(mounted, old="web", new="shop", swap=True)
    mounted.kill()
    web.destroy()
    mounted.start()
    assert os.getxattr(mounted.path / "shop", "user.namefs.uuid").decode() == str(A)
    settled(mounted, connection, {A: "shop", B: "web"})
