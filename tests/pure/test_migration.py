"""Which of two domains is the guest, over the sequences that libvirt 9.0 and 11.3 were seen to go through."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from namefs import migration
from namefs.applying import Applied, apply
from namefs.index import Index
from namefs.model import Asked, Domain, Key, Listed, Observed, Place, Role, Run, Seen, Sighted, Wished

FOO, OTHER = UUID(int=0xF00 << 96), UUID(int=0xBAD << 96)
A, B = "a", "b"

BOOTED = Run("running", "booted")
OUT = Run("running", "booted", "migration out", "perform3")
OUT_STOPPED = Run("paused", "migration", "migration out", "perform3")
OUT_POSTCOPY = Run("paused", "post-copy", "migration out", "postcopy")
STARTING = Run("paused", "starting up", "migration in", "prepare")
IN = Run("paused", "migration", "migration in", "prepare")
IN_POSTCOPY = Run("running", "post-copy", "migration in", "finish3")
ARRIVED = Run("running", "migrated")
RESTORING = Run("paused", "migration", "start")
DYING = Run("shutdown", "unknown", "migration in", "prepare")
WAITS = Run("paused", "migration")
PAUSED = Run("paused", "user")
CANCELED = Run("running", "migration canceled")

A_IS_FOO = {"foo": A}
COPYING = {"foo": A, "foo-incoming": B}
SWAPPED = {"foo": B, "foo-outgoing": A}
B_IS_FOO = {"foo": B}

Step = tuple[Run | None, Run | None, dict[str, str]]
"""The status files of A and B, and what is to be shown."""

SEQUENCES: dict[str, list[Step]] = {
    "live": [
        (BOOTED, None, A_IS_FOO),
        (OUT, None, A_IS_FOO),
        (OUT, STARTING, COPYING),
        (OUT, IN, COPYING),
        (OUT_STOPPED, IN, COPYING),
        (OUT_STOPPED, ARRIVED, SWAPPED),
        (None, ARRIVED, B_IS_FOO),
    ],
    "the target ends paused, as with --suspend": [
        (OUT, IN, COPYING),
        (OUT_STOPPED, PAUSED, SWAPPED),
        (None, PAUSED, B_IS_FOO),
    ],
    "post-copy": [
        (OUT, IN, COPYING),
        (OUT_POSTCOPY, IN, COPYING),
        (OUT_POSTCOPY, IN_POSTCOPY, SWAPPED),
        (OUT_POSTCOPY, ARRIVED, SWAPPED),
        (None, ARRIVED, B_IS_FOO),
    ],
    "post-copy that fails": [
        (OUT_POSTCOPY, IN_POSTCOPY, SWAPPED),
        (Run("paused", "post-copy failed", "migration out", "postcopy_failed"), None, A_IS_FOO),
    ],
    "aborted, or the target is killed": [
        (OUT, IN, COPYING),
        (OUT, DYING, COPYING),
        (OUT, None, A_IS_FOO),
        (BOOTED, None, A_IS_FOO),
    ],
    "the source rolls back after it had stopped": [
        (OUT_STOPPED, IN, COPYING),
        (OUT_STOPPED, None, A_IS_FOO),
        (CANCELED, None, A_IS_FOO),
    ],
    "the target's libvirtd is started again, and ends the target": [
        (OUT, IN, COPYING),
        (OUT, WAITS, COPYING),
        (OUT, Run("shutdown", "unknown"), COPYING),
        (BOOTED, None, A_IS_FOO),
    ],
    "the source's libvirtd is killed at the switch, and leaves the source paused": [
        (OUT, IN, COPYING),
        (OUT_STOPPED, IN, COPYING),
        (OUT_STOPPED, ARRIVED, SWAPPED),
        (WAITS, ARRIVED, SWAPPED),
        (Run("shutdown", "unknown"), ARRIVED, SWAPPED),
        (None, ARRIVED, B_IS_FOO),
    ],
    "the source is killed": [(OUT, IN, COPYING), (OUT, None, A_IS_FOO), (None, None, A_IS_FOO)],
    "a restore": [
        (None, None, A_IS_FOO),
        (Run("paused", "starting up", "start"), None, A_IS_FOO),
        (RESTORING, None, A_IS_FOO),
        (Run("running", "restored"), None, A_IS_FOO),
    ],
    "there and back again": [
        (OUT, IN, COPYING),
        (OUT_STOPPED, ARRIVED, SWAPPED),
        (None, ARRIVED, B_IS_FOO),
        (None, replace_job := Run("running", "migrated", "migration out", "perform3"), B_IS_FOO),
        (IN, replace_job, {"foo": B, "foo-incoming": A}),
        (ARRIVED, replace_job, {"foo": A, "foo-outgoing": B}),
        (ARRIVED, None, A_IS_FOO),
    ],
}


def domain(connection: str, run: Run | None, name: str = "foo", **facts: object) -> Domain:
    state = "shut off" if run is None else run.state
    return replace(Domain(FOO, name, connection, state=state, run=run), **facts)  # type: ignore[arg-type]


def observed(connection: str, run: Run | None, name: str = "foo") -> Observed:
    """B's domain is transient in these: gone when it is off."""
    gone = run is None and connection == B
    return Observed(Key(FOO), connection, None if gone else domain(connection, run, name))


