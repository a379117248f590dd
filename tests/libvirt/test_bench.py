"""The benchmarks run, with next to nothing to measure: what nobody runs is broken when it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import needs

BENCH = Path(__file__).parents[2] / "contrib" / "bench"
TIMEOUT_S = 120.0


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("hook --rounds 3", "libvirt-hook"),
        ("latency --renames 2 --guests 2", "new name resolves"),
        ("rename --renames 1 --snapshots 3 --logs 2", "mv, running: namefs's processor time"),
        ("view --guests 20 --rounds 1 --big 1", "sequential read"),
    ],
    ids=["hook", "latency", "rename", "view"],
)
def test_a_benchmark_prints_its_table(command: str, printed: str) -> None:
    assert needs.missing_for_a_host() == needs.missing_for_a_mount() == []
    name, *options = command.split()
    done = subprocess.run(
        [sys.executable, BENCH / name, *options],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
