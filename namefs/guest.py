"""What a domain's directory holds right now: the layout's rules, looked up among the files that are there.

Everything here may block on a disk and is called in threads; it changes nothing but its own cache.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from namefs import logs, naming
from namefs.items import Items, identity, with_main_log
from namefs.layout import artefact as layout
from namefs.layout import joined, store
from namefs.layout.artefact import Kind
from namefs.pieces import NAMED, WHOLE, Pieces, mark

if TYPE_CHECKING:
    from collections.abc import Iterator

    from namefs.backing import Backing
    from namefs.index import Index
    from namefs.items import Item
    from namefs.layout.artefact import Artefact
    from namefs.layout.directories import Directories
    from namefs.model import Domain, Former, Key, Mark, Record


@dataclass(frozen=True, slots=True)
class Guest:
    """A domain as a request sees it: one moment of the index, and where its connection's files lie."""

    record: Record
    places: Directories | None
    former: tuple[Former, ...]
    index: Index

    @property
    def former_names(self) -> tuple[str, ...]:
        """The libvirt names it had before on its connection and has no more, the latest last."""
        names = dict.fromkeys(self.lost_names)
        names.pop(self.record.domain.name, None)
        return tuple(names)

    @property
    def lost_names(self) -> tuple[str, ...]:
        """The libvirt names that it lost on its connection, the latest last; it may have one again."""
        here = ("", self.record.domain.connection)
        return tuple(f.name for f in self.former if f.connection in here)

    @property
    def is_gone(self) -> bool:
        """Whether libvirt has it no more: what lies under its names may be another's, but for the store's."""
        return not self.index.keys_of.get(self.record.key.uuid)

    @property
    def has_life(self) -> bool:
        """Whether the log of the guest's whole life is its own: not of one that comes in, or goes."""
        return self.record.is_owner or self.is_gone

    def has_left(self, name: str) -> bool:
        """Whether a file called by this name can only be the guest's: nobody has had the name since.

        No name: the file's place does not depend on one.
        """
        holders, current = self.holders_of(name)
        return not name or (current is None and bool(holders) and holders[-1][0] == self.record.key)

    def holders_of(self, name: str) -> tuple[tuple[tuple[Key, Former], ...], Key | None]:
        """Who had a libvirt name before, oldest first, and who has it now on the guest's connection."""
        here = self.record.domain.connection
        held = self.index.holders.get(name, ())
        holders = tuple((key, former) for key, former in held if former.connection in ("", here))
        return holders, self.index.by_name.get((here, name))


SHARED = (b"log", b"disks", b"run")
"""Subdirectories whose files come from several directories, or are links: they can be listed by all."""

PATH_XATTR = b"user.namefs.path"
"""The real path of a file. A symlink's target is its path: the kernel allows it no user.* attribute."""


def attributes_of(guest: Guest) -> dict[bytes, bytes]:
    """The extended attributes of a domain's directory. ``former_names``: one a line, the latest last."""
    domain = guest.record.domain
    return {
        b"user.namefs.uuid": str(domain.uuid).encode(),
        b"user.namefs.name": layout.bytes_of(domain.name),
        b"user.namefs.state": domain.state.encode(),
        b"user.namefs.connection": domain.connection.encode(),
        b"user.namefs.former_names": b"\n".join(map(layout.bytes_of, _former(guest))),
    }


def _former(guest: Guest) -> list[str]:
    names = dict.fromkeys(f.name for f in guest.former)
    return [name for name in names if name != guest.record.domain.name]


@dataclass(frozen=True, slots=True)
class Looked:
    """What became of a look at a guest's logs.

    ``joined`` are libvirt's files that are in the store as far as they are the guest's, by device and inode;
    ``failing`` the logs that can't be written there. ``undecided``: of some it is not known yet whose they
    are.
    """

    joined: frozenset[tuple[int, int]] = frozenset()
    failing: frozenset[str] = frozenset()
    undecided: bool = False


class Lives(Protocol):
    """Keeps the logs of guests' whole lives in the store."""

    def look(self, guest: Guest, log: str | None = None) -> Looked:
        """Copy what is new, of one log or of all. Blocks; costs little if nothing is."""


