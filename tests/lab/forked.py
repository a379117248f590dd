"""namefs started by a fork of a process that has imported it already, as the tests start hundreds of them.

Importing trio, pyfuse3 and libvirt takes a third of a second of a core, each time, which is most of what a
daemon in a test costs. What a fork gives is a process as any other: its own pid, arguments, environment,
working directory and standard streams, and the interpreter's whole way of ending.

``python -m tests.lab.forked`` is the process that forks: with a SOCK_SEQPACKET socket as standard input, on
which it says ``ready``, then takes requests. At the end of that socket, which comes also when the tests are
killed, it kills all that it started.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROJECT = Path(__file__).parents[2]
START_TIMEOUT_S = 60.0
REQUEST_BYTES = 1 << 17
CODE_BYTES = 16


class Process:
    """A namefs that was started by `start`; of `subprocess.Popen` it has what tests use.

    It is no child of this process: its pid may belong to another as soon as it has ended.
    """

    def __init__(self, arguments: Sequence[str], pid: int, handle: int, code: int) -> None:
        self.args = arguments
        self.pid = pid
        self.returncode: int | None = None
        self._handle = handle
        self._code = code

    def send_signal(self, number: int) -> None:
        """Send it a signal; nothing is done if it has ended."""
        if self.returncode is None:
            try:
                signal.pidfd_send_signal(self._handle, number)
            except ProcessLookupError:
                return

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, negative if a signal's. Raises TimeoutExpired after ``timeout`` seconds."""
        if self.returncode is None:
            if not select.select([self._code], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            code = os.read(self._code, CODE_BYTES)
            if not code:
                raise ChildProcessError("the process that forks for the tests has ended")
            self.returncode = int(code)
            os.close(self._code)
            os.close(self._handle)
        return self.returncode


def start(
    arguments: Sequence[str], *, output: IO[bytes], environment: Mapping[str, str], directory: Path
) -> Process:
    """Start ``namefs ARGUMENTS``, which reads /dev/null and writes all to ``output``."""
    request = {
        "arguments": arguments,
        "environment": dict(environment),
        "directory": os.fspath(directory),
        # As a test may have set it, and a child would have it.
        "umask": _umask(),
    }
    control = _server()
    read_end, write_end = os.pipe()
    try:
        descriptors = [output.fileno(), write_end]
        socket.send_fds(control, [json.dumps(request).encode()], descriptors)
        answer, handles, _, _ = socket.recv_fds(control, 64, 1)
    finally:
        os.close(write_end)
    if not answer:
        raise ChildProcessError("the process that forks for the tests has ended")
    return Process(arguments, int(answer), handles[0], read_end)


def _umask() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))


@functools.cache
def _server() -> socket.socket:
    """The socket of this process's server, which is started when it is first needed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.lab.forked"],
            stdin=theirs.fileno(),
            cwd="/",
            # Found as `python -m` finds it: the tests run the tree, not what may be installed.
            env={**os.environ, "PYTHONPATH": os.fspath(PROJECT), "PYTHONUNBUFFERED": "1"},
        )

    def end() -> None:
        ours.close()
        server.wait(START_TIMEOUT_S)

    atexit.register(end)
    ours.settimeout(START_TIMEOUT_S)
    assert ours.recv(64) == b"ready"
    return ours


def _import_all() -> None:
    import namefs

    for module in pkgutil.walk_packages(namefs.__path__, "namefs."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)
    # A process that forks with threads leaves their locks, locked, to its children.
    tasks = os.listdir("/proc/self/task")
    assert len(tasks) == 1, f"{len(tasks) - 1} threads run after the imports"


def _serve(control: socket.socket) -> Sequence[str] | None:
    """Fork until the socket ends. Returns in each child, with the arguments it was started with."""
    running: dict[int, tuple[int, int]] = {}
    control.send(b"ready")
    while True:
        readable, _, _ = select.select([control.fileno(), *running], [], [])
        for handle in running.keys() & set(readable):
            _report(handle, *running.pop(handle))
        if control.fileno() not in readable:
            continue
        request, descriptors, _, _ = socket.recv_fds(control, REQUEST_BYTES, 2)
        if not request:
            for handle in running:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            return None
        output, code = descriptors
        pid = os.fork()
        if not pid:
            for descriptor in [code, *running, *(code for _, code in running.values())]:
                os.close(descriptor)
            control.close()
            return _become(json.loads(request), output)
        handle = os.pidfd_open(pid)
        running[handle] = pid, code
        os.close(output)
        socket.send_fds(control, [str(pid).encode()], [handle])


def _report(handle: int, pid: int, code: int) -> None:
    """Reap a child, and say how it ended to whom it was started for, if that one still asks."""
    _, status = os.waitpid(pid, 0)
    try:
        os.write(code, str(os.waitstatus_to_exitcode(status)).encode())
    except BrokenPipeError:
        pass
    finally:
        os.close(code)
        os.close(handle)


def _become(request: dict[str, Any], output: int) -> Sequence[str]:
    """Make this child what the request asks for."""
    arguments: list[str] = request["arguments"]
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, number in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, number)
    os.close(nothing)
    os.close(output)
    os.chdir(request["directory"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv[1:] = arguments
    return arguments


def main() -> int:
    """Serve; in a child, be namefs."""
    _import_all()
    # What is there by now is shared by all children, as long as none writes to it.
    gc.freeze()
    # Ctrl-C on the terminal is for the tests: their end is the end of this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=os.dup(0))
    arguments = _serve(control)
    if arguments is None:
        return 0
    from namefs import cli

    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
