"""The daemon's side of the control socket; `namefs.control` describes the protocol.

Three locks, one behind the other: the directory is namefs's own (0700), the socket is 0600, and the
kernel tells who connected, in case somebody passes the socket on.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import stat
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from namefs.control import REQUEST_MAX_BYTES, line
from namefs.errors import ExitCode, NamefsError, sole_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

PATIENCE_S = 10.0
"""How long a client may take to send its request, and then to take the answer."""

_log = logging.getLogger(__name__)
_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


async def serve(
    path: str, answer: Answer, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answers requests at the socket ``path`` until it is cancelled, then removes the socket.

    Each client is a task of its own. A NamefsError from ``answer`` becomes an answer; any other
    exception is logged, and the client is told so.

    Raises NamefsError: DAEMON_RUNNING if another daemon has this socket, CONFIGURATION or FILE_FAILED
    if the directory or the socket cannot be used.
    """

    async def serve_client(stream: trio.SocketStream) -> None:
        await _serve_client(stream, answer)

    make_private_directory(os.path.dirname(path))
    with _claimed(path), trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        try:
            await _bind(listening, path)
            listening.listen()
        except OSError as error:
            raise NamefsError(ExitCode.FILE_FAILED, f"{path}: {error.strerror or error}") from error
        try:
            task_status.started()
            await trio.serve_listeners(serve_client, [trio.SocketListener(listening)])
        finally:
            os.unlink(path)


def make_private_directory(path: str) -> None:
    """Makes a directory that only this user may enter, or checks that an existing one is such.

    It changes no mode: somebody may have configured ``/run``. Raises NamefsError: CONFIGURATION if the
    directory is another user's or open to others, FILE_FAILED if it cannot be made.
    """
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            status = os.stat(path)
        else:
            return
    except OSError as error:
        raise NamefsError(ExitCode.FILE_FAILED, f"{error.filename}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise NamefsError(ExitCode.CONFIGURATION, f"{path} is not a directory")
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid() or mode & 0o077:
        whose = f"it has mode {mode:04o} and belongs to user {status.st_uid}"
        raise NamefsError(ExitCode.CONFIGURATION, f"{path} must be namefs's own, with mode 0700: {whose}")


@contextmanager
def _claimed(path: str) -> Iterator[None]:
    # A lock, and not an attempt to connect: of two daemons that start at once, both could find the
    # socket dead, and one remove the other's new one. The kernel drops the lock however its holder
    # ends, and a daemon that is stopped (SIGSTOP) still has it. The lock file stays: who removed it
    # could remove one that is locked already.
    lock = f"{path}.lock"
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise NamefsError(ExitCode.FILE_FAILED, f"{lock}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NamefsError(ExitCode.DAEMON_RUNNING, f"another namefs daemon has {path}") from error
        yield
    finally:
        os.close(descriptor)


async def _bind(listening: trio.socket.SocketType, path: str) -> None:
    # What lies here without a lock is left from a daemon that died; but only a socket is ours.
    try:
        stale = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        stale = False
    if stale:
        os.unlink(path)
    await listening.bind(path)
    os.chmod(path, 0o600)


async def _serve_client(stream: trio.SocketStream, answer: Answer) -> None:
    try:
        async with stream:
            with trio.fail_after(PATIENCE_S):
                request = await _read_line(stream)
            response = await _response(stream, request, answer)
            with trio.fail_after(PATIENCE_S):
                await stream.send_all(response)
    except (trio.TooSlowError, trio.BrokenResourceError) as error:
        _log.debug("control: a client went away or sat there: %r", error)


async def _read_line(stream: trio.SocketStream) -> bytes:
    """What came up to the first newline, the end, or the limit, whichever was first."""
    request = bytearray()
    while b"\n" not in request and len(request) <= REQUEST_MAX_BYTES:
        chunk = await stream.receive_some(REQUEST_MAX_BYTES)
        if not chunk:
            break
        request += chunk
    return bytes(request)


async def _response(stream: trio.SocketStream, request: bytes, answer: Answer) -> bytes:
    try:
        _check_permission(stream)
        return line({"ok": await answer(_parsed(request))})
    except Exception as error:
        cause = sole_error(error)
        if isinstance(cause, NamefsError):
            return _error(cause.exit_code, str(cause))
        _log.exception("control: no answer to %r", request[:200])
        return _error(ExitCode.UNEXPECTED, f"the daemon failed, its log says how: {cause!r}")


def _check_permission(stream: trio.SocketStream) -> None:
    credentials = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    assert isinstance(credentials, bytes)
    _pid, uid, _gid = _CREDENTIALS.unpack(credentials)
    if uid not in {0, os.geteuid()}:
        raise NamefsError(ExitCode.PERMISSION, f"user {uid} may not ask the daemon")


def _parsed(request: bytes) -> dict[str, Any]:
    if len(request) > REQUEST_MAX_BYTES:
        raise NamefsError(ExitCode.USAGE, f"a request has at most {REQUEST_MAX_BYTES} bytes")
    try:
        parsed = json.loads(request)
    except (ValueError, RecursionError) as error:
        raise NamefsError(ExitCode.USAGE, f"the request is not JSON: {error}") from error
    if not isinstance(parsed, dict) or not isinstance(parsed.get("op"), str):
        raise NamefsError(ExitCode.USAGE, 'the request is not of the form {"op": "...", ...}')
    return parsed


def _error(exit_code: ExitCode, message: str) -> bytes:
    return line({"error": {"message": message, "exit_code": int(exit_code)}})
