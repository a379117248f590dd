"""``namefs logs`` over the files of a libvirt that is not there, without a daemon."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from namefs import cli, table
from namefs.errors import ExitCode
from namefs.journal import Journal
from namefs.model import Domain, Listed
from tests.test_guest import A, B, Desk, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """Guests ``web-1`` and ``web-2``, saved in an index."""
    desk = Desk(tmp_path)
    desk.see(Listed("local", (Domain(A, "web-1", "local"), Domain(B, "web-2", "local"))))
    with closing(Journal(str(tmp_path / "index.sqlite"))) as journal:
        journal.save(desk.index, desk.index.records.keys())
    places = desk.places("system")
    directories = {"log": places.log, "swtpm-log": places.swtpm_log, "store-log": places.store_log}
    lines = "".join(f'{key} = "{path}"\n' for key, path in directories.items())
    (tmp_path / "namefs.toml").write_text(
        f'journal = "{tmp_path}/index.sqlite"\nruntime-directory = "{tmp_path}/run"\n'
        f'[[connection]]\nuri = "qemu:///system"\n[connection.directories]\n{lines}'
    )
    return desk


@pytest.fixture
def logs(desk: Desk, capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., tuple[int, bytes, bytes]]:
    """Runs the command; its exit code and what it printed to both outputs."""

    def logs(*arguments: str) -> tuple[int, bytes, bytes]:
        code = cli.main(["logs", "--config", str(desk.root / "namefs.toml"), *arguments])
        return code, *capfdbinary.readouterr()

    return logs


def test_in_a_pipe_lines_are_as_they_were_written(
    desk: Desk, logs: Callable[..., tuple[int, bytes, bytes]]
) -> None:
    line = b"\x1b]0;title\x07 \xff\r\ttab\n"
    desk.append("log/web-1.log.0", run(A, "older\n"))
    desk.append("log/web-1.log", run(A) + line + b"and no end")
    assert logs("web-1") == (0, run(A, "older\n") + run(A) + line + b"and no end\n", b"")
    assert logs("-n", "1", "web-1") == (0, b"and no end\n", b"")
    assert logs("-n", "0", "web-1") == (0, b"", b"")


def test_a_terminal_is_told_nothing_to_obey_and_a_guest_by_its_colour(
    desk: Desk, logs: Callable[..., tuple[int, bytes, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.append("log/web-1.log", run(A) + b"\x1b]0;title\x07 \xff\n")
    desk.append("log/web-2.log", run(B))
    monkeypatch.setattr(table, "on_terminal", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert logs("-n", "1", "web-1")[1] == b"\\x1b]0;title\\x07 \\xff\n"
    assert logs("-n", "1", "web-[1]")[1] == b"\x1b[36mweb-1\x1b[0m | \\x1b]0;title\\x07 \\xff\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert logs("-n", "1", "web-1", "web-2")[1].splitlines() == [
        b"web-1 | \\x1b]0;title\\x07 \\xff",
        b"web-2 | 2026-11-24 05:42:00.330+0000: shutting down, reason=destroyed",
    ]


@pytest.mark.parametrize(
    ("since", "begin"),
    [
        ("2026-11-24T05:41:07+00:00", 0),
        ("2026-11-24 05:41:08+00:00", 3),
        ("2026-11-24T06:42:00.330+01:00", 4),
        ("2026-11-24T05:42:01Z", 5),
    ],
)
def test_lines_without_a_time_are_of_that_of_the_line_before(
    desk: Desk, logs: Callable[..., tuple[int, bytes, bytes]], since: str, begin: int
) -> None:
    lines = [
        b"2026-11-24 05:41:07.377+0000: starting up libvirt version: 9.0.0\n",
        b"-uuid %s \\\n" % str(A).encode(),
        b"no time\n",
        b"2026-11-24T05:41:30.000000Z qemu-system-x86_64: warning\n",
        b"2026-11-24 05:42:00.330+0000: shutting down\n",
    ]
    desk.append("log/web-1.log", b"".join(lines))
    assert logs("--since", since, "web-1") == (0, b"".join(lines[begin:]), b"")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("nobody",), ExitCode.NOT_FOUND),
        (("nobody-*",), ExitCode.NOT_FOUND),
        (("--since", "yesterday", "web-1"), ExitCode.USAGE),
        (("--since", "99999999999w", "web-1"), ExitCode.USAGE),
    ],
)
def test_what_makes_no_sense_is_told_in_a_line(
    logs: Callable[..., tuple[int, bytes, bytes]], arguments: tuple[str, ...], code: ExitCode
) -> None:
    returned, out, err = logs(*arguments)
    assert (returned, out) == (code, b"")
    assert err.startswith(b"namefs: ")
    assert err.count(b"\n") == 1
