"""What ``contrib/quickstart`` says without touching the machine; tests/libvirt runs it for real."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "contrib" / "quickstart"
NOBODY = 65534


def quickstart(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs it as a user who can do no harm, handing the script over: the checkout may be root's alone."""
    with QUICKSTART.open() as script:
        return subprocess.run(
            ["/bin/bash", f"/dev/fd/{script.fileno()}", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            pass_fds=[script.fileno()],
            user=NOBODY if os.geteuid() == 0 else None,
        )


def test_it_refuses_to_run_as_an_ordinary_user_and_says_how_to() -> None:
    done = quickstart()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "quickstart: needs root: sudo contrib/quickstart\n"


def test_taking_back_needs_root_too() -> None:
    done = quickstart("--undo")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "quickstart: needs root: sudo contrib/quickstart --undo\n"


@pytest.mark.parametrize("arguments", [("--dry-run",), ("--undo", "now"), ("undo",)])
def test_an_argument_that_it_does_not_know_is_refused(arguments: tuple[str, ...]) -> None:
    done = quickstart(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "quickstart: usage: quickstart [--undo | --help]\n"


def test_help_tells_both_commands_and_where_they_work() -> None:
    done = quickstart("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("sudo contrib/quickstart ", "--undo", "Debian 12 and 13", "Ubuntu 24.04"):
        assert word in done.stdout
    assert "set -e" not in done.stdout
