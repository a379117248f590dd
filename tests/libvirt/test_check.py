"""``namefs check`` on a real host: each thing that is wrong is named, and is gone when it is put right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tests.lab import guests
from tests.lab.mounted import PROJECT
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import libvirt

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

A = UUID("00000000-0000-4000-8000-00000000000a")
SOON_S = 20.0
CLEAN, DIFFERENT, UNCHECKED = 0, 1, 2


@pytest.fixture
def connection(libvirt_host: Host) -> Iterator[libvirt.virConnect]:
    with closing(libvirt_host.connect()) as connection:
        yield connection


def check(mounted: Mounted, *words: str) -> tuple[int, set[str], list[str]]:
    """Exit code, the kinds of difference, and what was repaired."""
    command = [
        sys.executable,
        "-m",
        "namefs",
        "check",
        "--json",
        "--config",
        os.fspath(mounted.config),
        *words,
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": os.fspath(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    answer = json.loads(done.stdout) if done.stdout else {"differences": [], "repaired": []}
    return done.returncode, {one["kind"] for one in answer["differences"]}, answer["repaired"]


def test_what_is_wrong_is_named_until_it_is_put_right(
    libvirt_host: Host, connection: libvirt.virConnect, mounted: Mounted
) -> None:
    image = libvirt_host.images / "web.qcow2"
    guests.make_disk(image)
    named = libvirt_host.root / "var/log/libvirt/qemu/console.log"
    named.write_text("whose it is, the definition says\n")
    domain = connection.defineXML(
        guests.xml(
            "web",
            A,
            disks={"vda": "/var/lib/libvirt/images/web.qcow2"},
            serial_log="/var/log/libvirt/qemu/console.log",
        )
    )
    until(lambda: mounted.names() == ["web"], SOON_S, "it is shown")
    assert check(mounted) == (DIFFERENT, {"hook-missing"}, [])
    hook = libvirt_host.root / "etc/libvirt/hooks/qemu.d/50-namefs"
    hook.write_text("#!/bin/sh\nexit 0\n")
    assert check(mounted) == (DIFFERENT, {"hook-not-executable"}, [])
    hook.chmod(0o755)
    assert check(mounted) == (CLEAN, set(), [])

    aside = image.rename(image.with_suffix(".aside"))
    store = libvirt_host.root / "var/lib/libvirt/by-uuid/5d2f1c8e-95b0-4b0a-8f0e-0c7f5f0b6a55"
    store.mkdir(parents=True)
    log = libvirt_host.root / "var/log/libvirt/qemu/nobody.log"
    log.write_text("2026-11-24 06:28:31.000+0000: starting up libvirt version: 9.0.0\n")
    assert check(mounted, "--repair") == (DIFFERENT, {"file-missing", "store-orphan", "log-of-nobody"}, [])
    assert store.is_dir()
    assert log.exists(), "nothing that somebody could want is removed"
    aside.rename(image)
    store.rmdir()
    log.unlink()
    assert check(mounted) == (CLEAN, set(), [])

    mounted.kill()
    assert check(mounted) == (DIFFERENT, {"view-dead"}, [])
    code, kinds, repaired = check(mounted, "--repair")
    assert (code, kinds) == (CLEAN, set())
    assert len(repaired) == 1
    domain.rename("shop")
    assert check(mounted)[:2] == (DIFFERENT, {"index-differs"})
    mounted.start()
    until(lambda: mounted.names() == ["shop"], SOON_S, "it is shown by its new name")
    assert check(mounted) == (CLEAN, set(), [])


def test_without_libvirt_it_cannot_check(libvirt_host: Host, mounted: Mounted) -> None:
    mounted.terminate()
    mounted.config.write_text(mounted.config.read_text().replace("libvirt-sock", "nobody-sock"))
    assert check(mounted)[0] == UNCHECKED
