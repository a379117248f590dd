"""The log, as it comes out on the standard error of a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from typing import IO

PROJECT = Path(__file__).parent.parent
PROGRAM = """
import logging, sys
from namefs import log
log.setup(verbose="verbose" in sys.argv)
logger = logging.getLogger("namefs.test")
logger.debug("detail")
logger.info("two\\nlines")
logger.warning("warning")
logging.getLogger("foreign").debug("foreign detail")
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("failed")
logger.critical("end")
"""


def written(stderr: IO[bytes], journal: str, *arguments: str) -> list[str]:
    environment = {**os.environ, "JOURNAL_STREAM": journal}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    subprocess.run(command, stderr=stderr, cwd=PROJECT, env=environment, check=True)
    stderr.seek(0)
    return stderr.read().decode().splitlines()


def test_every_line_for_the_journal_has_its_priority(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+b") as stderr:
        status = os.fstat(stderr.fileno())
        lines = written(stderr, f"{status.st_dev}:{status.st_ino}")
    assert lines[:4] == ["<6>two", "<6>lines", "<4>warning", "<3>failed"]
    assert lines[4] == "<3>Traceback (most recent call last):"
    assert lines[-2:] == ["<3>ZeroDivisionError: division by zero", "<2>end"]


@pytest.mark.parametrize("journal", ["", "1:2", "no such"])
def test_elsewhere_lines_have_time_and_level(tmp_path: Path, journal: str) -> None:
    with (tmp_path / "log").open("w+b") as stderr:
        lines = written(stderr, journal)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO two", lines[0])
    assert lines[-1].endswith(" CRITICAL end")


def test_detail_is_logged_on_request_and_only_namefss_own(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+b") as stderr:
        lines = written(stderr, "", "verbose")
    assert lines[0].endswith(" DEBUG detail")
    assert not any("foreign" in line for line in lines)


def test_sigusr1_shows_what_all_threads_do_even_while_they_hang() -> None:
    program = """
import threading, time
from namefs import log
log.setup()
def hang_here():
    print("ready", flush=True)
    threading.Event().wait()
threading.Thread(target=hang_here, daemon=True).start()
threading.Event().wait()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=PROJECT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGUSR1)
        stacks = b""
        # The main thread's stack comes last.
        while b"<module>" not in stacks:
            stacks += process.stderr.readline()
        process.kill()
    assert b"hang_here" in stacks
