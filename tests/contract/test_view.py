"""What the view answers, the same whether its handlers are asked or the kernel is."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import closing
from typing import TYPE_CHECKING
from uuid import UUID

import pyfuse3
import pytest

from namefs.layout.artefact import SUBDIRECTORIES
from tests.contract.drivers import Driver, InProcess, Listing, Shown, ThroughTheKernel, Token
from tests.lab import guests

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.host import Host

UUID_A = UUID("00000000-0000-4000-8000-00000000000a")
NAMES = ["web", *(f"other{number}" for number in range(8))]
LINES = b"".join(b"line %d\n" % number for number in range(2000))
DISK = "/var/lib/libvirt/images/web.qcow2"
LOG = "/var/log/libvirt/qemu/web-serial.log"


@pytest.fixture
def in_process(libvirt_host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    """The handlers; in the end the kernel has given everything back, and they have kept nothing."""
    monkeypatch.setattr(pyfuse3, "readdir_reply", Token.reply)
    driver = InProcess(libvirt_host)
    yield driver
    assert len(driver.browser.inodes) == 1


@pytest.fixture(params=["in_process", "mounted"])
def driver(request: pytest.FixtureRequest, libvirt_host: Host) -> Driver:
    """The view of guests ``web``, which has files, and some others."""
    guests.make_disk(libvirt_host.outside(DISK))
    log(libvirt_host).write_bytes(LINES)
    with closing(libvirt_host.connect()) as connection:
        for name in NAMES[1:]:
            connection.defineXML(guests.xml(name))
        connection.defineXML(guests.xml("web", UUID_A, disks={"vda": DISK}, serial_log=LOG))
    asked = request.getfixturevalue(request.param)
    view: Driver = asked if isinstance(asked, InProcess) else ThroughTheKernel(asked)
    view.settle(NAMES)
    return view


def log(host: Host) -> Path:
    return host.outside(LOG)


def all_of(listing: Listing) -> list[Shown]:
    found: list[Shown] = []
    while some := listing.some():
        found += some
    return found


def fails_with(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, match=os.strerror(number))


def test_a_guest_is_a_directory_and_what_it_lacks_is_enoent(driver: Driver) -> None:
    assert stat.S_ISDIR(driver.stat("web").mode)
    assert driver.stat("web") == driver.stat("web/.")
    for path in ("nobody", "web/nothing", "web/log/nothing", "web/snapshots", "web/status.xml"):
        with fails_with(errno.ENOENT):
            driver.stat(path)


@pytest.mark.parametrize("path", [".", "web", "web/log", "web/disks"])
def test_a_listing_holds_what_look_ups_find(driver: Driver, path: str) -> None:
    with driver.listing(path) as listing:
        found = all_of(listing)
    assert len({one.entry for one in found}) == len(found) > 0
    for one in found:
        info = driver.stat(f"{path}/{one.entry}")
        assert (info.ino, stat.S_IFMT(info.mode)) == (one.ino, one.type)
    if path == "web":
        listed = {one.entry for one in found}
        for entry in {*map(os.fsdecode, SUBDIRECTORIES), "config.xml", "status.xml"} - listed:
            with fails_with(errno.ENOENT):
                driver.stat(f"web/{entry}")


def test_a_listing_stays_what_it_was_while_guests_change(driver: Driver, libvirt_host: Host) -> None:
    with driver.listing(".") as listing:
        first = listing.some()
        libvirt_host.virsh("domrename", "web", "a-first")
        driver.settle(["a-first", *NAMES[1:]])
        rest = all_of(listing)
        entries = [one.entry for one in first + rest]
        assert len(set(entries)) == len(entries)
        assert set(NAMES[1:]) <= set(entries) <= set(NAMES)
        listing.back()
        again = [one.entry for one in all_of(listing)]
        assert len(set(again)) == len(again)
        assert set(NAMES[1:]) <= set(again)
    with driver.listing(".") as listing:
        assert {one.entry for one in all_of(listing)} == {"a-first", *NAMES[1:]}


@pytest.mark.parametrize(("count", "offset"), [(10, 0), (10, 5), (4096, 4090), (1, len(LINES) - 1)])
def test_a_file_is_read_at_any_offset(driver: Driver, count: int, offset: int) -> None:
    with driver.open("web/log/serial0.log") as file:
        assert file.read(count, offset) == LINES[offset : offset + count]
        assert file.read(count, len(LINES)) == b""


def test_an_open_file_stays_open_through_a_rename_of_guest_and_file(
    driver: Driver, libvirt_host: Host
) -> None:
    inode = driver.stat("web/log/serial0.log").ino
    with driver.open("web/log/serial0.log") as file:
        libvirt_host.virsh("domrename", "web", "shop")
        driver.settle(["shop", *NAMES[1:]])
        rotated = log(libvirt_host).rename(log(libvirt_host).with_name("web-serial.log.0"))
        with rotated.open("ab") as real:
            real.write(b"more\n")
        assert file.stat().size == len(LINES) + 5
        assert file.stat().ino == inode
        assert file.read(100, len(LINES)) == b"more\n"
    assert driver.stat("shop/log/serial0.log.0").ino == inode
    with fails_with(errno.ENOENT):
        driver.stat("shop/log/serial0.log")


def test_a_disk_is_a_symlink_to_its_image(driver: Driver, libvirt_host: Host) -> None:
    assert stat.S_ISLNK(driver.stat("web/disks/vda").mode)
    assert driver.readlink("web/disks/vda") == str(libvirt_host.outside(DISK))
    assert driver.stat("web/disks/vda").size == len(str(libvirt_host.outside(DISK)))
    with fails_with(errno.EINVAL):
        driver.readlink("web/config.xml")


def test_attributes_tell_of_a_guest_and_where_a_file_is(driver: Driver, libvirt_host: Host) -> None:
    os.setxattr(log(libvirt_host), "user.of_the_file", b"as it is")
    assert driver.xattrs("web") == {
        "user.namefs.uuid": str(UUID_A).encode(),
        "user.namefs.name": b"web",
        "user.namefs.state": b"shut off",
        "user.namefs.connection": b"local",
        "user.namefs.former_names": b"",
    }
    assert driver.xattrs("web/log/serial0.log") == {
        "user.namefs.path": str(log(libvirt_host)).encode(),
        "user.of_the_file": b"as it is",
    }


def test_nothing_can_be_changed(driver: Driver) -> None:
    for change in (driver.unlink, driver.open_to_write):
        with fails_with(errno.EROFS):
            change("web/config.xml")
    with fails_with(errno.EROFS):
        driver.mkdir("new")
    assert stat.S_ISREG(driver.stat("web/config.xml").mode)


def test_an_inode_that_was_never_given_is_an_error_and_no_crash(in_process: InProcess) -> None:
    operations = in_process.operations
    for handler in (operations.getattr, operations.readlink, operations.opendir, operations.listxattr):
        with fails_with(errno.EIO):
            in_process.call(handler, 12345, None)
    with fails_with(errno.EIO):
        in_process.call(operations.lookup, 12345, b"web", None)
    in_process.forget(12345)


def test_a_listing_counts_what_was_taken_and_no_more(in_process: InProcess, libvirt_host: Host) -> None:
    with closing(libvirt_host.connect()) as connection:
        for number in range(5):
            connection.defineXML(guests.xml(f"g{number}"))
    in_process.settle([f"g{number}" for number in range(5)])
    handle = in_process.call(in_process.operations.opendir, pyfuse3.ROOT_INODE, None)
    token = Token()
    in_process.call(in_process.operations.readdir, handle, 0, token)
    known = [attrs.st_ino for entry, attrs, _ in token.taken if entry not in (b".", b"..")]
    assert len(in_process.browser.inodes) == 1 + len(known)
    in_process.forget(*known)
    in_process.call(in_process.operations.releasedir, handle)
