"""The command as a process of its own, asking a daemon of this test's."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
import trio

from namefs import __version__, mounts
from namefs.applying import apply
from namefs.control_server import serve
from namefs.errors import ExitCode, NamefsError
from namefs.index import Index
from namefs.journal import Journal
from namefs.model import Domain, Listed
from tests.test_mounts import View, unmount_all

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).parent.parent
NAMEFS = (sys.executable, "-m", "namefs")
WEB = "5d2f1c8e-95b0-4b0a-8f0e-0c7f5f0b6a55"
DB = "0b9b0d4e-3c0e-4d5c-9a3f-2f1f6f0a7c11"

LIST: dict[str, Any] = {
    "guests": [
        {
            "name": "db\udcff\n",
            "group": None,
            "pending": False,
            "migration": None,
            "uuid": DB,
            "state": "shut off",
            "libvirt_name": "db\udcff\n",
            "connection": "local",
            "former": ["old db", "older"],
            "path": "/v/db%FF%0A",
        },
        {
            "name": "網頁",
            "group": "shop",
            "pending": True,
            "migration": None,
            "uuid": WEB,
            "state": "running",
            "libvirt_name": "web",
            "connection": "local",
            "former": [],
            "path": "/v/網頁",
        },
    ]
}
WHICH = {
    "matches": [
        {
            "name": "web",
            "group": None,
            "uuid": WEB,
            "libvirt_name": "vm\n7",
            "title": "web",
            "former": ["www"],
            "view": "/v/web/log/qemu.log",
            "path": "/log/w\x1beb.log",
        }
    ]
}
HISTORY = {
    "name": "web",
    "uuid": WEB,
    "names": [
        {
            "kind": "shown",
            "name": "www",
            "since": "2026-01-02T03:04:05.678901+00:00",
            "until": "2026-02-03T04:05:06+00:00",
        },
        {"kind": "shown", "name": "web", "since": "2026-02-03T04:05:06+00:00", "until": None},
    ],
    "moves": [],
}
STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "pid": 4711,
    "mountpoint": "/v",
    "since": "2026-01-02T03:04:05+00:00",
    "guests": 2,
    "deleted": 1,
    "migrations": [{"name": "db", "uuid": DB, "phase": "its memory is copied"}],
    "pending": [{"name": "shop", "libvirt_name": "web", "uuid": WEB, "why": "it is running"}],
    "connections": [
        {
            "label": "local",
            "uri": "qemu:///system",
            "state": "waiting",
            "since": "2026-01-02T03:04:05+00:00",
            "error": "no\nsocket",
            "guests": 2,
            "hook": {"spool": "/run/namefs/spool", "last_call": None, "installed": True},
        }
    ],
    "journal": "/var/lib/namefs/index.sqlite",
    "warnings": ["the index was damaged"],
}


class Daemon:
    """Answers every request with what the test has set, and keeps what it was asked."""

    def __init__(self, directory: Path) -> None:
        self.config = directory / "namefs.toml"
        self.config.write_text(
            f'mountpoint = "{directory}/by-name"\n'
            f'journal = "{directory}/index.sqlite"\nruntime-directory = "{directory}/run"\n'
        )
        self.asked: list[dict[str, Any]] = []
        self.answers: dict[str, dict[str, Any] | NamefsError] = {}
        self._socket = str(directory / "run" / "control.sock")
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve, ready))
        self._thread.start()
        assert ready.wait(20)

    def stop(self) -> None:
        if self._thread is not None:
            self._token.run_sync_soon(self._stopping.set)
            self._thread.join()

    async def _serve(self, ready: threading.Event) -> None:
        self._token, self._stopping = trio.lowlevel.current_trio_token(), trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, self._socket, self._answer)
            ready.set()
            await self._stopping.wait()
            nursery.cancel_scope.cancel()

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(request)
        answer = self.answers[request.get("what") or request["op"]]
        if isinstance(answer, NamefsError):
            raise answer
        return answer


@pytest.fixture
def down() -> Iterator[Daemon]:
    """A daemon that has not been started, with a configuration of its own."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="nfc") as directory:
        yield Daemon(Path(directory))


