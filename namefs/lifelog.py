"""The log of a guest's whole life: which bytes of libvirt's files are still to be appended to it. Pure.

libvirt names a log after the guest, rotates it and drops it; the life log has the guest's own lines of all
these files, each once. Where copying stands is not kept in a counter, which a kill could leave behind what
was written: beside the log stands from where each run of its bytes came (`Run`), written before the first of
them, and the length of the log says the rest.

A file is known again by its first bytes and by those before where copying stands, not by its name: virtlogd
renames it, logrotate copies it and cuts the original short, or packs it. A position in the life counts all
bytes that it ever had, those of parts that are gone too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HEAD_BYTES = 1024
TAIL_BYTES = 1024

_LINE = re.compile(rb"life (\d+) (\d+)|from (\d+) (\d+) (\d+) (\d+) ([0-9a-f]{16})")
_RUNS_KEPT = 100
"""More than the pieces that any usual configuration keeps of a log."""

Read = Callable[[int, int], bytes]
"""Bytes of a file: from an offset, so many or fewer."""

Life = Callable[[int, int], bytes | None]
"""The life's bytes from a position to another; None if they are there no more."""


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes that are together in the life and in the file that they came from.

    ``at`` is where they begin in the life, ``offset`` where in the file of that inode. The first
    ``head_bytes`` of the file had the digest ``head`` then.
    """

    at: int
    ino: int
    offset: int
    head_bytes: int
    head: str


@dataclass(frozen=True, slots=True)
class Origins:
    """What stands beside a life log. ``files`` are its parts: where in the life each begins, and inode."""

    files: tuple[tuple[int, int], ...] = ()
    runs: tuple[Run, ...] = ()

    def base(self, ino: int) -> int:
        """Where the part of that inode begins; of one that was copied and so has another, the last part."""
        known = [at for at, one in self.files if one == ino]
        return known[-1] if known else self.files[-1][0] if self.files else 0

    def until(self, end: int) -> Origins:
        """What is true of a life that ends there: after a power cut it may lack what a run was noted for."""
        return Origins(self.files, tuple(run for run in self.runs if run.at <= end))

    def shortened(self) -> Origins:
        """Without what tells of files that libvirt has dropped long ago."""
        return Origins(self.files[-2:], self.runs[-_RUNS_KEPT:])

    def text(self) -> bytes:
        """As a file. What is added to it later goes to its end."""
        return b"".join([*(line_of_file(*file) for file in self.files), *map(line_of_run, self.runs)])


def line_of_file(at: int, ino: int) -> bytes:
    """The line of a part of the life."""
    return b"life %d %d\n" % (at, ino)


def line_of_run(run: Run) -> bytes:
    """The line of a run."""
    return b"from %d %d %d %d %s\n" % (run.at, run.ino, run.offset, run.head_bytes, run.head.encode())


def parse(text: bytes) -> Origins:
    """What these lines say. One that was cut off says nothing: what it was written for was not begun."""
    files: list[tuple[int, int]] = []
    runs: list[Run] = []
    for line in text.split(b"\n")[:-1]:
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        if match[1] is not None:
            files.append((int(match[1]), int(match[2])))
        else:
            at, ino, offset, head_bytes = (int(match[group]) for group in (3, 4, 5, 6))
            runs.append(Run(at, ino, offset, head_bytes, match[7].decode()))
    return Origins(tuple(files), tuple(runs))


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes of a file that are the guest's: from a start on to the next. ``time`` sorts as the start does."""

    begin: int
    end: int
    time: bytes = b""


@dataclass(frozen=True, slots=True)
class Source:
    """A file of libvirt's as it is now. ``live``: libvirt writes to it, if it writes."""

    name: str
    ino: int
    size: int
    live: bool
    segments: tuple[Segment, ...]
    read: Read


@dataclass(frozen=True, slots=True)
class Copy:
    """What is to be appended next: bytes of one of the sources."""

    source: int
    begin: int
    end: int