def shown(index: Index) -> dict[str, str]:
    return {record.name: record.domain.connection for record in index.records.values()}


def played(steps: list[Step]) -> list[Applied]:
    found, index = [], Index()
    for now_ns, (a, b, _expected) in enumerate(steps, start=1):
        found.append(apply(index, [observed(A, a), observed(B, b)], now_ns))
        index = found[-1].index
    return found


@pytest.mark.parametrize("name", SEQUENCES)
def test_what_is_shown_at_each_step(name: str) -> None:
    steps = SEQUENCES[name]
    for applied, (a, b, expected) in zip(played(steps), steps, strict=True):
        assert shown(applied.index) == expected, (a, b)


@pytest.mark.parametrize("name", SEQUENCES)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_no_order_of_news_shows_two_or_none(name: str, data: st.DataObject) -> None:
    """Each side's news comes when it likes, API answers late; the status files are read at each."""
    first_a, first_b, _expected = SEQUENCES[name][0]
    said = [observed(A, first_a), observed(B, first_b)]
    index, now_ns = apply(Index(), said, 1).index, 1
    for a, b, _expected in SEQUENCES[name]:
        runs = {(FOO, A): a, (FOO, B): b}
        said += [observed(A, a), observed(B, b)]
        heard: st.SearchStrategy[Seen] = st.sampled_from([Sighted(FOO), *said])
        for one in data.draw(st.lists(heard, max_size=3)):
            now_ns += 1
            index = apply(index, [one], now_ns, runs).index
            names = [record.name for record in index.records.values()]
            assert len(set(names)) == len(names)
            assert sum(record.is_owner for record in index.records.values()) == 1
            assert "foo" in names
            running = {connection for (_uuid, connection), run in runs.items() if run is not None}
            known = {connection for _uuid, connection in index.domains}
            assert not running & known or shown(index)["foo"] in running, "who runs goes before who is off"


def test_the_three_names_change_in_one_transaction_and_generations_go_to_and_fro() -> None:
    there_and_back = [applied.index for applied in played(SEQUENCES["there and back again"])]
    keys = [
        {record.name: record.key.generation for record in index.records.values()} for index in there_and_back
    ]
    assert keys == [
        {"foo": 0, "foo-incoming": 1},
        {"foo": 1, "foo-outgoing": 0},
        {"foo": 1},
        {"foo": 1},
        {"foo": 1, "foo-incoming": 0},
        {"foo": 0, "foo-outgoing": 1},
        {"foo": 0},
    ]
    assert [(move.source, move.target) for move in there_and_back[-1].moves[Key(FOO)]] == [(A, B), (B, A)]
    assert there_and_back[-1].was_shown == {}, "the guest was called foo all the time"


