"""Libvirts other than the system's daemon: one within namefs's own process, and a user's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab import guests
from tests.lab.mounted import Mounted
from tests.lab.user import User, ordinary_user
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

SOON_S = 10.0

DEFINE = """
import libvirt, sys
libvirt.virEventRegisterDefaultImpl()
libvirt.open(sys.argv[1]).defineXML(sys.argv[2])
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path of root's that others may enter: a socket's address holds 107 bytes."""
    made = Path(tempfile.mkdtemp(dir="/tmp", prefix="nfc"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def test_an_embedded_libvirt_is_shown_from_the_root_that_its_uri_names(directory: Path) -> None:
    uri = f"qemu:///embed?root={directory}/embedded"
    subprocess.run([sys.executable, "-c", DEFINE, uri, guests.xml("inside")], check=True, timeout=120)
    with ExitStack() as undo:
        mounted = Mounted([(uri, None)])
        undo.callback(mounted.close)
        mounted.start()
        definition = mounted.path / "inside" / "config.xml"
        until(definition.exists, SOON_S, "the guest is shown")
        mounted.count_descriptors()
        assert definition.read_bytes() == (directory / "embedded/etc/qemu/inside.xml").read_bytes()

        (mounted.path / "inside").rename(mounted.path / "renamed")

        assert mounted.names() == ["renamed"]
        assert (directory / "embedded/etc/qemu/renamed.xml").exists()


@pytest.fixture
def user(directory: Path) -> Iterator[User]:
    with ordinary_user(directory) as user:
        yield user


def test_a_user_sees_the_guests_of_the_users_own_libvirt(user: User) -> None:
    definition = user.file("definition.xml", guests.xml("mine"))
    user.run("virsh", "define", os.fspath(definition))
    with user.mount() as view:
        user_sees = ["find", os.fspath(view), "-type", "f"]
        until(lambda: "mine/config.xml" in user.run(*user_sees), SOON_S, "the guest is shown")
        user.run("virsh", "start", "mine")
        until(lambda: "mine/log/qemu.log" in user.run(*user_sees), SOON_S, "its log is shown")
        user.run("virsh", "destroy", "mine")

        user.run("mv", f"{view}/mine", f"{view}/ours")

        assert user.namefs("list").split("\t")[:2] == ["ours", "shut off"]
        assert "starting up libvirt" in user.run("cat", f"{view}/ours/log/qemu.log")
        assert (user.home / ".local/state/namefs/index.sqlite").exists()
