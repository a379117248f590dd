"""An ordinary user, and programs that run as that user: a libvirt of the user's own, and namefs over it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.mounted import PROJECT, is_mounted
from tests.lab.notify import ReadySocket
from tests.lab.process import wait_ended

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_S = 20.0
USER = pwd.getpwnam("nobody")
PYTHON = "/usr/bin/python3"
"""With the distribution's packages: the one that runs the tests may lie where only root can read it."""


class User:
    """An ordinary user with a home, and whatever is started as that user."""

    def __init__(self, home: Path) -> None:
        self.home = home
        runtime = home / "runtime"
        for path in (home, runtime):
            path.mkdir()
            path.chmod(0o700)
            self.owns(path)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.fspath(home),
            "XDG_RUNTIME_DIR": os.fspath(runtime),
            "LIBVIRT_DEFAULT_URI": "qemu:///session",
            "PYTHONPATH": os.fspath(home.parent / "code"),
        }

    def owns(self, path: Path) -> None:
        """Give a file or directory to the user."""
        os.chown(path, USER.pw_uid, USER.pw_gid)

    def file(self, name: str, text: str) -> Path:
        """A file in the user's home."""
        made = self.home / name
        made.write_text(text)
        self.owns(made)
        return made

    def run(self, *command: str) -> str:
        """Run a command and return what it printed; AssertionError, with its complaint, if it fails."""
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
        """Run a command of namefs's."""
        return self.run(PYTHON, "-m", "namefs", *arguments)

    @contextmanager
    def mount(self, *options: str) -> Iterator[Path]:
        """A mounted view, at ~/guests; at its end the daemon must exit with 0 and leave no mount."""
        view = self.home / "guests"
        view.mkdir()
        self.owns(view)
        ready_path = self.home / "ready"
        with ReadySocket(ready_path) as ready, (self.home / "log").open("wb") as log:
            os.chmod(ready_path, 0o777)
            daemon = subprocess.Popen(
                [PYTHON, "-m", "namefs", "mount", *options, os.fspath(view)],
                user=USER.pw_uid,
                group=USER.pw_gid,
                extra_groups=[],
                env={**self.environment, "NOTIFY_SOCKET": os.fspath(ready_path)},
                cwd=self.home,
                stderr=log,
            )
            try:
                ready.wait(daemon.pid, TIMEOUT_S)
                yield view
            finally:
                # If the test has unmounted it, the daemon ends by itself.
                if is_mounted(view):
                    daemon.terminate()
                code = daemon.wait(TIMEOUT_S)
            assert code == 0, (self.home / "log").read_text()
            assert not is_mounted(view)


@contextmanager
def ordinary_user(directory: Path) -> Iterator[User]:
    """A user with a home in ``directory``; what was started as that user ends with the test."""
    # The checkout may lie where only its owner can read it.
    shutil.copytree(PROJECT / "namefs", directory / "code" / "namefs")
    made = User(directory / "home")
    # As udev has it; on a machine without, users may not mount.
    mode = stat.S_IMODE(os.stat("/dev/fuse").st_mode)
    os.chmod("/dev/fuse", 0o666)
    try:
        yield made
    finally:
        os.chmod("/dev/fuse", mode)
        _end_all(os.fspath(made.home / "runtime"))


def _end_all(runtime: str) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            theirs = f"XDG_RUNTIME_DIR={runtime}".encode() in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if theirs:
            with suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGTERM)
                wait_ended(int(process.name), TIMEOUT_S)
