"""``namefs logs``: the logs of guests' whole lives, straight from the files, so that it needs no daemon."""

from __future__ import annotations

import fnmatch
import os
import re
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from namefs import finding, journal, naming, table
from namefs.backing import Backing
from namefs.control import ask
from namefs.errors import ExitCode, NamefsError
from namefs.log_reader import LogReader
from namefs.log_sources import LogSources
from namefs.model import OWNER, Key
from namefs.pieces import Pieces
from namefs.places import places_of
from namefs.view import guest_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from namefs.config import Config
    from namefs.guest import Guest
    from namefs.index import Index

LOG = "qemu.log"
_POLL_S = 0.2
_PATTERN = re.compile(r"[*?[]")
_AGO = re.compile(r"(\d+)([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_TIME = re.compile(rb"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d(?:\.\d{1,6})?)(?:\+0000|Z)")
"""What libvirt puts before its lines (virTimeStringNow), and QEMU with ``-msg timestamp=on``: both UTC."""
_COLOURS = (36, 33, 32, 35, 34, 31)


def logs(config: Config, words: Sequence[str], *, follow: bool, last: int | None, since: str | None) -> int:
    """Print the logs of the guests that the words name; ``last`` lines, or those since a time.

    Raises NamefsError: NOT_FOUND, AMBIGUOUS, USAGE, and what the index and the configuration raise.
    """
    desk = _Desk(config)
    begin = None if since is None else _moment(since, datetime.now(UTC))
    keys = desk.keys(words)
    alone = len(keys) == 1 and not any(map(_PATTERN.search, words))
    prefixes = [b"" if alone else _prefix(desk.index, key, number) for number, key in enumerate(keys)]
    tails = [_Tail(key, prefix) for key, prefix in zip(keys, prefixes, strict=True)]
    for tail in tails:
        _print(tail, _chosen(tail.lines(desk, whole=not follow), last, begin))
    while follow:
        sys.stdout.flush()
        time.sleep(_POLL_S)
        desk.refresh()
        for tail in tails:
            _print(tail, tail.lines(desk, whole=False))
    return ExitCode.OK


@dataclass(slots=True)
class _Tail:
    """A guest's log, and up to where it has been read."""

    key: Key
    prefix: bytes
    at: int = 0
    begun: bytes = field(default=b"")

    def lines(self, desk: _Desk, *, whole: bool) -> Iterator[bytes]:
        """The lines that are new. The last one only once it ends, unless it is wanted as a ``whole``."""
        for at, data in desk.read(self.key, self.at):
            self.at = at + len(data)
            *lines, self.begun = (self.begun + data).split(b"\n")
            yield from (line + b"\n" for line in lines)
        if whole and self.begun:
            yield self.begun + b"\n"


class _Desk:
    """The index and the files, as they are by now."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._places = places_of(config)
        self._sources = LogSources(Pieces(Backing(config.mountpoint)), self._places)
        self._state: object = None
        self.index: Index = journal.read(config.journal)
        self.refresh()

    def refresh(self) -> None:
        """See what names the guests have by now."""
        state = [_stamp(self._config.journal + suffix) for suffix in ("", "-wal")]
        if state == self._state:
            return
        self._state = state
        self.index = journal.read(self._config.journal)
        self._sources.certain = self._certain()
        self._find_strays()

    def _certain(self) -> set[str]:
        """The connections of which the index is what libvirt says: the daemon knows."""
        try:
            status = ask(self._config.control_socket, {"op": "status"})
        except NamefsError:
            return set()
        return {one["label"] for one in status["connections"] if one["state"] == "connected"}

    def _find_strays(self) -> None:
        seen = set()
        for key, record in self.index.records.items():
            label, guest = record.domain.connection, self.guest(key)
            if guest is not None and guest.places is not None and label not in seen:
                seen.add(label)
                self._sources.find_strays(label, guest)

    def guest(self, key: Key) -> Guest | None:
        """The guest, present or gone."""
        return guest_in(self.index, key, self._places)

    def read(self, key: Key, at: int) -> Iterator[tuple[int, bytes]]:
        """A guest's log from a position on."""
        guest = self.guest(key)
        if guest is not None and guest.places is not None:
            yield from LogReader(guest.places.store_log, self._sources).read(guest, LOG, at)

    def keys(self, words: Iterable[str]) -> list[Key]:
        """The guests that are meant, each once; a pattern is for shown and libvirt names of present ones."""
        found: dict[Key, None] = {}
        for word in words:
            if not _PATTERN.search(word):
                found[finding.find_any(self.index, word)] = None
                continue
            matching = [
                key
                for _place, key in sorted(self.index.by_place.items())
                if any(fnmatch.fnmatchcase(name, word) for name in _names(self.index, key))
            ]
            if not matching:
                raise NamefsError(ExitCode.NOT_FOUND, f"no guest's name matches {naming.display(word)}")
            found.update(dict.fromkeys(matching))
        # The guest, whichever of its domains that will be: it may be migrated while it is followed.
        return list(dict.fromkeys(Key(key.uuid, OWNER) for key in found))


def _names(index: Index, key: Key) -> tuple[str, str]:
    record = index.records[key]
    return record.name, record.domain.name


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_mtime_ns, info.st_size


def _prefix(index: Index, key: Key, number: int) -> bytes:
    departed = index.departed.get(key.guest)
    record = index.owner(key.uuid) or (departed and departed.record)
    name = naming.display(record.name) if record else str(key.uuid)
    coloured = table.on_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    if coloured:
        name = f"\033[{_COLOURS[number % len(_COLOURS)]}m{name}\033[0m"
    return f"{name} | ".encode()


def _chosen(lines: Iterator[bytes], last: int | None, begin: datetime | None) -> Iterable[bytes]:
    if begin is not None:
        lines = _since(lines, begin)
    return lines if last is None else deque(lines, maxlen=last)


def _since(lines: Iterator[bytes], begin: datetime) -> Iterator[bytes]:
    """From the first line on that says a time not before ``begin``."""
    begun = False
    for line in lines:
        begun = begun or _is_since(line, begin)
        if begun:
            yield line


def _is_since(line: bytes, begin: datetime) -> bool:
    match = _TIME.match(line)
    try:
        return match is not None and datetime.fromisoformat(_iso(match)) >= begin
    except ValueError:
        return False


def _iso(match: re.Match[bytes]) -> str:
    day, time_of_day = match[1].decode(), match[2].decode()
    clock, _, fraction = time_of_day.partition(".")
    return f"{day}T{clock}.{fraction:0<6}+00:00"


def _moment(text: str, now: datetime) -> datetime:
    """``2h``, ``3d`` ago, or a date, or a date and time, of this machine's time zone unless it names one."""
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        what = f"{naming.display(text)} is no time: write 2h, 3d, 2026-11-24 or 2026-11-24T05:41"
        raise NamefsError(ExitCode.USAGE, what) from None


def _print(tail: _Tail, lines: Iterable[bytes]) -> None:
    out, terminal = sys.stdout.buffer, table.on_terminal()
    for line in lines:
        if terminal:
            # A guest can have anything written to its log, also what a terminal takes for an order.
            text = table.safe(line.rstrip(b"\n").decode(errors="surrogateescape").replace("\t", "    "))
            line = text.encode() + b"\n"
        out.write(tail.prefix + line)
    out.flush()
