"""The index against a model of a libvirt host whose hints come late, twice, out of order, or never."""

from __future__ import annotations

import itertools
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from namefs import naming
from namefs.applying import DEPARTED_KEPT_NS, Applied, apply
from namefs.index import Index
from namefs.model import Change, Domain, Former, Key, Listed, Mark, Observed, Place

A = UUID("1b4e28ba-2fa1-11d2-883f-b9a761bde3fb")
B = UUID("1b4e28ba-9999-4999-8999-b9a761bde3fb")  # shares its first 8 digits with A
C = UUID("00000000-0000-4000-8000-00000000000c")
D = UUID("ffffffff-0000-4000-8000-00000000000d")
UUIDS = [A, B, C, D]
CONNECTIONS = ["system", "embed", "second"]
NAMES = ["web", "db", "web~1b4e28ba", "..", "a\udcff\n", "long" * 80]


def domain(uuid: UUID, name: str, connection: str = "system", title: str | None = None) -> Domain:
    return Domain(uuid, name, connection, title=title)


def seen(uuid: UUID, name: str | None, connection: str = "system") -> Observed:
    return Observed(Key(uuid), connection, None if name is None else domain(uuid, name, connection))


def after(*transactions: list[Observed | Listed]) -> Index:
    index = Index()
    for now_ns, transaction in enumerate(transactions, start=1):
        index = apply(index, transaction, now_ns).index
    return index


def entries(index: Index) -> dict[bytes, UUID]:
    return {place.entry: key.uuid for place, key in index.by_place.items()}


def at(entry: bytes) -> Place:
    return Place(b"", entry)


def plain(index: Index) -> bool:
    return all(record.entry == naming.encode(record.name) for record in index.records.values())


def known(index: Index, key: Key) -> tuple[object, ...]:
    of_guest = (index.former, index.was_shown, index.asked, index.departed, index.moves)
    shadows = {at: domain for at, domain in index.shadows.items() if at[0] == key.uuid}
    return index.records.get(key), *(part.get(key) for part in of_guest), shadows


def names_differ(index: Index) -> bool:
    names = [record.domain.name for record in index.records.values()]
    return len(set(names)) == len(names)