@pytest.fixture
def daemon(down: Daemon) -> Iterator[Daemon]:
    down.start()
    yield down
    down.stop()


def run(
    *arguments: str, cwd: Path = PROJECT, stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "TZ": "UTC"}
    # Set in many a container, it would hide what happens to output that is still in the buffer.
    environment.pop("PYTHONUNBUFFERED", None)
    command = [*NAMEFS, *arguments]
    pipe = subprocess.PIPE
    return subprocess.run(
        command, cwd=cwd, env=environment, stdout=stdout, stderr=pipe, text=True, check=False
    )


def ask(
    daemon: Daemon, command: str, *arguments: str, cwd: Path = PROJECT, stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    return run(command, "--config", str(daemon.config), *arguments, cwd=cwd, stdout=stdout)


def on_a_terminal(daemon: Daemon, command: str, *arguments: str) -> list[str]:
    """The lines that the command writes to a terminal."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "TZ": "UTC"}
    command_line = [*NAMEFS, command, "--config", str(daemon.config), *arguments]
    written = b""
    with subprocess.Popen(command_line, stdout=slave, stderr=slave, cwd=PROJECT, env=environment):
        os.close(slave)
        try:
            while chunk := os.read(master, 65536):
                written += chunk
        except OSError:
            # EIO is the end, when nobody has the other side open any more.
            pass
        finally:
            os.close(master)
    return written.decode().splitlines()


def assert_failed(done: subprocess.CompletedProcess[str], code: ExitCode, message: str) -> None:
    assert done.returncode == code, done.stderr
    assert re.fullmatch(rf"namefs: .*{message}.*\n", done.stderr), done.stderr
    assert not done.stdout


def test_it_tells_its_version() -> None:
    assert run("--version").stdout == f"namefs {__version__}\n"


def test_help_has_every_exit_code_and_command() -> None:
    text = run("--help").stdout
    for code in ExitCode:
        assert f"{code.value:4}  {code.sentence}\n" in text
    for command in ("mount", "list", "which", "rename", "status", "history", "umount"):
        assert re.search(rf"^    {command} ", text, re.MULTILINE)
        assert "examples:\n  namefs " in run(command, "--help").stdout


def test_exit_codes_keep_their_meaning() -> None:
    # Scripts have these numbers in them. To a new one this list grows; nothing else is right.
    assert {code.name: code.value for code in ExitCode} == {
        "OK": 0,
        "UNEXPECTED": 1,
        "USAGE": 2,
        "CONFIGURATION": 3,
        "NOT_FOUND": 4,
        "LIBVIRT_REFUSED": 5,
        "LIBVIRT_UNREACHABLE": 6,
        "DAEMON_UNREACHABLE": 7,
        "MOUNT_FAILED": 8,
        "PERMISSION": 9,
        "AMBIGUOUS": 10,
        "FILE_FAILED": 11,
        "DAEMON_RUNNING": 12,
        "NOT_NOW": 13,
        "UNFINISHED": 14,
    }


def test_a_pipe_gets_names_first_and_tabs_between(daemon: Daemon) -> None:
    daemon.answers["list"] = LIST
    done = ask(daemon, "list")
    assert done.stdout == (
        f"db%FF%0A\tshut off\t{DB}\t\tlocal\told db older\t\n"
        f"shop/網頁\trunning\t{WEB}\tweb\tlocal\t\tlibvirt's name\n"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert daemon.asked == [{"op": "list", "pattern": None}]


def test_a_terminal_gets_aligned_columns_under_a_bold_header(daemon: Daemon) -> None:
    daemon.answers["list"] = LIST
    assert on_a_terminal(daemon, "list") == [
        f"\033[1mNAME       STATE     UUID{' ' * 32}  LIBVIRT NAME  FORMERLY      PENDING\033[0m",
        f"db%FF%0A   shut off  {DB}                old db older",
        f"shop/網頁  running   {WEB}  web                         libvirt's name",
    ]


def test_a_pattern_is_left_to_the_daemon(daemon: Daemon) -> None:
    daemon.answers["list"] = {"guests": []}
    done = ask(daemon, "list", "web-*")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert daemon.asked == [{"op": "list", "pattern": "web-*"}]
    assert on_a_terminal(daemon, "list", "x") == ["no guest's name matches"]
    assert on_a_terminal(daemon, "list") == ["no guests"]


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("list",), LIST),
        (("which", "/log/web.log"), WHICH),
        (("history", "web"), HISTORY),
        (("rename", "web", "www"), {"name": "www", "uuid": WEB}),
    ],
)
def test_programs_get_the_answer_as_it_is(
    daemon: Daemon, arguments: tuple[str, ...], answer: dict[str, Any]
) -> None:
    daemon.answers[arguments[0]] = daemon.answers["web"] = daemon.answers["/log/web.log"] = answer
    done = ask(daemon, *arguments, "--json")
    assert json.loads(done.stdout) == answer
    assert done.stdout.isascii()
    assert (done.returncode, done.stderr) == (0, "")


def test_a_path_is_asked_about_from_the_root(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "vda").symlink_to("/dev/null")
    (tmp_path / "link").symlink_to("real")
    real = str(tmp_path / "real")
    unknown = NamefsError(ExitCode.NOT_FOUND, "no guest none in a group called link")
    daemon.answers = {f"{real}/vda": WHICH, f"{real}/none": WHICH, real: WHICH, "link/none": unknown}
    for what in ("link/vda", f"{tmp_path}/link/vda", "./real/../link/vda", "link/none", "link/", "link/."):
        assert ask(daemon, "which", what, cwd=tmp_path).returncode == 0
    assert [request["what"] for request in daemon.asked] == [
        f"{real}/vda", f"{real}/vda", f"{real}/vda", "link/none", f"{real}/none", real, real,
    ]  # fmt: skip


def test_a_word_is_a_name_first_and_then_a_file_here(daemon: Daemon, tmp_path: Path) -> None:
    unknown = NamefsError(ExitCode.NOT_FOUND, "no guest vda")
    daemon.answers = {"vda": WHICH, str(tmp_path / "vda"): WHICH}
    (tmp_path / "vda").touch()
    assert ask(daemon, "which", "vda", cwd=tmp_path).returncode == 0
    assert [request["what"] for request in daemon.asked] == ["vda"]
    nothing: NamefsError | dict[str, Any]
    for nothing in (unknown, {"matches": []}):
        daemon.answers["vda"] = nothing
        assert ask(daemon, "which", "vda", cwd=tmp_path).returncode == 0
        assert daemon.asked[-1] == {"op": "which", "what": str(tmp_path / "vda")}
    (tmp_path / "vda").unlink()
    daemon.answers["vda"] = unknown
    assert_failed(ask(daemon, "which", "vda", cwd=tmp_path), ExitCode.NOT_FOUND, "no guest vda")
    daemon.answers["vda"] = {"matches": []}
    assert_failed(ask(daemon, "which", "vda", cwd=tmp_path), ExitCode.NOT_FOUND, "no such guest: vda")


def test_which_tells_both_paths_and_nothing_that_a_terminal_would_obey(daemon: Daemon) -> None:
    daemon.answers["web"] = WHICH
    assert ask(daemon, "which", "web").stdout == (
        f"web\t{WEB}\t/v/web/log/qemu.log\t/log/w\\x1beb.log\tvm%0A7\t\twww\n"
    )
    assert on_a_terminal(daemon, "which", "web") == [
        f"\033[1mweb\033[0m  {WEB}",
        "  in the view  /v/web/log/qemu.log",
        "  on disk      /log/w\\x1beb.log",
        "  for libvirt  vm%0A7",
        "  formerly     www",
    ]


def test_an_argument_that_is_not_utf8_reaches_the_daemon(daemon: Daemon) -> None:
    daemon.answers["w\udcff"] = HISTORY
    assert ask(daemon, "history", os.fsdecode(b"w\xff")).returncode == 0


def test_history_has_exact_times_for_programs_and_local_ones_for_people(daemon: Daemon) -> None:
    daemon.answers["web"] = HISTORY
    assert ask(daemon, "history", "web").stdout == (
        "www\t2026-01-02T03:04:05.678901+00:00\t2026-02-03T04:05:06+00:00\t\n"
        "web\t2026-02-03T04:05:06+00:00\t\t\n"
    )
    assert on_a_terminal(daemon, "history", "web") == [
        "\033[1mNAME  SINCE                UNTIL\033[0m",
        "www   2026-01-02 03:04:05  2026-02-03 04:05:06",
        "web   2026-02-03 04:05:06  now",
    ]


def test_rename_says_nothing_when_it_is_done(daemon: Daemon) -> None:
    daemon.answers["rename"] = {"name": "www", "uuid": WEB, "libvirt_name": "www"}
    done = ask(daemon, "rename", "web", "www")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert daemon.asked == [{"op": "rename", "old": "web", "new": "www", "swap": False}]


def test_status_tells_how_the_daemon_is(daemon: Daemon) -> None:
    daemon.answers["status"] = STATUS
    done = ask(daemon, "status")
    assert done.stdout.splitlines() == [
        "view     /v",
        "daemon   namefs 0.1.0, process 4711, since 2026-01-02T03:04:05+00:00",
        "guests   2, and 1 deleted",
        "libvirt  local, qemu:///system, waiting for it since 2026-01-02T03:04:05+00:00: no\\nsocket",
        "hook     not called yet",
        "spool    /run/namefs/spool",
        "index    /var/lib/namefs/index.sqlite",
        "pending  shop, for libvirt still web: it is running",
        "moving   db: its memory is copied",
        "warning  the index was damaged",
    ]
    assert done.returncode == 0
    assert json.loads(ask(daemon, "status", "--json").stdout) == {"reachable": True, **STATUS}


def test_status_says_that_the_hook_is_missing(daemon: Daemon) -> None:
    hook = {"spool": "/s", "last_call": "2026-01-02T03:04:05+00:00", "installed": False}
    (connection,) = STATUS["connections"]
    daemon.answers["status"] = {**STATUS, "connections": [{**connection, "hook": hook}]}
    line = next(line for line in on_a_terminal(daemon, "status") if line.startswith("hook"))
    assert line == "hook     not installed, last called 2026-01-02 03:04:05"


def test_status_of_a_daemon_that_is_down_says_so_and_fails(down: Daemon) -> None:
    done = ask(down, "status")
    assert done.returncode == ExitCode.DAEMON_UNREACHABLE
    assert done.stdout.startswith("down: no daemon answers at ")
    done = ask(down, "status", "--json")
    assert done.returncode == ExitCode.DAEMON_UNREACHABLE
    assert json.loads(done.stdout)["reachable"] is False


@pytest.fixture
def indexed(down: Daemon) -> Daemon:
    """A daemon that is down and has left an index with one guest, which was called "old" before."""
    saved = Index()
    with closing(Journal(str(down.config.parent / "index.sqlite"))) as journal:
        for now_ns, name in enumerate(("old", "web")):
            seen = [Listed("local", (Domain(UUID(WEB), name, "local"),))]
            applied = apply(saved, seen, now_ns)
            journal.save(applied.index, applied.touched)
            saved = applied.index
    return down


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("list", "w*"), f"web\tno state\t{WEB}\t\tlocal\told\t\n"),
        (("which", WEB[:8]), rf"web\t{WEB}\t.*/by-name/web\t\t\t\told\n"),
        (("history", "old"), r"old\t1970-01-01T00:00:00.*\t1970-.*\t\nweb\t1970-.*\t\t\n"),
        (("ps",), ""),
        (("list", "--json"), r'\{\n  "guests": \[(?s:.*)\]\n\}\n'),
    ],
)
def test_without_the_daemon_the_saved_index_answers(
    indexed: Daemon, arguments: tuple[str, ...], expected: str
) -> None:
    done = ask(indexed, *arguments)
    assert re.fullmatch(expected, done.stdout), done.stdout
    assert done.stderr == "namefs: the daemon does not answer; this is the index as it last was\n"
    assert done.returncode == 0


def test_without_the_daemon_errors_are_those_of_the_index(indexed: Daemon) -> None:
    assert_failed(ask(indexed, "which", "db"), ExitCode.NOT_FOUND, "no such guest: db")


def test_without_daemon_and_index_there_is_nothing_to_tell(down: Daemon) -> None:
    assert_failed(ask(down, "list"), ExitCode.NOT_FOUND, "there is no index yet")


def test_rename_needs_the_daemon(down: Daemon) -> None:
    assert_failed(ask(down, "rename", "a", "b"), ExitCode.DAEMON_UNREACHABLE, "no daemon answers")


@pytest.mark.parametrize("code", set(ExitCode) - {ExitCode.OK, ExitCode.DAEMON_UNREACHABLE})
def test_an_error_of_the_daemons_is_one_line_and_its_exit_code(daemon: Daemon, code: ExitCode) -> None:
    daemon.answers["web"] = NamefsError(code, "cannot\n\x1b[2J")
    assert_failed(ask(daemon, "history", "web"), code, re.escape("cannot\\n\\x1b[2J"))


@pytest.mark.parametrize("arguments", [("list",), ("which", "web"), ("rename", "web", "b"), ("status",)])
def test_an_error_of_the_daemons_is_the_same_for_programs(daemon: Daemon, arguments: tuple[str, ...]) -> None:
    daemon.answers[arguments[0]] = daemon.answers["web"] = NamefsError(ExitCode.LIBVIRT_UNREACHABLE, "no")
    assert_failed(ask(daemon, *arguments, "--json"), ExitCode.LIBVIRT_UNREACHABLE, "no")


def test_an_answer_that_makes_no_sense_ends_in_a_traceback(daemon: Daemon) -> None:
    daemon.answers["list"] = {"hosts": []}
    done = ask(daemon, "list")
    assert done.returncode == ExitCode.UNEXPECTED
    assert done.stderr.startswith("Traceback ")
    assert done.stderr.endswith("KeyError: 'guests'\n")


@pytest.mark.parametrize(
    "arguments",
    [(), ("lst",), ("list", "--jsn"), ("which",), ("rename", "a"), ("mount", "a", "b"), ("mount", "--json")],
)
def test_a_command_line_that_makes_no_sense_is_refused(arguments: tuple[str, ...]) -> None:
    assert_failed(run(*arguments), ExitCode.USAGE, r"\(see: namefs( [a-z]+)? --help\)")


@pytest.mark.parametrize("command", ["mount", "list", "status", "umount"])
def test_a_configuration_that_makes_no_sense_is_refused(down: Daemon, command: str) -> None:
    assert_failed(run(command, "--config", "/none.toml"), ExitCode.CONFIGURATION, "/none.toml: No such file")
    down.config.write_text("\nsocket = 1\n")
    assert_failed(ask(down, command), ExitCode.CONFIGURATION, r"namefs\.toml:2: unknown key 'socket'")


def test_an_ordinary_user_is_told_that_only_root_may_ask(daemon: Daemon) -> None:
    daemon.config.parent.chmod(0o755)
    # The interpreter becomes that user when it has imported everything, as it does for --help: it may
    # lie where only root can read.
    program = (
        "import contextlib, io, os, sys, tomllib, traceback\n"
        "import namefs.cli, namefs.config, namefs.queries\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    namefs.cli.main(['--help'])\n"
        "os.setgroups([]), os.setgid(65534), os.setuid(65534)\n"
        "sys.exit(namefs.cli.main(sys.argv[1:]))"
    )
    for command in ("list", "status"):
        arguments = [sys.executable, "-c", program, command, "--config", str(daemon.config)]
        done = subprocess.run(arguments, cwd=PROJECT, capture_output=True, text=True, check=False)
        assert_failed(done, ExitCode.PERMISSION, "only root may ask the daemon")
    daemon.config.chmod(0o600)
    done = subprocess.run(arguments, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert_failed(done, ExitCode.PERMISSION, "Permission denied")


def test_output_that_cannot_be_written_is_an_error(daemon: Daemon) -> None:
    daemon.answers["list"] = LIST
    with open("/dev/full", "w") as full:
        done = ask(daemon, "list", stdout=full.fileno())
    assert done.returncode == ExitCode.FILE_FAILED
    assert done.stderr == "namefs: standard output: No space left on device\n"


def test_a_reader_that_has_seen_enough_is_no_error_worth_a_word(daemon: Daemon) -> None:
    daemon.answers["list"] = {"guests": LIST["guests"] * 1000}
    reader, writer = os.pipe()
    os.close(reader)
    done = ask(daemon, "list", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_text_that_the_locale_lacks_is_escaped(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    daemon.answers["list"] = LIST
    assert "\\u7db2\\u9801\trunning" in ask(daemon, "list").stdout


@pytest.fixture
def mountpoint(down: Daemon) -> Iterator[Path]:
    """The configured mount point; whatever the test leaves mounted there is taken off."""
    path = down.config.parent / "by-name"
    path.mkdir()
    yield path
    unmount_all(str(path))


@pytest.mark.parametrize("by_configuration", [True, False])
def test_umount_takes_the_view_off(down: Daemon, mountpoint: Path, by_configuration: bool) -> None:
    View(mountpoint).serve()
    done = ask(down, "umount") if by_configuration else run("umount", str(mountpoint))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert mounts.find(str(mountpoint)) is None


def test_umount_refuses_while_the_view_is_in_use_unless_it_is_dead(down: Daemon, mountpoint: Path) -> None:
    view = View(mountpoint)
    view.serve()
    user = os.open(mountpoint, os.O_PATH)
    try:
        assert_failed(ask(down, "umount"), ExitCode.MOUNT_FAILED, "busy")
        view.abort()
        assert ask(down, "umount").returncode == 0
    finally:
        os.close(user)
    assert mounts.find(str(mountpoint)) is None


def test_umount_leaves_alone_what_is_no_view(tmp_path: Path) -> None:
    assert_failed(
        run("umount", "/proc"), ExitCode.MOUNT_FAILED, "what is mounted at /proc is proc, not namefs"
    )
    assert_failed(run("umount", str(tmp_path)), ExitCode.MOUNT_FAILED, "nothing is mounted at")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["namefs", "history", "my\\ g"], {"my\\ guest"}),
        (["namefs", "history", "web", ""], set()),
        (["namefs", "which", "/etc/hostn"], {"/etc/hostname"}),
        (["namefs", "mount", "/et"], {"/etc"}),
    ],
)
def test_bash_completes_a_name_with_a_blank_and_paths(
    tmp_path: Path, typed: list[str], expected: set[str]
) -> None:
    command = tmp_path / "namefs"
    command.write_text("#!/bin/sh\nprintf 'web\\trunning\\nmy guest\\tshut off\\n'")
    command.chmod(0o755)
    script = (
        f'source {PROJECT}/contrib/completions/namefs.bash; compopt() {{ :; }}; COMP_WORDS=("$@"); '
        "COMP_CWORD=$(($# - 1)); _namefs; ((${#COMPREPLY[@]} == 0)) || printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-uc", script, "bash", *typed], env=environment, capture_output=True, text=True, check=True
    )
    assert (set(done.stdout.splitlines()), done.stderr) == (expected, "")
