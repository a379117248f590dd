"""The hook where it belongs: called by libvirt, read by a daemon that serves a view."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from tests.lab import guests
from tests.lab.mounted import PROJECT
from tests.lab.process import wait_ended
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

UUID_A = UUID("00000000-0000-4000-8000-00000000000a")
UUID_B = UUID("00000000-0000-4000-8000-00000000000b")
SOON_S = 5.0

HOOK = PROJECT / "contrib/libvirt-hook"
SPOOL_LINE = "spool=/run/namefs/spool\n"

CHECK = """\
#!/bin/sh
# Called after namefs's hook, and in its prepare before libvirt opens QEMU's log.
[ "$2" = prepare ] || exit 0
looks=0 shown=no log=no
while :; do
    looks=$((looks + 1))
    if [ -e "{view}/$1" ]; then shown=yes; break; fi
    [ "$looks" -lt {most} ] || break
    sleep 0.01
done
if [ -e "/var/log/libvirt/qemu/$1.log" ]; then log=yes; fi
echo "$1 shown=$shown log=$log" >>"{results}"
"""
"""Says whether the view has the guest. libvirt holds the guest's lock: nothing here may need libvirt."""


def write(host: Host, definition: str) -> str:
    file = host.root / "definition.xml"
    file.write_text(definition)
    return os.fspath(file)


def install_hook(host: Host, spool: Path) -> None:
    text = HOOK.read_text()
    assert text.count(SPOOL_LINE) == 1
    host.install_hook(text.replace(SPOOL_LINE, f"spool={spool}\n"), "50-namefs")


class Check:
    """The hook that looks at the view, and what it has found."""

    def __init__(self, host: Host, mounted: Mounted, results: Path) -> None:
        self._host = host
        # The mount is not in the host's mount namespace, but in ours.
        self._view = f"/proc/{os.getpid()}/root{mounted.path}"
        self._results = results

    def install(self, most_looks: int) -> None:
        script = CHECK.format(view=self._view, most=most_looks, results=self._results)
        self._host.install_hook(script, "99-check")

    def found(self) -> list[str]:
        return self._results.read_text().splitlines()


@pytest.fixture
def check(libvirt_host: Host, mounted: Mounted, tmp_path: Path) -> Check:
    return Check(libvirt_host, mounted, tmp_path / "results")


@pytest.fixture
def hooked(libvirt_host: Host, mounted: Mounted) -> Host:
    """The host with namefs's hook, and no other."""
    install_hook(libvirt_host, mounted.runtime_directory / "spool")
    return libvirt_host


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


def test_a_transient_guest_is_in_the_view_before_its_log_is_opened(
    hooked: Host, mounted: Mounted, check: Check
) -> None:
    check.install(most_looks=300)
    hooked.virsh("create", write(hooked, guests.xml("web", UUID_A)))
    assert check.found() == ["web shown=yes log=no"]
    until(lambda: state(mounted.path / "web") == b"running", SOON_S, "web is shown as running")
    hooked.virsh("destroy", "web")
    until(lambda: not (mounted.path / "web").exists(), SOON_S, "web is gone")


def test_without_the_hook_it_comes_later(libvirt_host: Host, mounted: Mounted, check: Check) -> None:
    """That is what the hook is for, and that the test before this one can fail."""
    check.install(most_looks=20)
    libvirt_host.virsh("create", write(libvirt_host, guests.xml("web", UUID_A)))
    assert check.found() == ["web shown=no log=no"]
    until(lambda: state(mounted.path / "web") == b"running", SOON_S, "web is shown as running")


