"""What adopting or releasing a guest is to move, and its definitions afterwards. Pure.

Every path here is as libvirt sees it. What is there, and who else names it, is asked of `Facts`.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from namefs.adoption import definition
from namefs.adoption.definition import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from namefs.adoption.definition import Place

ADOPT = "adopt"
RELEASE = "release"

SNAPSHOT = "snapshot"
CHECKPOINT = "checkpoint"

SOCKET_PATH_MAX_BYTES = 107
"""The longest path of a unix socket (unix(7): 108 with the NUL); libvirt refuses to start with more."""

_STEM_MAX_CHARACTERS = 60
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")


class Refused(Exception):
    """The guest can't be adopted or released as things are. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Present:
    """What is at a path: its identity, and how it was when it was looked at."""

    dev: int
    ino: int
    size_bytes: int
    mtime_ns: int
    links: int = 1
    what: str = ""
    """What it is, where it is no regular file: ``a symlink``."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the plan depends on of the world, as functions of a path.

    ``named_by``: who but the guest's own devices names the file, '' if nobody; the file is told by its
    identity where it is there. ``tied``: why an image can't be elsewhere, '' if it can. ``pieces``: the
    older pieces that a log was rotated into. ``links``: whether the first path's file could have the
    second path as another name, so that nothing need be copied.
    """

    look: Callable[[str], Present | None]
    named_by: Callable[[str, Present | None], str]
    tied: Callable[[str], str]
    pieces: Callable[[str], Iterable[str]]
    links: Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class Moment:
    """A snapshot or checkpoint (``kind``) as libvirt describes it; ``current``: it is the current one."""

    kind: str
    name: str
    xml: str
    current: bool = False


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest as it is before: its persistent definition, and its moments, each after its parent."""

    uuid: str
    name: str
    xml: str
    moments: tuple[Moment, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that was adopted: where it is in the store, and where it was.

    ``original`` None: where libvirt would put it by itself.
    """

    kind: Kind
    device: str
    path: str
    original: str | None


@dataclass(frozen=True, slots=True)
class Move:
    """One thing that is to have another path. ``file`` None: there is only the path, no file yet.

    ``implied``: outside of the store no definition need name its path, which libvirt derives.
    ``piece``: the older piece of a log, which no definition names. ``copied``: the two paths are on
    different filesystems.
    """

    kind: Kind
    device: str
    source: str
    target: str
    file: Present | None
    implied: bool = False
    piece: bool = False
    copied: bool = False


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays where it is, and why."""

    device: str
    path: str
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is to be done; nothing, if there are no moves. ``items`` is what is adopted afterwards."""

    operation: str
    guest: Guest
    moves: tuple[Move, ...]
    kept: tuple[Kept, ...]
    items_before: tuple[Item, ...]
    items: tuple[Item, ...]

    @property
    def named(self) -> tuple[Move, ...]:
        """The moves of what definitions name."""
        return tuple(move for move in self.moves if not move.piece)

    def forward(self, xml: str) -> str:
        """A definition or description, with the paths as they are to be. Raises definition's NotXml."""
        return self._rewritten(
            xml, {move.source: move.target for move in self.named}, self.operation == ADOPT
        )

    def backward(self, xml: str) -> str:
        """The inverse of `forward`."""
        return self._rewritten(
            xml, {move.target: move.source for move in self.named}, self.operation != ADOPT
        )

    def is_switched(self, xml: str) -> bool:
        """Whether a definition of the guest names the new paths. Raises Refused if it names both kinds."""
        names = {place.path for place in definition.places(xml)}
        new = [move.target for move in self.named if move.target in names]
        old = [move.source for move in self.named if move.source in names]
        if new and old:
            raise Refused(f"its definition was changed meanwhile: it names {new[0]} and also {old[0]}")
        # What is implied outside of the store may be named by nothing there.
        return bool(new) if self.operation == ADOPT else not old

    def _rewritten(self, xml: str, moved: dict[str, str], into_store: bool) -> str:
        implied = next((move for move in self.moves if move.implied), None)
        path = None if implied is None else implied.target if self.operation == ADOPT else implied.source
        return definition.rewritten(xml, moved, path if into_store else None, None if into_store else path)


@dataclass(frozen=True, slots=True)
class Store:
    """A guest's directory of the store, and where libvirt puts its UEFI variables by itself."""

    directory: str
    own_nvram: str


