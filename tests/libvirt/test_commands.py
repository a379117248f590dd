"""What the commands say of real guests that go by more than one name."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from namefs.errors import ExitCode
from tests.lab import guests
from tests.lab.mounted import PROJECT
from tests.lab.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

WEB = UUID("5d2f1c8e-95b0-4b0a-8f0e-0c7f5f0b6a55")
SOON_S = 20.0


def namefs(mounted: Mounted, *words: str) -> tuple[int, list[list[str]]]:
    """Exit code and rows of a command's output; of a failure, what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "namefs", words[0], "--config", os.fspath(mounted.config), *words[1:]],
        env={**os.environ, "PYTHONPATH": os.fspath(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    rows = [line.split("\t") for line in (done.stdout or done.stderr).splitlines()]
    return done.returncode, rows


@pytest.fixture
def pid(libvirt_host: Host, mounted: Mounted) -> int:
    """The process of a running guest: shown as "shop", "web" to libvirt, formerly "old", with a title."""
    with closing(libvirt_host.connect()) as connection:
        domain = connection.defineXML(guests.xml("old", WEB, title="My shop"))
        until(lambda: mounted.names() == ["old"], SOON_S, "it is shown")
        domain.rename("web")
        until(lambda: mounted.names() == ["web"], SOON_S, "it is shown by its new name")
        connection.lookupByName("web").create()
    pid_file = mounted.path / "web" / "run" / "pid"
    until(pid_file.exists, SOON_S, "it runs")
    state = mounted.path / "web"
    until(lambda: os.getxattr(state, "user.namefs.state") == b"running", SOON_S, "it is shown running")
    assert namefs(mounted, "rename", "web", "shop") == (0, [])
    return int(pid_file_of(mounted).read_text())


def pid_file_of(mounted: Mounted) -> Path:
    return mounted.path / "shop" / "run" / "pid"


def test_a_guest_is_found_by_each_of_its_names_its_uuid_and_its_process(mounted: Mounted, pid: int) -> None:
    row = ["shop", str(WEB), str(mounted.path / "shop"), "", "web", "My shop", "old"]
    for word in ("shop", "web", "My shop", "old", str(WEB), "5d2f1c8e", "5d2f1c8e-95"):
        assert namefs(mounted, "which", word) == (0, [row]), word
    assert namefs(mounted, "which", "--pid", str(pid)) == (0, [row])
    code, said = namefs(mounted, "which", "--pid", str(os.getpid()))
    assert (code, said) == (ExitCode.NOT_FOUND, [[f"namefs: process {os.getpid()} is no guest's"]])
    path = f"{mounted.path}/shop/config.xml"
    assert namefs(mounted, "which", path)[1][0][:3] == ["shop", str(WEB), path]


def test_ps_list_and_history_know_all_its_names(mounted: Mounted, pid: int) -> None:
    ((process, _time, memory, _elapsed, name, of_libvirt),) = namefs(mounted, "ps")[1]
    assert (process, name, of_libvirt) == (str(pid), "shop", "web")
    assert int(memory.removesuffix("M")) > 0
    assert namefs(mounted, "list", "s*")[1] == [
        ["shop", "running", str(WEB), "web", "local", "old", "libvirt's name"]
    ]
    assert namefs(mounted, "list", "w*")[1] == namefs(mounted, "list", "s*")[1]
    _code, held = namefs(mounted, "history", "old")
    assert [(row[0], row[3]) for row in held if not row[2]] == [("web", "libvirt"), ("shop", "shown")]
    assert {(row[0], row[3]) for row in held if row[2]} == {
        ("old", "shown"),
        ("old", "libvirt"),
        ("web", "shown"),
    }
    mounted.kill()
    for command in (("list",), ("ps",), ("which", "old"), ("history", "web")):
        assert namefs(mounted, *command)[0] == 0, command
    mounted.start()


def test_what_is_pending_is_told_and_taken_back(mounted: Mounted, pid: int) -> None:
    status = {row[0].split("  ")[0]: row[0] for row in namefs(mounted, "status")[1]}
    assert status["pending"].startswith("pending  shop, for libvirt still web: it is running")
    assert namefs(mounted, "rename", "--cancel", "old") == (0, [])
    assert mounted.names() == ["web"]
    code, said = namefs(mounted, "rename", "--cancel", "web")
    assert (code, said) == (ExitCode.LIBVIRT_REFUSED, [["namefs: nothing is pending for web"]])
    code, said = namefs(mounted, "rename", "web", "project/web")
    assert code == ExitCode.LIBVIRT_REFUSED
    assert "parts a group from its guests" in said[0][0]
