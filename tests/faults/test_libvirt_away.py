"""libvirt not there, stopped, killed, restarted or hanging: the view is served, and catches up."""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from tests.lab import guests
from tests.lab.mounted import NAMEFS, Mounted
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lab.host import Host

UUID_A = UUID("00000000-0000-4000-8000-00000000000a")
UUID_B = UUID("00000000-0000-4000-8000-00000000000b")
UUID_C = UUID("00000000-0000-4000-8000-00000000000c")

CAUGHT_UP_S = 15.0
"""namefs tries to connect every 2 s at least; starting libvirtd takes most of this on a busy machine."""

NOTICED_S = 25.0
"""A libvirtd that hangs is given up after four keepalives of 5 s."""

AT_ONCE_S = 1.0


def status(mounted: Mounted) -> dict[str, Any]:
    """What ``namefs status`` says of the one connection."""
    command = [*NAMEFS, "status", "--json", "--config", os.fspath(mounted.config)]
    done = subprocess.run(command, check=True, capture_output=True, timeout=30)
    (connection,) = json.loads(done.stdout)["connections"]
    assert isinstance(connection, dict)
    return connection


def shows(mounted: Mounted, *entries: str) -> None:
    """Return once the view shows these guests and no others."""
    wanted = sorted(entries)
    until(lambda: sorted(mounted.names()) == wanted, CAUGHT_UP_S, f"the view shows {wanted}")
    for entry in entries:
        assert (mounted.path / entry).is_dir()


def connected(mounted: Mounted) -> None:
    """Return once namefs is connected to libvirt."""
    until(lambda: status(mounted)["state"] == "connected", CAUGHT_UP_S, "namefs is connected")


def rename_by_hand(old: str, new: str, host: Host) -> None:
    """Give a guest another name while there is no libvirtd, so that nobody announces it."""
    definition = host.outside(f"/etc/libvirt/qemu/{old}.xml")
    text = definition.read_text().replace(f"<name>{old}</name>", f"<name>{new}</name>")
    definition.with_name(f"{new}.xml").write_text(text)
    definition.unlink()


def ask_libvirt_about(name: str, host: Host) -> None:
    """Have namefs make a call to libvirt, which does not come back while that hangs."""
    definition = host.outside(f"/etc/libvirt/qemu/{name}.xml")
    definition.write_text(definition.read_text())


def within(limit_s: float, look: Callable[[], object]) -> None:
    """Look, in a thread, since what hangs in FUSE cannot be called off; fails if it takes longer."""
    thread = concurrent.futures.ThreadPoolExecutor(1)
    try:
        thread.submit(look).result(limit_s)
    finally:
        thread.shutdown(wait=False)


@pytest.fixture
def web(libvirt_host: Host) -> None:
    """A guest ``web``."""
    with closing(libvirt_host.connect()) as connection:
        connection.defineXML(guests.xml("web", UUID_A))


@pytest.fixture
def mounted(mounted: Mounted) -> Mounted:
    """namefs, connected."""
    connected(mounted)
    return mounted


def test_started_without_libvirt_it_serves_the_saved_index_and_says_so(
    libvirt_host: Host, web: None, mounted: Mounted
) -> None:
    shows(mounted, "web")
    mounted.terminate()
    libvirt_host.stop_libvirtd()
    mounted.start()
    assert mounted.names() == ["web"]
    assert "<name>web</name>" in (mounted.path / "web/config.xml").read_text()
    until(lambda: status(mounted)["error"], CAUGHT_UP_S, "namefs says why it waits")
    connection = status(mounted)
    assert connection["state"] == "waiting"
    assert "No such file or directory" in connection["error"] or "Connection refused" in connection["error"]
    libvirt_host.start_libvirtd()
    connected(mounted)
    libvirt_host.virsh("domrename", "web", "shop")
    shows(mounted, "shop")


def test_started_without_libvirt_and_without_an_index_it_shows_nothing_until_libvirt_comes(
    libvirt_host: Host, web: None, mount_namefs: Callable[..., Mounted]
) -> None:
    libvirt_host.stop_libvirtd()
    mounted = mount_namefs()
    assert mounted.names() == []
    assert status(mounted)["state"] == "waiting"
    libvirt_host.start_libvirtd()
    shows(mounted, "web")


