"""What happens to guests, and what the view makes of it: each change is there within moments, by itself."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tests.lab import guests
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

UUID_A = UUID("00000000-0000-4000-8000-00000000000a")
UUID_B = UUID("00000000-0000-4000-8000-00000000000b")
UUID_C = UUID("00000000-0000-4000-8000-00000000000c")
SOON_S = 5.0
"""What takes milliseconds on an idle machine; tests run on busy ones."""


def write(host: Host, definition: str) -> str:
    file = host.root / "definition.xml"
    file.write_text(definition)
    return os.fspath(file)


def define(host: Host, definition: str) -> None:
    host.virsh("define", write(host, definition))


def run_once(host: Host, name: str) -> None:
    host.virsh("start", name)
    host.virsh("destroy", name)
    # virtlogd writes what QEMU says last a moment later.
    log = host.outside(f"/var/log/libvirt/qemu/{name}.log")
    until(lambda: log.read_text().rstrip().endswith(": shutting down, reason=destroyed"), SOON_S, "log ends")


def state(guest: Path) -> bytes | None:
    try:
        return os.getxattr(guest, "user.namefs.state")
    except FileNotFoundError:
        return None


def uuid_of(guest: Path) -> UUID | None:
    try:
        return UUID(os.getxattr(guest, "user.namefs.uuid").decode())
    except FileNotFoundError:
        return None


def entries(directory: Path) -> list[str]:
    """The entries of a directory, sorted; none if it is not there."""
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def soon(condition: Callable[[], object], what: str) -> None:
    until(condition, SOON_S, what)


def uuids(log: Path) -> list[UUID]:
    """The domains whose starts a log holds, in order."""
    return [UUID(found) for found in re.findall(r"^-uuid (\S+)", log.read_text(), re.MULTILINE)]


def test_a_guest_is_shown_when_it_is_defined_and_goes_when_it_is_undefined(
    libvirt_host: Host, mounted: Mounted
) -> None:
    web = mounted.path / "web"
    assert not web.exists()
    define(libvirt_host, guests.xml("web", UUID_A))
    soon(web.exists, "web is shown")
    assert entries(mounted.path) == ["web"]
    assert (web / "config.xml").stat().st_size > 0
    libvirt_host.virsh("undefine", "web")
    soon(lambda: not web.exists(), "web is not shown")
    assert mounted.names() == []
    with pytest.raises(FileNotFoundError):
        (web / "config.xml").read_bytes()


def test_a_start_and_a_stop_change_the_state_and_what_there_is_only_while_running(
    libvirt_host: Host, mounted: Mounted
) -> None:
    web = mounted.path / "web"
    define(libvirt_host, guests.xml("web", UUID_A, vnc_socket=True))
    soon(lambda: state(web) == b"shut off", "web is off")
    assert set(entries(web)) == {"config.xml"}
    for action, seen in [
        ("start", b"running"),
        ("suspend", b"paused"),
        ("resume", b"running"),
        ("destroy", b"shut off"),
    ]:
        libvirt_host.virsh(action, "web")
        soon(lambda seen=seen: state(web) == seen, f"after {action} web is {seen!r}")  # type: ignore[misc]
        running = {"run", "sockets", "status.xml"} if seen != b"shut off" else set()
        soon(
            lambda running=running: set(entries(web)) == {"config.xml", "log", *running},  # type: ignore[misc]
            f"after {action} there is {running}",
        )


def test_a_renamed_guest_is_the_same_directory_under_its_new_name(
    libvirt_host: Host, mounted: Mounted
) -> None:
    old, new = mounted.path / "web", mounted.path / "shop"
    define(libvirt_host, guests.xml("web", UUID_A))
    soon(old.exists, "web is shown")
    assert not new.exists()
    before = old.stat()
    directory = os.open(old, os.O_RDONLY | os.O_DIRECTORY)
    try:
        libvirt_host.virsh("domrename", "web", "shop")
        soon(new.exists, "shop is shown")
        assert not old.exists()
        assert entries(mounted.path) == ["shop"]
        assert (new.stat().st_dev, new.stat().st_ino) == (before.st_dev, before.st_ino)
        assert os.listdir(directory) == ["config.xml"]
        config = os.open("config.xml", os.O_RDONLY, dir_fd=directory)
        assert b"<name>shop</name>" in os.read(config, 1 << 16)
        os.close(config)
    finally:
        os.close(directory)
    assert os.getxattr(new, "user.namefs.name") == b"shop"
    assert os.getxattr(new, "user.namefs.former_names") == b"web"


def test_names_may_change_hands_and_each_guest_sees_only_its_own_lines(
    libvirt_host: Host, mounted: Mounted
) -> None:
    """Three guests in turn are called web, and libvirt may go on in one file."""
    view = mounted.path
    define(libvirt_host, guests.xml("web", UUID_A))
    run_once(libvirt_host, "web")
    for uuid, name in [(UUID_B, "shop"), (UUID_C, "mail")]:
        libvirt_host.virsh("domrename", "web", name)
        define(libvirt_host, guests.xml("web", uuid))
        soon(lambda uuid=uuid: uuid_of(view / "web") == uuid, f"{uuid} is web")  # type: ignore[misc]
        run_once(libvirt_host, "web")
    run_once(libvirt_host, "shop")

    assert entries(view) == ["mail", "shop", "web"]
    own = {"shop": [UUID_A, UUID_A], "mail": [UUID_B], "web": [UUID_C]}
    for name, runs in own.items():
        log = view / name / "log/qemu.log"
        soon(lambda log=log, runs=runs: uuids(log) == runs, f"{name} has its own runs")  # type: ignore[misc]
        assert entries(view / name / "log") == ["qemu.log"]
        assert log.stat().st_size == len(log.read_bytes())
        assert log.read_text().count("shutting down") == len(runs)


def test_a_new_guest_does_not_inherit_the_log_of_an_undefined_one(
    libvirt_host: Host, mounted: Mounted
) -> None:
    web = mounted.path / "web"
    define(libvirt_host, guests.xml("web", UUID_A))
    run_once(libvirt_host, "web")
    soon(lambda: uuids(web / "log/qemu.log") == [UUID_A], "its own run is shown")
    libvirt_host.virsh("undefine", "web")
    soon(lambda: not web.exists(), "web is not shown")
    define(libvirt_host, guests.xml("web", UUID_B))
    soon(web.exists, "the other web is shown")
    assert entries(web) == ["config.xml"]
    run_once(libvirt_host, "web")
    soon(lambda: uuids(web / "log/qemu.log") == [UUID_B], "its own run is shown")


def test_logs_without_a_uuid_are_told_apart_by_who_had_the_name_when(
    libvirt_host: Host, mounted: Mounted
) -> None:
    log = libvirt_host.outside("/var/log/swtpm/libvirt/qemu/web-swtpm.log")
    view = mounted.path
    define(libvirt_host, guests.xml("web", UUID_A, tpm=True))
    run_once(libvirt_host, "web")
    first = log.read_bytes()
    assert first
    libvirt_host.virsh("domrename", "web", "shop")
    define(libvirt_host, guests.xml("web", UUID_B, tpm=True))
    run_once(libvirt_host, "web")
    soon(lambda: (view / "web/log/swtpm.log").exists(), "the log of the new web is shown")
    assert (view / "shop/log/swtpm.log").read_bytes() == first
    # libvirt goes on in the file, or begins one if namefs has removed it by then.
    own = log.read_bytes().removeprefix(first)
    assert own
    soon(lambda: (view / "web/log/swtpm.log").read_bytes() == own, "it has its own lines")


def test_internal_snapshots_and_managed_save_come_and_go(libvirt_host: Host, mounted: Mounted) -> None:
    web = mounted.path / "web"
    image = guests.make_disk(libvirt_host.images / "web.qcow2")
    define(libvirt_host, guests.xml("web", UUID_A, disks={"vda": libvirt_host.inside(image)}))
    libvirt_host.virsh("snapshot-create-as", "web", "first")
    soon(lambda: entries(web / "snapshots") == ["first.xml"], "the snapshot is shown")
    assert "<name>first</name>" in (web / "snapshots/first.xml").read_text()
    # A rename makes libvirt write it anew under the new name.
    libvirt_host.virsh("domrename", "web", "shop")
    shop = mounted.path / "shop"
    soon(shop.exists, "shop is shown")
    assert entries(shop / "snapshots") == ["first.xml"]
    libvirt_host.virsh("snapshot-delete", "shop", "first")
    soon(lambda: not (shop / "snapshots").exists(), "the snapshot is gone")

    libvirt_host.virsh("start", "shop")
    libvirt_host.virsh("managedsave", "shop")
    soon(lambda: state(shop) == b"shut off", "shop is off")
    assert (shop / "save/managed.save").stat().st_size > 1000
    libvirt_host.virsh("start", "shop")
    soon(lambda: state(shop) == b"running", "shop runs")
    assert not (shop / "save").exists()


@pytest.mark.parametrize("running", [False, True])
def test_an_external_snapshot_moves_the_disk(libvirt_host: Host, mounted: Mounted, running: bool) -> None:
    disks = mounted.path / "web/disks"
    image = guests.make_disk(libvirt_host.images / "web.qcow2")
    define(libvirt_host, guests.xml("web", UUID_A, disks={"vda": libvirt_host.inside(image)}))
    if running:
        libvirt_host.virsh("start", "web")
    soon((disks / "vda").exists, "the disk is shown")
    assert os.readlink(disks / "vda") == str(image)
    libvirt_host.virsh("snapshot-create-as", "web", "s1", "--disk-only")
    moved = str(libvirt_host.images / "web.s1")
    soon(lambda: os.readlink(disks / "vda") == moved, "the disk has moved")
    assert os.readlink(disks / "vda.backing1") == str(image)
    assert entries(disks) == ["vda", "vda.backing1"]
    assert entries(mounted.path / "web/snapshots") == ["s1.xml"]


def test_a_disk_attached_to_the_definition_alone_is_shown(libvirt_host: Host, mounted: Mounted) -> None:
    disks = mounted.path / "web/disks"
    for name in ("a", "b"):
        guests.make_disk(libvirt_host.images / f"{name}.qcow2")
    define(libvirt_host, guests.xml("web", UUID_A, disks={"vda": "/var/lib/libvirt/images/a.qcow2"}))
    soon(lambda: entries(disks) == ["vda"], "the disk is shown")
    second = ("web", "/var/lib/libvirt/images/b.qcow2", "vdb", "--subdriver", "qcow2")
    libvirt_host.virsh("attach-disk", *second, "--config")
    soon(lambda: entries(disks) == ["vda", "vdb"], "the second disk is shown")
    libvirt_host.virsh("detach-disk", "web", "vdb", "--config")
    soon(lambda: entries(disks) == ["vda"], "the second disk is gone")


def test_a_host_that_never_had_a_guest_is_watched_too(
    libvirt_host: Host, request: pytest.FixtureRequest
) -> None:
    """libvirt makes its directories when it first needs them."""
    shutil.rmtree(libvirt_host.outside("/etc/libvirt/qemu"), ignore_errors=True)
    mounted: Mounted = request.getfixturevalue("mounted")
    web = mounted.path / "web"
    guests.make_disk(libvirt_host.images / "a.qcow2")
    define(libvirt_host, guests.xml("web", UUID_A))
    soon(web.exists, "web is shown")
    assert entries(web) == ["config.xml"]
    libvirt_host.virsh("attach-disk", "web", "/var/lib/libvirt/images/a.qcow2", "vdb", "--config")
    soon(lambda: entries(web / "disks") == ["vdb"], "the disk is shown")
    libvirt_host.virsh("autostart", "web")
    soon(lambda: os.path.lexists(web / "autostart.xml"), "autostart is shown")


def test_autostart_is_shown_and_goes(libvirt_host: Host, mounted: Mounted) -> None:
    link = mounted.path / "web/autostart.xml"
    define(libvirt_host, guests.xml("web", UUID_A))
    for arguments, there in [((), True), (("--disable",), False), ((), True)]:
        libvirt_host.virsh("autostart", "web", *arguments)
        soon(lambda there=there: os.path.lexists(link) == there, f"autostart: {there}")  # type: ignore[misc]


def test_a_definition_that_was_read_before_is_read_anew_when_it_changes(
    libvirt_host: Host, mounted: Mounted
) -> None:
    config = mounted.path / "web/config.xml"
    real = libvirt_host.outside("/etc/libvirt/qemu/web.xml")
    define(libvirt_host, guests.xml("web", UUID_A))
    soon(config.exists, "web is shown")
    for change in (
        ("desc", "web", "--config", "--title", "A title"),
        ("desc", "web", "--config", "A description that makes the file longer"),
        ("metadata", "web", "urn:x", "--config", "--key", "x", "--set", "<y>value</y>"),
        ("setmaxmem", "web", "128M", "--config"),
    ):
        before = config.read_text()
        libvirt_host.virsh(*change)
        # No waiting here: what lies behind the view is as it is.
        assert config.read_text() == real.read_text() != before
        assert config.stat().st_size == real.stat().st_size
    define(libvirt_host, guests.xml("web", UUID_A, memory_mib=96))
    assert config.read_text() == real.read_text()
    assert ">98304</memory>" in config.read_text()


def test_a_transient_guest_is_shown_as_long_as_it_lives(libvirt_host: Host, mounted: Mounted) -> None:
    web = mounted.path / "web"
    libvirt_host.virsh("create", write(libvirt_host, guests.xml("web", UUID_A)))
    soon(lambda: state(web) == b"running", "web runs")
    assert set(entries(web)) == {"log", "run", "sockets", "status.xml"}
    libvirt_host.virsh("destroy", "web")
    soon(lambda: not web.exists(), "web is gone")


def test_an_undefined_guest_is_shown_as_long_as_it_runs(libvirt_host: Host, mounted: Mounted) -> None:
    web = mounted.path / "web"
    define(libvirt_host, guests.xml("web", UUID_A))
    libvirt_host.virsh("start", "web")
    libvirt_host.virsh("undefine", "web")
    soon(lambda: web.exists() and not (web / "config.xml").exists(), "the definition is gone")
    assert state(web) == b"running"
    libvirt_host.virsh("destroy", "web")
    soon(lambda: not web.exists(), "web is gone")


def test_a_start_that_fails_leaves_the_guest_off_and_says_why_in_its_log(
    libvirt_host: Host, mounted: Mounted
) -> None:
    web = mounted.path / "web"
    image = libvirt_host.images / "web.qcow2"
    define(libvirt_host, guests.xml("web", UUID_A, disks={"vda": libvirt_host.inside(image)}))
    soon(web.exists, "web is shown")
    assert "Cannot access storage file" in libvirt_host.virsh("start", "web", check=False)
    # The image does not exist, so the view has none. libvirt logs the end of what it never began to log.
    assert entries(web) == ["config.xml", "log"]
    assert (web / "log/qemu.log").read_text().endswith(": shutting down, reason=failed\n")
    # libvirt believes the definition that this is a qcow2 image. QEMU does not.
    image.write_bytes(bytes(1 << 16))
    assert "Failed to start domain" in libvirt_host.virsh("start", "web", check=False)
    soon(lambda: entries(web) == ["config.xml", "disks", "log"], "nothing but a log is added")
    log = libvirt_host.outside("/var/log/libvirt/qemu/web.log")
    soon(lambda: "not in qcow2 format" in (web / "log/qemu.log").read_text(), "QEMU's words are shown")
    assert (web / "log/qemu.log").read_text() == log.read_text()
    soon(lambda: state(web) == b"shut off", "web is off")