class LibvirtHost(RuleBasedStateMachine):
    """Domains come, go and change names; the index learns of it by hints, each read when it is served."""

    @initialize()
    def start(self) -> None:
        self.index = Index()
        self.now_ns = 10**18
        self.host: dict[UUID, Domain] = {}
        self.hints: list[tuple[str, UUID]] = []
        # What the index was told, kept here by other means than the index's own.
        self.told: dict[tuple[UUID, str], Domain] = {}
        self.past: dict[Key, list[tuple[str, int, str]]] = {}

    def taken(self, connection: str, name: str) -> bool:
        return any(d.connection == connection and d.name == name for d in self.host.values())

    @rule(uuid=st.sampled_from(UUIDS), name=st.sampled_from(NAMES), connection=st.sampled_from(CONNECTIONS))
    def define(self, uuid: UUID, name: str, connection: str) -> None:
        if uuid not in self.host and not self.taken(connection, name):
            self.host[uuid] = domain(uuid, name, connection)
            self.hints.append((connection, uuid))

    @rule(uuid=st.sampled_from(UUIDS))
    def undefine(self, uuid: UUID) -> None:
        if gone := self.host.pop(uuid, None):
            self.hints.append((gone.connection, uuid))

    @rule(uuid=st.sampled_from(UUIDS), name=st.sampled_from(NAMES))
    def rename(self, uuid: UUID, name: str) -> None:
        old = self.host.get(uuid)
        if old is not None and not self.taken(old.connection, name):
            self.host[uuid] = replace(old, name=name)
            self.hints.append((old.connection, uuid))

    @rule(one=st.sampled_from(UUIDS), other=st.sampled_from(UUIDS))
    def swap_names(self, one: UUID, other: UUID) -> None:
        first, second = self.host.get(one), self.host.get(other)
        if first is not None and second is not None and first.connection == second.connection:
            self.host[one], self.host[other] = (
                replace(first, name=second.name),
                replace(second, name=first.name),
            )
            self.hints += [(first.connection, one), (first.connection, other)]

    @rule(uuid=st.sampled_from(UUIDS), connection=st.sampled_from(CONNECTIONS))
    def move_to_another_connection(self, uuid: UUID, connection: str) -> None:
        old = self.host.get(uuid)
        if old is not None and not self.taken(connection, old.name):
            self.host[uuid] = replace(old, connection=connection)
            self.hints += [(old.connection, uuid), (connection, uuid)]

    @rule(uuid=st.sampled_from(UUIDS), title=st.sampled_from(["one", "two"]))
    def change_something_else(self, uuid: UUID, title: str) -> None:
        if uuid in self.host:
            self.host[uuid] = replace(self.host[uuid], title=title)
            self.hints.append((self.host[uuid].connection, uuid))

    @precondition(lambda self: self.hints)
    @rule(data=st.data(), keep=st.booleans())
    def serve_hints(self, data: st.DataObject, keep: bool) -> None:
        """Any of the hints, in any order, in one transaction; kept ones come a second time."""
        at = data.draw(st.lists(st.sampled_from(range(len(self.hints))), unique=True))
        served = [self.hints[number] for number in at]
        if not keep:
            self.hints = [hint for number, hint in enumerate(self.hints) if number not in at]
        self.apply([self.read(*hint) for hint in served])

    @precondition(lambda self: self.hints)
    @rule(data=st.data())
    def lose_a_hint(self, data: st.DataObject) -> None:
        self.hints.remove(data.draw(st.sampled_from(self.hints)))

    @rule(connections=st.lists(st.sampled_from(CONNECTIONS), unique=True, min_size=1))
    def list_connections(self, connections: list[str]) -> None:
        self.apply([self.listing(connection) for connection in connections])

    @rule(order=st.permutations(CONNECTIONS))
    def list_all(self, order: list[str]) -> None:
        before = self.index
        listings = {connection: self.listing(connection) for connection in CONNECTIONS}
        self.apply([listings[connection] for connection in order])
        assert {key.uuid: r.domain for key, r in self.index.records.items()} == self.host
        again = apply(before, [listings[connection] for connection in reversed(order)], self.now_ns)
        assert again.index == self.index
        assert apply(self.index, list(listings.values()), self.now_ns) == Applied(self.index)

    @rule()
    def a_quarter_passes(self) -> None:
        self.now_ns += DEPARTED_KEPT_NS

    def read(self, connection: str, uuid: UUID) -> Observed:
        found = self.host.get(uuid)
        there = found is not None and found.connection == connection
        return Observed(Key(uuid), connection, found if there else None)

    def listing(self, connection: str) -> Listed:
        return Listed(connection, tuple(d for d in self.host.values() if d.connection == connection))

    def apply(self, transaction: list[Observed | Listed]) -> None:
        self.now_ns += 1
        before = self.index
        copies = dict(before.records), dict(before.by_place), dict(before.former)
        applied = apply(before, transaction, self.now_ns)
        assert (before.records, before.by_place, before.former) == copies, "an index never changes"
        self.tell(transaction)
        self.index = applied.index
        self.check_changes(before, applied)
        self.check_steadiness(before, transaction)

    def tell(self, transaction: list[Observed | Listed]) -> None:
        """What a plain reader of the transaction would believe, a connection speaking for itself only."""
        believed = dict(self.told)
        for one in transaction:
            if isinstance(one, Listed):
                for at in [at for at in believed if at[1] == one.connection]:
                    del believed[at]
                believed |= {(d.uuid, one.connection): d for d in one.domains}
            elif one.domain is not None:
                believed[one.key.uuid, one.connection] = one.domain
            else:
                believed.pop((one.key.uuid, one.connection), None)
        for (uuid, connection), old in self.told.items():
            new = believed.get((uuid, connection))
            if new is None or new.name != old.name:
                self.past.setdefault(Key(uuid), []).append((old.name, self.now_ns, connection))
        self.told = believed
        present = {uuid for uuid, _connection in believed}
        if any(isinstance(one, Listed) for one in transaction):
            for key in [k for k in self.past if k.uuid not in present]:
                if self.past[key][-1][1] < self.now_ns - DEPARTED_KEPT_NS:
                    del self.past[key]

    def check_changes(self, before: Index, applied: Applied) -> None:
        index = applied.index
        differing = sorted(
            place
            for place in {*before.by_place, *index.by_place}
            if before.by_place.get(place) != index.by_place.get(place)
        )
        assert applied.changes == tuple(
            Change(place, before.by_place.get(place), index.by_place.get(place)) for place in differing
        )
        keys = {Key(uuid) for uuid in UUIDS}
        assert applied.touched == {key for key in keys if known(before, key) != known(index, key)}
        for key, released_domain, former in applied.released:
            assert former in index.former[key]
            assert (former.name, former.connection) == (released_domain.name, released_domain.connection)
        grown = {k for k, f in index.former.items() if len(f) > len(before.former.get(k, ()))}
        assert {key for key, _domain, _former in applied.released} == grown

    def check_steadiness(self, before: Index, transaction: list[Observed | Listed]) -> None:
        listed = any(isinstance(one, Listed) for one in transaction)
        for key, old in before.records.items():
            new = self.index.records.get(key)
            if new is None or new.domain.name != old.domain.name:
                continue
            assert new.since_ns == old.since_ns
            if new.entry != old.entry:
                assert listed, "an entry changed though its domain kept the name"
                assert new.entry == naming.encode(new.domain.name)
        if names_differ(self.index) and (listed or plain(before)):
            assert plain(self.index), "a name that one domain has is told apart from nothing"

    @invariant()
    def entries_and_records_are_a_bijection(self) -> None:
        assert {record.place: key for key, record in self.index.records.items()} == self.index.by_place
        assert len(self.index.by_place) == len(self.index.records)
        assert all(record.key == key for key, record in self.index.records.items())
        assert list(self.index.listings[b""]) == sorted(place.entry for place in self.index.by_place)

    @invariant()
    def each_entry_is_one_of_its_names(self) -> None:
        for key, record in self.index.records.items():
            name = record.domain.name
            short = naming.disambiguated(name, key.uuid)
            assert record.entry in (
                naming.encode(name),
                short,
                naming.disambiguated(name, key.uuid, full=True),
            )
            if record.entry not in (naming.encode(name), short):
                assert key.uuid in (A, B), "the whole UUID only where 8 digits are not enough"

    @invariant()
    def it_knows_what_it_was_told_and_shows_each_guest_once(self) -> None:
        assert self.index.domains == self.told
        assert sorted(key.uuid for key in self.index.records) == sorted({uuid for uuid, _ in self.told})
        assert all(record.is_owner for record in self.index.records.values())

    @invariant()
    def former_names_are_those_that_were_held_and_where(self) -> None:
        assert {
            k: sorted((f.name, f.until_ns, f.connection) for f in held)
            for k, held in self.index.former.items()
        } == {k: sorted(held) for k, held in self.past.items()}
        for held in self.index.former.values():
            assert [f.until_ns for f in held] == sorted(f.until_ns for f in held)
            assert all(f.since_ns <= f.until_ns for f in held)

    @invariant()
    def holders_are_the_former_names_by_name(self) -> None:
        expected: dict[str, list[tuple[Key, int, str]]] = {}
        for key, held in self.past.items():
            for name, until_ns, connection in held:
                expected.setdefault(name, []).append((key, until_ns, connection))
        holders = self.index.holders
        assert {
            name: sorted((key, f.until_ns, f.connection) for key, f in held) for name, held in holders.items()
        } == {name: sorted(held) for name, held in expected.items()}
        for of_one_name in holders.values():
            ends = [former.until_ns for _key, former in of_one_name]
            assert ends == sorted(ends)

    @invariant()
    def each_connection_finds_its_own_domain_by_name(self) -> None:
        assert set(self.index.by_name) == {(d.connection, d.name) for d in self.told.values()}
        for (connection, name), key in self.index.by_name.items():
            assert self.index.domains[key.uuid, connection].name == name