@pytest.mark.parametrize("end", ["stop_libvirtd", "kill_libvirtd"])
def test_what_changes_while_namefs_has_no_libvirt_is_caught_up_with(
    libvirt_host: Host, web: None, mounted: Mounted, end: str
) -> None:
    shows(mounted, "web")
    getattr(libvirt_host, end)()
    assert mounted.names() == ["web"]
    assert (mounted.path / "web/config.xml").stat().st_size > 0
    until(lambda: status(mounted)["state"] == "waiting", CAUGHT_UP_S, "namefs says that it waits")
    rename_by_hand("web", "shop", libvirt_host)
    libvirt_host.start_libvirtd()
    shows(mounted, "shop")


def test_what_changes_while_neither_runs_is_caught_up_with(
    libvirt_host: Host, web: None, mounted: Mounted
) -> None:
    shows(mounted, "web")
    mounted.terminate()
    libvirt_host.stop_libvirtd()
    rename_by_hand("web", "shop", libvirt_host)
    mounted.start()
    assert mounted.names() == ["web"]
    libvirt_host.start_libvirtd()
    shows(mounted, "shop")


def test_guests_that_change_right_after_libvirtd_is_back_are_not_missed(
    libvirt_host: Host, web: None, mounted: Mounted
) -> None:
    for number in range(3):
        libvirt_host.restart_libvirtd()
        # namefs may be connecting, listing, or still waiting, while this happens.
        with closing(libvirt_host.connect()) as connection:
            web_now = connection.lookupByUUIDString(str(UUID_A))
            web_now.rename(f"web{number}")
            db = connection.defineXML(guests.xml("db", UUID_B))
            db.rename(f"db{number}")
            connection.defineXML(guests.xml("db", UUID_C)).undefine()
            shows(mounted, f"web{number}", f"db{number}")
            db.undefine()
        shows(mounted, f"web{number}")


def test_a_guest_that_runs_through_a_restart_of_libvirtd_stays_as_it_is(
    libvirt_host: Host, web: None, mounted: Mounted
) -> None:
    libvirt_host.virsh("start", "web")
    log = mounted.path / "web/log/qemu.log"
    until(log.exists, CAUGHT_UP_S, "the guest's log is in the view")
    inode = log.stat().st_ino
    with log.open() as reader:
        assert "starting up" in reader.read()
        libvirt_host.restart_libvirtd()
        connected(mounted)
        libvirt_host.virsh("destroy", "web")
        until(lambda: "terminating on signal 15" in reader.read(), CAUGHT_UP_S, "the log goes on")
    assert log.stat().st_ino == inode


def test_a_libvirtd_that_hangs_holds_nothing_up_and_is_noticed(
    libvirt_host: Host, web: None, mounted: Mounted
) -> None:
    shows(mounted, "web")
    libvirt_host.freeze_libvirtd()
    ask_libvirt_about("web", libvirt_host)
    within(AT_ONCE_S, (mounted.path / "web").stat)
    within(AT_ONCE_S, (mounted.path / "web/config.xml").read_text)
    within(AT_ONCE_S, lambda: mounted.names())
    began = time.monotonic()
    until(lambda: status(mounted)["state"] == "waiting", NOTICED_S, "namefs says that libvirt is away")
    # Not before it could know: a status of "waiting" all the time would be no news.
    assert time.monotonic() - began > AT_ONCE_S
    within(AT_ONCE_S, (mounted.path / "web/config.xml").read_text)
    libvirt_host.thaw_libvirtd()
    connected(mounted)
    libvirt_host.virsh("domrename", "web", "shop")
    shows(mounted, "shop")


def test_a_short_hang_of_libvirtd_is_sat_out(libvirt_host: Host, web: None, mounted: Mounted) -> None:
    shows(mounted, "web")
    since = status(mounted)["since"]
    libvirt_host.freeze_libvirtd()
    command = ["virsh", "--quiet", "--connect", libvirt_host.uri, "domrename", "web", "shop"]
    rename = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    within(AT_ONCE_S, (mounted.path / "web").stat)
    libvirt_host.thaw_libvirtd()
    assert rename.wait(30) == 0
    shows(mounted, "shop")
    assert status(mounted)["since"] == since


def test_sigterm_while_libvirtd_hangs_ends_it_within_seconds(
    libvirt_host: Host, web: None, mounted: Mounted
) -> None:
    shows(mounted, "web")
    libvirt_host.freeze_libvirtd()
    ask_libvirt_about("web", libvirt_host)
    began = time.monotonic()
    mounted.terminate()
    assert time.monotonic() - began < 5
