"""A guest that is undefined leaves its logs findable, for a time."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tests.lab import guests
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import libvirt

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

A = UUID("00000000-0000-4000-8000-00000000000a")
B = UUID("00000000-0000-4000-8000-00000000000b")
SOON_S = 20.0


@pytest.fixture
def connection(libvirt_host: Host) -> Iterator[libvirt.virConnect]:
    with closing(libvirt_host.connect()) as connection:
        yield connection


def ran(connection: libvirt.virConnect, mounted: Mounted, uuid: UUID) -> str:
    """Let a guest called web run once, and undefine it; returns its log."""
    domain = connection.defineXML(guests.xml("web", uuid))
    domain.create()
    log = mounted.path / "web" / "log" / "qemu.log"
    until(log.exists, SOON_S, "it writes a log")
    domain.destroy()
    until(lambda: "shutting down" in log.read_text(), SOON_S, "its last line is there")
    text = log.read_text()
    domain.undefine()
    until(lambda: mounted.names() == [], SOON_S, "it is gone")
    return text


def gone(mounted: Mounted) -> dict[str, Path]:
    """The entries of guests that are gone, and their logs."""
    top = mounted.path / ".deleted"
    return {entry: top / entry / "log" / "qemu.log" for entry in os.listdir(top)} if top.exists() else {}


def test_a_guest_that_is_gone_has_its_logs_and_nothing_else(
    connection: libvirt.virConnect, mounted: Mounted
) -> None:
    assert not os.path.lexists(mounted.path / ".deleted")
    first = ran(connection, mounted, A)
    ((entry, log),) = gone(mounted).items()
    assert entry.startswith("web@20")
    assert os.listdir(mounted.path / ".deleted" / entry) == ["log"]
    assert log.read_text() == first
    second = ran(connection, mounted, B)
    assert {entry.partition("~")[2]: log.read_text() for entry, log in gone(mounted).items()} == {
        "": first,
        "00000000": second,
    }
    mounted.kill()
    mounted.start()
    assert sorted(log.read_text() for log in gone(mounted).values()) == sorted([first, second])


def test_a_guest_that_comes_back_is_no_longer_among_those_that_are_gone(
    connection: libvirt.virConnect, mounted: Mounted
) -> None:
    first = ran(connection, mounted, A)
    connection.defineXML(guests.xml("web", A))
    until(lambda: mounted.names() == ["web"], SOON_S, "it is back")
    assert gone(mounted) == {}
    assert (mounted.path / "web" / "log" / "qemu.log").read_text() == first
