"""Whether one view can have shown what several readers saw of it. Pure.

A view goes through stages, one after the other; each says which names there are and whose they are. A reader
knows of its look only that it was answered at some moment between its start and its end. So what all of them
saw is possible if each change from one stage to the next can be put at a moment such that every look had,
within its own time, a moment at which its answer was true. A look during which a stage changes may have seen
the one or the other; a look that began after another one had seen a stage may not see an earlier one.

A stage may have been too short for anybody to see it: whoever must have seen it is told by `saw`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Stage = Mapping[str, str]
"""Name to whose it is."""


@dataclass(frozen=True, slots=True)
class Whose:
    """A name was looked up: it was that one's; None: there was no such name."""

    name: str
    who: str | None

    def fits(self, stage: Stage) -> bool:
        """Whether the stage answers so."""
        return stage.get(self.name) == self.who


@dataclass(frozen=True, slots=True)
class Exists:
    """A name was looked up, and was there."""

    name: str

    def fits(self, stage: Stage) -> bool:
        """Whether the stage answers so."""
        return self.name in stage


@dataclass(frozen=True, slots=True)
class Listing:
    """All names, listed at once."""

    names: frozenset[str]

    def fits(self, stage: Stage) -> bool:
        """Whether the stage answers so."""
        return self.names == stage.keys()


@dataclass(frozen=True, slots=True)
class Whole:
    """All names, listed at once, with whose each is."""

    names: frozenset[tuple[str, str]]

    def fits(self, stage: Stage) -> bool:
        """Whether the stage answers so."""
        return self.names == set(stage.items())


@dataclass(frozen=True, slots=True)
class NotYet:
    """Known otherwise than from the view: at that time a name could not be that one's yet."""

    name: str
    who: str

    def fits(self, stage: Stage) -> bool:
        """Whether the stage is one of those that may be shown then."""
        return stage.get(self.name) != self.who


Seen = Whose | Exists | Listing | Whole | NotYet


@dataclass(frozen=True, slots=True)
class Look:
    """One look: who looked, between which two moments of one clock, and what was seen."""

    reader: str
    start_ns: int
    end_ns: int
    seen: Seen


def contradiction(looks: Iterable[Look], stages: Sequence[Stage]) -> str | None:
    """The first look that no view can have answered so that went through these stages; None: there is none.

    A sweep over time that keeps every way in which the stages can have changed so far. A way is the stage
    that it has come to, and the looks under way whose answer was not true yet.
    """
    fitting: dict[Seen, frozenset[int]] = {}
    numbered = list(looks)
    for look in numbered:
        if look.seen not in fitting:
            fitting[look.seen] = frozenset(i for i, stage in enumerate(stages) if look.seen.fits(stage))
    begins = [(look.start_ns, 0, number) for number, look in enumerate(numbered)]
    ends = [(look.end_ns, 1, number) for number, look in enumerate(numbered)]

    ways = {(stage, frozenset[int]()) for stage in range(len(stages))}
    for _at_ns, is_end, number in sorted(begins + ends):
        fits = fitting[numbered[number].seen]
        if not is_end:
            due = {(stage, waiting if stage in fits else waiting | {number}) for stage, waiting in ways}
            ways = set()
            for stage, waiting in due:
                ways.add((stage, waiting))
                for later in range(stage + 1, len(stages)):
                    waiting = frozenset(n for n in waiting if later not in fitting[numbered[n].seen])
                    ways.add((later, waiting))
            continue
        left = {way for way in ways if number not in way[1]}
        if not left:
            possible = sorted({stage for stage, _waiting in ways})
            return f"{numbered[number]}, when the view was at {[dict(stages[stage]) for stage in possible]}"
        ways = left
    return None


def contradiction_between(looks: Iterable[Look], known: Sequence[tuple[int, Stage]]) -> str | None:
    """The same, of a view that is known to have been at a stage at some moments: ``known``, in order.

    From each of them to the next it changed once, or not at all. A look that was under way at such a moment
    is left out: with two stages at a time, many changes to and fro take no longer to judge than each alone.
    """
    ordered = sorted(looks, key=lambda look: look.start_ns)
    begins = [look.start_ns for look in ordered]
    for (from_ns, before), (to_ns, after) in pairwise(known):
        within = ordered[bisect_left(begins, from_ns) : bisect_right(begins, to_ns)]
        ends = (from_ns, before), (to_ns, after)
        sure = [Look("known", at_ns, at_ns, Whole(frozenset(stage.items()))) for at_ns, stage in ends]
        refused = contradiction([*sure, *(look for look in within if look.end_ns <= to_ns)], [before, after])
        if refused is not None:
            return f"{refused}; the change began after {from_ns} and had ended at {to_ns}"
    return None


def saw(looks: Iterable[Look], name: str) -> bool:
    """Whether anybody saw that name, looked up or listed."""
    return any(
        (isinstance(look.seen, Exists) and look.seen.name == name)
        or (isinstance(look.seen, Whose) and look.seen.name == name and look.seen.who is not None)
        or (isinstance(look.seen, Listing) and name in look.seen.names)
        or (isinstance(look.seen, Whole) and name in dict(look.seen.names))
        for look in looks
    )
