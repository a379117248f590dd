"""The hook, run as libvirt runs it, and what it leaves in the spool."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import shutil
import signal
import struct
import subprocess
import tempfile
import termios
import threading
import time
from pathlib import Path
from random import Random
from typing import IO, TYPE_CHECKING
from uuid import UUID
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from namefs.sources.hook import HookCall, Incomplete, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCRIPT = Path(__file__).parent.parent / "contrib" / "libvirt-hook"
OPERATIONS = (
    "prepare",
    "start",
    "started",
    "stopped",
    "release",
    "migrate",
    "restore",
    "reconnect",
    "attach",
)
WEB = UUID("4dea22b3-1d52-d8f3-2516-782e98ab3fa0")
LIMIT_S = 20.0
NOBODY = 65534


class Hook:
    """The script with a spool of the test's own: the line that says where it is is the only one changed."""

    def __init__(self, directory: Path) -> None:
        self.spool = directory / "spool"
        self.path = directory / "50-namefs"
        line = "spool=/run/namefs/spool\n"
        text = SCRIPT.read_text()
        assert text.count(line) == 1
        self.path.write_text(text.replace(line, f"spool={self.spool}\n"))
        self.path.chmod(0o755)

    def popen(
        self,
        *argv: str | bytes,
        stdin: IO[bytes] | int | None = subprocess.PIPE,
        stdout: IO[bytes] | int | None = subprocess.PIPE,
        stderr: IO[bytes] | int | None = subprocess.PIPE,
        user: int | None = None,
        before_exec: Callable[[], object] | None = None,
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [self.path, *argv],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            user=user,
            preexec_fn=before_exec,
            env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/"},
            cwd="/",
        )

    def call(
        self,
        *argv: str | bytes,
        xml: bytes | None = None,
        stdin: IO[bytes] | int | None = subprocess.PIPE,
        user: int | None = None,
        before_exec: Callable[[], object] | None = None,
    ) -> None:
        """Run the hook to its end, which is in silence and with status 0 whatever it was given."""
        with self.popen(*argv, stdin=stdin, user=user, before_exec=before_exec) as process:
            try:
                answer = process.communicate(domain_xml() if xml is None else xml, timeout=LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert (process.returncode, *answer) == (0, b"", b"")

    def record(self, operation: str, uuid: UUID = WEB) -> bytes:
        return (self.spool / f"{uuid}.{operation}").read_bytes()

    def records(self) -> list[str]:
        return sorted(entry.name for entry in self.spool.iterdir())


def domain_xml(name: bytes = b"web", uuid: UUID = WEB) -> bytes:
    """As libvirt writes it: 2.8 kB, the UUID after the name."""
    escaped = escape(name.decode("latin-1")).encode("latin-1")
    return (
        b"<domain type='kvm' id='1'>\n  <name>%b</name>\n  <uuid>%b</uuid>\n  <devices>\n"
        b"%b  </devices>\n</domain>\n"
    ) % (escaped, str(uuid).encode(), b"    <controller type='pci' model='pcie-root-port'/>\n" * 50)


def web(operation: str, name: str = "web") -> HookCall:
    return HookCall(operation, "begin", "-", WEB, name)


@pytest.fixture
def hook(tmp_path: Path) -> Hook:
    made = Hook(tmp_path)
    made.spool.mkdir(mode=0o700)
    return made


@pytest.fixture(scope="module")
def shared_hook(tmp_path_factory: pytest.TempPathFactory) -> Hook:
    """For hypothesis, whose examples share the fixture."""
    made = Hook(tmp_path_factory.mktemp("hook"))
    made.spool.mkdir(mode=0o700)
    return made


@pytest.fixture
def open_hook() -> Iterator[Hook]:
    """In a directory that every user can reach, as pytest's own is not."""
    directory = Path(tempfile.mkdtemp(prefix="namefs-hook-"))
    directory.chmod(0o755)
    made = Hook(directory)
    made.spool.mkdir()
    made.spool.chmod(0o700)
    try:
        yield made
    finally:
        shutil.rmtree(directory)


# What it leaves


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_of_libvirt_is_recorded_under_the_guest_and_operation(
    hook: Hook, operation: str
) -> None:
    hook.call("web", operation, "begin", "-")
    assert hook.records() == [f"{WEB}.{operation}"]
    assert parse(hook.record(operation)) == web(operation)


def test_the_reason_that_libvirt_adds_is_recorded(hook: Hook) -> None:
    hook.call("web", "stopped", "end", "from snapshot")
    assert parse(hook.record("stopped")) == HookCall("stopped", "end", "from snapshot", WEB, "web")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 255), min_size=1, max_size=247).map(bytes))
def test_a_name_of_any_bytes_is_read_as_it_was_given(shared_hook: Hook, name: bytes) -> None:
    shared_hook.call(name, "start", "begin", "-", xml=domain_xml(name))
    assert parse(shared_hook.record("start")) == web("start", os.fsdecode(name))


