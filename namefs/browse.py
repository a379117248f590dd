"""The view as a file system: inode numbers, directory listings and open files, whoever speaks to the kernel.

Names are answered from memory, at once; whatever may touch a disk goes to a thread. Everything here
raises OSError (or, for a bug, anything), and what it becomes is the transport's business (`fuse`).
"""

from __future__ import annotations

import errno
import functools
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import trio

from namefs.attributes import NAMES_KEPT_S, Attributes, Attrs
from namefs.guest import PATH_XATTR, SHARED, Guest, Shelf, attributes_of
from namefs.inodes import Inode, InodeTable
from namefs.layout.artefact import SUBDIRECTORIES, TOP
from namefs.tree import (
    Alias,
    DomainDir,
    File,
    GroupDir,
    Link,
    NamesDir,
    Node,
    Root,
    SpecialDir,
    SubDir,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from namefs.items import Item
    from namefs.model import Place
    from namefs.view import View

R = TypeVar("R")


@dataclass(slots=True)
class Seen:
    """What is kept beside an inode: item and domain as last seen, and the descriptors open on it."""

    item: Item
    guest: Guest
    fds: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _OpenFile:
    fd: int
    inode: int


@dataclass(frozen=True, slots=True)
class _OpenDir:
    """A listing as it was at one moment, so that its offsets stay valid and its names go together.

    Of files that is opendir. Of names it is the first readdir, until when there is no ``listing``: the kernel
    takes an entry of a listing for the present one, and between the two it may have renamed it.
    """

    number: int
    parent: int
    guest: Guest | None
    listing: Sequence[tuple[bytes, Node, Item | None]] | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a listing; ``position`` is where the listing goes on after it."""

    entry: bytes
    attrs: Attrs
    position: int
    node: Node | None = None
    item: Item | None = None
    guest: Guest | None = None


class Browser:
    """Answers questions about the view. Its methods run on the trio loop and never block it."""

    def __init__(self, view: View, shelf: Shelf) -> None:
        self._view = view
        self._shelf = shelf
        self._attributes = Attributes(os.getuid(), os.getgid())
        self.inodes: InodeTable[Seen] = InodeTable()
        self._files: dict[int, _OpenFile] = {}
        self._dirs: dict[int, _OpenDir] = {}
        self._last_handle = 0
        # A disk's path may lead to a server that is gone: such look-ups may use up these threads,
        # and no others.
        self._near = trio.CapacityLimiter(16)
        self._far = trio.CapacityLimiter(8)

    async def lookup(self, parent_number: int, entry: bytes) -> Attrs:
        """The attributes of an entry of a directory, counted as one look-up."""
        parent = self.inodes[parent_number].node
        names = self._view.names
        if entry in (b".", b".."):
            return await self._attrs(self.inodes.remember(parent if entry == b"." else names.above(parent)))
        if isinstance(parent, NamesDir):
            found = names.child(parent, entry)
            if found is None:
                raise _error(errno.ENOENT)
            return self._named(self.inodes.remember(found).number, found)
        if not isinstance(parent, DomainDir | SubDir):
            raise _error(errno.ENOTDIR)
        if isinstance(parent, DomainDir) and entry in SUBDIRECTORIES:
            guest = self._guest(parent)
            mode = await self._thread(entry, self._shelf.subdirectory, guest, entry)
            if mode is None:
                raise _error(errno.ENOENT)
            number = self.inodes.remember(SubDir(parent.key, entry)).number
            return self._attributes.of_subdir(number, guest.record, *mode)
        subdir = parent.subdir if isinstance(parent, SubDir) else TOP
        while True:
            guest = self._guest(parent)
            item = await self._thread(subdir, self._shelf.item, guest, subdir, entry)
            if self._is_called_so(guest):
                break
        if item is None:
            raise _error(errno.ENOENT)
        inode = self.inodes.remember(_node(guest, item))
        self._keep(inode, guest, item)
        return self._attributes.of_item(inode.number, item)

    async def getattr(self, number: int) -> Attrs:
        """The attributes of an inode; of an open file by its descriptor, through rotation and removal."""
        return await self._attrs(self.inodes[number])

    def group_of(self, number: int) -> bytes:
        """The entry of the group whose directory the inode is; b"" for the root. EROFS for any other."""
        node = self.inodes[number].node
        if not isinstance(node, Root | GroupDir):
            raise _error(errno.EROFS)
        return node.entry if isinstance(node, GroupDir) else b""

    def directory_of(self, place: Place) -> int | None:
        """The inode number of the directory that a place is in, if the kernel knows it; from any thread."""
        inode = self.inodes.get(GroupDir(place.group) if place.group else Root())
        return None if inode is None else inode.number

    def forget(self, number: int, count: int) -> None:
        """Take look-ups back. Raises KeyError, ValueError if they were never given."""
        self.inodes.forget(number, count)

    def readlink(self, number: int) -> bytes:
        """A symlink's target: the real path, or a domain's directory."""
        node = self.inodes[number].node
        if isinstance(node, Alias):
            to = self._view.names.target(node)
            if to is None:
                raise _error(errno.ENOENT)
            return to
        target = _seen(self.inodes[number]).item.target
        if target is None:
            raise _error(errno.EINVAL)
        return target

    async def open(self, number: int) -> int:
        """A handle on a file, with a descriptor of its own on the real one."""
        node = self.inodes[number].node
        seen = _seen(self.inodes[number])
        fd = await self._opened(seen)
        if fd is None:
            # Renamed meanwhile, by a rotation or with its domain: it is the same file.
            assert isinstance(node, File)
            await self._refresh(seen, node)
            fd = await self._thread(seen.item.subdir, self._shelf.open, seen.item)
        seen.fds.append(fd)
        handle = self._new_handle()
        self._files[handle] = _OpenFile(fd, number)
        return handle

    async def _opened(self, seen: Seen) -> int | None:
        """A descriptor; None if the file that was seen is there no more, or may be another guest's."""
        guest = seen.guest
        try:
            fd = await self._thread(seen.item.subdir, self._shelf.open, seen.item)
        except FileNotFoundError:
            return None
        if self._is_called_so(guest):
            return fd
        # By its number it can be the same all the same: libvirt has freed one and saved another.
        os.close(fd)
        return None

    async def read(self, handle: int, offset: int, count: int) -> bytes:
        """Bytes of an open file: the domain's own."""
        file = self._files[handle]
        seen = _seen(self.inodes[file.inode])
        guest = self._view.guest(seen.guest.record.key) or seen.guest
        return await self._thread(
            seen.item.subdir, self._shelf.read, guest, seen.item, file.fd, offset, count
        )

    def release(self, handle: int) -> None:
        """The last close of a file handle."""
        file = self._files.pop(handle)
        _seen(self.inodes[file.inode]).fds.remove(file.fd)
        os.close(file.fd)

    async def opendir(self, number: int) -> int:
        """A handle on a directory, whose listing is made once: here, or of names when it is first read."""
        node = self.inodes[number].node
        if isinstance(node, File | Link | Alias):
            raise _error(errno.ENOTDIR)
        names = self._view.names
        guest: Guest | None = None
        listing: Sequence[tuple[bytes, Node, Item | None]] | None
        if isinstance(node, NamesDir):
            listing = None
        elif isinstance(node, SubDir):
            guest = self._guest(node)
            listing = await self._thread(node.subdir, self._list_items, guest, node.subdir)
        else:
            guest = self._guest(node)
            listing = await self._thread(TOP, self._list_domain, guest)
        handle = self._new_handle()
        self._dirs[handle] = _OpenDir(number, self.inodes.number(names.above(node)), guest, listing)
        return handle

    def listing(self, handle: int, start: int) -> Iterator[Entry]:
        """The entries from a position on. Nothing awaits: what is taken is to be counted (`count`)."""
        directory = self._dirs[handle]
        above = self.inodes[directory.number].node
        if directory.listing is None:
            assert isinstance(above, NamesDir)
            children = self._view.names.children(above)
            directory = replace(directory, listing=[(entry, child, None) for entry, child in children])
            self._dirs[handle] = directory
        assert directory.listing is not None
        for position, (number, dots) in enumerate(
            ((directory.number, b"."), (directory.parent, b"..")), start=1
        ):
            if start < position:
                yield Entry(dots, self._attributes.of_dots(number), position)
        first = max(start - 2, 0)
        for position, (entry, node, item) in enumerate(directory.listing[first:], start=first + 3):
            attrs = self._listed(above, entry, node, item)
            if attrs is not None:
                yield Entry(entry, attrs, position, node, item, directory.guest)

    def count(self, one: Entry) -> None:
        """An entry of a listing was given to the kernel, which counts it as a look-up, dots excepted."""
        if one.node is not None:
            inode = self.inodes.remember(one.node)
            if one.item is not None and one.guest is not None:
                self._keep(inode, one.guest, one.item)

    def releasedir(self, handle: int) -> None:
        """The last close of a directory handle."""
        del self._dirs[handle]

    async def getxattr(self, number: int, name: bytes) -> bytes | None:
        """An extended attribute: namefs's own, or the real file's as it is; None if there is none."""
        inode = self.inodes[number]
        if isinstance(inode.node, DomainDir):
            return attributes_of(self._guest(inode.node)).get(name)
        if not isinstance(inode.node, File):
            return None
        item = _seen(inode).item
        if name == PATH_XATTR:
            return os.fsencode(item.path)
        return await self._thread(item.subdir, self._shelf.xattr, item, name)

    async def listxattr(self, number: int) -> list[bytes]:
        """The names of the extended attributes that an inode has."""
        inode = self.inodes[number]
        if isinstance(inode.node, DomainDir):
            return list(attributes_of(self._guest(inode.node)))
        if not isinstance(inode.node, File):
            return []
        item = _seen(inode).item
        return [PATH_XATTR, *await self._thread(item.subdir, self._shelf.xattrs, item)]

    def _named(self, number: int, node: Node) -> Attrs:
        """The attributes of what a directory of names holds. ENOENT for a domain that has just gone."""
        names, changed_ns = self._view.names, self._view.changed_ns
        if isinstance(node, GroupDir):
            return self._attributes.of_group(number, changed_ns)
        if isinstance(node, SpecialDir):
            return self._attributes.of_special(number, changed_ns)
        if isinstance(node, Alias):
            return self._attributes.of_alias(number, names.target(node) or b"", changed_ns)
        assert isinstance(node, DomainDir)
        # One that is gone is in .deleted, of which nothing is withdrawn.
        kept_s = 0 if self._view.is_fleeting(node.key) else NAMES_KEPT_S
        return self._attributes.of_domain(number, self._guest(node).record, kept_s)

    def _guest(self, node: DomainDir | SubDir | File | Link) -> Guest:
        guest = self._view.guest(node.key)
        if guest is None:
            # ESTALE has the kernel walk the path again, and then the name says ENOENT.
            raise _error(errno.ESTALE)
        return guest

    async def _thread(self, subdir: bytes, call: Callable[..., R], *args: object) -> R:
        limiter = self._far if subdir in (TOP, b"disks") else self._near
        return await trio.to_thread.run_sync(functools.partial(call, *args), limiter=limiter)

    def _keep(self, inode: Inode[Seen], guest: Guest, item: Item) -> None:
        if inode.beside is None:
            inode.beside = Seen(item, guest)
        else:
            inode.beside.item, inode.beside.guest = item, guest

    async def _attrs(self, inode: Inode[Seen]) -> Attrs:
        node, number = inode.node, inode.number
        if isinstance(node, Root):
            return self._attributes.of_root(number, self._view.index, self._view.changed_ns)
        if isinstance(node, DomainDir | SpecialDir | GroupDir | Alias):
            return self._named(number, node)
        if isinstance(node, SubDir) and node.subdir in SHARED:
            # The kernel asks for it with each path through ``log``.
            return self._attributes.of_subdir(number, self._guest(node).record, 0o555, None, None)
        if isinstance(node, SubDir):
            guest = self._guest(node)
            mode = await self._thread(node.subdir, self._shelf.directory_mode, guest, node.subdir)
            return self._attributes.of_subdir(number, guest.record, *mode)
        seen = _seen(inode)
        if isinstance(node, File):
            await self._refresh(seen, node)
        return self._attributes.of_item(number, seen.item)

    def _is_called_so(self, guest: Guest) -> bool:
        """Whether libvirt calls the guest as it did when that was taken.

        If not, its files of that name may be another guest's by now: that one may have got the name.
        """
        now = self._view.guest(guest.record.key)
        return now is None or now.record.domain.name == guest.record.domain.name

    async def _refresh(self, seen: Seen, node: File) -> None:
        """Have the item as it is now. ESTALE if the guest has no such file any more."""
        while True:
            guest = self._view.guest(node.key) or seen.guest
            item = await self._item_now(seen, node)
            if self._is_called_so(guest):
                break
        seen.item, seen.guest = item, guest

    async def _item_now(self, seen: Seen, node: File) -> Item:
        guest, subdir = self._view.guest(node.key), seen.item.subdir
        if seen.fds:
            # A duplicate, since the last close may come while the thread is at it.
            fd = os.dup(seen.fds[-1])
            try:
                return await self._thread(subdir, self._shelf.refreshed, guest or seen.guest, seen.item, fd)
            finally:
                os.close(fd)
        if guest is not None:
            # Nearly always it is still where it was; a rotation or a rename moves it.
            found = await self._thread(subdir, self._shelf.item, guest, subdir, seen.item.entry)
            if found is not None and _node(guest, found) == node:
                return found
            for item in await self._thread(subdir, self._shelf.items, guest, subdir):
                if _node(guest, item) == node:
                    return item
        raise _error(errno.ESTALE)

    def _list_domain(self, guest: Guest) -> list[tuple[bytes, Node, Item | None]]:
        listing: list[tuple[bytes, Node, Item | None]] = [
            (subdir, SubDir(guest.record.key, subdir), None) for subdir in self._shelf.subdirectories(guest)
        ]
        return sorted(listing + self._list_items(guest, TOP), key=lambda one: one[0])

    def _list_items(self, guest: Guest, subdir: bytes) -> list[tuple[bytes, Node, Item | None]]:
        return [(item.entry, _node(guest, item), item) for item in self._shelf.items(guest, subdir)]

    def _listed(self, directory: Node, entry: bytes, node: Node, item: Item | None) -> Attrs | None:
        number = self.inodes.number(node)
        if item is not None:
            return self._attributes.of_item(number, item)
        if isinstance(node, SubDir):
            guest = self._view.guest(node.key)
            if guest is None:
                return None
            return self._attributes.of_subdir(number, guest.record, 0o555, None, None)
        assert isinstance(directory, NamesDir)
        if self._view.names.child(directory, entry) == node:
            return self._named(number, node)
        # A name that has changed since opendir has been withdrawn already: were it given as it is now, the
        # kernel would keep it. Were it left out, a guest whose domains just changed names would be missing.
        return None if isinstance(node, Alias) else self._attributes.of_dots(number)

    def _new_handle(self) -> int:
        self._last_handle += 1
        return self._last_handle


def _seen(inode: Inode[Seen]) -> Seen:
    if inode.beside is None:
        raise _error(errno.ESTALE)
    return inode.beside


def _node(guest: Guest, item: Item) -> Node:
    if item.target is not None or item.info is None:
        return Link(guest.record.key, item.subdir, item.entry)
    return File(guest.record.identity, item.info.st_dev, item.info.st_ino)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
