"""Processes that look at the view all the time, and write down what each look saw and when.

Run as ``python migration_readers.py VIEW (names NAME... | listing [STATUS_FILE NAME WHO])``, it prints
``ready`` once it has looked, and after SIGTERM, or when the view is dead, its looks: a JSON array of
``[start_ns, end_ns, kind, ...]``, the times of CLOCK_MONOTONIC, which is one clock to all processes.

In processes of their own, since readers in threads would take turns.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

    from tests.lab.histories import Look, Seen

CONNECTION = "user.namefs.connection"
DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
READY = "ready"
TIMEOUT_S = 30.0


class _Reader:
    """Looks at a view until it is told to end or the view is dead."""

    def __init__(self, view: str) -> None:
        self._view = view
        self._looks: list[list[Any]] = []
        self._over = False
        signal.signal(signal.SIGTERM, self._end)

    def _end(self, _number: int, _frame: object) -> None:
        self._over = True

    def run(self, rounds: Iterable[Callable[[], list[Any] | None]]) -> None:
        """Make all the looks, over and over; print what they saw."""
        looks = list(rounds)
        is_ready = False
        while not self._over:
            for look in looks:
                start_ns = time.monotonic_ns()
                try:
                    seen = look()
                except OSError as error:
                    if error.errno in DEAD:
                        self._over = True
                        break
                    seen = ["error", str(error)]
                if seen is not None:
                    self._looks.append([start_ns, time.monotonic_ns(), *seen])
            if not is_ready:
                print(READY, flush=True)
                is_ready = True
        # Asked to end while it ends, it would be killed: Python puts the signal's default back.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        json.dump(self._looks, sys.stdout)

    def whose(self, name: str) -> list[Any]:
        """Whose a name is, by an extended attribute of what it leads to."""
        try:
            return ["whose", name, os.getxattr(os.path.join(self._view, name), CONNECTION).decode()]
        except FileNotFoundError:
            return ["whose", name, None]

    def exists(self, name: str) -> list[Any]:
        """Whether a name is there."""
        try:
            os.stat(os.path.join(self._view, name))
        except FileNotFoundError:
            return ["whose", name, None]
        return ["exists", name]

    def listing(self) -> list[Any]:
        """All names that plain ls(1) shows."""
        return ["listing", [entry for entry in os.listdir(self._view) if not entry.startswith(".")]]

    def not_yet(self, status_file: str, name: str, who: str) -> list[Any] | None:
        """That a name is not that one's yet: the domain there still waits, by libvirt's status file."""
        try:
            with open(status_file, "rb") as file:
                head = file.read(1024)
        except FileNotFoundError:
            return None
        waits = b"state='paused' reason='migration'" in head or b"state='paused' reason='starting up'" in head
        return ["not yet", name, who] if waits else None


class Readers:
    """Two processes: one looks up names, whose and whether, one lists the root.

    The second also looks whether the target can be the guest by now: ``of_target`` is its status file, its
    name once it has arrived, and whose it is then.
    """

    def __init__(self, view: Path, names: Sequence[str], of_target: tuple[Path, str, str] | None) -> None:
        target = [] if of_target is None else [os.fspath(of_target[0]), *of_target[1:]]
        self._commands = {"names": ["names", *names], "listing": ["listing", *target]}
        self._view = view
        self._running: dict[str, subprocess.Popen[str]] = {}
        self.looks: list[Look] = []
        """What was seen by readers that have ended."""

    def __enter__(self) -> Readers:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: object, _trace: TracebackType | None
    ) -> None:
        self.end()

    def start(self) -> None:
        """Start both, and return when each has looked once."""
        for reader, arguments in self._commands.items():
            command = [sys.executable, "-I", "-S", __file__, os.fspath(self._view), *arguments]
            self._running[reader] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for reader, process in self._running.items():
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.strip() == READY, f"{reader}: {line!r}"

    def end(self) -> None:
        """Have both end, if they have not met a dead view, and keep what they saw."""
        for process in self._running.values():
            process.terminate()
        for reader, process in self._running.items():
            printed, _ = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, reader
            self.looks += [_look(reader, *look) for look in json.loads(printed)]
        self._running.clear()


def _look(reader: str, start_ns: int, end_ns: int, kind: str, *what: Any) -> Look:  # noqa: ANN401 - of JSON
    from tests.lab.histories import Exists, Listing, Look, NotYet, Whose

    assert kind != "error", f"{reader}: {what}"
    seen: Seen
    if kind == "listing":
        (names,) = what
        assert len(set(names)) == len(names), f"{reader}: one name twice in {names}"
        seen = Listing(frozenset(names))
    else:
        seen = {"whose": Whose, "exists": Exists, "not yet": NotYet}[kind](*what)
    return Look(reader, start_ns, end_ns, seen)


def main(view: str, kind: str, *arguments: str) -> None:
    """Be a reader."""
    reader = _Reader(view)
    if kind == "names":
        reader.run(
            look
            for name in arguments
            for look in (lambda name=name: reader.whose(name), lambda name=name: reader.exists(name))
        )
    elif arguments:
        status_file, name, who = arguments
        reader.run([lambda: reader.not_yet(status_file, name, who), reader.listing])
    else:
        reader.run([reader.listing])


if __name__ == "__main__":
    main(*sys.argv[1:])