@pytest.mark.parametrize(
    "name",
    [
        b"-n",
        b"--",
        b"%s\\n\\c",
        b"*",
        b"$(reboot)",
        b"`reboot`",
        b"..",
        b"\n" * 247,
        b"web\n0\n",
        b"web\n  <uuid>00000000-0000-0000-0000-000000000000</uuid>",
        b"\x81\x82\x83\x84\x85\x86\x87\x88\xff",
        b"n" * 100_000,
    ],
    ids=lambda name: repr(name[:20]),
)
def test_a_name_that_could_mislead_a_shell_is_read_as_it_was_given(hook: Hook, name: bytes) -> None:
    hook.call(name, "start", "begin", "-", xml=domain_xml(name))
    assert parse(hook.record("start")) == web("start", os.fsdecode(name))


@pytest.mark.parametrize(
    ("first", "second"), [("a long name", "web"), ("web", "a long name"), ("web", "dab")]
)
def test_a_later_call_takes_the_place_of_the_earlier(hook: Hook, first: str, second: str) -> None:
    hook.call(first, "start", "begin", "-")
    hook.call(second, "start", "begin", "-")
    assert hook.records() == [f"{WEB}.start"]
    assert parse(hook.record("start")) == web("start", second)


def test_without_a_daemon_the_spool_holds_one_record_for_each_guest_and_operation(hook: Hook) -> None:
    for _ in range(3):
        for operation in OPERATIONS:
            hook.call("web", operation, "begin", "-")
    assert len(hook.records()) == len(OPERATIONS)


def test_no_process_is_started(open_hook: Hook) -> None:
    open_hook.spool.chmod(0o777)
    open_hook.call(
        "web",
        "start",
        "begin",
        "-",
        user=NOBODY,
        before_exec=lambda: resource.setrlimit(resource.RLIMIT_NPROC, (0, 0)),
    )
    assert parse(open_hook.record("start")) == web("start")


# Whatever happens


def test_without_a_spool_nothing_happens_and_none_is_made(hook: Hook) -> None:
    hook.spool.rmdir()
    hook.call("web", "start", "begin", "-")
    assert not hook.spool.exists()


def test_a_spool_that_is_a_file_is_left_alone(hook: Hook) -> None:
    hook.spool.rmdir()
    hook.spool.write_bytes(b"something else")
    hook.call("web", "start", "begin", "-")
    assert hook.spool.read_bytes() == b"something else"


def test_without_permission_nothing_happens(open_hook: Hook) -> None:
    open_hook.call("web", "start", "begin", "-", user=NOBODY)
    assert open_hook.records() == []


def test_on_a_full_disk_only_a_guest_that_has_a_record_gets_a_new_one(hook: Hook) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "namefs-test", hook.spool], check=True)
    try:
        hook.call("web", "start", "begin", "-")
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (hook.spool / "more").write_bytes(b"more")
        hook.call("renamed", "start", "begin", "-")
        hook.call("renamed", "started", "begin", "-")
        assert parse(hook.record("start")) == web("start", "renamed")
        with pytest.raises(Incomplete):
            parse(hook.record("started"))
    finally:
        subprocess.run(["umount", hook.spool], check=True)


def limit_file_size(size_bytes: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))


def test_a_call_that_may_not_write_leaves_the_record_before_it(hook: Hook) -> None:
    hook.call("web", "start", "begin", "-", before_exec=limit_file_size(0))
    assert hook.record("start") == b""
    hook.call("web", "start", "begin", "-")
    hook.call("renamed", "start", "begin", "-", before_exec=limit_file_size(0))
    assert parse(hook.record("start")) == web("start")


def test_a_record_cut_short_over_an_earlier_one_is_taken_for_neither(hook: Hook) -> None:
    hook.call("a" * 200, "start", "begin", "-")
    hook.call("b" * 200, "start", "begin", "-", before_exec=limit_file_size(150))
    assert b"ba" in hook.record("start")
    with pytest.raises(Incomplete):
        parse(hook.record("start"))


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (1, 2), (0, 1, 2)], ids=str)
def test_closed_standard_descriptors_do_no_harm(hook: Hook, closed: tuple[int, ...]) -> None:
    def close() -> None:
        for fd in closed:
            os.close(fd)

    hook.call("web", "start", "begin", "-", before_exec=close)
    if 0 in closed:
        assert hook.records() == []
    else:
        assert parse(hook.record("start")) == web("start")


def test_an_output_that_nobody_reads_does_no_harm(hook: Hook) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with (
        os.fdopen(writing, "wb") as output,
        hook.popen("web", "start", "begin", "-", stdout=output, stderr=output) as process,
    ):
        process.communicate(domain_xml(), timeout=LIMIT_S)
    assert process.returncode == 0
    assert parse(hook.record("start")) == web("start")


