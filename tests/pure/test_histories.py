"""The judge of what readers saw of a migration: what one view can have shown passes, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations_with_replacement, pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab.histories import (
    Exists,
    Listing,
    Look,
    NotYet,
    Seen,
    Stage,
    Whole,
    Whose,
    contradiction,
    contradiction_between,
    saw,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

MIGRATED: list[Stage] = [
    {"foo": "a"},
    {"foo": "a", "foo-incoming": "b"},
    {"foo": "b", "foo-outgoing": "a"},
    {"foo": "b"},
]
FAILED: list[Stage] = [*MIGRATED[:2], MIGRATED[0]]
NAMES = ("foo", "foo-incoming", "foo-outgoing")
READERS = ("names", "listing", "third")

CHANGES = (100, 200, 300)
"""When the view below changes its stage: nothing else begins or ends then."""


def answer(name: str, stage: Stage, kind: type[Seen]) -> Seen:
    """A true one."""
    if kind is Listing:
        return Listing(frozenset(stage))
    if kind is Whole:
        return Whole(frozenset(stage.items()))
    if kind is Exists and name in stage:
        return Exists(name)
    if kind is NotYet and stage["foo"] != "b":
        return NotYet("foo", "b")
    return Whose(name, stage.get(name))


def at(at_ns: int) -> Stage:
    """The stage of a view that changes at `CHANGES`."""
    return MIGRATED[sum(at_ns >= change for change in CHANGES)]


@st.composite
def correct(draw: st.DrawFn) -> list[Look]:
    """What up to three readers saw of that view: each looks all the time, once after the other."""
    looks = []
    for reader in READERS[: draw(st.integers(1, len(READERS)))]:
        moments = sorted(draw(st.lists(st.integers(0, 399), min_size=2, max_size=24)))
        for start_ns, end_ns in pairwise(moments):
            answered_ns = draw(st.integers(start_ns, end_ns))
            kind = draw(st.sampled_from([Whose, Exists, Listing, Whole, NotYet]))
            seen = answer(draw(st.sampled_from(NAMES)), at(answered_ns), kind)
            looks.append(Look(reader, start_ns, end_ns, seen))
    return draw(st.permutations(looks))


@given(correct())
@settings(deadline=None)
def test_what_a_correct_view_shows_is_possible(looks: list[Look]) -> None:
    assert contradiction(looks, MIGRATED) is None


# The evidence for when the stages change: one reader that looks without a break, whose looks end between.
EVIDENCE = [
    Look("names", start_ns, start_ns + 9, Listing(frozenset(at(start_ns)))) for start_ns in range(0, 400, 10)
]

WRONG: dict[str, Look] = {
    "no foo": Look("listing", 150, 160, Whose("foo", None)),
    "nothing at all": Look("listing", 90, 310, Listing(frozenset())),
    "a mixture in one listing": Look("listing", 0, 399, Listing(frozenset(NAMES))),
    "two of one, in one listing": Look("listing", 0, 399, Whole(frozenset({("foo", "a"), (NAMES[1], "a")}))),
    "incoming and outgoing, and no foo": Look("listing", 0, 399, Listing(frozenset(NAMES[1:]))),
    "the swap, too early": Look("listing", 150, 160, Whose("foo", "b")),
    "the swap, turned back": Look("listing", 250, 260, Whose("foo", "a")),
    "both are the target": Look("listing", 150, 260, Whose("foo-incoming", "a")),
    "an incoming one after the swap": Look("listing", 250, 260, Exists("foo-incoming")),
    "an outgoing one before the swap": Look("listing", 150, 160, Exists("foo-outgoing")),
    "a listing from before": Look("listing", 250, 350, Listing(frozenset(MIGRATED[1]))),
    "an outgoing one after it has gone": Look("listing", 350, 360, Exists("foo-outgoing")),
    "the guest's own UUID elsewhere": Look("listing", 0, 399, Whose("foo", "c")),
    "the target could not be the guest yet": Look("listing", 220, 230, NotYet("foo", "b")),
}


@pytest.mark.parametrize("what", WRONG)
def test_each_kind_of_wrong_answer_is_refused(what: str) -> None:
    assert contradiction(EVIDENCE, MIGRATED) is None
    wrong = WRONG[what]
    refused = contradiction([*EVIDENCE, wrong], MIGRATED)
    assert refused is not None
    # Which of the two that contradict each other is named, is the one that ends later.
    assert str(wrong) in refused or "Look(reader='names'" in refused


@given(correct(), st.sampled_from(sorted(WRONG)))
@settings(deadline=None)
def test_no_further_look_makes_up_for_a_wrong_one(looks: list[Look], what: str) -> None:
    assert contradiction([*looks, *EVIDENCE, WRONG[what]], MIGRATED) is not None


@pytest.mark.parametrize("seen", [Whose("foo", "a"), Whose("foo", "b"), Listing(frozenset(MIGRATED[2]))])
def test_a_look_during_which_the_stage_changes_may_have_seen_either(seen: Seen) -> None:
    assert contradiction([*EVIDENCE, Look("listing", 195, 205, seen)], MIGRATED) is None


def test_two_readers_may_not_see_one_change_in_two_orders() -> None:
    """Each by itself could be: together they say that foo went over and came back."""
    first = [Look("names", 0, 10, Whose("foo", "b"))]
    second = [Look("listing", 11, 20, Listing(frozenset(MIGRATED[1])))]
    assert contradiction(first, MIGRATED) is None
    assert contradiction(second, MIGRATED) is None
    assert contradiction(first + second, MIGRATED) is not None


def test_one_look_cannot_serve_as_two_moments_of_a_change() -> None:
    """Incoming was absent before the first stage with it or after the last: not in the middle, on and off."""
    there = [Look("names", start_ns, start_ns + 5, Exists("foo-incoming")) for start_ns in (100, 200)]
    absent = Look("listing", 150, 160, Whose("foo-incoming", None))
    assert contradiction([*there, absent], MIGRATED) is not None
    assert contradiction([*there, replace(absent, start_ns=90)], MIGRATED) is None


def test_of_a_migration_that_failed_no_swap_is_possible() -> None:
    looks = [Look("names", 0, 10, Whose("foo-incoming", "b")), Look("names", 11, 20, Whose("foo", "a"))]
    assert contradiction(looks, FAILED) is None
    assert contradiction([*looks, Look("names", 0, 20, Whose("foo", "b"))], FAILED) is not None


def is_possible(looks: Sequence[Look], stages: Sequence[Stage], last_ns: int) -> bool:
    """The same by trying all moments at which the stages can change: what the judge is held against.

    Moments are the halves too: a stage that was only there between two whole ones.
    """
    moments = [half / 2 for half in range(-1, 2 * last_ns + 2)]
    for changes in combinations_with_replacement(moments, len(stages) - 1):
        begins, ends = (float("-inf"), *changes), (*changes, float("inf"))
        if all(
            any(
                look.seen.fits(stage) and begin <= look.end_ns and look.start_ns <= end
                for stage, begin, end in zip(stages, begins, ends, strict=True)
            )
            for look in looks
        ):
            return True
    return False


def a_look(last_ns: int) -> st.SearchStrategy[Look]:
    name, who = st.sampled_from(NAMES), st.sampled_from(["a", "b"])
    seen: st.SearchStrategy[Seen] = st.one_of(
        st.builds(Whose, name, st.none() | who),
        st.builds(Exists, name),
        st.builds(NotYet, st.just("foo"), st.just("b")),
        st.builds(Listing, st.sampled_from([frozenset(stage) for stage in MIGRATED])),
    )
    span = st.tuples(st.integers(0, last_ns), st.integers(0, last_ns)).map(sorted)
    return st.builds(
        lambda reader, s, seen: Look(reader, s[0], s[1], seen), st.sampled_from(READERS), span, seen
    )


@given(st.lists(a_look(4), max_size=6), st.sampled_from([MIGRATED, FAILED]))
@settings(deadline=None, max_examples=200)
def test_it_finds_what_trying_all_moments_finds(looks: list[Look], stages: list[Stage]) -> None:
    assert (contradiction(looks, stages) is None) == is_possible(looks, stages, 4)


def test_what_was_seen_at_all_is_known() -> None:
    assert not saw([Look("names", 0, 1, Whose("foo-incoming", None))], "foo-incoming")
    whole = Whole(frozenset(MIGRATED[1].items()))
    for seen in (Whose("foo-incoming", "b"), Exists("foo-incoming"), Listing(frozenset(NAMES)), whole):
        assert saw([Look("names", 0, 1, seen)], "foo-incoming")


SWAPPED: list[Stage] = [{"web": "a", "shop": "b"}, {"web": "b", "shop": "a"}]
KNOWN = [(moment, SWAPPED[moment // 100 % 2]) for moment in range(0, 500, 100)]
"""A view that goes to and fro: at which stage it is known to have been when."""


@pytest.mark.parametrize(
    "looks",
    [
        [("web", "a", 10, 20), ("web", "b", 70, 80), ("web", "b", 110, 120), ("web", "a", 130, 140)],
        [("web", "a", 10, 80), ("shop", "a", 20, 30)],
        [("web", "a", 90, 110), ("web", "b", 90, 110)],
    ],
    ids=["each change in its time", "a look during the change", "looks while a stage is known"],
)
def test_to_and_fro_is_possible(looks: list[tuple[str, str, int, int]]) -> None:
    assert contradiction_between(seen_of(looks), KNOWN) is None


@pytest.mark.parametrize(
    "looks",
    [
        [("web", "a", 10, 20), ("shop", "a", 30, 40), ("web", "a", 50, 60)],
        [("web", "a", 110, 120), ("web", "b", 130, 140)],
        [("shop", "a", 210, 220), ("web", "a", 230, 240)],
        [("web", None, 310, 320)],
    ],
    ids=["one name twice", "a change back, unasked", "both names", "no such name"],
)
def test_to_and_fro_no_other_change_is_possible(looks: list[tuple[str, str, int, int]]) -> None:
    assert contradiction_between(seen_of(looks), KNOWN) is not None


def seen_of(looks: list[tuple[str, str, int, int]]) -> list[Look]:
    return [Look("names", start_ns, end_ns, Whose(name, who)) for name, who, start_ns, end_ns in looks]
