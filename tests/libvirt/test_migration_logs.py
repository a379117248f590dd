"""The log and the sockets of a guest that is migrated on this host, and the definition for its target."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import libvirt
import pytest

from tests.lab.mounted import PROJECT
from tests.lab.seen_migrations import FOO, Lab
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.lab.mounted import Mounted
    from tests.lab.two_hosts import TwoHosts

SOON_S = 30.0
PERSISTENT = libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE


@pytest.fixture
def lab(hosts: TwoHosts, mount_both: Callable[..., Mounted]) -> Lab:
    return Lab(hosts, mount_both())


@contextmanager
def tail(path: Path, output: Path) -> Iterator[Path]:
    """What ``tail -F`` prints of a log, from its beginning, goes to ``output``."""
    with (
        output.open("wb") as file,
        subprocess.Popen(
            ["tail", "-n", "+1", "-s", "0.1", "-F", os.fspath(path)], stdout=file, stderr=subprocess.DEVNULL
        ) as process,
    ):
        yield output
        process.terminate()


def namefs(mounted: Mounted, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "namefs", words[0], "--config", os.fspath(mounted.config), *words[1:]],
        env={**os.environ, "PYTHONPATH": os.fspath(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_one_log_goes_on_from_the_source_to_the_target_and_back(lab: Lab, tmp_path: Path) -> None:
    lab.start_foo()
    log = lab.mounted.path / "foo" / "log" / "qemu.log"
    until(log.exists, SOON_S, "it writes a log")
    with tail(log, tmp_path / "tail") as printed:
        for target in ("b", "a"):
            with lab.migration(PERSISTENT, to=target) as migration:
                migration.await_copying()
                migration.hurry()
                migration.succeeds()
            lab.shows({"foo": target})
            until(lambda: "reason=migrated" in log.read_text(), SOON_S, "the source's last line is there")
        starts = "starting up libvirt version"
        until(lambda: log.read_text().count(starts) == 3, SOON_S, "all three processes' lines are there")
        whole = log.read_text()
        until(lambda: len(printed.read_text()) >= len(whole), SOON_S, "tail has printed it")
        assert printed.read_text() == whole, "no line twice, none missing"
    order = [line for line in whole.splitlines() if starts in line or "reason=migrated" in line]
    assert [starts in line for line in order] == [True, False, True, False, True]
    assert whole.count(f"-uuid {FOO}") == 3
    assert namefs(lab.mounted, "logs", "foo") == whole
    moves = json.loads(namefs(lab.mounted, "history", "foo", "--json"))["moves"]
    assert [(move["source"], move["target"]) for move in moves] == [("a", "b"), ("b", "a")]


def greeting(path: Path) -> str:
    """What a VNC server says first, by a socket that a symlink of the view leads to."""
    directory = os.open(path.resolve().parent, os.O_PATH)
    try:
        with closing(socket.socket(socket.AF_UNIX)) as client:
            client.settimeout(SOON_S)
            client.connect(f"/proc/self/fd/{directory}/{path.resolve().name}")
            return client.recv(12).decode()
    finally:
        os.close(directory)


def test_a_client_of_a_socket_reaches_the_target_once_it_is_the_guest(lab: Lab) -> None:
    lab.start_foo(vnc_socket=True)
    vnc = lab.mounted.path / "foo" / "sockets" / "vnc"
    until(vnc.is_symlink, SOON_S, "it has a socket")
    source = os.readlink(vnc)
    assert greeting(vnc).startswith("RFB")
    with lab.migration(PERSISTENT) as migration:
        migration.await_copying()
        assert os.readlink(vnc) == source
        status = namefs(lab.mounted, "status")
        assert "\nmoving   foo: " in status
        migration.hurry()
        migration.succeeds()
    lab.shows({"foo": "b"})
    until(lambda: vnc.is_symlink() and os.readlink(vnc) != source, SOON_S, "it leads to the target's")
    assert greeting(vnc).startswith("RFB")


def shows(shown: Path, real: Path) -> None:
    """Return once a file of the view is that real one."""

    def lies() -> str | None:
        try:
            return os.getxattr(shown, "user.namefs.path").decode()
        except OSError:
            return None

    until(lambda: lies() == os.fspath(real), SOON_S, f"it is {real}")


def test_each_process_of_an_adopted_guest_has_files_of_its_own(
    hosts: TwoHosts, mount_both: Callable[..., Mounted]
) -> None:
    store = hosts.shared / "by-uuid" / str(FOO)
    (store / "log").mkdir(parents=True)
    for directory in (store.parent, store, store / "log"):
        directory.chmod(0o755)
    mounted = mount_both(of_connections=f'[connection.directories]\nstore = "{store.parent}"')
    lab = Lab(hosts, mounted)
    lab.start_foo(serial_log=f"{store}/log/serial0.log")
    shown = mounted.path / "foo" / "log" / "serial0.log"
    first, second = store / "log/serial0.log", store / "generation-1/log/serial0.log"
    for target, now in (("b", second), ("a", first)):
        until(lambda: mounted.names() == ["foo"], SOON_S, "it is one")
        with lab.migration(
            PERSISTENT,
            to=target,
            xml=namefs(mounted, "migrate-xml", "foo"),
            persistent_xml=namefs(mounted, "migrate-xml", "--persistent", "foo"),
        ) as migration:
            migration.await_copying()
            migration.hurry()
            migration.succeeds()
        lab.shows({"foo": target})
        shows(shown, now)
