"""The control socket, both ends of it, over real sockets."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from namefs import control_server
from namefs.control import REQUEST_MAX_BYTES, ask, line
from namefs.control_server import make_private_directory, serve
from namefs.errors import ExitCode, NamefsError

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).parent.parent
ORDINARY_USER = 65534


@pytest.fixture
def path() -> Iterator[str]:
    # In /tmp, whatever TMPDIR says: a socket's address holds 107 bytes.
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="nfc") as directory:
        yield os.path.join(directory, "run", "control.sock")


async def echo(request: dict[str, Any]) -> dict[str, Any]:
    return {"request": request}


async def asked(path: str, request: dict[str, Any], timeout_s: float = 20) -> dict[str, Any]:
    return await trio.to_thread.run_sync(ask, path, request, timeout_s)


async def error_of(path: str, request: dict[str, Any]) -> NamefsError:
    with pytest.raises(NamefsError) as caught:
        await asked(path, request)
    return caught.value


async def raw_answer(path: str, request: bytes) -> dict[str, Any]:
    """The whole message that comes back for bytes that may be no request."""
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(request)
        await stream.send_eof()
        answer = b"".join([chunk async for chunk in stream])
    parsed: dict[str, Any] = json.loads(answer)
    return parsed


@pytest.mark.trio
async def test_a_request_gets_its_answer(path: str, nursery: trio.Nursery) -> None:
    await nursery.start(serve, path, echo)
    assert await asked(path, {"op": "list", "pattern": None}) == {"request": {"op": "list", "pattern": None}}


@pytest.mark.trio
async def test_names_that_are_not_utf8_come_through_both_ways(path: str, nursery: trio.Nursery) -> None:
    await nursery.start(serve, path, echo)
    request = {"op": "which", "what": "w\udcffb \ud800 \u202e ü\n"}
    assert await asked(path, request) == {"request": request}


@pytest.mark.trio
async def test_an_answer_may_be_much_longer_than_a_request(path: str, nursery: trio.Nursery) -> None:
    async def answer(_request: dict[str, Any]) -> dict[str, Any]:
        return {"guests": ["x" * 1000] * 4000}

    await nursery.start(serve, path, answer)
    assert len((await asked(path, {"op": "list"}))["guests"]) == 4000


@pytest.mark.trio
async def test_a_foreseen_error_comes_back_with_its_message_and_code(
    path: str, nursery: trio.Nursery
) -> None:
    async def answer(_request: dict[str, Any]) -> dict[str, Any]:
        raise NamefsError(ExitCode.AMBIGUOUS, "web is two guests")

    await nursery.start(serve, path, answer)
    error = await error_of(path, {"op": "history", "what": "web"})
    assert (str(error), error.exit_code) == ("web is two guests", ExitCode.AMBIGUOUS)


@pytest.mark.trio
async def test_a_foreseen_error_is_found_in_the_groups_that_nurseries_make(
    path: str, nursery: trio.Nursery
) -> None:
    async def answer(_request: dict[str, Any]) -> dict[str, Any]:
        raise ExceptionGroup("", [ExceptionGroup("", [NamefsError(ExitCode.LIBVIRT_REFUSED, "no")])])

    await nursery.start(serve, path, answer)
    assert (await error_of(path, {"op": "rename"})).exit_code is ExitCode.LIBVIRT_REFUSED


@pytest.mark.trio
async def test_an_unforeseen_error_is_logged_and_the_server_goes_on(
    path: str, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(request: dict[str, Any]) -> dict[str, Any]:
        return {"one": 1 / request["divisor"]}

    await nursery.start(serve, path, answer)
    error = await error_of(path, {"op": "divide", "divisor": 0})
    assert error.exit_code is ExitCode.UNEXPECTED
    assert "ZeroDivisionError" in str(error)
    assert "Traceback" in caplog.text
    assert await asked(path, {"op": "divide", "divisor": 1}) == {"one": 1}


@pytest.mark.trio
async def test_an_answer_that_is_not_json_is_an_unforeseen_error(
    path: str, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(_request: dict[str, Any]) -> dict[str, Any]:
        return {"bytes": b""}

    await nursery.start(serve, path, answer)
    assert (await error_of(path, {"op": "list"})).exit_code is ExitCode.UNEXPECTED
    assert "TypeError" in caplog.text


@pytest.mark.trio
@pytest.mark.parametrize(
    "request_line",
    [
        b"",
        b"\n",
        b"list\n",
        b"\xff\n",
        b"[]\n",
        b"{}\n",
        b'{"op": 3}\n',
        b'{"op": "list"',
        b"[" * 20000 + b"\n",
    ],
)
async def test_what_is_no_request_is_refused(path: str, nursery: trio.Nursery, request_line: bytes) -> None:
    await nursery.start(serve, path, echo)
    assert (await raw_answer(path, request_line))["error"]["exit_code"] == ExitCode.USAGE
    assert await asked(path, {"op": "list"})


@pytest.mark.trio
async def test_a_request_has_a_greatest_length(path: str, nursery: trio.Nursery) -> None:
    await nursery.start(serve, path, echo)
    empty = len(line({"op": "which", "what": ""}))
    longest = {"op": "which", "what": "x" * (REQUEST_MAX_BYTES - empty)}
    assert await asked(path, longest) == {"request": longest}
    too_long = {"op": "which", "what": longest["what"] + "x"}
    assert (await raw_answer(path, line(too_long)))["error"]["exit_code"] == ExitCode.USAGE
    assert (await error_of(path, too_long)).exit_code is ExitCode.USAGE


@pytest.mark.trio
async def test_a_request_too_long_is_refused_before_it_ends(path: str, nursery: trio.Nursery) -> None:
    await nursery.start(serve, path, echo)
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(b"x" * (REQUEST_MAX_BYTES + 1))
        assert json.loads(await stream.receive_some())["error"]["exit_code"] == ExitCode.USAGE


@pytest.mark.trio
async def test_a_client_that_says_nothing_keeps_nobody_waiting(path: str, nursery: trio.Nursery) -> None:
    await nursery.start(serve, path, echo)
    async with await trio.open_unix_socket(path), await trio.open_unix_socket(path) as half:
        await half.send_all(b'{"op": ')
        assert await asked(path, {"op": "list"})


@pytest.mark.trio
async def test_a_client_that_goes_on_saying_nothing_is_dropped(
    path: str, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    await nursery.start(serve, path, echo)
    async with await trio.open_unix_socket(path) as silent:
        started_s = trio.current_time()
        assert await silent.receive_some() == b""
        assert trio.current_time() - started_s == pytest.approx(control_server.PATIENCE_S)


@pytest.mark.trio
async def test_a_client_that_takes_no_answer_is_dropped(
    path: str, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def answer(_request: dict[str, Any]) -> dict[str, Any]:
        return {"long": "x" * 10_000_000}

    await nursery.start(serve, path, answer)
    async with await trio.open_unix_socket(path) as deaf:
        await deaf.send_all(line({"op": "list"}))
        await trio.sleep(control_server.PATIENCE_S + 1)
        received = [chunk async for chunk in deaf]
    assert sum(map(len, received)) < 10_000_000


@pytest.mark.trio
async def test_a_client_that_hangs_up_hurts_nobody(
    path: str, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    answering, hung_up = trio.Event(), trio.Event()

    async def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["op"] == "wait":
            answering.set()
            await hung_up.wait()
        return {"long": "x" * 10_000_000}

    await nursery.start(serve, path, answer)
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(line({"op": "wait"}))
        await answering.wait()
    hung_up.set()
    assert await asked(path, {"op": "list"})
    assert not caplog.records


@pytest.mark.trio
async def test_only_this_user_may_open_the_socket(path: str, nursery: trio.Nursery) -> None:
    await nursery.start(serve, path, echo)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700


@pytest.mark.trio
async def test_another_user_is_refused_even_if_the_socket_is_open_to_all(
    path: str, nursery: trio.Nursery
) -> None:
    await nursery.start(serve, path, echo)
    await trio.to_thread.run_sync(
        subprocess.run, ["chmod", "-R", "a+rwX", os.path.dirname(os.path.dirname(path))]
    )
    answer = await trio.to_thread.run_sync(as_an_ordinary_user, path)
    assert answer == f"{ExitCode.PERMISSION.value} user {ORDINARY_USER} may not ask the daemon\n"


@pytest.mark.trio
async def test_another_user_cannot_reach_the_socket(path: str, nursery: trio.Nursery) -> None:
    await nursery.start(serve, path, echo)
    answer = await trio.to_thread.run_sync(as_an_ordinary_user, path)
    assert answer.startswith(f"{ExitCode.PERMISSION.value} only root may ask the daemon")


def as_an_ordinary_user(path: str) -> str:
    # The interpreter becomes that user after its imports: it may lie where only root can read.
    program = f"""
