"""Inode numbers: the same for the same thing for ever, one each, known as long as the kernel counts."""

from __future__ import annotations

import dataclasses
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from namefs import tree
from namefs.index import Index, apply
from namefs.inodes import InodeTable
from namefs.model import Domain, Key, Observed
from namefs.tree import DomainDir, File, Link, Node, Root, SubDir, number

A = UUID("1b4e28ba-2fa1-11d2-883f-b9a761bde3fb")
WEB = Key(A)

# A call takes microseconds; what a deadline would measure is how busy the machine is.
untimed = settings(deadline=None)

keys = st.builds(Key, st.sampled_from([A, UUID(int=0), UUID(int=1)]), st.integers(0, 12))
words = st.binary(min_size=1, max_size=3).filter(lambda word: b"\0" not in word and b"/" not in word)
inos = st.integers(0, 2**64 - 1)
nodes: st.SearchStrategy[Node] = st.one_of(
    st.just(Root()),
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


def test_a_directory_stays_itself_when_its_domain_is_renamed() -> None:
    before = tree.domain_of(index_of("web"), b"web")
    after = tree.domain_of(index_of("www"), b"www")
    assert before is not None
    assert before == after
    assert tree.domain_of(index_of("www"), b"web") is None


def test_an_entry_is_looked_up_as_it_is_shown() -> None:
    index = index_of("a/b")
    assert tree.domain_of(index, b"a%2Fb") == DomainDir(WEB)
    assert tree.domain_of(index, b"a/b") is None


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
