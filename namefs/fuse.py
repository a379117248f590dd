"""pyfuse3: requests of the kernel translated into questions to `tree` and `guest`, and back.

What is decided elsewhere stays there. Names are answered from memory, at once; whatever may touch a
disk goes to a thread. How long the kernel may keep what it is told:

=====================  ======  ==================================================================
root's entries         long    names are namefs's own: withdrawn (`Invalidator`) when they change
domain directories     long    nothing in their attributes changes
all below              not     libvirt and QEMU change it without telling
"does not exist"       not     so a new name works as soon as it is published
=====================  ======  ==================================================================
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

import pyfuse3
import trio

from namefs import tree
from namefs.attributes import Attributes, Attrs
from namefs.guest import PATH_XATTR, Guest, Item, Shelf, attributes_of
from namefs.inodes import Inode, InodeTable
from namefs.layout.libvirt import SUBDIRECTORIES, TOP
from namefs.naming import ENTRY_MAX_BYTES
from namefs.tree import DomainDir, File, Link, Node, Root, SubDir

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from namefs.view import View

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")

ROOT = pyfuse3.ROOT_INODE


@dataclass(slots=True)
class Seen:
    """What is kept beside an inode: item and domain as last seen, and the descriptors open on it."""

    item: Item
    guest: Guest
    fds: list[int] = field(default_factory=list)


@dataclass(slots=True)
class OpenFile:
    """A file handle: its descriptor, and the number of its inode."""

    fd: int
    inode: int


@dataclass(slots=True)
class OpenDir:
    """A directory handle: the listing as it was at opendir, so that its offsets stay valid."""

    number: int
    parent: int
    guest: Guest | None
    listing: Sequence[tuple[bytes, Node, Item | None]]


def _answered(
    handler: Callable[Concatenate[Operations, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Operations, P], Coroutine[Any, Any, R]]:
    """The one place where an exception becomes an errno.

    pyfuse3 ends the mount for everybody on any exception that it does not know (one KeyError in
    lookup, and the next caller gets ENOTCONN).
    """

    @functools.wraps(handler)
    async def answer(self: Operations, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from error
        except Exception as error:
            log.exception("%s%r failed; the caller gets EIO", handler.__name__, args)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return cast("Callable[Concatenate[Operations, P], Coroutine[Any, Any, R]]", answer)


def _refused(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def refuse(*_args: object) -> None:
        raise pyfuse3.FUSEError(errno.EROFS)

    refuse.__name__ = name
    return refuse


def _above(node: Node) -> Node:
    if isinstance(node, Root | DomainDir):
        return Root()
    return DomainDir(node.key)


def _reply(attrs: Attrs) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = attrs.ino
    entry.st_mode = attrs.mode
    entry.st_nlink = attrs.nlink
    entry.st_uid = attrs.uid
    entry.st_gid = attrs.gid
    entry.st_size = attrs.size
    entry.st_blocks = attrs.blocks
    entry.st_blksize = 4096
    entry.st_atime_ns = attrs.atime_ns
    entry.st_mtime_ns = attrs.mtime_ns
    entry.st_ctime_ns = attrs.ctime_ns
    entry.entry_timeout = attrs.entry_kept_s
    entry.attr_timeout = attrs.attrs_kept_s
    return entry


class Operations(pyfuse3.Operations):
    """The view, as pyfuse3 asks for it. Handlers run on the trio loop and never block it."""

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(self, view: View, shelf: Shelf, rename: Callable[[bytes, bytes], Awaitable[None]]) -> None:
        super().__init__()
        self._view = view
        self._shelf = shelf
        self._rename = rename
        self._attributes = Attributes(os.getuid(), os.getgid())
        self.inodes: InodeTable[Seen] = InodeTable()
        self._files: dict[int, OpenFile] = {}
        self._dirs: dict[int, OpenDir] = {}
        self._next_handle = 1
        # A disk's path may lead to a server that is gone: such look-ups may use up these threads,
        # and no others.
        self._near = trio.CapacityLimiter(16)
        self._far = trio.CapacityLimiter(8)

    # What a node is, and what lies below it

    def _guest(self, node: DomainDir | SubDir | File | Link) -> Guest:
        guest = self._view.guest(node.key)
        if guest is None:
            # ESTALE has the kernel walk the path again, and then the name says ENOENT.
            raise pyfuse3.FUSEError(errno.ESTALE)
        return guest

    async def _thread(self, subdir: bytes, call: Callable[..., R], *args: object) -> R:
        limiter = self._far if subdir in (TOP, b"disks") else self._near
        return await trio.to_thread.run_sync(functools.partial(call, *args), limiter=limiter)

    def _node(self, guest: Guest, item: Item) -> Node:
        key = guest.record.key
        if item.target is not None or item.info is None:
            return Link(key, item.subdir, item.entry)
        return File(key, item.info.st_dev, item.info.st_ino)

    def _entry(self, guest: Guest, item: Item) -> pyfuse3.EntryAttributes:
        inode = self.inodes.remember(self._node(guest, item))
        self._keep(inode, guest, item)
        return _reply(self._attributes.of_item(inode.number, item))

    def _keep(self, inode: Inode[Seen], guest: Guest, item: Item) -> None:
        if inode.beside is None:
            inode.beside = Seen(item, guest)
        else:
            inode.beside.item, inode.beside.guest = item, guest

    @_answered
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """lookup(parent, entry): names at once, the rest from the files."""
        parent, entry = self.inodes[parent_inode].node, bytes(name)
        if entry in (b".", b".."):
            node = parent if entry == b"." else _above(parent)
            self.inodes.remember(node)
            return await self._attributes_of(self.inodes[self.inodes.number(node)])
        if isinstance(parent, Root):
            found = tree.domain_of(self._view.index, entry)
            if found is None:
                raise pyfuse3.FUSEError(errno.ENOENT)
            record = self._guest(found).record
            return _reply(self._attributes.of_domain(self.inodes.remember(found).number, record))
        if isinstance(parent, DomainDir) and entry in SUBDIRECTORIES:
            return await self._subdirectory(SubDir(parent.key, entry))
        if not isinstance(parent, DomainDir | SubDir):
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        guest = self._guest(parent)
        subdir = parent.subdir if isinstance(parent, SubDir) else TOP
        item = await self._thread(subdir, self._shelf.item, guest, subdir, entry)
        if item is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._entry(guest, item)

    async def _subdirectory(self, node: SubDir) -> pyfuse3.EntryAttributes:
        guest = self._guest(node)
        if not await self._thread(node.subdir, self._shelf.items, guest, node.subdir):
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self._attributes_of(self.inodes.remember(node))

    @_answered
    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """getattr(inode): of an open file by its descriptor, so that it survives rotation and removal."""
        return await self._attributes_of(self.inodes[inode])

    async def _attributes_of(self, inode: Inode[Seen]) -> pyfuse3.EntryAttributes:
        node, number = inode.node, inode.number
        if isinstance(node, Root):
            return _reply(self._attributes.of_root(number, self._view.index, self._view.changed_ns))
        if isinstance(node, DomainDir):
            return _reply(self._attributes.of_domain(number, self._guest(node).record))
        if isinstance(node, SubDir):
            guest = self._guest(node)
            mode = await self._thread(node.subdir, self._shelf.directory_mode, guest, node.subdir)
            return _reply(self._attributes.of_subdir(number, guest.record, *mode))
        seen = self._seen(inode)
        if isinstance(node, File):
            seen.item = await self._item_now(seen, node)
        return _reply(self._attributes.of_item(number, seen.item))

    def _seen(self, inode: Inode[Seen]) -> Seen:
        if inode.beside is None:
            raise pyfuse3.FUSEError(errno.ESTALE)
        return inode.beside

    async def _item_now(self, seen: Seen, node: File) -> Item:
        guest = self._view.guest(node.key)
        if seen.fds:
            # A duplicate, since the last close may come while the thread is at it.
            fd = os.dup(seen.fds[-1])
            try:
                return await self._thread(
                    seen.item.subdir, self._shelf.refreshed, guest or seen.guest, seen.item, fd
                )
            finally:
                os.close(fd)
        if guest is not None:
            items = await self._thread(seen.item.subdir, self._shelf.items, guest, seen.item.subdir)
            for item in items:
                if self._node(guest, item) == node:
                    return item
        raise pyfuse3.FUSEError(errno.ESTALE)

    @_answered
    async def readlink(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileNameT:
        """readlink(inode): the real path."""
        target = self._seen(self.inodes[inode]).item.target
        if target is None:
            raise pyfuse3.FUSEError(errno.EINVAL)
        return target

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        """forget: the kernel gives look-ups back; it waits for no answer and takes no error."""
        for number, count in inode_list:
            try:
                self.inodes.forget(number, count)
            except (KeyError, ValueError):
                log.exception("the kernel forgot inode %d, %d times", number, count)

    # Files

    @_answered
    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        """open: a descriptor of the real file, one for each open."""
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & (os.O_TRUNC | os.O_APPEND):
            raise pyfuse3.FUSEError(errno.EROFS)
        node = self.inodes[inode].node
        seen = self._seen(self.inodes[inode])
        try:
            fd = await self._thread(seen.item.subdir, self._shelf.open, seen.item)
        except FileNotFoundError:
            # Renamed meanwhile, by a rotation or with its domain: it is the same file.
            assert isinstance(node, File)
            seen.item = await self._item_now(seen, node)
            fd = await self._thread(seen.item.subdir, self._shelf.open, seen.item)
        seen.fds.append(fd)
        handle = self._new_handle()
        self._files[handle] = OpenFile(fd, inode)
        return pyfuse3.FileInfo(fh=handle)

    @_answered
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """read: the domain's own bytes."""
        handle = self._files[fh]
        seen = self._seen(self.inodes[handle.inode])
        guest = self._view.guest(seen.guest.record.key) or seen.guest
        return await self._thread(b"log", self._shelf.read, guest, seen.item, handle.fd, off, size)

    @_answered
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        """release: the last close of a handle."""
        handle = self._files.pop(fh)
        self._seen(self.inodes[handle.inode]).fds.remove(handle.fd)
        os.close(handle.fd)

    # Directories

    @_answered
    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        """opendir: the listing is made once, here."""
        node = self.inodes[inode].node
        guest = None if isinstance(node, Root | File | Link) else self._guest(node)
        listing: Sequence[tuple[bytes, Node, Item | None]]
        if guest is None:
            index = self._view.index
            listing = [(entry, DomainDir(index.by_entry[entry]), None) for entry in index.entries]
        elif isinstance(node, SubDir):
            listing = await self._thread(node.subdir, self._list_items, guest, node.subdir)
        else:
            listing = await self._thread(TOP, self._list_domain, guest)
        handle = self._new_handle()
        self._dirs[handle] = OpenDir(inode, self.inodes.number(_above(node)), guest, listing)
        return handle

    def _list_domain(self, guest: Guest) -> list[tuple[bytes, Node, Item | None]]:
        subdirs = self._shelf.subdirectories(guest)
        listing: list[tuple[bytes, Node, Item | None]] = [
            (subdir, SubDir(guest.record.key, subdir), None) for subdir in subdirs
        ]
        return sorted(listing + self._list_items(guest, TOP), key=lambda one: one[0])

    def _list_items(self, guest: Guest, subdir: bytes) -> list[tuple[bytes, Node, Item | None]]:
        return [(i.entry, self._node(guest, i), i) for i in self._shelf.items(guest, subdir)]

    @_answered
    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """readdir: entries of the listing from ``start_id`` on, each counted as a look-up once taken.

        Nothing here awaits: an entry that the reply holds has been counted, and only then.
        """
        handle = self._dirs[fh]
        for position, (number, dots) in enumerate(((handle.number, b"."), (handle.parent, b"..")), start=1):
            if start_id < position:
                # Not counted: the kernel makes no inode of them.
                itself = _reply(self._attributes.of_dots(number))
                if not pyfuse3.readdir_reply(token, dots, itself, position):
                    return
        first = max(start_id - 2, 0)
        for position, (entry, node, item) in enumerate(handle.listing[first:], start=first + 3):
            found = self._listed(node, item)
            if found is None:
                continue
            if not pyfuse3.readdir_reply(token, entry, _reply(found), position):
                return
            inode = self.inodes.remember(node)
            if item is not None and handle.guest is not None:
                self._keep(inode, handle.guest, item)

    def _listed(self, node: Node, item: Item | None) -> Attrs | None:
        number = self.inodes.number(node)
        if item is not None:
            return self._attributes.of_item(number, item)
        assert isinstance(node, DomainDir | SubDir)
        record = self._view.index.records.get(node.key)
        if record is None:
            return None
        if isinstance(node, SubDir):
            return self._attributes.of_subdir(number, record, 0o555, None, None)
        return self._attributes.of_domain(number, record)

    @_answered
    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        """releasedir: the last close of a directory handle."""
        del self._dirs[fh]

    def _new_handle(self) -> int:
        self._next_handle += 1
        return self._next_handle

    @_answered
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """statfs: no space of its own, so that df(1) leaves it out as it does /proc; an inode a domain."""
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = data.f_bfree = data.f_bavail = 0
        data.f_files = len(self._view.index.records)
        data.f_ffree = data.f_favail = 0
        data.f_namemax = ENTRY_MAX_BYTES
        return data

    # Extended attributes

    @_answered
    async def getxattr(
        self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext
    ) -> bytes:
        """getxattr: namefs's own, and those of the real file as they are."""
        known = self.inodes[inode]
        if isinstance(known.node, DomainDir):
            value = attributes_of(self._guest(known.node)).get(bytes(name))
        elif isinstance(known.node, File):
            item = self._seen(known).item
            if bytes(name) == PATH_XATTR:
                return os.fsencode(item.path)
            value = await self._thread(item.subdir, self._shelf.xattr, item, bytes(name))
        else:
            value = None
        if value is None:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return value

    @_answered
    async def listxattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> Sequence[pyfuse3.XAttrNameT]:
        """listxattr: the names of what getxattr has."""
        known = self.inodes[inode]
        names: list[bytes] = []
        if isinstance(known.node, DomainDir):
            names = list(attributes_of(self._guest(known.node)))
        elif isinstance(known.node, File):
            item = self._seen(known).item
            names = [PATH_XATTR, *await self._thread(item.subdir, self._shelf.xattrs, item)]
        return names

    # The one change that can be made by hand, and those that can't

    @_answered
    async def rename(
        self,
        parent_inode_old: pyfuse3.InodeT,
        name_old: pyfuse3.FileNameT,
        parent_inode_new: pyfuse3.InodeT,
        name_new: pyfuse3.FileNameT,
        flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        """rename: of a domain's directory within the root, asked of libvirt."""
        if (parent_inode_old, parent_inode_new) != (ROOT, ROOT):
            raise pyfuse3.FUSEError(errno.EROFS)
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise pyfuse3.FUSEError(errno.EINVAL)
        await self._rename(bytes(name_old), bytes(name_new))

    setattr = _refused("setattr")
    mknod = _refused("mknod")
    mkdir = _refused("mkdir")
    unlink = _refused("unlink")
    rmdir = _refused("rmdir")
    symlink = _refused("symlink")
    link = _refused("link")
    create = _refused("create")
    setxattr = _refused("setxattr")
    removexattr = _refused("removexattr")


def mount(operations: Operations, mountpoint: str, options: Sequence[str]) -> None:
    """Mount the view. Raises RuntimeError where libfuse can't (it says why on stderr)."""
    chosen = {
        *pyfuse3.default_options,
        "fsname=namefs",
        "subtype=namefs",
        "nodev",
        "nosuid",
        "noexec",
        *options,
    }
    pyfuse3.init(operations, mountpoint, chosen)


async def serve() -> None:
    """Answer requests until `stop` is called or the view is unmounted."""
    await pyfuse3.main()


def stop() -> None:
    """Have `serve` return."""
    pyfuse3.terminate()


def close(unmount: bool) -> None:
    """Give the kernel's connection up; without ``unmount`` the mount stays and says ENOTCONN."""
    pyfuse3.close(unmount=unmount)


def withdraw(entry: bytes) -> None:
    """Have the kernel forget what it knows of an entry of the root. Blocks; raises OSError.

    ENOENT is success: it knew nothing.
    """
    with contextlib.suppress(FileNotFoundError):
        pyfuse3.invalidate_entry(ROOT, entry)
