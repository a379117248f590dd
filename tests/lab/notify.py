"""The receiving end of systemd's readiness protocol, sd_notify(3)."""

from __future__ import annotations

import os
import select
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

MESSAGE_BYTES = 4096


class ReadySocket:
    """A private ``NOTIFY_SOCKET``. ``path`` must fit in a socket address: 107 bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(path))

    def __enter__(self) -> ReadySocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def wait(self, pid: int, timeout_s: float) -> None:
        """Return once READY=1 arrives.

        Raises ChildProcessError when process ``pid`` ends first, TimeoutError after ``timeout_s`` seconds.
        """
        deadline = time.monotonic() + timeout_s
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            raise ChildProcessError(f"process {pid} ended before it was ready") from None
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            poll.register(process, select.POLLIN)
            while True:
                left_s = max(deadline - time.monotonic(), 0)
                woken = {descriptor for descriptor, _ in poll.poll(left_s * 1000)}
                if self._socket.fileno() in woken:
                    if b"READY=1" in self._socket.recv(MESSAGE_BYTES).split(b"\n"):
                        return
                elif process in woken:
                    raise ChildProcessError(f"process {pid} ended before it was ready")
                elif not woken:
                    raise TimeoutError(f"process {pid} was not ready within {timeout_s:g} s")
        finally:
            os.close(process)