TestLibvirtHost = LibvirtHost.TestCase
TestLibvirtHost.settings = settings(deadline=None, max_examples=120, stateful_step_count=40)


def test_a_renamed_domain_gives_up_one_entry_and_takes_another() -> None:
    applied = apply(after([seen(A, "old")]), [seen(A, "new")], 7)
    assert applied.changes == (Change(at(b"new"), None, Key(A)), Change(at(b"old"), Key(A), None))
    assert applied.index.former == {Key(A): (Former("old", 1, 7, connection="system"),)}
    assert applied.index.records[Key(A)].since_ns == 7


def test_what_was_seen_already_changes_nothing() -> None:
    index = after([seen(A, "web")])
    assert apply(index, [seen(A, "web")], 9) == Applied(index)
    assert apply(index, [Listed("system", (domain(A, "web"),))], 9) == Applied(index)
    assert apply(index, [seen(B, None)], 9) == Applied(index)


def test_a_swap_is_one_transaction_and_tells_nothing_apart() -> None:
    applied = apply(after([seen(A, "one"), seen(C, "two")]), [seen(A, "two"), seen(C, "one")], 5)
    assert entries(applied.index) == {b"one": C, b"two": A}
    assert applied.changes == (Change(at(b"one"), Key(A), Key(C)), Change(at(b"two"), Key(C), Key(A)))