def plan(sources: Sequence[Source], origins: Origins, end: int, life: Life) -> list[Copy]:
    """What is to be appended to a life that ends at ``end``, in order, if no source is a copy of another.

    After the first of it the rest is to be planned anew: a copy that logrotate has just made may have brought
    what is in the original.
    ``sources`` are in the order of their age as far as it is known: by the time a name was held, and by
    rotation. Across names the starts' times say which came first.
    """
    reached = positions(sources, origins, end, life)
    copies = []
    for number, segment in _in_order(sources):
        begin = max(segment.begin, reached[number])
        if begin < segment.end:
            copies.append(Copy(number, begin, segment.end))
    return copies


def _in_order(sources: Sequence[Source]) -> list[tuple[int, Segment]]:
    latest: dict[str, bytes] = {}
    keyed = []
    for number, source in enumerate(sources):
        for segment in source.segments:
            # A clock may have been set back: within one name, the files say what came first.
            time = latest[source.name] = max(segment.time, latest.get(source.name, b""))
            keyed.append((time, number, segment))
    # A stable sort.
    return [(number, segment) for _, number, segment in sorted(keyed, key=lambda one: one[0])]


def positions(sources: Sequence[Source], origins: Origins, end: int, life: Life) -> list[int]:
    """Up to where each source is in the life already."""
    ends = [*(run.at for run in origins.runs), end][1:]
    spans = [_Span(run, to - run.at) for run, to in zip(origins.runs, ends, strict=True)]
    newest = {span.run.ino: span for span in spans}
    own = [
        span if (span := newest.get(source.ino)) is not None and span.fits(source, life) else None
        for source in sources
    ]
    return [
        _position(source, span, source.ino in newest, spans, _longer(sources, number), life)
        for number, (source, span) in enumerate(zip(sources, own, strict=True))
    ]


@dataclass(frozen=True, slots=True)
class _Span:
    """A run with its length."""

    run: Run
    count: int

    @property
    def reached(self) -> int:
        return self.run.offset + self.count

    def heads(self, source: Source) -> bool:
        """Whether the source begins as the file did that the run came from."""
        return digest(source.read(0, self.run.head_bytes)) == self.run.head

    def fits(self, source: Source, life: Life) -> bool:
        """Whether the source has these bytes, as far as can be told by its head and their end."""
        if source.size < max(self.reached, self.run.head_bytes) or not self.heads(source):
            return False
        count = min(self.count, TAIL_BYTES)
        end = self.run.at + self.count
        kept = life(end - count, end) if count else b""
        return kept is None or source.read(self.reached - count, count) == kept


def _position(
    source: Source,
    own: _Span | None,
    known: bool,
    spans: Iterable[_Span],
    longer: Iterable[Source],
    life: Life,
) -> int:
    if own is None and source.live and known:
        # Cut short, and maybe written anew.
        return 0
    if own is None and not source.live and any(_begins(one, source) for one in longer):
        # A copy that is being made: what it holds is copied from the original.
        return source.size
    reached = 0 if own is None else own.reached
    for span in spans:
        if span.reached > reached and span.fits(source, life):
            reached = span.reached
    return reached


def _longer(sources: Sequence[Source], number: int) -> list[Source]:
    """The sources that one may be a copy of: of two that are as long, only one is a copy of the other."""
    size = sources[number].size
    return [one for at, one in enumerate(sources) if (one.size, at) > (size, number)]


def _begins(original: Source, copy: Source) -> bool:
    """Whether a file is the beginning of another, as far as its first and last bytes tell."""
    count, tail = min(copy.size, HEAD_BYTES), min(copy.size, TAIL_BYTES)
    return original.read(0, count) == copy.read(0, count) and (
        original.read(copy.size - tail, tail) == copy.read(copy.size - tail, tail)
    )


def digest(head: bytes) -> str:
    """What a run keeps of a file's first bytes."""
    return blake2b(head, digest_size=8).hexdigest()


def run_of(source: Source, begin: int, at: int) -> Run:
    """The run that begins at ``begin`` of a source and at ``at`` of the life."""
    head = source.read(0, min(HEAD_BYTES, source.size))
    return Run(at, source.ino, begin, len(head), digest(head))


def goes_on(origins: Origins, end: int, source: Source, begin: int) -> bool:
    """Whether bytes at ``begin`` of a source make the last run longer, in a life that ends at ``end``."""
    if not origins.runs:
        return False
    last = origins.runs[-1]
    span = _Span(last, end - last.at)
    return last.ino == source.ino and span.count > 0 and span.reached == begin and span.heads(source)