def test_the_first_line_of_a_log_is_read_under_the_name(
    hooked: Host, mounted: Mounted, tmp_path: Path
) -> None:
    """Of a guest that took the name of another one, into whose log libvirt goes on writing."""
    log = hooked.outside("/var/log/libvirt/qemu/web.log")
    hooked.virsh("create", write(hooked, guests.xml("web", UUID_A)))
    hooked.virsh("destroy", "web")
    until(lambda: log.read_text().endswith(": shutting down, reason=destroyed\n"), SOON_S, "the log ends")
    until(lambda: not (mounted.path / "web").exists(), SOON_S, "the first web is gone")
    first = log.read_text()
    printed = tmp_path / "printed"
    with printed.open("wb") as out:
        tail = subprocess.Popen(
            ["tail", "-s", "0.01", "-n", "+1", "-F", "web/log/qemu.log"],
            cwd=mounted.path,
            stdout=out,
            stderr=subprocess.DEVNULL,
        )
    try:
        hooked.virsh("create", write(hooked, guests.xml("web", UUID_B)))
        until(lambda: f"-uuid {UUID_B}" in printed.read_text(), SOON_S, "tail prints the start")
        # libvirt goes on in the file, or begins one if namefs has removed it by then.
        assert printed.read_text() == log.read_text().removeprefix(first)
    finally:
        tail.kill()
        tail.wait()


def test_a_start_that_fails_leaves_no_guest_behind(hooked: Host, mounted: Mounted, check: Check) -> None:
    """libvirt announces neither its beginning nor its end by an event."""
    check.install(most_looks=300)
    disks = {"vda": "/var/lib/libvirt/images/missing.qcow2"}
    definition = write(hooked, guests.xml("web", UUID_A, disks=disks))
    assert "Cannot access storage file" in hooked.virsh("create", definition, check=False)
    assert check.found() == ["web shown=yes log=no"]
    until(lambda: not (mounted.path / "web").exists(), SOON_S, "web is gone")
    assert mounted.names() == []


def test_a_guest_of_a_former_name_is_shown_by_its_new_one(
    hooked: Host, mounted: Mounted, check: Check
) -> None:
    """The name passes from one guest to another, and the other is started at once."""
    check.install(most_looks=300)
    hooked.virsh("define", write(hooked, guests.xml("web", UUID_A)))
    hooked.virsh("domrename", "web", "shop")
    hooked.virsh("create", write(hooked, guests.xml("web", UUID_B)))
    assert check.found() == ["web shown=yes log=no"]
    until(lambda: uuid_of(mounted.path / "web") == UUID_B, SOON_S, "the new one is web")
    assert uuid_of(mounted.path / "shop") == UUID_A


def test_status_knows_of_the_hook(hooked: Host, mounted: Mounted) -> None:
    def hook() -> dict[str, Any]:
        command = [sys.executable, "-m", "namefs", "status", "--json", "--config", str(mounted.config)]
        environment = {**os.environ, "PYTHONPATH": os.fspath(PROJECT)}
        done = subprocess.run(command, cwd="/", env=environment, check=True, capture_output=True, text=True)
        said: dict[str, Any] = json.loads(done.stdout)["hook"]
        return said

    assert hook() == {
        "installed": True,
        "last_call": None,
        "spool": str(mounted.runtime_directory / "spool"),
    }
    hooked.virsh("create", write(hooked, guests.xml("web", UUID_A)))
    until(lambda: hook()["last_call"], SOON_S, "the call is known")


def stop(mounted: Mounted) -> None:
    os.kill(mounted.pid, signal.SIGSTOP)


def end(mounted: Mounted) -> None:
    mounted.kill()
    wait_ended(mounted.pid, SOON_S)


@pytest.mark.parametrize("disable", [stop, end])
def test_a_guest_starts_and_stops_whatever_became_of_the_daemon(
    hooked: Host, mounted: Mounted, disable: Callable[[Mounted], None]
) -> None:
    disable(mounted)
    try:
        hooked.virsh("create", write(hooked, guests.xml("gone", UUID_A)))
        hooked.virsh("destroy", "gone")
        hooked.virsh("create", write(hooked, guests.xml("web", UUID_B)))
        assert hooked.virsh("list", "--name").split() == ["web"]
    finally:
        if disable is stop:
            os.kill(mounted.pid, signal.SIGCONT)
        else:
            mounted.start()
    until(lambda: state(mounted.path / "web") == b"running", SOON_S, "web is shown as running")
    until(lambda: mounted.names() == ["web"], SOON_S, "the other one is not shown")
