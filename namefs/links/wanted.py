"""Which symlinks the tree is to hold. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Tree:
    """One guest: the path of its directory, and the symlinks in it by path, with their targets."""

    path: bytes
    links: Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Exchange:
    """Two guests' directories change places."""

    one: bytes
    other: bytes


@dataclass(frozen=True, slots=True)
class Move:
    """A guest's directory gets another path."""

    old: bytes
    new: bytes


def moves(made: Mapping[str, bytes], wanted: Mapping[str, bytes]) -> list[Move | Exchange]:
    """How directories that are there come to their new paths, each step leaving none in another's place.

    ``made`` and ``wanted`` are paths by UUID. Of guests that are in one of them only, nothing is said, but
    that what is in the way of a step has been removed before.
    """
    steps: list[Move | Exchange] = []
    at = {guest: path for guest, path in made.items() if guest in wanted}
    holder = {path: guest for guest, path in at.items()}
    for guest in sorted(at):
        target = wanted[guest]
        if at[guest] == target:
            continue
        other = holder.pop(target, None)
        del holder[at[guest]]
        if other is None:
            steps.append(Move(at[guest], target))
        else:
            # Whoever is there goes where this one comes from, and on from there in its own turn.
            steps.append(Exchange(at[guest], target))
            at[other], holder[at[guest]] = at[guest], other
        at[guest] = target
        holder[target] = guest
    # One that came earlier in the order may have been put elsewhere by a later one's exchange.
    return steps + (moves(at, wanted) if any(at[guest] != wanted[guest] for guest in at) else [])


def possible(
    made: Mapping[str, bytes], wanted: Mapping[str, bytes], is_others: Callable[[bytes], bool]
) -> dict[str, bytes]:
    """Where each guest can be: where it is wanted, or, if something of somebody's is there, where it is.

    A new one that has no place is not in it. ``made`` and ``wanted`` are paths by guest.
    """
    found = dict(wanted)
    due = [guest for guest, path in wanted.items() if path != made.get(guest) and is_others(path)]
    while due:
        taken = set()
        for guest in due:
            del found[guest]
            if guest in made:
                found[guest] = made[guest]
                taken.add(made[guest])
        due = [g for g, path in found.items() if path in taken and path != made.get(g)]
    return found


def parents(paths: Iterable[bytes]) -> list[bytes]:
    """The directories that these paths are in, the outermost first."""
    found = {path[:at] for path in paths for at, byte in enumerate(path) if byte == ord("/")}
    return sorted(found)
