"""Inode numbers: the same for the same thing for ever, one each, known as long as the kernel counts."""

from __future__ import annotations

import dataclasses
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from namefs import tree
from namefs.applying import apply
from namefs.index import Index
from namefs.inodes import InodeTable
from namefs.model import Domain, Expired, Key, Observed
from namefs.tree import (
    Alias,
    DomainDir,
    Extras,
    File,
    GroupDir,
    Link,
    Names,
    NamesDir,
    Node,
    Root,
    SpecialDir,
    SubDir,
    number,
)

A = UUID("1b4e28ba-2fa1-11d2-883f-b9a761bde3fb")
WEB = Key(A)

# A call takes microseconds; what a deadline would measure is how busy the machine is.
untimed = settings(deadline=None)

keys = st.builds(Key, st.sampled_from([A, UUID(int=0), UUID(int=1)]), st.integers(0, 12))
words = st.binary(min_size=1, max_size=3).filter(lambda word: b"\0" not in word and b"/" not in word)
inos = st.integers(0, 2**64 - 1)
nodes: st.SearchStrategy[Node] = st.one_of(
    st.just(Root()),
    st.builds(SpecialDir, words),
    st.builds(GroupDir, words),
    st.builds(Alias, words, words),
    st.builds(DomainDir, keys),
    st.builds(SubDir, keys, words),
    st.builds(File, keys, inos, inos),
    st.builds(File, keys, st.integers(0, 12), st.integers(0, 12)),
    st.builds(Link, keys, words, words),
)


def index_of(name: str) -> Index:
    return apply(Index(), [Observed(WEB, "system", Domain(A, name, "system"))], 1).index


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (Root(), 1),
        (DomainDir(WEB), 4587764154050487335),
        (DomainDir(Key(A, 1)), 4631469697667965274),
        (SubDir(WEB, b"log"), 7949086565065207267),
        (File(WEB, 2049, 131), 2135260861559936247),
        (Link(WEB, b"disks", b"vda"), 3981401445270375027),
    ],
)
def test_numbers_are_the_same_with_every_version(node: Node, expected: int) -> None:
    assert number(node) == expected


@untimed
@given(nodes)
def test_a_number_fits_in_63_bits_and_is_neither_0_nor_the_roots(node: Node) -> None:
    assert number(node) == number(dataclasses.replace(node))
    assert (number(node) == 1) == isinstance(node, Root)
    assert 0 < number(node) < 2**63


@untimed
@given(nodes, nodes)
def test_two_nodes_have_two_numbers(one: Node, other: Node) -> None:
    assert (number(one) == number(other)) == (one == other)


def names(index: Index, extras: Extras = Extras(), now_ns: int = 10) -> Names:  # noqa: B008 - frozen
    return Names(index, extras, now_ns)


def test_a_directory_stays_itself_when_its_domain_is_renamed() -> None:
    before = names(index_of("web")).child(Root(), b"web")
    assert before is not None
    assert before == names(index_of("www")).child(Root(), b"www")
    assert names(index_of("www")).child(Root(), b"web") is None


def test_an_entry_is_looked_up_as_it_is_shown() -> None:
    assert names(index_of("a/b")).child(Root(), b"a%2Fb") == DomainDir(WEB)
    assert names(index_of("a/b")).child(Root(), b"a/b") is None


def grouped(*domains: tuple[int, str, str | None]) -> Index:
    seen = [
        Observed(Key(UUID(int=number)), "system", Domain(UUID(int=number), name, "system", group=group))
        for number, name, group in domains
    ]
    return apply(Index(), seen, 5).index


def everything(view: Names) -> dict[bytes, Node]:
    """All that a walk of the directories of names finds, by path."""
    found: dict[bytes, Node] = {}
    due: list[tuple[bytes, NamesDir]] = [(b"", Root())]
    while due:
        path, directory = due.pop()
        for entry, node in view.children(directory):
            assert view.child(directory, entry) == node, "a listing and a look-up agree"
            assert view.above(node) == directory
            found[path + entry] = node
            if isinstance(node, NamesDir):
                due.append((path + entry + b"/", node))
    return found


def test_a_group_is_a_directory_of_its_guests_and_one_without_any_is_none() -> None:
    index = grouped((1, "web", "shop"), (2, "db", "shop"), (3, "lone", None))
    assert set(everything(names(index))) == {b"lone", b"shop", b"shop/db", b"shop/web"}
    gone = apply(index, [Observed(Key(UUID(int=n)), "system", None) for n in (1, 2)], 6).index
    assert set(everything(names(gone, Extras(deleted=False)))) == {b"lone"}


def test_the_extra_directories_lead_to_the_guests() -> None:
    index = grouped((1, "web", "shop"), (2, "db", None))
    view = names(index, Extras(by_uuid=True, by_libvirt_name=True))
    links = {path: view.target(node) for path, node in everything(view).items() if isinstance(node, Alias)}
    assert links == {
        b".by-uuid/00000000-0000-0000-0000-000000000001": b"../shop/web",
        b".by-uuid/00000000-0000-0000-0000-000000000002": b"../db",
        b".by-libvirt-name/web": b"../shop/web",
        b".by-libvirt-name/db": b"../db",
    }
    assert view.child(SpecialDir(b".by-uuid"), b"00000000-0000-0000-0000-00000000000A") is None


