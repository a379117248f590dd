"""What the kernel has kept of a name or a file is withdrawn when it changes, or was never kept.

Each of these comes with its control: the same look with the withdrawal left out must meet the stale answer.
Without that a test passes as well when the kernel kept nothing in the first place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tests.lab import altered, guests
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import libvirt

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

UUID_A = UUID("00000000-0000-4000-8000-00000000000a")
UUID_B = UUID("00000000-0000-4000-8000-00000000000b")
SOON_S = 5.0


@pytest.fixture
def connection(libvirt_host: Host) -> Iterator[libvirt.virConnect]:
    connection = libvirt_host.connect()
    yield connection
    connection.close()


def shown(path: Path) -> int | None:
    """The inode number that the view has at ``path``; None when it says ENOENT."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def kept(mounted: Mounted, entry: str) -> int:
    """Have the kernel keep an entry of the root; its inode number."""
    until(lambda: shown(mounted.path / entry), SOON_S, f"{entry} is in the view")
    return (mounted.path / entry).stat().st_ino


def not_withdrawn(mounted: Mounted, entry: str) -> None:
    """Return once the altered daemon has come to where it would have withdrawn the entry."""
    until(lambda: f"{altered.NOT_WITHDRAWN}{entry}" in mounted.log, SOON_S, f"{entry} would be withdrawn")


def test_a_renamed_guest_is_gone_from_its_old_name_and_there_under_the_new(
    mounted: Mounted, connection: libvirt.virConnect
) -> None:
    domain = connection.defineXML(guests.xml("web", UUID_A))
    inode = kept(mounted, "web")
    domain.rename("shop")
    until(lambda: shown(mounted.path / "web") is None, SOON_S, "the old name is ENOENT")
    assert shown(mounted.path / "shop") == inode
    assert mounted.names() == ["shop"]


def test_without_withdrawal_a_renamed_guest_stays_under_its_old_name(
    mount_namefs: Callable[..., Mounted], connection: libvirt.virConnect
) -> None:
    mounted = mount_namefs(command=altered.command(altered.without_withdrawal))
    domain = connection.defineXML(guests.xml("web", UUID_A))
    inode = kept(mounted, "web")
    domain.rename("shop")
    not_withdrawn(mounted, "web")
    assert shown(mounted.path / "web") == inode
    assert mounted.names() == ["shop"]


def test_an_undefined_guest_is_gone(mounted: Mounted, connection: libvirt.virConnect) -> None:
    domain = connection.defineXML(guests.xml("web", UUID_A))
    kept(mounted, "web")
    domain.undefine()
    until(lambda: shown(mounted.path / "web") is None, SOON_S, "the undefined guest is ENOENT")


def test_without_withdrawal_an_undefined_guest_stays(
    mount_namefs: Callable[..., Mounted], connection: libvirt.virConnect
) -> None:
    mounted = mount_namefs(command=altered.command(altered.without_withdrawal))
    domain = connection.defineXML(guests.xml("web", UUID_A))
    inode = kept(mounted, "web")
    domain.undefine()
    not_withdrawn(mounted, "web")
    assert shown(mounted.path / "web") == inode
    assert mounted.names() == []


def test_a_name_that_passes_to_another_guest_leads_to_that_one(
    mounted: Mounted, connection: libvirt.virConnect
) -> None:
    first = connection.defineXML(guests.xml("web", UUID_A))
    second = connection.defineXML(guests.xml("db", UUID_B))
    inode_a, inode_b = kept(mounted, "web"), kept(mounted, "db")
    first.rename("old")
    second.rename("web")
    until(lambda: shown(mounted.path / "web") == inode_b, SOON_S, "the name leads to its new holder")
    until(lambda: shown(mounted.path / "db") is None, SOON_S, "the new holder's old name is ENOENT")
    assert shown(mounted.path / "old") == inode_a


def test_a_name_that_was_looked_for_in_vain_resolves_once_a_guest_has_it(
    mounted: Mounted, connection: libvirt.virConnect
) -> None:
    domain = connection.defineXML(guests.xml("web", UUID_A))
    inode = kept(mounted, "web")
    assert shown(mounted.path / "shop") is None
    domain.rename("shop")
    until(lambda: shown(mounted.path / "shop") == inode, SOON_S, "the new name resolves")


def a_log(host: Host, connection: libvirt.virConnect) -> Path:
    """The serial log of a guest ``web``, with one line."""
    log = host.outside("/var/log/libvirt/qemu/web-serial.log")
    log.write_text("one\n")
    connection.defineXML(guests.xml("web", UUID_A, serial_log=host.inside(log)))
    return log


def append(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


def test_what_is_appended_to_a_log_is_there_for_the_next_stat_and_read(
    libvirt_host: Host, mounted: Mounted, connection: libvirt.virConnect
) -> None:
    log = a_log(libvirt_host, connection)
    kept(mounted, "web")
    projected = mounted.path / "web/log/serial0.log"
    with projected.open() as reader:
        assert reader.read() == "one\n"
        assert projected.stat().st_size == 4
        append(log, "two\n")
        assert projected.stat().st_size == 8
        assert reader.read() == "two\n"
        append(log, "three\n")
        assert reader.read() == "three\n"


def test_with_attributes_kept_what_is_appended_to_a_log_is_missed(
    libvirt_host: Host, mount_namefs: Callable[..., Mounted], connection: libvirt.virConnect
) -> None:
    mounted = mount_namefs(command=altered.command(altered.with_files_kept))
    log = a_log(libvirt_host, connection)
    kept(mounted, "web")
    projected = mounted.path / "web/log/serial0.log"
    with projected.open() as reader:
        assert reader.read() == "one\n"
        assert projected.stat().st_size == 4
        append(log, "two\n")
        assert projected.stat().st_size == 4
        assert reader.read() == ""
