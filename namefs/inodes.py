"""Which inode numbers the kernel knows, and what they stand for. Pure.

The kernel counts each answer that gives it an inode (lookup, readdirplus) and gives the counts
back with forget (libfuse, fuse_lowlevel.h: forget). One method raises the count, one lowers it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from namefs import tree
from namefs.tree import Node, Root

T = TypeVar("T")


@dataclass(slots=True)
class Inode(Generic[T]):
    """A node that the kernel knows, with whatever its owner keeps beside it."""

    number: int
    node: Node
    lookups: int = 0
    beside: T | None = None


class InodeTable(Generic[T]):
    """Node to inode number and back, and lookup counts. The root is always known."""

    def __init__(self) -> None:
        root: Inode[T] = Inode(tree.number(Root()), Root(), lookups=1)
        self._by_number = {root.number: root}
        self._by_node: dict[Node, Inode[T]] = {root.node: root}

    def __len__(self) -> int:
        return len(self._by_number)

    def __getitem__(self, number: int) -> Inode[T]:
        """The inode of that number. Raises KeyError if the kernel should not know it."""
        return self._by_number[number]

    def get(self, node: Node) -> Inode[T] | None:
        """The inode of that node, if the kernel knows it."""
        return self._by_node.get(node)

    def number(self, node: Node) -> int:
        """The number that the node has or would get: the hash's, or the next one that is free."""
        known = self._by_node.get(node)
        if known is not None:
            return known.number
        wanted = tree.number(node)
        while wanted in self._by_number:
            wanted += 1
        return wanted

    def remember(self, node: Node) -> Inode[T]:
        """Count one lookup of the node."""
        inode = self._by_node.get(node)
        if inode is None:
            inode = self._by_node[node] = Inode(self.number(node), node)
            self._by_number[inode.number] = inode
        inode.lookups += 1
        return inode

    def forget(self, number: int, count: int) -> None:
        """Take ``count`` lookups back; with the last one the inode goes."""
        inode = self._by_number[number]
        if count > inode.lookups:
            raise ValueError(f"inode {number} was forgotten {count - inode.lookups} times too often")
        inode.lookups -= count
        if inode.lookups == 0 and not isinstance(inode.node, Root):
            del self._by_number[number], self._by_node[inode.node]