def test_a_former_name_leads_to_who_had_it_last_for_a_time_and_while_nobody_has_it() -> None:
    index = apply(index_of("web"), [Observed(WEB, "system", Domain(WEB.uuid, "www", "system"))], 50).index
    former = SpecialDir(b".former")
    extras = Extras(former_ns=100)
    assert names(index, extras, 150).children(former) == [(b"web", Alias(b".former", b"web"))]
    assert names(index, extras, 150).target(Alias(b".former", b"web")) == b"../www"
    assert names(index, extras, 151).children(former) == []
    other = Key(UUID(int=9))
    taken = apply(index, [Observed(other, "system", Domain(other.uuid, "web", "system"))], 60).index
    assert names(taken, extras, 70).children(former) == []


def test_a_guest_that_is_gone_is_among_the_deleted_by_name_and_date() -> None:
    day_ns = 86400 * 10**9
    index = grouped((1, "web", None), (2, "web", "shop"))
    for uuid in (1, 2):
        index = apply(index, [Observed(Key(UUID(int=uuid)), "system", None)], 20_000 * day_ns).index
    assert set(everything(names(index))) == {
        b".deleted",
        b".deleted/web@2024-10-04",
        b".deleted/web@2024-10-04~00000000",
    }
    back = apply(index, [Observed(Key(UUID(int=1)), "system", Domain(UUID(int=1), "web", "system"))], 9).index
    assert set(everything(names(back))) == {b".deleted", b"web", b".deleted/web@2024-10-04"}
    assert set(everything(names(apply(back, [Expired(Key(UUID(int=2)))], 9).index))) == {b"web"}


class CountingKernel(RuleBasedStateMachine):
    """Look-ups and forgets against a plain count. The hash is made so weak that numbers always collide."""

    few_nodes = st.one_of(
        st.just(Root()),
        st.builds(DomainDir, st.builds(Key, st.integers(0, 9).map(lambda number: UUID(int=number)))),
    )

    @initialize()
    def start(self) -> None:
        self.patched = pytest.MonkeyPatch()
        true_number = tree.number
        self.patched.setattr(tree, "number", lambda node: 1 if node == Root() else true_number(node) % 3 + 2)
        self.table: InodeTable[str] = InodeTable()
        self.counts: dict[Node, int] = {Root(): 1}
        self.numbers: dict[Node, int] = {Root(): 1}

    def teardown(self) -> None:
        self.patched.undo()

    @rule(node=few_nodes)
    def look_up(self, node: Node) -> None:
        promised = self.table.number(node)
        inode = self.table.remember(node)
        assert inode.number == promised, "a listing tells the number that a look-up then has"
        assert self.numbers.setdefault(node, inode.number) == inode.number
        self.counts[node] = self.counts.get(node, 0) + 1

    @precondition(lambda self: any(self.counts.values()))
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from([node for node, count in self.counts.items() if count]))
        count = data.draw(st.integers(1, self.counts[node]))
        self.table.forget(self.numbers[node], count)
        self.counts[node] -= count
        if self.counts[node] == 0 and node != Root():
            del self.counts[node], self.numbers[node]

    @precondition(lambda self: self.counts)
    @rule(data=st.data())
    def forget_too_often(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(sorted(self.counts, key=repr)))
        with pytest.raises(ValueError, match="2 times too often"):
            self.table.forget(self.numbers[node], self.counts[node] + 2)

    @rule(number=st.integers(2, 20))
    def forget_what_is_not_known(self, number: int) -> None:
        if number not in self.numbers.values():
            with pytest.raises(KeyError):
                self.table.forget(number, 1)

    @invariant()
    def each_node_has_one_number_and_each_number_one_node(self) -> None:
        assert len(self.table) == len(self.numbers) == len(set(self.numbers.values()))
        for node, expected in self.numbers.items():
            inode = self.table[expected]
            assert inode.node == node
            assert inode.number == expected
            assert inode.lookups == self.counts[node]
            assert self.table.get(node) is inode
            assert self.table.number(node) == expected

    @invariant()
    def what_is_forgotten_is_gone_but_for_the_root(self) -> None:
        assert self.table[1].node == Root()
        for value in range(10):
            node = DomainDir(Key(UUID(int=value)))
            assert (self.table.get(node) is not None) == (node in self.counts)


TestCountingKernel = CountingKernel.TestCase
TestCountingKernel.settings = settings(deadline=None, max_examples=60)


def test_what_is_kept_beside_an_inode_goes_with_it() -> None:
    table: InodeTable[str] = InodeTable()
    inode = table.remember(DomainDir(WEB))
    inode.beside = "an item"
    assert table.remember(DomainDir(WEB)).beside == "an item"
    table.forget(inode.number, 2)
    with pytest.raises(KeyError):
        table[inode.number]
    assert table.remember(DomainDir(WEB)).beside is None
