"""Libvirts other than the system's daemon: one within namefs's own process, and a user's own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab import guests
from tests.lab.mounted import PROJECT, Mounted, is_mounted
from tests.lab.notify import ReadySocket
from tests.lab.process import wait_ended
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

SOON_S = 10.0
USER = pwd.getpwnam("nobody")
PYTHON = "/usr/bin/python3"
"""With the distribution's packages: the one that runs the tests may lie where only root can read it."""

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

        assert os.listdir(mounted.path) == ["renamed"]
        assert (directory / "embedded/etc/qemu/renamed.xml").exists()


class User:
    """An ordinary user with a home, and whatever is started as that user."""

    def __init__(self, home: Path) -> None:
        self.home = home
        runtime = home / "runtime"
        for path in (home, runtime):
            path.mkdir()
            path.chmod(0o700)
            os.chown(path, USER.pw_uid, USER.pw_gid)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.fspath(home),
            "XDG_RUNTIME_DIR": os.fspath(runtime),
            "LIBVIRT_DEFAULT_URI": "qemu:///session",
            "PYTHONPATH": os.fspath(home.parent / "code"),
        }

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            user=USER.pw_uid,
            group=USER.pw_gid,
            extra_groups=[],
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def namefs(self, *arguments: str) -> str:
        return self.run(PYTHON, "-m", "namefs", *arguments)


@pytest.fixture
def user(directory: Path) -> Iterator[User]:
    """A user; what was started as that user ends with the test."""
    # The checkout may lie where only its owner can read it.
    shutil.copytree(PROJECT / "namefs", directory / "code" / "namefs")
    made = User(directory / "home")
    # As udev has it; on a machine without, users may not mount.
    mode = stat.S_IMODE(os.stat("/dev/fuse").st_mode)
    os.chmod("/dev/fuse", 0o666)
    yield made
    os.chmod("/dev/fuse", mode)
    runtime = os.fspath(made.home / "runtime")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            mine = f"XDG_RUNTIME_DIR={runtime}".encode() in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if mine:
            with suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGTERM)
                wait_ended(int(process.name), SOON_S)


def test_a_user_sees_the_guests_of_the_users_own_libvirt(user: User) -> None:
    definition = user.home / "definition.xml"
    definition.write_text(guests.xml("mine"))
    definition.chmod(0o644)
    view = user.home / "guests"
    view.mkdir()
    os.chown(view, USER.pw_uid, USER.pw_gid)
    user.run("virsh", "define", os.fspath(definition))
    ready_path = user.home / "ready"
    with ReadySocket(ready_path) as ready, (user.home / "log").open("wb") as log:
        os.chmod(ready_path, 0o777)
        daemon = subprocess.Popen(
            [PYTHON, "-m", "namefs", "mount", os.fspath(view)],
            user=USER.pw_uid,
            group=USER.pw_gid,
            extra_groups=[],
            env={**user.environment, "NOTIFY_SOCKET": os.fspath(ready_path)},
            cwd=user.home,
            stderr=log,
        )
        try:
            ready.wait(daemon.pid, SOON_S)
            user_sees = ["find", os.fspath(view), "-type", "f"]
            until(lambda: "mine/config.xml" in user.run(*user_sees), SOON_S, "the guest is shown")
            user.run("virsh", "start", "mine")
            until(lambda: "mine/log/qemu.log" in user.run(*user_sees), SOON_S, "its log is shown")
            user.run("virsh", "destroy", "mine")

            user.run("mv", f"{view}/mine", f"{view}/ours")

            assert user.namefs("list").split("\t")[:2] == ["ours", "shut off"]
            assert "starting up libvirt" in user.run("cat", f"{view}/ours/log/qemu.log")
            assert (user.home / ".local/state/namefs/index.sqlite").exists()
        finally:
            daemon.terminate()
            code = daemon.wait(SOON_S)
        assert code == 0, (user.home / "log").read_text()
        assert not is_mounted(view)
