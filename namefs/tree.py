"""The nodes of the view, and how one leads to the next as far as the index alone can tell.

What a domain's directory holds is looked up among files (`guest`); which domains there are, and
under which entries, is answered here, from memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from namefs.index import Index
    from namefs.model import Key


@dataclass(frozen=True, slots=True)
class Root:
    """The directory of all domains."""


@dataclass(frozen=True, slots=True)
class DomainDir:
    """A domain's directory."""

    key: Key


@dataclass(frozen=True, slots=True)
class SubDir:
    """One of the directories in a domain's directory."""

    key: Key
    subdir: bytes


@dataclass(frozen=True, slots=True)
class File:
    """A file of a domain, identified by the file behind it: it stays itself when libvirt renames that."""

    key: Key
    dev: int
    ino: int


@dataclass(frozen=True, slots=True)
class Link:
    """A symlink of a domain, identified by what it is: its target may change."""

    key: Key
    subdir: bytes
    entry: bytes


Node = Root | DomainDir | SubDir | File | Link
"""What an inode number stands for. No variant contains a name, so a rename changes no inode."""


def domain_of(index: Index, entry: bytes) -> DomainDir | None:
    """The domain that the root directory shows as ``entry``."""
    key = index.by_entry.get(entry)
    return None if key is None else DomainDir(key)


def number(node: Node) -> int:
    """The inode number that a node would like: a hash of its identity, 63 bits, never 0 or 1.

    So it is the same after a restart and can be worked out again by whoever knows the node. Two
    nodes that share one are told apart in `inodes`.
    """
    if isinstance(node, Root):
        return 1
    key = node.key
    parts = [type(node).__name__.encode(), key.uuid.bytes, b"%d" % key.generation]
    if isinstance(node, File):
        parts += [b"%d" % node.dev, b"%d" % node.ino]
    elif isinstance(node, SubDir):
        parts.append(node.subdir)
    elif isinstance(node, Link):
        parts += [node.subdir, node.entry]
    hashed = int.from_bytes(blake2b(b"\0".join(parts), digest_size=8).digest(), "big")
    return hashed >> 1 | 2
