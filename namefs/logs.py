"""Whose lines a log file holds. Pure: no file is touched here.

libvirt names QEMU's log after the guest and appends for ever. A guest that is renamed leaves its
log behind, and the next one of that name goes on in the same file. What tells them apart is the
command line that libvirt writes at each start: ``-uuid`` names the domain
(qemu_domain.c:qemuDomainLogContextNew, qemu_process.c:qemuLogOperation).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Sequence

    from namefs.model import Former, Key, Mark

_STARTING = b": starting up libvirt version: "
_START = re.compile(rb"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+)\+0000" + re.escape(_STARTING), re.MULTILINE)
_BEGUN = rb"0000-00-00 00:00:00.000+0000" + _STARTING
_DIGIT = re.compile(rb"\d")
_UUID = re.compile(rb"^-uuid ([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?: \\)?$", re.MULTILINE)

_DATED = re.compile(rb"-(\d{8})(?:-(\d+))?")
_NUMBERED = re.compile(rb"\.(\d+)")

Extent = tuple[int, int | None]
"""Start and end of a run of bytes; an end of None is the end of the file, wherever that will be."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where libvirt says that it starts a QEMU, and for which domain (None: the line is not there yet)."""

    offset: int
    uuid: UUID | None
    time: bytes = field(default=b"", compare=False)
    """In UTC, as it stands there."""


def starts(data: bytes, base: int = 0) -> list[Start]:
    """The starts in ``data``, which begins ``base`` bytes into the file, at the start of a line."""
    if _STARTING not in data:
        # Hundreds of times as fast as the expression, which tries each line.
        return []
    found = list(_START.finditer(data))
    result = []
    for match, end in zip(found, [*(m.start() for m in found), len(data)][1:], strict=False):
        named = _UUID.search(data, match.start(), end)
        uuid = UUID(named[1].decode()) if named else None
        result.append(Start(base + match.start(), uuid, match[1]))
    return result


def settled(end: bytes) -> int:
    """How many of the last bytes of a log are sure to belong to who wrote before them.

    The last line, while it is written, may become another domain's start.
    """
    line = end[end.rfind(b"\n") + 1 :]
    could_be = len(line) < len(_BEGUN) and _BEGUN.startswith(_DIGIT.sub(b"0", line))
    return len(end) - len(line) if could_be else len(end)


LINE_BYTES = len(_BEGUN)
"""The length of a start's line up to where it is known for one."""


def age(rotation: bytes) -> tuple[int, int, int]:
    """Sorts the pieces of a log, the oldest first, by what follows the log's own name in theirs."""
    dated = _DATED.match(rotation)
    if dated is not None:
        return 0, int(dated[1]), int(dated[2] or 0)
    numbered = _NUMBERED.match(rotation)
    return (1, -int(numbered[1]), 0) if numbered is not None else (2, 0, 0)


def owned(found: Sequence[Start], uuid: UUID, head: UUID | None) -> tuple[Extent, ...]:
    """The extents of a file that are of ``uuid``, in order; ``head`` owns what precedes the first start.

    What follows a start whose ``-uuid`` is not (yet) written is nobody's: better late than in the wrong
    hands.
    """
    runs: list[tuple[int, UUID | None]] = []
    if not found or found[0].offset > 0:
        runs.append((0, head))
    runs += [(start.offset, start.uuid) for start in found]
    extents: list[Extent] = []
    for (begin, owner), end in zip(runs, [*(r[0] for r in runs[1:]), None], strict=True):
        if owner != uuid:
            continue
        if extents and extents[-1][1] == begin:
            extents[-1] = (extents[-1][0], end)
        else:
            extents.append((begin, end))
    return tuple(extents)


def by_marks(
    file: Mark, holders: Sequence[tuple[Key, Former]], current: Key | None, uuid: UUID
) -> tuple[Extent, ...]:
    """The extents of ``uuid`` in a file that carries no ``-uuid`` (virtiofsd's, swtpm's logs).

    ``file`` is the file as it is now. ``holders`` had its name before, oldest first, ``current`` has it
    now. Each one's part ends where the file ended when it lost the name; a file that was not there then
    was not that one's. Whose part would be empty has none, unless the file is.
    """
    runs: list[tuple[int, int | None, UUID]] = []
    begin = 0
    for key, former in holders:
        size = _size_bytes_at(former, file)
        if size > begin:
            runs.append((begin, size, key.uuid))
            begin = size
    last = current.uuid if current is not None else holders[-1][0].uuid if holders else None
    if last is not None and (begin < file.size_bytes or not runs):
        runs.append((begin, None, last))
    return tuple((start, end) for start, end, owner in runs if owner == uuid)


def head_owner(file: Mark, holders: Sequence[tuple[Key, Former]], current: Key | None) -> UUID | None:
    """Who wrote the lines before a file's first start, where no older piece of the log can tell."""
    for key, former in holders:
        if _size_bytes_at(former, file) > 0:
            return key.uuid
    if current is not None:
        return current.uuid
    return holders[-1][0].uuid if holders else None


def _size_bytes_at(former: Former, file: Mark) -> int:
    """How long the file was when the name was lost; 0 too if it has been cut short since."""
    sizes = (m.size_bytes for m in former.marks if (m.dev, m.ino) == (file.dev, file.ino))
    size = next(sizes, 0)
    return size if size <= file.size_bytes else 0


def length(extents: Sequence[Extent], size: int) -> int:
    """How many bytes the extents of a file of ``size`` bytes are."""
    return sum(max(0, (size if end is None else min(end, size)) - begin) for begin, end in extents)


def locate(extents: Sequence[Extent], offset: int, count: int) -> list[tuple[int, int]]:
    """Where in the file ``count`` bytes at ``offset`` of the extents lie: (file offset, count) pairs."""
    pieces = []
    for begin, end in extents:
        size = count + offset if end is None else end - begin
        if offset < size and count > 0:
            take = min(count, size - offset)
            pieces.append((begin + offset, take))
            count -= take
            offset = 0
        else:
            offset -= size
    return pieces
