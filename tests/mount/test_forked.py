"""A daemon of the tests', which is forked, is what the command would have started; tests.lab.forked."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.lab import forked
from tests.lab.process import wait_ended

TIMEOUT_S = 30.0

KILLED_TESTS = """
import os, signal
from tests.lab.mounted import Mounted

mounted = Mounted([("test:///default", None)])
mounted.start()
print(mounted.pid, mounted.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_prints_and_exits_as_the_command_does(tmp_path: Path) -> None:
    """Names that are wrong make it complain of them, relative paths are those of its directory."""
    command = [sys.executable, "-m", "namefs", "list", "--config", "none.toml"]
    environment = {**os.environ, "PYTHONPATH": os.fspath(forked.PROJECT)}
    expected = subprocess.run(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert expected.returncode not in {0, 1}
    assert b"none.toml" in expected.stdout

    with (tmp_path / "printed").open("wb") as output:
        process = forked.start(
            ["list", "--config", "none.toml"], output=output, environment=environment, directory=tmp_path
        )

    assert process.wait(TIMEOUT_S) == expected.returncode
    assert (tmp_path / "printed").read_bytes() == expected.stdout


def test_it_ends_when_the_tests_are_killed() -> None:
    command = [sys.executable, "-c", KILLED_TESTS]
    killed = subprocess.run(command, cwd=forked.PROJECT, stdout=subprocess.PIPE, text=True, check=False)
    pid, path = killed.stdout.split()
    try:
        assert killed.returncode == -signal.SIGKILL
        wait_ended(int(pid), TIMEOUT_S)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
        shutil.rmtree(Path(path).parent)