@pytest.mark.parametrize(
    "xml",
    [
        b"",
        b"\n",
        b"<domain>\n  <name>web</name>\n</domain>\n",
        b"<uuid></uuid>\n",
        b"<uuid>web</uuid>\n",
        b"<uuid>../../../../../../../../../../../etc/x</uuid>\n",
        b"<uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa</uuid>\n",
        b"<uuid>4dea22b31-d52-d8f3-2516-782e98ab3fa0</uuid>\n",
        b"<uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fag</uuid>\n",
        b"<uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0\n</uuid>\n",
        b"\n" * 10_000 + domain_xml(),
        b"a" * 200_000,
        b"a" * 200_000 + b"\n",
        bytes(200_000),
        b"\\\n" * 10_000,
        Random(1).randbytes(100_000),
    ],
    ids=lambda xml: repr(xml[:60]),
)
def test_what_holds_no_uuid_leaves_no_record(hook: Hook, xml: bytes) -> None:
    hook.call("web", "start", "begin", "-", xml=xml)
    assert hook.records() == []


def test_endless_lines_come_to_an_end(hook: Hook) -> None:
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as endless:
        hook.call("web", "start", "begin", "-", stdin=endless.stdout, xml=b"")
        endless.kill()
    assert hook.records() == []


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("",),
        ("web",),
        ("web", ""),
        ("web", "define", "begin", "-"),
        ("web", "start/../../x", "begin", "-"),
        ("web", "start\n", "begin", "-"),
        ("web", "*", "begin", "-"),
        ("web", "start", "be\ngin", "-"),
        ("web", "start", "begin", "\n"),
        ("web", "start", "begin", b"\xff"),
        ("-c", "--", "-x", "-"),
    ],
    ids=repr,
)
def test_what_is_no_call_of_libvirt_leaves_no_record(hook: Hook, argv: tuple[str | bytes, ...]) -> None:
    hook.call(*argv)
    assert hook.records() == []


def test_more_arguments_than_libvirt_gives_today_are_passed_over(hook: Hook) -> None:
    hook.call("web", "start", "begin", "-", *("more",) * 1000)
    assert parse(hook.record("start")) == web("start")


def test_a_fifo_in_a_records_place_does_not_hold_the_hook_up(hook: Hook) -> None:
    os.mkfifo(hook.spool / f"{WEB}.start")
    hook.call("web", "start", "begin", "-")


@pytest.mark.parametrize("target", ["/dev/full", "/dev/null", "missing/target", "."])
def test_a_symlink_in_a_records_place_does_no_harm(hook: Hook, target: str) -> None:
    (hook.spool / f"{WEB}.start").symlink_to(target)
    hook.call("web", "start", "begin", "-")


def test_a_directory_in_a_records_place_does_no_harm(hook: Hook) -> None:
    (hook.spool / f"{WEB}.start").mkdir()
    hook.call("web", "start", "begin", "-")


# Killed in the middle


def wait_until_it_reads(process: subprocess.Popen[bytes]) -> None:
    """Until what was written to its stdin is read, and it sleeps, which it then does for more of it."""
    assert process.stdin is not None
    until_s = time.monotonic() + LIMIT_S
    while time.monotonic() < until_s:
        (unread,) = struct.unpack("i", fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4)))
        state = Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b") ")[2][:1]
        if not unread and state == b"S":
            return
    pytest.fail("the hook does not read its stdin")


@pytest.mark.parametrize(
    "number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGTERM]
)
def test_ended_while_it_waits_for_the_xml_it_exits_0_in_silence(hook: Hook, number: signal.Signals) -> None:
    # A shell can't trap what is ignored already, as nohup and a shell's & leave it to the tests.
    with hook.popen(
        "web", "start", "begin", "-", before_exec=lambda: signal.signal(number, signal.SIG_DFL)
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"<domain>\n")
        process.stdin.flush()
        wait_until_it_reads(process)
        process.send_signal(number)
        assert process.wait(LIMIT_S) == 0
        assert process.communicate() == (b"", b"")
    assert hook.records() == []


def test_killed_at_any_moment_it_leaves_the_old_record_or_the_new(hook: Hook) -> None:
    random = Random(2)
    before: HookCall | None = None
    names = ["web", "a much longer name of the same guest"]
    xml = domain_xml()
    for turn in range(150):
        new = web("start", names[turn % 2])
        process = hook.popen(new.name, "start", "begin", "-", stdout=None, stderr=None)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(xml)
            process.stdin.close()
        until_ns = time.perf_counter_ns() + random.randrange(1_500_000)
        while time.perf_counter_ns() < until_ns:
            pass
        process.kill()
        process.wait()
        if not hook.records():
            continue
        try:
            found = parse(hook.record("start"))
        except Incomplete:
            assert before is None
            continue
        assert found in (before, new)
        before = found
    assert before is not None


def test_read_while_it_is_replaced_a_record_is_the_old_or_the_new(hook: Hook) -> None:
    known = [web("start", name) for name in ("web", "a" * 247)]
    hook.call("web", "start", "begin", "-")
    over = threading.Event()
    strange: list[HookCall] = []

    def read() -> None:
        while not over.is_set():
            with contextlib.suppress(Incomplete):
                found = parse(hook.record("start"))
                if found not in known:
                    strange.append(found)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for turn in range(100):
            hook.call(known[turn % 2].name, "start", "begin", "-")
    finally:
        over.set()
        reader.join()
    assert strange == []
