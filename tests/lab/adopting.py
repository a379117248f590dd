"""``namefs adopt`` and ``release`` against a lab host, and what is changed in them for tests.

``python -m tests.lab.adopting CHANGE STEP adopt ...`` is namefs with a change: right after the step of that
number (from 0), or the first whose line begins so, it is killed, or fails, or something else happens, which
nobody could time so well from outside.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

from namefs import cli
from namefs.adoption import files, steps
from tests.lab.mounted import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.lab.host import Host

NAMEFS = (sys.executable, "-m", "namefs")


class Adopting:
    """Calls the commands for one host, as its administrator would. ``config`` is their configuration file."""

    def __init__(self, host: Host, directory: Path) -> None:
        self.config = directory / "namefs.toml"
        connection = f'[[connection]]\nuri = "{host.uri}"\nroot = "{host.root}"\n'
        self.config.write_text(f'runtime-directory = "{directory}/run"\n{connection}')

    def here(self, *arguments: str) -> tuple[int, str]:
        """The same in this process, which is faster: the exit code, and all that is printed."""
        name, *others = arguments
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(printed):
            code = cli.main([name, "--config", os.fspath(self.config), *others])
        return code, printed.getvalue()

    def call(
        self, *arguments: str, command: Sequence[str] = NAMEFS, expected: int | None = 0
    ) -> tuple[str, str]:
        """What one call prints, and its complaints. Its exit code must be ``expected``, if not None."""
        name, *others = arguments
        done = subprocess.run(
            [*command, name, "--config", os.fspath(self.config), *others],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
        )
        if expected is not None:
            assert done.returncode == expected, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout, done.stderr


def after_step(which: str, do: Callable[[], None]) -> None:
    """Have something done right after one step."""
    perform = steps.perform
    lines: list[str] = []

    def watched(step: steps.Step) -> None:
        perform(step)
        lines.append(step.line)
        if which == str(len(lines) - 1) or [line for line in lines if line.startswith(which)] == [step.line]:
            do()

    steps.perform = watched


def killed(which: str) -> None:
    """The process is killed after the step."""
    after_step(which, lambda: os.kill(os.getpid(), signal.SIGKILL))


def failing(which: str) -> None:
    """The step fails as on a filesystem that is full, after it was done."""

    def fail() -> None:
        raise OSError(28, os.strerror(28), "a full filesystem, made for a test")

    after_step(which, fail)


def running(which: str) -> None:
    """After the step the shell command in ``$MEANWHILE`` runs."""

    def run() -> None:
        subprocess.run(os.environ["MEANWHILE"], shell=True, check=True)

    after_step(which, run)


def killed_while_copying(_which: str) -> None:
    """The process is killed when a copy is whole, and not yet compared."""
    files._compare = lambda *_arguments: os.kill(os.getpid(), signal.SIGKILL)


CHANGES: dict[str, Callable[[str], None]] = {
    change.__name__: change for change in (killed, killed_while_copying, failing, running)
}


def changed(change: Callable[[str], None], which: int | str) -> tuple[str, ...]:
    """What starts namefs so changed; for `Adopting.call`."""
    return (sys.executable, "-m", "tests.lab.adopting", change.__name__, str(which))


if __name__ == "__main__":
    CHANGES[sys.argv[1]](sys.argv[2])
    sys.exit(cli.main(sys.argv[3:]))