def test_the_kernel_forgets_the_guests_entry_when_it_begins_to_be_two() -> None:
    steps = played(SEQUENCES["live"])
    begins = next(applied for applied in steps if shown(applied.index) == COPYING)
    assert Place(b"", b"foo") in {change.place for change in begins.changes if change.before is not None}
    assert [applied.index.is_fleeting(FOO) for applied in steps] == [
        False,
        False,
        True,
        True,
        True,
        True,
        False,
    ]


def test_a_source_that_stays_defined_is_shown_nowhere_until_the_guest_is_its_own_again() -> None:
    index = played(SEQUENCES["live"])[-1].index
    assert set(index.shadows) == {(FOO, A)}
    assert index.by_name[A, "foo"] == Key(FOO), "libvirt's name there is still taken"
    gone = apply(index, [Observed(Key(FOO), B, None)], 99).index
    assert shown(gone) == A_IS_FOO
    assert list(gone.records) == [Key(FOO, 1)], "it is the same to whoever is in it"
    assert apply(gone, [Listed(A, ())], 100).index.departed[Key(FOO)].record.name == "foo"


def test_with_another_name_on_the_target_each_goes_by_its_own() -> None:
    index = apply(Index(), [observed(A, OUT)], 1).index
    expected = [{"foo": A, "bar-incoming": B}, {"bar": B, "foo-outgoing": A}, {"bar": B}]
    for now_ns, (a, b) in enumerate([(OUT, IN), (OUT_STOPPED, ARRIVED), (None, ARRIVED)], start=2):
        index = apply(index, [observed(A, a), observed(B, b, "bar")], now_ns).index
        assert shown(index) == expected[now_ns - 2]
    assert [former.name for former in index.was_shown[Key(FOO)]] == ["foo"]


def test_a_name_that_was_asked_for_goes_with_the_guest() -> None:
    index = apply(Index(), [observed(A, OUT)], 1).index
    index = apply(index, [Wished(Key(FOO), Asked("shop", 5))], 2).index
    index = apply(index, [observed(B, IN)], 3).index
    assert shown(index) == {"shop": A, "shop-incoming": B}
    assert shown(apply(index, [observed(B, ARRIVED)], 4).index) == {"shop": B, "shop-outgoing": A}


def test_a_guest_that_is_really_called_so_keeps_its_name() -> None:
    real = Domain(OTHER, "foo-incoming", A, state="running", run=BOOTED)
    index = apply(Index(), [observed(A, OUT), Observed(Key(OTHER), A, real)], 1).index
    index = apply(index, [observed(B, IN)], 2).index
    assert index.by_place[Place(b"", b"foo-incoming")] == Key(OTHER)
    assert index.records[Key(FOO, 1)].entry == b"foo-incoming~00000f00"


def test_one_that_comes_from_another_host_is_the_guest_once_it_has_arrived() -> None:
    index = apply(Index(), [observed(B, IN)], 1).index
    assert shown(index) == {"foo-incoming": B}
    assert shown(apply(index, [observed(B, ARRIVED)], 2).index) == B_IS_FOO
    assert apply(index, [observed(B, None)], 2).index.departed == {}, "it was never here"


def test_two_guests_of_one_name_on_two_connections_are_told_apart() -> None:
    other = Domain(OTHER, "foo", B, state="running", run=BOOTED)
    index = apply(Index(), [observed(A, BOOTED), Observed(Key(OTHER), B, other)], 1).index
    assert {place.entry for place in index.by_place} == {b"foo", b"foo~00000f00"}


@pytest.mark.parametrize("name", SEQUENCES)
def test_each_phase_has_words_and_no_migration_has_none(name: str) -> None:
    for applied in played(SEQUENCES[name]):
        records = {record.domain.connection: record for record in applied.index.records.values()}
        roles = {record.role for record in records.values()}
        assert (migration.phase(records) is None) == (not roles & {Role.INCOMING, Role.OUTGOING})
