"""A namefs daemon for tests, over a real mount, that is held to leaving nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tests.lab import forked
from tests.lab.notify import ReadySocket
from tests.lab.process import wait_ended
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TIMEOUT_S = 15.0
PROJECT = Path(__file__).parents[2]
NAMEFS = (sys.executable, "-m", "namefs")

COMPLAINT = re.compile(r"^<[0-4]>|\b(WARNING|ERROR|CRITICAL|FATAL)\b|^Traceback ")


class Mounted:
    """One mount point, its journal and configuration, and the daemon that serves it at the moment.

    ``connections`` are pairs of a libvirt URI and the root of that libvirt's directories, None for ``/``; of
    several, the labels are ``a``, ``b`` and so on.
    ``settings`` are further lines of TOML for the head of the configuration file, ``of_connection`` for each
    connection in it. ``command`` starts namefs.
    """

    def __init__(
        self,
        connections: Sequence[tuple[str, Path | None]],
        settings: str = "",
        command: Sequence[str] = NAMEFS,
        of_connection: str = "",
    ) -> None:
        # In /tmp, whatever TMPDIR says, and not pytest's: a socket's address holds 107 bytes, and a test may
        # look at the view as an ordinary user.
        directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="nfm"))
        directory.chmod(0o755)
        self._directory = directory
        self.path = directory / "by-name"
        self.journal = directory / "index.sqlite"
        self.runtime_directory = directory / "run"
        self.config = directory / "namefs.toml"
        self.pid = 0
        self._command = command
        self._ready = directory / "ready"
        self._log = directory / "log"
        self._allowed: list[re.Pattern[str]] = []
        self._daemon: subprocess.Popen[bytes] | forked.Process | None = None
        self._sockets = 5 + 2 * len(connections)
        """The control socket, two pairs by which trio wakes itself, and two connections to each libvirt.
        They may be opened only after READY."""
        self._descriptors: Counter[str] = Counter()
        self.path.mkdir()
        self.config.write_text(_configuration(self, connections, settings, of_connection))

    @property
    def log(self) -> list[str]:
        """What the daemon, and those before it on this mount point, wrote to standard error: its lines."""
        return self._log.read_text(errors="replace").splitlines()

    @property
    def running(self) -> bool:
        """Whether a daemon was started that nobody has stopped."""
        return self._daemon is not None

    def names(self) -> list[str]:
        """What plain ls(1) shows of the view: all but what begins with a dot."""
        return [entry for entry in os.listdir(self.path) if not entry.startswith(".")]

    def start(self) -> None:
        """Start the daemon, and return when it says that the mount answers.

        Raises AssertionError with what it wrote when it ends or says nothing within TIMEOUT_S.
        """
        assert not self.running
        with ReadySocket(self._ready) as ready, self._log.open("ab") as log:
            self._daemon = self._run(log)
            self.pid = self._daemon.pid
            try:
                ready.wait(self.pid, TIMEOUT_S)
            except (ChildProcessError, TimeoutError) as error:
                self.kill()
                # The error shows all that it wrote: close() need not complain of it again.
                self.expect_warning("")
                raise AssertionError(f"namefs: {error}\n" + "\n".join(self.log)) from error
        self.count_descriptors()

    def count_descriptors(self) -> None:
        """Take what is open now for what may be open at the end.

        Done at the start; an embedded libvirt opens files of its own in namefs's process after that.
        """
        self._descriptors = self._settled_descriptors()
        self._descriptors["socket"] = max(self._descriptors["socket"], self._sockets)

    def kill(self) -> None:
        """End the daemon at once, as a crash would: the mount stays, and fails with ENOTCONN."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait(TIMEOUT_S)
        self._daemon = None

    def ended(self) -> int:
        """Wait for the daemon to end by itself, and return its exit code, negative if a signal's."""
        assert self._daemon is not None
        code = self._daemon.wait(TIMEOUT_S)
        self._daemon = None
        return code

    def terminate(self) -> None:
        """End the daemon by SIGTERM; check that it leaks no descriptor, leaves no mount, and exits with 0."""
        assert self._daemon is not None
        self._check_descriptors()
        self._daemon.send_signal(signal.SIGTERM)
        wait_ended(self.pid, TIMEOUT_S)
        code = self._daemon.wait()
        self._daemon = None
        printed = "\n".join(self.log)
        assert code == 0, f"namefs exited with {code} on SIGTERM:\n{printed}"
        assert not is_mounted(self.path), f"namefs left {self.path} mounted:\n{printed}"

    def expect_warning(self, pattern: str) -> None:
        """Let the daemon complain in lines that hold a match of ``pattern``, a regular expression."""
        self._allowed.append(re.compile(pattern))

    def close(self) -> None:
        """End the daemon, if one runs, with all of terminate()'s checks; check that it did not complain.

        Removes all files and any mount, whatever the checks say.
        """
        try:
            if self.running:
                self.terminate()
            complaints = [
                line
                for line in self.log
                if COMPLAINT.search(line) and not any(allowed.search(line) for allowed in self._allowed)
            ]
            assert not complaints, "namefs complained:\n" + "\n".join(self.log)
        finally:
            self._clean_up()

    def _run(self, log: IO[bytes]) -> subprocess.Popen[bytes] | forked.Process:
        environment = {**os.environ, "NOTIFY_SOCKET": os.fspath(self._ready), "PYTHONUNBUFFERED": "1"}
        # Found as `python -m` finds it: the tests run the tree, not what may be installed.
        environment["PYTHONPATH"] = os.fspath(PROJECT)
        arguments = ["mount", os.fspath(self.path), "--config", os.fspath(self.config)]
        if self._command == NAMEFS:
            directory = self.config.parent
            return forked.start(arguments, output=log, environment=environment, directory=directory)
        return subprocess.Popen(
            [*self._command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=self.config.parent,
        )

    def _clean_up(self) -> None:
        if self._daemon is not None:
            self.kill()
        # More than once, if a daemon mounted over what a killed one left.
        while is_mounted(self.path):
            subprocess.run(["umount", "--lazy", os.fspath(self.path)], check=True)
        shutil.rmtree(self._directory)

    def _settled_descriptors(self) -> Counter[str]:
        """The open descriptors, once three looks in a row saw the same."""
        looks = [Counter[str](), self._open_descriptors()]

        def settled() -> bool:
            looks.append(self._open_descriptors())
            return looks[-1] == looks[-2] == looks[-3]

        until(settled, TIMEOUT_S, "descriptors of namefs stay the same")
        return looks[-1]

    def _open_descriptors(self) -> Counter[str]:
        """What the daemon has open, how many times.

        Without pipes, of which libfuse keeps one for each thread that spliced, and without anonymous inodes
        (epoll, eventfd, inotify). Sockets count as one kind, as each has another number.
        """
        kinds: Counter[str] = Counter()
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                target = os.readlink(descriptor)
            except FileNotFoundError:
                continue
            if not target.startswith(("pipe:", "anon_inode:")):
                kinds["socket" if target.startswith("socket:") else target] += 1
        return kinds

    def _check_descriptors(self) -> None:
        # The kernel sends RELEASE and FORGET after close(2) has returned.
        try:
            until(lambda: not self._leaked(), TIMEOUT_S, "namefs closes what it opened for the test")
        except TimeoutError:
            raise AssertionError(f"namefs leaked descriptors: {dict(self._leaked())}") from None

    def _leaked(self) -> Counter[str]:
        return self._open_descriptors() - self._descriptors


def _configuration(
    mounted: Mounted, connections: Iterable[tuple[str, Path | None]], settings: str, of_connection: str
) -> str:
    lines = [
        f"mountpoint = {_toml(mounted.path)}",
        f"journal = {_toml(mounted.journal)}",
        f"runtime-directory = {_toml(mounted.runtime_directory)}",
        settings,
    ]
    several = list(connections)
    for number, (uri, root) in enumerate(several):
        lines += ["[[connection]]", f"uri = {_toml(uri)}"]
        lines += [f"label = {_toml(chr(ord('a') + number))}"] if len(several) > 1 else []
        lines += [] if root is None else [f"root = {_toml(root)}"]
        lines.append(of_connection)
    return "\n".join(lines) + "\n"


def is_mounted(path: Path) -> bool:
    """Whether something is mounted at ``path``, be it dead: asks the kernel, not the mount."""
    mount_points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return os.fspath(path) in mount_points


def _toml(path: Path | str) -> str:
    # A basic string of TOML is written as JSON writes one.
    return json.dumps(os.fspath(path))