def adoption(guest: Guest, store: Store, facts: Facts, items: tuple[Item, ...], *, disks: bool) -> Plan:
    """What is to be done to have in the store all that may be there; images only with ``disks``.

    Raises Refused, and definition's NotXml.
    """
    if stack := definition.writer(guest.xml):
        raise Refused(
            f"{stack} writes its definition, and would write the old paths again (if it is"
            f" {stack}'s no more, take {stack}'s element out of its <metadata> first)"
        )
    moves: list[Move] = []
    kept: list[Kept] = []
    for place in definition.places(guest.xml):
        source = store.own_nvram if place.path is None else place.path
        if (place.kind is Kind.DISK and not disks) or source.startswith(store.directory + "/"):
            continue
        target = _target(place, source, store.directory, {move.target for move in moves})
        file = None if place.kind is Kind.SOCKET else facts.look(source)
        if why := place.kept or _why_kept(place, source, target, file, facts) or _why_saved(place, guest):
            kept.append(Kept(place.device, source, why))
            continue
        if place.kind is not Kind.SOCKET and facts.look(target) is not None:
            raise Refused(f"{target} is in the way: move it out of the store first")
        move = Move(place.kind, place.device, source, target, file, implied=place.path is None)
        moves += _with_pieces(move, facts)
    added = tuple(
        Item(move.kind, move.device, move.target, None if move.implied else move.source)
        for move in moves
        if not move.piece
    )
    # What was adopted to the same path before is not there any more, or it would be in the way.
    remaining = tuple(item for item in items if item.path not in {new.path for new in added})
    return Plan(ADOPT, guest, tuple(moves), tuple(kept), items, (*remaining, *added))


def release(guest: Guest, store: Store, facts: Facts, items: tuple[Item, ...]) -> Plan:
    """What is to be done to have everything where it was. Raises Refused, and definition's NotXml."""
    places = {place.path: place for place in definition.places(guest.xml)}
    moves: list[Move] = []
    kept: list[Kept] = []
    remaining: list[Item] = []
    for item in items:
        place = places.get(item.path)
        file = None if item.kind is Kind.SOCKET else facts.look(item.path)
        why = _why_not_released(item, place, file, facts)
        if why:
            kept.append(Kept(item.device, item.path, why))
            remaining.append(item)
            continue
        target = store.own_nvram if item.original is None else item.original
        _check_free(item, target, facts)
        move = Move(item.kind, item.device, item.path, target, file, implied=item.original is None)
        moves += _with_pieces(move, facts)
    return Plan(RELEASE, guest, tuple(moves), tuple(kept), items, tuple(remaining))


def _with_pieces(move: Move, facts: Facts) -> Iterator[Move]:
    pieces = facts.pieces(move.source) if move.kind is Kind.LOG else ()
    yield replace(move, copied=move.file is not None and not facts.links(move.source, move.target))
    for source in pieces:
        target = move.target + source.removeprefix(move.source)
        file = facts.look(source)
        if file is None or file.what or file.links != 1:
            continue
        if facts.look(target) is not None:
            raise Refused(f"{target} is in the way: move it away first")
        yield Move(
            move.kind,
            move.device,
            source,
            target,
            file,
            piece=True,
            copied=not facts.links(source, target),
        )


def _target(place: Place, source: str, directory: str, taken: set[str]) -> str:
    suffix = posixpath.splitext(source)[1]
    if not _SUFFIX.fullmatch(suffix):
        suffix = ""
    match place.kind:
        case Kind.LOG:
            suffix = ".log"
        case Kind.NVRAM:
            suffix = suffix or ".fd"
        case Kind.SOCKET:
            suffix = ""
    stem = place.device.replace("/", "_")[:_STEM_MAX_CHARACTERS].lstrip(".") or place.kind.name.lower()
    at = f"{directory}/{place.kind.value}/{stem}"
    target, number = at + suffix, 1
    while target in taken:
        number += 1
        target = f"{at}-{number}{suffix}"
    return target


def _why_kept(place: Place, source: str, target: str, file: Present | None, facts: Facts) -> str:
    if place.kind is Kind.SOCKET and len(target.encode()) > SOCKET_PATH_MAX_BYTES:
        return f"would have a path of more than {SOCKET_PATH_MAX_BYTES} bytes"
    if place.kind is Kind.DISK and file is None:
        return "is not there"
    return _why_fixed(place, source, file, facts)


def _why_saved(place: Place, guest: Guest) -> str:
    if place.kind is not Kind.DISK:
        return ""
    saved = (m for m in guest.moments if m.kind == SNAPSHOT and definition.saved_memory(m.xml))
    return next((f"is named by the saved memory of snapshot {moment.name}" for moment in saved), "")


def _why_fixed(place: Place, source: str, file: Present | None, facts: Facts) -> str:
    if file is not None and file.what:
        return f"is {file.what}"
    if file is not None and file.links != 1:
        return f"has {file.links} names (hard links)"
    if who := facts.named_by(source, file):
        return f"is named by {who} too"
    return facts.tied(source) if place.image_format == "qcow2" else ""


def _why_not_released(item: Item, place: Place | None, file: Present | None, facts: Facts) -> str:
    if place is None:
        return "is named by the guest's definition no more"
    if item.kind is Kind.DISK and file is None:
        return "is not there"
    return place.kept or _why_fixed(place, item.path, file, facts)


def _check_free(item: Item, target: str, facts: Facts) -> None:
    directory = posixpath.dirname(target)
    if facts.look(directory) is None:
        raise Refused(f"{item.device} was at {target}, and {directory} is gone: make it again first")
    if item.kind is not Kind.SOCKET and facts.look(target) is not None:
        raise Refused(f"{target}, where {item.device} was, is taken now: move that away first")
