"""Servers of OpenStack that run: shown by the names that people gave, and followed through what Nova does."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from namefs import control
from tests.lab.nova import Nova, Server
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

SOON_S = 20.0
SHOP = Server(UUID("5d2f1c8e-95b0-4b0a-8f0e-0c7f5f0b6a55"), "Shop front", "acme")


@pytest.fixture
def nova(libvirt_host: Host) -> Iterator[Nova]:
    with closing(libvirt_host.connect()) as connection, closing(Nova(connection)) as nova:
        yield nova


@pytest.fixture
def mounted(mount_namefs: Callable[..., Mounted]) -> Mounted:
    return mount_namefs(of_connection='group = "nova:project"')


@pytest.fixture
def shop(nova: Nova, mounted: Mounted) -> Path:
    """The directory of a server that runs."""
    nova.spawn(SHOP)
    shop = mounted.path / "acme" / "Shop front"
    until(lambda: state_of(shop) == "running", SOON_S, "it is shown running")
    return shop


def state_of(guest: Path) -> str:
    try:
        return os.getxattr(guest, "user.namefs.state").decode()
    except FileNotFoundError:
        return ""


def listing(directory: Path) -> list[str]:
    return sorted(os.listdir(directory)) if directory.exists() else []


def links(directory: Path) -> dict[str, Path]:
    """The symlinks of a directory and what they lead to."""
    return {entry.name: entry.readlink() for entry in directory.iterdir() if entry.is_symlink()}


def whose(mounted: Mounted, path: Path) -> list[tuple[str, str]]:
    """The guests that a file belongs to, and where the view shows it."""
    socket = os.fspath(mounted.runtime_directory / "control.sock")
    answer = control.ask(socket, {"op": "which", "what": os.fspath(path)})
    return [(match["name"], os.path.relpath(match["view"], mounted.path)) for match in answer["matches"]]


def test_a_server_is_shown_by_its_own_name_in_its_project_with_what_nova_keeps_of_it(
    nova: Nova, mounted: Mounted, shop: Path
) -> None:
    directory = nova.directory(SHOP)
    assert mounted.names() == ["acme"]
    assert listing(mounted.path / "acme") == ["Shop front"]
    assert os.getxattr(shop, "user.namefs.name") == b"instance-000002ff"
    assert links(shop / "disks") == {
        "hda": directory / "disk.config",
        "vda": directory / "disk",
        "vda.backing1": nova.base,
        "vdb": directory / "disk.eph0",
    }
    assert (shop / "disks" / "disk.info").read_text() == (directory / "disk.info").read_text()
    console = directory / "console.log"
    with console.open("a") as log:
        log.write("login:\n")
    assert listing(shop / "log") == ["qemu.log", "serial0.log"]
    assert (shop / "log" / "serial0.log").read_text() == console.read_text()
    assert whose(mounted, console) == [("Shop front", "acme/Shop front/log/serial0.log")]


def test_a_name_that_nova_writes_into_a_running_servers_definition_is_followed(
    nova: Nova, mounted: Mounted, shop: Path
) -> None:
    number = shop.stat().st_ino
    till = mounted.path / "acme" / "Till"
    nova.attach_interface(replace(SHOP, name="Till"))
    until(till.exists, SOON_S, "the new name is shown")
    assert not shop.exists()
    assert till.stat().st_ino == number
    nova.attach_interface(replace(SHOP, name="Till", project="initech"))
    until((mounted.path / "initech" / "Till").exists, SOON_S, "the new project is shown")
    assert mounted.names() == ["initech"]


def test_a_hard_reboot_takes_a_server_away_and_brings_it_back_by_the_name_that_it_has_now(
    nova: Nova, mounted: Mounted, shop: Path
) -> None:
    """A rename through OpenStack is in the definition only when that is made anew."""
    number = shop.stat().st_ino
    till = mounted.path / "acme" / "Till"
    nova.hard_reboot(replace(SHOP, name="Till"))
    until(lambda: state_of(till) == "running", SOON_S, "it runs again")
    assert listing(mounted.path / "acme") == ["Till"]
    assert till.stat().st_ino == number
    assert (till / "log" / "qemu.log").read_text().count("starting up libvirt") == 2
    assert not (mounted.path / ".deleted").exists()


def test_a_resize_is_followed_until_it_is_confirmed(nova: Nova, shop: Path) -> None:
    directory, before = nova.directory(SHOP), nova.directory(SHOP, "_resize")
    with (directory / "console.log").open("a") as console:
        console.write("of the small one\n")
    with (shop / "log" / "serial0.log").open() as log:
        nova.migrate_disk_and_power_off(SHOP)
        until(lambda: state_of(shop) == "shut off", SOON_S, "it is shown off")
        assert links(shop / "disks") == {
            "disk.config@resize": before / "disk.config",
            "disk.eph0@resize": before / "disk.eph0",
            "disk@resize": before / "disk",
            "hda": directory / "disk.config",
            "vda": directory / "disk",
            "vda.backing1": nova.base,
            "vdb": directory / "disk.eph0",
        }
        assert listing(shop / "log") == ["console@resize.log", "qemu.log"]
        assert (shop / "log" / "console@resize.log").read_text().endswith("of the small one\n")

        nova.finish_migration(SHOP, "m1.small")
        until(lambda: state_of(shop) == "running", SOON_S, "it runs again")
        assert "m1.small" in (shop / "config.xml").read_text()
        assert listing(shop / "log") == ["console@resize.log", "qemu.log", "serial0.log"]
        assert "of the small one" not in (shop / "log" / "serial0.log").read_text()

        nova.confirm_migration(SHOP)
        assert sorted(links(shop / "disks")) == ["hda", "vda", "vda.backing1", "vdb"]
        assert listing(shop / "log") == ["qemu.log", "serial0.log"]
        assert log.read().endswith("of the small one\n")


def test_a_resize_that_is_reverted_brings_the_server_back_as_it_was(
    nova: Nova, mounted: Mounted, shop: Path
) -> None:
    number = shop.stat().st_ino
    nova.migrate_disk_and_power_off(SHOP)
    resized = nova.finish_migration(SHOP, "m1.small")
    nova.destroy_resized(resized)
    until(lambda: mounted.names() == [], SOON_S, "it is gone, and its project with it")
    nova.finish_revert_migration(SHOP)
    until(lambda: state_of(shop) == "running", SOON_S, "it runs again")
    assert shop.stat().st_ino == number
    assert "m1.tiny" in (shop / "config.xml").read_text()
    assert sorted(links(shop / "disks")) == ["hda", "vda", "vda.backing1", "vdb"]
    assert listing(shop / "log") == ["qemu.log", "serial0.log"]
    assert (shop / "log" / "qemu.log").read_text().count("starting up libvirt") == 3
    assert not (mounted.path / ".deleted").exists()


def test_a_server_in_rescue_shows_both_disks_and_its_definition_for_afterwards(
    nova: Nova, shop: Path
) -> None:
    directory = nova.directory(SHOP)
    nova.rescue(SHOP)
    until(lambda: links(shop / "disks").get("vdb") == directory / "disk", SOON_S, "the rescue is shown")
    shown = links(shop / "disks")
    assert shown["vda"] == directory / "disk.rescue"
    assert shown["vdb.backing1"] == nova.base
    assert shown["disk.eph0"] == directory / "disk.eph0"
    assert shown["disk.config"] == directory / "disk.config"
    assert "disk" not in shown
    assert (shop / "unrescue.xml").read_text() == (directory / "unrescue.xml").read_text()

    nova.unrescue(SHOP)
    until(lambda: links(shop / "disks").get("vda") == directory / "disk", SOON_S, "it is over")
    assert not (shop / "unrescue.xml").exists()
    assert sorted(links(shop / "disks")) == ["hda", "vda", "vda.backing1", "vdb"]


def test_a_delete_is_followed_step_by_step_and_who_reads_goes_on_reading(
    nova: Nova, mounted: Mounted, shop: Path
) -> None:
    with (nova.directory(SHOP) / "console.log").open("a") as console:
        console.write("last words\n")
    with (shop / "log" / "serial0.log").open() as log:
        nova.rename_to_delete(SHOP)
        until(lambda: state_of(shop) == "shut off", SOON_S, "it is shown off")
        assert sorted(links(shop / "disks")) == ["disk.config@del", "disk.eph0@del", "disk@del"]
        assert listing(shop / "log") == ["console@del.log", "qemu.log"]
        nova.delete_files(SHOP)
        assert not (shop / "disks").exists()
        assert listing(shop / "log") == ["qemu.log"]
        nova.undefine(SHOP)
        until(lambda: mounted.names() == [], SOON_S, "it is gone, and its project with it")
        assert log.read().endswith("last words\n")


def test_a_delete_that_was_interrupted_leaves_what_can_be_found_by_the_servers_name(
    nova: Nova, mounted: Mounted, shop: Path
) -> None:
    """As after a crash of nova-compute in the middle of it: the definition is still there."""
    nova.rename_to_delete(SHOP)
    (nova.directory(SHOP, "_del") / "disk").unlink()
    until(lambda: state_of(shop) == "shut off", SOON_S, "it is shown off")
    left = nova.directory(SHOP, "_del") / "disk.eph0"
    assert sorted(links(shop / "disks")) == ["disk.config@del", "disk.eph0@del"]
    assert whose(mounted, left) == [("Shop front", "acme/Shop front/disks/disk.eph0@del")]
