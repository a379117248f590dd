"""Names that were asked for, against a model of a libvirt that renames only what is off."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from namefs import naming, shown
from namefs.applying import apply
from namefs.following import Done, Rename, Step, Wait, Write, step
from namefs.index import Index
from namefs.model import GROUP, Asked, Change, Domain, Key, Listed, Observed, Place, Wished

A, B, C = (UUID(int=number << 96 | 1) for number in (1, 2, 3))
KEYS = [Key(A), Key(B), Key(C)]
NAMES = ["one", "two", "three", "four"]


def off(uuid: UUID, name: str, **facts: object) -> Domain:
    return replace(Domain(uuid, name, "system", state="shut off"), **facts)  # type: ignore[arg-type]


def seen(domain: Domain) -> Observed:
    return Observed(Key(domain.uuid), domain.connection, domain)


def after(*transactions: list[Observed | Wished]) -> Index:
    index = Index()
    for now_ns, transaction in enumerate(transactions, start=1):
        index = apply(index, transaction, now_ns).index
    return index


def at(index: Index) -> dict[bytes, Key]:
    return {b"/".join(part for part in place if part): key for place, key in index.by_place.items()}


class Host(RuleBasedStateMachine):
    """Guests that run and stop, people who ask for names, and a follower that takes one step now and then.

    A step may have been thought out before a name was asked for, and be done after it.
    """

    @initialize()
    def begin(self) -> None:
        self.now_ns = 1000
        self.host = {key: off(key.uuid, name) for key, name in zip(KEYS, NAMES, strict=False)}
        self.wanted = dict(zip(KEYS, NAMES, strict=False))
        self.thought: tuple[Step | None, Asked | None] = (None, None)
        self.snapshots: dict[Key, Asked | None] = {}
        self.index = Index()
        self.look()

    def apply(self, *what: Observed | Listed | Wished) -> None:
        self.now_ns += 1
        self.index = apply(self.index, what, self.now_ns).index

    @rule()
    def look(self) -> None:
        self.apply(Listed("system", tuple(self.host.values())))

    @rule(key=st.sampled_from(KEYS), state=st.sampled_from(["running", "shut off"]))
    def starts_or_stops(self, key: Key, state: str) -> None:
        self.host[key] = replace(self.host[key], state=state)

    @rule(key=st.sampled_from(KEYS))
    def snapshot(self, key: Key) -> None:
        self.snapshots[key] = self.host[key].asked

    @rule(key=st.sampled_from(KEYS))
    def revert(self, key: Key) -> None:
        if key in self.snapshots:
            self.host[key] = replace(self.host[key], asked=self.snapshots[key])

    @rule(key=st.sampled_from(KEYS), name=st.sampled_from(NAMES))
    def ask(self, key: Key, name: str) -> None:
        if all(record.name != name for record in self.index.records.values()):
            self.apply(Wished(key, Asked(name, self.now_ns)))
            self.wanted[key] = name

    @rule(pair=st.permutations(KEYS))
    def swap(self, pair: list[Key]) -> None:
        one, other = (self.index.records[key] for key in pair[:2])
        if any(record.entry != naming.encode(record.name) for record in self.index.records.values()):
            return
        before = set(self.index.by_place)
        wishes = [
            Wished(one.key, Asked(other.name, self.now_ns)),
            Wished(other.key, Asked(one.name, self.now_ns)),
        ]
        self.apply(*wishes)
        self.wanted |= {one.key: other.name, other.key: one.name}
        assert set(self.index.by_place) == before, "both names are there, each once"

    @rule(key=st.sampled_from(KEYS))
    def cancel(self, key: Key) -> None:
        plain = self.index.records[key].domain.name
        # One that stands aside is refused: its old name is another's by then.
        is_aside = plain == shown.on_the_way(key.uuid)
        is_free = all(record.name != plain for record in self.index.records.values())
        if is_free and not is_aside and self.is_pending(key):
            self.apply(Wished(key, Asked(plain, self.now_ns)))
            self.wanted[key] = plain

    def is_pending(self, key: Key) -> bool:
        asked = self.index.asked.get(key)
        return asked is not None and asked.name is not None

    @rule(key=st.sampled_from(KEYS))
    def follow_a_little(self, key: Key) -> None:
        self.follow(key)

    @rule(key=st.sampled_from(KEYS))
    def think(self, key: Key) -> None:
        self.thought = step(self.index, key), self.index.asked.get(key)

    @rule()
    def do_what_was_thought(self) -> None:
        thought, self.thought = self.thought, (None, None)
        self.take(*thought)

    def follow(self, key: Key) -> bool:
        """One step, as `pending` takes it: libvirt changes, then it is read again. True if one was taken."""
        return self.take(step(self.index, key), self.index.asked.get(key))

    def take(self, due: Step | None, asked: Asked | None) -> bool:
        if isinstance(due, Write):
            self.host[due.key] = replace(self.host[due.key], asked=due.asked)
        elif isinstance(due, Rename):
            domain = self.host[due.key]
            if domain.state != "shut off" or any(d.name == due.new for d in self.host.values()):
                return False
            self.host[due.key] = replace(domain, name=due.new)
        elif isinstance(due, Done):
            assert asked is not None
            done = Asked(None, max(self.now_ns, asked.asked_ns + 1), asked.follows)
            self.apply(Wished(due.key, done, asked))
        else:
            return False
        self.apply(*(seen(domain) for domain in self.host.values()))
        return True

    @rule()
    def all_stop_and_names_follow_to_the_end(self) -> None:
        for key, domain in self.host.items():
            self.host[key] = replace(domain, state="shut off")
        self.look()
        for _ in range(40):
            taken = [self.follow(key) for key in KEYS]
            if not any(taken):
                break
        else:
            raise AssertionError("it never ends")
        for key, record in self.index.records.items():
            asked, due = self.index.asked.get(key), step(self.index, key)
            if isinstance(due, Wait):
                holder = self.index.by_name["system", asked.name or "" if asked else ""]
                assert holder != key, "it waits for another guest only"
            else:
                assert due is None
                assert record.domain.name == record.name
                assert self.host[key].asked is None, "nothing pending is left in the metadata"

    @invariant()
    def what_was_asked_last_is_shown_whatever_the_metadata_says(self) -> None:
        for key, asked in self.index.asked.items():
            record = self.index.records[key]
            assert record.name == (record.domain.name if asked.name is None else asked.name)

    @invariant()
    def what_people_see_is_what_they_asked_for_last(self) -> None:
        assert {key: record.name for key, record in self.index.records.items()} == self.wanted

    @invariant()
    def every_guest_has_an_entry_of_its_own(self) -> None:
        assert {record.place: key for key, record in self.index.records.items()} == self.index.by_place


TestHost = Host.TestCase
TestHost.settings = settings(deadline=None, max_examples=200, stateful_step_count=40)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([None, "a", "b", "g"])), max_size=6))
def test_groups_and_guests_of_one_name_never_share_an_entry(names: list[tuple[str, str | None]]) -> None:
    domains = [off(UUID(int=n + 1 << 96), name, group=group) for n, (name, group) in enumerate(names)]
    index = Index()
    for domain in domains:
        # Each on a connection of its own, as two of one name can't be on the same.
        moved = replace(domain, connection=str(domain.uuid))
        before, index = index, apply(index, [seen(moved)], 1).index
        for place, key in before.by_place.items():
            assert index.by_place[place] == key, "who is there already keeps the entry, groups too"
        assert before.groups.items() <= index.groups.items()
    root = index.listings[b""]
    assert len(set(root)) == len(root)
    for record in index.records.values():
        assert (record.place.group != b"") == (record.group is not None)
        assert record.group is None or index.groups[record.place.group] == record.group


def test_a_guest_that_changes_its_group_moves_and_an_empty_group_vanishes() -> None:
    index = after([seen(off(A, "web", group="red"))])
    moved = apply(index, [seen(off(A, "web", group="blue"))], 9)
    assert at(moved.index) == {b"blue/web": Key(A)}
    assert set(moved.changes) == {
        Change(Place(b"", b"red"), GROUP, None),
        Change(Place(b"", b"blue"), None, GROUP),
        Change(Place(b"red", b"web"), Key(A), None),
        Change(Place(b"blue", b"web"), None, Key(A)),
    }
    assert moved.released == (), "its libvirt name is still its own"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), ("vm", "libvirt")),
        ((("nova", "server"), ("libvirt", "vm")), ("server", "nova")),
        ((("namefs", ""), ("nova", "server")), ("server", "nova")),
        ((("libvirt", "vm"), ("title", "My server")), ("vm", "libvirt")),
        ((("namefs", ""),), ("vm", "libvirt")),
    ],
)
def test_the_first_name_counts(names: tuple[tuple[str, str], ...], expected: tuple[str, str]) -> None:
    assert shown.name_of(off(A, "vm", names=names), None) == expected
    assert shown.name_of(off(A, "vm", names=names), Asked(None, 5)) == expected


def test_a_name_asked_for_goes_before_novas_and_libvirts_own_does_not_follow() -> None:
    names = (("namefs", ""), ("nova", "server"), ("libvirt", "instance-1"))
    asked = Asked("mine", 5, follows=False)
    index = after([seen(off(A, "instance-1", names=names))], [Wished(Key(A), asked)])
    assert at(index) == {b"mine": Key(A)}
    assert step(index, Key(A)) == Write(Key(A), asked)
    written = apply(index, [seen(off(A, "instance-1", names=names, asked=asked))], 9).index
    assert step(written, Key(A)) is None


def test_the_metadatas_name_counts_where_the_index_knows_none_or_an_older_one() -> None:
    index = after([seen(off(A, "web", asked=Asked("shop", 50)))])
    assert at(index) == {b"shop": Key(A)}
    assert at(apply(index, [seen(off(A, "web", asked=Asked("mall", 60)))], 9).index) == {b"mall": Key(A)}
    assert at(apply(index, [seen(off(A, "web", asked=Asked("old", 40)))], 9).index) == {b"shop": Key(A)}
    assert at(apply(index, [seen(off(A, "web"))], 9).index) == {b"shop": Key(A)}


def test_a_rename_by_libvirt_is_a_later_wish_than_one_that_is_pending() -> None:
    index = after([seen(off(A, "web"))], [Wished(Key(A), Asked("shop", 5))], [seen(off(A, "store"))])
    assert at(index) == {b"store": Key(A)}
    assert index.asked[Key(A)].name is None


def test_libvirt_that_follows_an_earlier_wish_late_does_not_undo_the_later_one() -> None:
    first, second = Wished(Key(A), Asked("shop", 5)), Wished(Key(A), Asked("mall", 6))
    index = after([seen(off(A, "web"))], [first], [second], [seen(off(A, "shop"))])
    assert at(index) == {b"mall": Key(A)}
    assert index.asked[Key(A)].name == "mall"


def test_a_guest_that_stepped_aside_for_nothing_gets_its_name_back() -> None:
    aside = seen(off(A, shown.on_the_way(A)))
    index = after([seen(off(A, "web"))], [Wished(Key(A), Asked(None, 5))], [aside])
    assert at(index) == {b"web": Key(A)}
    assert step(index, Key(A)) == Write(Key(A), index.asked[Key(A)])


def test_who_only_tidies_up_does_not_take_back_what_was_asked_for_meanwhile() -> None:
    first, second = Asked("shop", 5), Asked("mall", 6)
    tidied = Wished(Key(A), Asked(None, 7), first)
    index = after([seen(off(A, "web"))], [Wished(Key(A), first)], [Wished(Key(A), second)], [tidied])
    assert at(index) == {b"mall": Key(A)}


def test_a_guest_that_is_defined_anew_has_the_name_that_its_definition_says() -> None:
    gone = Observed(Key(A), "system", None)
    index = after([seen(off(A, "web"))], [Wished(Key(A), Asked("shop", 5))], [gone])
    assert index.departed[Key(A)].record.name == "shop"
    assert at(apply(index, [seen(off(A, "web"))], 9).index) == {b"web": Key(A)}


def test_a_transient_guest_and_a_running_one_wait_and_say_why() -> None:
    for facts, word in (({"persistent": False}, "transient"), ({"state": "running"}, "running")):
        domain = off(A, "web", asked=Asked("shop", 5), **facts)
        due = step(after([seen(domain)]), Key(A))
        assert isinstance(due, Wait)
        assert word in due.why


def test_two_guests_that_wait_for_each_others_name_do_not_wait_for_ever() -> None:
    one, two = off(A, "one", asked=Asked("two", 5)), off(B, "two", asked=Asked("one", 5))
    index = after([seen(one), seen(two)])
    assert at(index) == {b"two": Key(A), b"one": Key(B)}
    assert step(index, Key(A)) == Rename(Key(B), shown.on_the_way(B))
    aside = apply(index, [seen(replace(two, name=shown.on_the_way(B)))], 9).index
    assert at(aside) == at(index)
    assert step(aside, Key(A)) == Rename(Key(A), "two")


def test_a_name_that_another_guest_stays_with_is_waited_for_and_named() -> None:
    index = after([seen(off(A, "one", asked=Asked("two", 5))), seen(off(B, "two"))])
    due = step(index, Key(A))
    assert isinstance(due, Wait)
    assert str(B) in due.why
    assert at(index)[b"two"] == Key(A), "first come, in the order of UUIDs where they come at once"
    assert at(index)[naming.disambiguated("two", B)] == Key(B)