def test_a_name_that_passes_on_when_its_holder_is_undefined_stays_plain() -> None:
    for transaction in itertools.permutations([seen(A, None), seen(C, "web")]):
        index = apply(after([seen(A, "web")]), transaction, 5).index
        assert entries(index) == {b"web": C}


@pytest.mark.parametrize("order", list(itertools.permutations([0, 1, 2])))
def test_who_keeps_a_name_does_not_depend_on_the_order_of_listing(order: tuple[int, ...]) -> None:
    listings = [
        Listed("system", (domain(B, "web", "system"),)),
        Listed("embed", (domain(A, "web", "embed"),)),
        Listed("second", (domain(C, "web", "second"),)),
    ]
    index = after([listings[number] for number in order])
    assert entries(index) == {b"web": C, b"web~1b4e28ba": A, b"web~" + str(B).encode(): B}


def test_whoever_had_the_name_first_keeps_it() -> None:
    late = Listed("embed", (domain(C, "web", "embed"),))
    assert entries(after([seen(D, "web")], [late], [late])) == {b"web": D, b"web~00000000": C}


def test_a_plain_entry_that_becomes_free_is_given_back_by_a_listing_and_not_before() -> None:
    told_apart = after([seen(C, "web")], [seen(D, "web", "embed")], [seen(C, "other")])
    assert entries(told_apart) == {b"other": C, b"web~ffffffff": D}
    listed = apply(told_apart, [Listed("embed", (domain(D, "web", "embed"),))], 9)
    assert entries(listed.index) == {b"other": C, b"web": D}
    assert listed.index.records[Key(D)].since_ns == 2, "it had the name all along"
    assert listed.index.former == told_apart.former


@pytest.mark.parametrize("gone", [seen(A, None), Listed("system", ())])
def test_a_domain_seen_on_another_connection_is_not_gone(gone: Observed | Listed) -> None:
    moved = seen(A, "web", "embed")
    index = after([seen(A, "web")])
    for transaction in ([gone, moved], [moved, gone]):
        applied = apply(index, transaction, 5)
        assert applied.index.records[Key(A)].domain.connection == "embed"
        assert applied.changes == ()


def test_only_its_own_connection_can_say_that_a_domain_is_gone() -> None:
    index = after([seen(A, "web")])
    assert apply(index, [seen(A, None, "embed")], 5) == Applied(index)
    assert apply(index, [Listed("embed", ())], 5) == Applied(index)


def test_marks_go_to_the_one_former_name_that_they_were_taken_for() -> None:
    index = after([seen(A, "one")], [seen(A, "two")], [seen(A, "one")], [seen(A, None)])
    assert [(f.name, f.until_ns) for f in index.former[Key(A)]] == [("one", 2), ("two", 3), ("one", 4)]
    mark = (Mark(1, 2, 300),)
    marked = index.marked({(Key(A), 3): mark})
    assert [f.marks for f in marked.former[Key(A)]] == [(), mark, ()]
    assert marked.records == index.records


def test_holders_of_a_name_come_in_the_order_in_which_they_lost_it() -> None:
    index = after(
        [seen(A, "web")], [seen(A, "x"), seen(C, "web")], [seen(C, "y"), seen(A, "web")], [seen(A, None)]
    )
    assert [(key.uuid, former.until_ns) for key, former in index.holders["web"]] == [(A, 2), (C, 3), (A, 4)]


def test_the_same_name_on_two_connections_has_a_holder_on_each() -> None:
    index = after([seen(A, "web")], [seen(C, "web", "embed")])
    assert index.by_name == {("system", "web"): Key(A), ("embed", "web"): Key(C)}