class Shelf:
    """Finds the items of guests; thread-safe.

    ``lives`` are by connection. Without one, a guest's logs are what is in the store and libvirt's files.
    """

    def __init__(self, backing: Backing) -> None:
        self.backing = backing
        self.pieces = Pieces(backing)
        self._items = Items(self.pieces)
        self.lives: dict[str, Lives] = {}

    def items(self, guest: Guest, subdir: bytes) -> list[Item]:
        """All that is there in one subdirectory (`layout.TOP`: of the directory itself), by entry."""
        if guest.places is None:
            return []
        found: dict[bytes, Item] = {}
        looked = self._look(guest) if subdir == b"log" else Looked()
        if subdir == b"log":
            found = {item.entry: item for item in self._lives(guest, looked)}
        for artefact in _artefacts(guest, subdir):
            for item in self._items.present(guest, artefact):
                if artefact.kind in NAMED and identity(item) in looked.joined:
                    continue
                # The present name's file comes first, and is not hidden by one of a former name.
                found.setdefault(item.entry, item)
        if subdir == b"log":
            found = with_main_log(found, guest.record.domain.name)
        return [found[entry] for entry in sorted(found)]

    def _look(self, guest: Guest, log: str | None = None) -> Looked:
        lives = self.lives.get(guest.record.domain.connection) if guest.has_life else None
        return Looked() if lives is None else lives.look(guest, log)

    def _lives(self, guest: Guest, looked: Looked) -> Iterator[Item]:
        if guest.places is not None and guest.has_life:
            for item in self._items.present(guest, store.lives(guest.record.domain.uuid, guest.places)):
                if store.life_log(item.file) not in looked.failing:
                    yield item

    def _life(self, guest: Guest, name: str) -> Item | None:
        """The item of that name, if it is a log of the store: others need not be looked at then."""
        file = layout.bytes_of(name)
        looked = self._look(guest, store.life_log(file))
        return next((item for item in self._lives(guest, looked) if item.file == file), None)

    def item(self, guest: Guest, subdir: bytes, entry: bytes) -> Item | None:
        """The item of that entry, if it is there."""
        if guest.places is None:
            return None
        try:
            name = naming.decode(entry)
        except naming.NotAnEntry:
            name = None
        if subdir == b"log" and name is not None and (life := self._life(guest, name)) is not None:
            return life
        if name is None or subdir == b"log":
            # Shortened, so that it tells nothing; or a log, whose entry depends on what others there are.
            return next((item for item in self.items(guest, subdir) if item.entry == entry), None)
        for artefact in _artefacts(guest, subdir):
            if artefact.may_show(name):
                for item in self._items.present(guest, artefact):
                    if item.entry == entry:
                        return item
        return None

    def holds_any(self, guest: Guest, subdir: bytes) -> bool:
        """Whether there is anything in the subdirectory."""
        if guest.is_gone:
            return subdir == b"log" and any(True for _ in self._lives(guest, Looked()))
        found = _artefacts(guest, subdir)
        return any(True for artefact in found for _ in self._items.present(guest, artefact))

    def subdirectory(self, guest: Guest, subdir: bytes) -> tuple[int, int | None, int | None] | None:
        """`directory_mode` of a subdirectory that has something in it, None of others."""
        return self.directory_mode(guest, subdir) if self.holds_any(guest, subdir) else None

    def subdirectories(self, guest: Guest) -> list[bytes]:
        """The subdirectories that have something in them."""
        return [subdir for subdir in layout.SUBDIRECTORIES if self.holds_any(guest, subdir)]

    def directory_mode(self, guest: Guest, subdir: bytes) -> tuple[int, int | None, int | None]:
        """(mode, uid, gid; None: namefs's) of a subdirectory: no wider than where its files are listed from.

        ``log`` has files of several directories: it can be listed by all, and each file's own mode
        says who may read it.
        """
        if guest.places is not None and subdir not in SHARED:
            for artefact in joined.artefacts(guest.record.domain, (), guest.places, subdir):
                with self.backing.directory(artefact.base, artefact.below) as directory:
                    if directory is not None:
                        info = directory.info
                        mode = directory.guard.limit(info.st_uid, info.st_gid, directory.mode)
                        return mode & 0o555, info.st_uid, info.st_gid
        return 0o555, None, None

    def open(self, item: Item) -> int:
        """A descriptor of the file behind an item. ENOENT if it is not the same file any more."""
        with self.backing.directory(item.artefact.base, item.artefact.below) as directory:
            if directory is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), item.path)
            fd = self.backing.open(directory, item.file)
        info = os.fstat(fd)
        if item.info is None or (info.st_dev, info.st_ino) != (item.info.st_dev, item.info.st_ino):
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), item.path)
        return fd

    def refreshed(self, guest: Guest, item: Item, fd: int) -> Item:
        """The item of an open file as it is now, whatever its name has become meanwhile."""
        self._catch_up(guest, item)
        info = os.fstat(fd)
        extents = self.pieces.extents(guest, item.artefact, item.file, info, item.head, fd)
        return replace(item, info=info, extents=None if extents == WHOLE else extents)

    def read(self, guest: Guest, item: Item, fd: int, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes at ``offset`` of what the view shows of an open file."""
        if item.artefact.kind is Kind.FILE:
            data = os.pread(fd, count, offset)
            if len(data) < count and self._catch_up(guest, item):
                data = os.pread(fd, count, offset)
            return data
        item = self.refreshed(guest, item, fd)
        pieces = logs.locate(item.extents if item.extents is not None else WHOLE, offset, count)
        return b"".join(os.pread(fd, size, at) for at, size in pieces)

    def _catch_up(self, guest: Guest, item: Item) -> bool:
        """Have the store's log hold what there is by now; False of anything else."""
        is_life = guest.places is not None and item.artefact.base == guest.places.store_log
        if is_life:
            self._look(guest, store.life_log(item.file))
        return is_life

    def xattr(self, item: Item, name: bytes) -> bytes | None:
        """An extended attribute of the real file, None if it has no such one."""
        fd = self.open(item)
        try:
            return os.getxattr(fd, name)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                return None
            raise
        finally:
            os.close(fd)

    def xattrs(self, item: Item) -> list[bytes]:
        """The names of the real file's extended attributes."""
        fd = self.open(item)
        try:
            return [os.fsencode(name) for name in os.listxattr(fd)]
        finally:
            os.close(fd)

    def measure(self, places: Directories | None, domain: Domain) -> tuple[Mark, ...]:
        """How long the logs under a domain's libvirt name are now, to be kept when it loses the name."""
        if places is None:
            return ()
        marks = []
        for artefact in joined.artefacts(domain, (), places, b"log"):
            if artefact.kind in NAMED:
                with self.backing.directory(artefact.base, artefact.below) as directory:
                    if directory is not None:
                        marks += [mark(info) for _, _, info in self.pieces.files(directory, artefact)]
        return tuple(marks)


def _artefacts(guest: Guest, subdir: bytes) -> Iterator[Artefact]:
    if guest.places is not None and not guest.is_gone:
        yield from joined.artefacts(guest.record.domain, guest.former_names, guest.places, subdir)