import os, sys
from namefs.control import ask
from namefs.errors import NamefsError
os.setgroups([]), os.setgid({ORDINARY_USER}), os.setuid({ORDINARY_USER})
try:
    print(ask({path!r}, {{"op": "list"}}))
except NamefsError as error:
    print(int(error.exit_code), error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_socket_is_removed_when_the_server_stops(path: str) -> None:
    assert trio.run(serve_and_stop, path) == {"request": {"op": "list"}}
    assert os.listdir(os.path.dirname(path)) == ["control.sock.lock"]


async def serve_for_ever(path: str) -> None:
    """Serves where that should fail: if it does not, the test fails and does not hang."""
    with trio.fail_after(10):
        await serve(path, echo)


async def serve_and_stop(path: str) -> dict[str, Any]:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, path, echo)
        answer = await asked(path, {"op": "list"})
        nursery.cancel_scope.cancel()
    return answer


@pytest.mark.trio
async def test_a_dead_daemons_socket_is_replaced(path: str, nursery: trio.Nursery) -> None:
    os.mkdir(os.path.dirname(path), 0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    await nursery.start(serve, path, echo)
    assert await asked(path, {"op": "list"})


@pytest.mark.trio
async def test_a_living_daemons_socket_is_left_alone(path: str, nursery: trio.Nursery) -> None:
    await nursery.start(serve, path, echo)
    with pytest.raises(NamefsError) as caught:
        await serve_for_ever(path)
    assert caught.value.exit_code is ExitCode.DAEMON_RUNNING
    assert await asked(path, {"op": "list"})


def test_a_daemon_that_hangs_is_a_living_one_and_a_killed_one_is_dead(path: str) -> None:
    program = f"""
import trio
from namefs.control_server import serve
async def answer(request): return {{}}
async def main():
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, {path!r}, answer)
        print("ready", flush=True)
trio.run(main)
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(NamefsError) as caught:
                trio.run(serve_for_ever, path)
        finally:
            process.kill()
    assert caught.value.exit_code is ExitCode.DAEMON_RUNNING
    assert trio.run(serve_and_stop, path)


def test_what_is_no_socket_is_not_removed(path: str) -> None:
    os.mkdir(os.path.dirname(path), 0o700)
    Path(path).write_text("precious")
    with pytest.raises(NamefsError) as caught:
        trio.run(serve_for_ever, path)
    assert caught.value.exit_code is ExitCode.FILE_FAILED
    assert Path(path).read_text() == "precious"


@pytest.mark.trio
async def test_a_path_too_long_for_a_socket_is_refused(path: str) -> None:
    with pytest.raises(NamefsError) as caught:
        await serve(os.path.join(os.path.dirname(path), "x" * 200), echo)
    assert caught.value.exit_code is ExitCode.FILE_FAILED


def test_a_directory_that_is_open_to_others_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(NamefsError, match="with mode 0700: it has mode 0755") as caught:
        make_private_directory(str(tmp_path))
    assert caught.value.exit_code is ExitCode.CONFIGURATION
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_a_private_directory_is_made_with_those_above_it_and_may_exist(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    make_private_directory(str(directory))
    make_private_directory(str(directory))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_directory_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NamefsError, match="file") as caught:
        make_private_directory(str(tmp_path / "file" / "run"))
    assert caught.value.exit_code is ExitCode.FILE_FAILED
    with pytest.raises(NamefsError, match="is not a directory"):
        make_private_directory(str(tmp_path / "file"))


def test_without_a_daemon_there_is_nobody_to_ask(path: str) -> None:
    with pytest.raises(NamefsError, match="no daemon answers") as caught:
        ask(path, {"op": "list"})
    assert caught.value.exit_code is ExitCode.DAEMON_UNREACHABLE


@pytest.fixture
def listening(path: str) -> Iterator[socket.socket]:
    os.mkdir(os.path.dirname(path), 0o700)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        yield server


def test_a_daemon_that_died_has_nobody_to_ask(path: str, listening: socket.socket) -> None:
    listening.close()
    with pytest.raises(NamefsError, match="no daemon answers") as caught:
        ask(path, {"op": "list"})
    assert caught.value.exit_code is ExitCode.DAEMON_UNREACHABLE


def test_a_daemon_that_hangs_is_given_up(path: str, listening: socket.socket) -> None:
    with pytest.raises(NamefsError, match=r"does not answer within 0\.05 s") as caught:
        ask(path, {"op": "list"}, timeout_s=0.05)
    assert caught.value.exit_code is ExitCode.DAEMON_UNREACHABLE


def test_a_daemon_that_dribbles_is_given_up(path: str, listening: socket.socket) -> None:
    def dribble() -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                connection.send(b"x")

    thread = threading.Thread(target=dribble)
    thread.start()
    with pytest.raises(NamefsError, match=r"does not answer within 0\.05 s"):
        ask(path, {"op": "list"}, timeout_s=0.05)
    thread.join()


@pytest.mark.trio
@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", ExitCode.DAEMON_UNREACHABLE),
        (b'{"ok": {}', ExitCode.DAEMON_UNREACHABLE),
        (b"220 smtp ready\n", ExitCode.DAEMON_UNREACHABLE),
        (b"[]\n", ExitCode.DAEMON_UNREACHABLE),
        (b"{}\n", ExitCode.DAEMON_UNREACHABLE),
        (b'{"error": "x"}\n', ExitCode.DAEMON_UNREACHABLE),
        (b'{"error": {"message": "new", "exit_code": 99}}\n', ExitCode.UNEXPECTED),
    ],
)
async def test_an_answer_that_makes_no_sense_is_none(
    path: str, listening: socket.socket, nursery: trio.Nursery, answer: bytes, code: ExitCode
) -> None:
    async def something_else() -> None:
        connection, _ = await trio.to_thread.run_sync(listening.accept)
        with connection:
            connection.recv(1000)
            connection.sendall(answer)

    nursery.start_soon(something_else)
    assert (await error_of(path, {"op": "list"})).exit_code is code
