"""The commands' side of the control socket. Standard library only: a command starts in milliseconds.

The protocol, on a unix stream socket: the command sends one JSON object in one line,
``{"op": "list", ...}``; the daemon sends one line back, ``{"ok": {...}}`` or
``{"error": {"message": "...", "exit_code": 4}}``, and closes. Only ASCII goes over the wire: a name
that is not UTF-8 is a str with lone surrogates, which JSON can write as ``\\udcff``.
The daemon's side is `namefs.control_server`.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from namefs.errors import ExitCode, NamefsError

REQUEST_MAX_BYTES = 64 * 1024
"""The longest request, newline included. Answers have no limit: those of 2,000 guests take 500 kB."""

_CHUNK_BYTES = 64 * 1024


def ask(path: str, request: dict[str, Any], timeout_s: float = 30) -> dict[str, Any]:
    """What the daemon at the socket ``path`` answers.

    Raises NamefsError: DAEMON_UNREACHABLE if nothing answers in time, PERMISSION if this user may not
    ask, USAGE if the request is longer than the daemon takes, and whatever the daemon answers with.
    """
    deadline = time.monotonic() + timeout_s
    request_line = line(request)
    if len(request_line) > REQUEST_MAX_BYTES:
        raise NamefsError(ExitCode.USAGE, f"a name or path is too long: {len(request_line)} bytes")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(path)
            connection.sendall(request_line)
            answer = _read_line(connection, deadline)
    except TimeoutError as error:
        raise _unreachable(f"the daemon does not answer within {timeout_s:g} s at {path}") from error
    except PermissionError as error:
        message = f"only root may ask the daemon at {path}: {error.strerror}"
        raise NamefsError(ExitCode.PERMISSION, message) from error
    except OSError as error:
        raise _unreachable(f"no daemon answers at {path}: {error.strerror or error}") from error
    return _opened(answer, path)


def line(message: dict[str, Any]) -> bytes:
    """A request or an answer as it goes over the wire."""
    return json.dumps(message, ensure_ascii=True).encode() + b"\n"


def _read_line(connection: socket.socket, deadline: float) -> bytes:
    chunks: list[bytes] = []
    while not chunks or b"\n" not in chunks[-1]:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        connection.settimeout(left_s)
        chunk = connection.recv(_CHUNK_BYTES)
        if not chunk:
            raise ConnectionResetError("it hung up in the middle of its answer")
        chunks.append(chunk)
    return b"".join(chunks)


def _opened(answer: bytes, path: str) -> dict[str, Any]:
    try:
        message = json.loads(answer)
        if "error" not in message:
            ok: dict[str, Any] = message["ok"]
            return ok
        text, number = str(message["error"]["message"]), int(message["error"]["exit_code"])
    except (ValueError, KeyError, TypeError) as error:
        raise _unreachable(f"what answers at {path} is not namefs, or of another version") from error
    # A daemon of a later version may know codes that this one does not.
    raise NamefsError(next((code for code in ExitCode if code == number), ExitCode.UNEXPECTED), text)


def _unreachable(message: str) -> NamefsError:
    return NamefsError(ExitCode.DAEMON_UNREACHABLE, message)
