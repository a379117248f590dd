"""Processes that look at the view all the time, and write down what each look saw and when.

Run as ``python readers.py VIEW KIND ARGUMENT...``, it prints ``ready`` once it has looked, and again after
SIGUSR1, when it has looked at all since; and after SIGTERM, or when the view is dead, its looks: a JSON array
of ``[start_ns, end_ns, kind, ...]``, the times of CLOCK_MONOTONIC, which is one clock to all processes. What
it looks at, by its kind:

=================================  ==========================================================================
``names ATTRIBUTE NAME...``        whose each name is, by an extended attribute, and whether it is there
``inodes NAME...``                 whose it is, by inode number, which the kernel may answer by itself
``files PATH,PATH,... NAME...``    whose it is, by the UUID in each of these files below it
``listing [FILE NAME WHO]``        all names; and whether NAME can be WHO's yet, by libvirt's status file
``whole``                          all names, and whose each is, by inode number
=================================  ==========================================================================

In processes of their own, since readers in threads would take turns.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from tests.lab.histories import Look, Seen

CONNECTION = "user.namefs.connection"
UUID = "user.namefs.uuid"
IN_A_FILE = re.compile(rb"<uuid>([0-9a-f-]{36})</uuid>|-uuid ([0-9a-f-]{36})")
"""Whose a definition is, or QEMU's log."""

DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
READY = "ready"
TIMEOUT_S = 30.0
KEPT_EVERY_NS = 2_000_000
"""Of equal answers of inode numbers, of which there are some hundred thousand a second: besides the first
and the last, one for each of these."""


