"""The nodes of the view, and how one leads to the next as far as the index alone can tell. Pure.

What a domain's directory holds is looked up among files (`guest`); which domains there are, and
under which entries, is answered here, from memory. Beside them the root directory has, hidden from
`ls` as all that begins with a dot, where they are wanted and while there is anything in them:

``.deleted/NAME@DATE/``
    Guests that libvirt has no more, with their logs.
``.by-uuid/UUID``, ``.by-libvirt-name/NAME``, ``.former/NAME``
    Symlinks to the guest of that UUID or libvirt name, or which had that name last.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING
from uuid import UUID

from namefs import naming
from namefs.model import Key, Place

if TYPE_CHECKING:
    from namefs.index import Index

DELETED = b".deleted"
BY_UUID = b".by-uuid"
BY_LIBVIRT_NAME = b".by-libvirt-name"
FORMER = b".former"


@dataclass(frozen=True, slots=True)
class Root:
    """The directory of all domains."""


@dataclass(frozen=True, slots=True)
class SpecialDir:
    """One of the root's directories that begin with a dot."""

    entry: bytes


@dataclass(frozen=True, slots=True)
class GroupDir:
    """A group's directory. A group is nothing but its name."""

    entry: bytes


@dataclass(frozen=True, slots=True)
class Alias:
    """A symlink in one of the special directories."""

    special: bytes
    entry: bytes


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


Node = Root | SpecialDir | GroupDir | Alias | DomainDir | SubDir | File | Link
"""What an inode number stands for. No domain's variant contains a name, so a rename changes no inode."""

NamesDir = Root | SpecialDir | GroupDir
"""The directories that hold names: all of them are answered from memory."""


@dataclass(frozen=True, slots=True)
class Extras:
    """Which special directories there are. ``former_ns``: how long a name of former times leads to its
    guest, None: there is no ``.former``."""

    deleted: bool = True
    by_uuid: bool = False
    by_libvirt_name: bool = False
    former_ns: int | None = None

    @property
    def specials(self) -> tuple[bytes, ...]:
        """Their entries, sorted."""
        wanted = {
            DELETED: self.deleted,
            BY_UUID: self.by_uuid,
            BY_LIBVIRT_NAME: self.by_libvirt_name,
            FORMER: self.former_ns is not None,
        }
        return tuple(sorted(entry for entry, is_wanted in wanted.items() if is_wanted))


class Names:
    """The directories of names at one moment."""

    def __init__(self, index: Index, extras: Extras, now_ns: int) -> None:
        self._index = index
        self._extras = extras
        self._now_ns = now_ns

    def child(self, directory: NamesDir, entry: bytes) -> Node | None:
        """What an entry of the directory leads to."""
        if isinstance(directory, SpecialDir):
            if directory.entry == DELETED:
                key = self._index.deleted.get(entry)
                return None if key is None else DomainDir(key)
            alias = Alias(directory.entry, entry)
            return alias if self._aliased(alias) is not None else None
        if isinstance(directory, Root):
            if entry in self._extras.specials:
                special = SpecialDir(entry)
                return special if self._has_any(special) else None
            if entry in self._index.groups:
                return GroupDir(entry)
        key = self._index.by_place.get(Place(_group(directory), entry))
        return None if key is None else DomainDir(key)

    def children(self, directory: NamesDir) -> list[tuple[bytes, Node]]:
        """All its entries, sorted."""
        if isinstance(directory, SpecialDir):
            entries: tuple[bytes, ...] = tuple(sorted(self._special_entries(directory.entry)))
        else:
            entries = self._index.listings.get(_group(directory), ())
            if isinstance(directory, Root):
                entries = (*self._extras.specials, *entries)
        found = ((entry, self.child(directory, entry)) for entry in entries)
        return [(entry, node) for entry, node in found if node is not None]

    def target(self, alias: Alias) -> bytes | None:
        """Where a symlink leads, from the directory that it is in; None if it leads nowhere any more."""
        key = self._aliased(alias)
        if key is None:
            return None
        return b"/".join((b"..", *(part for part in self._index.records[key].place if part)))

    def above(self, node: Node) -> NamesDir | DomainDir:
        """The directory that a node is in."""
        if isinstance(node, SubDir | File | Link):
            return DomainDir(node.key)
        if isinstance(node, Alias):
            return SpecialDir(node.special)
        if isinstance(node, DomainDir):
            record = self._index.records.get(node.key)
            if record is None:
                return SpecialDir(DELETED) if node.key in self._index.departed else Root()
            return GroupDir(record.place.group) if record.place.group else Root()
        return Root()

    def _has_any(self, special: SpecialDir) -> bool:
        return any(self.child(special, entry) for entry in self._special_entries(special.entry))

    def _special_entries(self, special: bytes) -> set[bytes]:
        index = self._index
        if special == DELETED:
            return set(index.deleted)
        if special == BY_UUID:
            return {str(key.uuid).encode() for key in index.records}
        if special == BY_LIBVIRT_NAME:
            return set(index.by_libvirt_entry)
        return {naming.encode(name) for name in {*index.holders, *index.shown_before}}

    def _aliased(self, alias: Alias) -> Key | None:
        if alias.special == BY_UUID:
            return self._of_uuid(alias.entry)
        if alias.special == BY_LIBVIRT_NAME:
            return self._index.by_libvirt_entry.get(alias.entry)
        return self._last_holder(alias.entry)

    def _of_uuid(self, entry: bytes) -> Key | None:
        try:
            key = Key(UUID(entry.decode()))
        except ValueError:
            return None
        return key if key in self._index.records and str(key.uuid).encode() == entry else None

    def _last_holder(self, entry: bytes) -> Key | None:
        """Who had the name last, if nobody has it now and it is not too long ago."""
        index, oldest_ns = self._index, self._now_ns - (self._extras.former_ns or 0)
        try:
            name = naming.decode(entry)
        except naming.NotAnEntry:
            return None
        if name in index.names_in_use:
            return None
        held = [*index.holders.get(name, ()), *index.shown_before.get(name, ())]
        key, last = max(held, key=lambda one: one[1].until_ns, default=(None, None))
        if key not in index.records or last is None or last.until_ns < oldest_ns:
            return None
        return key


def _group(directory: Root | GroupDir) -> bytes:
    return directory.entry if isinstance(directory, GroupDir) else b""


def number(node: Node) -> int:
    """The inode number that a node would like: a hash of its identity, 63 bits, never 0 or 1.

    So it is the same after a restart and can be worked out again by whoever knows the node. Two
    nodes that share one are told apart in `inodes`.
    """
    if isinstance(node, Root):
        return 1
    parts = [type(node).__name__.encode()]
    if isinstance(node, SpecialDir | GroupDir):
        parts.append(node.entry)
    elif isinstance(node, Alias):
        parts += [node.special, node.entry]
    else:
        parts += [node.key.uuid.bytes, b"%d" % node.key.generation]
    if isinstance(node, File):
        parts += [b"%d" % node.dev, b"%d" % node.ino]
    elif isinstance(node, SubDir):
        parts.append(node.subdir)
    elif isinstance(node, Link):
        parts += [node.subdir, node.entry]
    hashed = int.from_bytes(blake2b(b"\0".join(parts), digest_size=8).digest(), "big")
    return hashed >> 1 | 2