class _Reader:
    """Looks at a view until it is told to end or the view is dead."""

    def __init__(self, view: str) -> None:
        self._view = view
        self._looks: list[list[Any]] = []
        self._left_out: dict[str, list[Any]] = {}
        self._kept: dict[str, list[Any]] = {}
        self._over = False
        self._is_asked = True
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGUSR1, self._ask)

    def _end(self, _number: int, _frame: object) -> None:
        self._over = True

    def _ask(self, _number: int, _frame: object) -> None:
        self._is_asked = True

    def run(self, rounds: Iterable[Callable[[], list[Any] | None]]) -> None:
        """Make all the looks, over and over; print what they saw."""
        looks = list(rounds)
        while not self._over:
            is_asked, self._is_asked = self._is_asked, False
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
                    self._note([start_ns, time.monotonic_ns(), *seen])
            if is_asked:
                print(READY, flush=True)
        # Asked to end while it ends, it would be killed: Python puts the signal's default back.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        json.dump([*self._looks, *self._left_out.values()], sys.stdout)

    def _note(self, look: list[Any]) -> None:
        start_ns, _end_ns, kind, name = look[:4]
        if kind != "inode":
            self._looks.append(look)
            return
        last, left_out = self._kept.get(name), self._left_out.pop(name, None)
        if last is not None and last[3:] == look[3:] and start_ns < last[0] + KEPT_EVERY_NS:
            self._left_out[name] = look
            return
        if left_out is not None and left_out[3:] != look[3:]:
            self._looks.append(left_out)
        self._kept[name] = look
        self._looks.append(look)

    def by_attribute(self, attribute: str, name: str) -> list[Any]:
        """Whose a name is, by an extended attribute of what it leads to."""
        try:
            return ["whose", name, os.getxattr(os.path.join(self._view, name), attribute).decode()]
        except FileNotFoundError:
            return ["whose", name, None]

    def by_inode(self, name: str) -> list[Any]:
        """The same, by the inode number."""
        try:
            return ["inode", name, str(os.stat(os.path.join(self._view, name)).st_ino)]
        except FileNotFoundError:
            return ["inode", name, None]

    def by_file(self, file: str, name: str) -> list[Any] | None:
        """The same, by what a file below it says; nothing, if it has no such file at this moment.

        libvirt saves a definition under a guest's new name before namefs can know of that. And one that it
        saves anew between the kernel's look-up and its open, twice in a row, is stale.
        """
        try:
            directory = os.open(os.path.join(self._view, name), os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            return ["whose", name, None]
        try:
            with open(os.open(file, os.O_RDONLY, dir_fd=directory), "rb") as opened:
                found = IN_A_FILE.search(opened.read())
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
            return None
        finally:
            os.close(directory)
        return ["error", f"{name}/{file} names nobody"] if found is None else ["whose", name, _text(found)]

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

    def whole(self) -> list[Any]:
        """All names, and the inode number that the listing has for each."""
        with os.scandir(self._view) as entries:
            return ["whole", [(e.name, str(e.inode())) for e in entries if not e.name.startswith(".")]]

    def not_yet(self, status_file: str, name: str, who: str) -> list[Any] | None:
        """That a name is not that one's yet: the domain there still waits, by libvirt's status file."""
        try:
            with open(status_file, "rb") as file:
                head = file.read(1024)
        except FileNotFoundError:
            return None
        waits = b"state='paused' reason='migration'" in head or b"state='paused' reason='starting up'" in head
        return ["not yet", name, who] if waits else None


def _text(found: re.Match[bytes]) -> str:
    return next(group for group in found.groups() if group is not None).decode()


class Readers:
    """Several of these processes. ``kinds`` are their arguments, by what each is called.

    ``inodes`` says whose an inode number is.
    """

    def __init__(
        self,
        view: Path,
        kinds: Mapping[str, Sequence[str]],
        inodes: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._kinds = kinds
        self._view = view
        self._inodes = inodes
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
        """Start all, and return when each has looked once."""
        for reader, arguments in self._kinds.items():
            command = [sys.executable, "-I", "-S", __file__, os.fspath(self._view), *arguments]
            self._running[reader] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._await_ready()

    def look_again(self) -> None:
        """Return when each has looked at all that it looks at, from now on."""
        for process in self._running.values():
            process.send_signal(signal.SIGUSR1)
        self._await_ready()

    def _await_ready(self) -> None:
        for reader, process in self._running.items():
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.strip() == READY, f"{reader}: {line!r}"

    def end(self) -> None:
        """Have all end, if they have not met a dead view, and keep what they saw."""
        for process in self._running.values():
            process.terminate()
        for reader, process in self._running.items():
            printed, _ = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, reader
            self.looks += [self._look(reader, *look) for look in json.loads(printed)]
        self._running.clear()

    def _look(self, reader: str, start_ns: int, end_ns: int, kind: str, *what: Any) -> Look:  # noqa: ANN401 - of JSON
        from tests.lab.histories import Exists, Listing, Look, NotYet, Whole, Whose

        assert kind != "error", f"{reader}: {what}"
        seen: Seen
        if kind in ("listing", "whole"):
            (entries,) = what
            names = [entry if kind == "listing" else entry[0] for entry in entries]
            assert len(set(names)) == len(names), f"{reader}: one name twice in {names}"
            if kind == "listing":
                seen = Listing(frozenset(names))
            else:
                seen = Whole(frozenset((name, self._inodes.get(inode, inode)) for name, inode in entries))
        elif kind == "inode":
            name, inode = what
            seen = Whose(name, self._inodes.get(inode, inode))
        else:
            seen = {"whose": Whose, "exists": Exists, "not yet": NotYet}[kind](*what)
        return Look(reader, start_ns, end_ns, seen)


def main(view: str, kind: str, *arguments: str) -> None:
    """Be a reader."""
    reader = _Reader(view)
    if kind == "names":
        attribute, *names = arguments
        reader.run(
            look
            for name in names
            for look in (partial(reader.by_attribute, attribute, name), partial(reader.exists, name))
        )
    elif kind == "inodes":
        reader.run(partial(reader.by_inode, name) for name in arguments)
    elif kind == "files":
        files, *names = arguments
        reader.run(partial(reader.by_file, file, name) for file in files.split(",") for name in names)
    elif kind == "whole":
        reader.run([reader.whole])
    elif arguments:
        status_file, name, who = arguments
        reader.run([partial(reader.not_yet, status_file, name, who), reader.listing])
    else:
        reader.run([reader.listing])


if __name__ == "__main__":
    main(*sys.argv[1:])
