"""pyfuse3: requests of the kernel translated into questions to `browse`, and back; nothing is decided here.

How long the kernel may keep what it is told (`attributes`):

=====================  ======  ==================================================================
names, groups          long    names are namefs's own: withdrawn (`invalidation`) when they change
domain directories     long    nothing in their attributes changes
all below              not     libvirt and QEMU change it without telling
"does not exist"       not     so a new name works as soon as it is published
=====================  ======  ==================================================================
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

import pyfuse3

from namefs.model import Place
from namefs.naming import ENTRY_MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from namefs.attributes import Attrs
    from namefs.browse import Browser
    from namefs.view import View

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")


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
    """The handlers. ``rename`` is told the old and the new place, ``swap`` the two that change places."""

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(
        self,
        view: View,
        browser: Browser,
        rename: Callable[[Place, Place], Awaitable[None]],
        swap: Callable[[Place, Place], Awaitable[None]],
    ) -> None:
        super().__init__()
        self._view = view
        self._browser = browser
        self._rename = rename
        self._swap = swap

    @_answered
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """fuse_lowlevel.h: lookup."""
        return _reply(await self._browser.lookup(parent_inode, name))

    @_answered
    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """fuse_lowlevel.h: getattr."""
        return _reply(await self._browser.getattr(inode))

    @_answered
    async def readlink(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileNameT:
        """fuse_lowlevel.h: readlink."""
        return self._browser.readlink(inode)

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        """fuse_lowlevel.h: forget. The kernel waits for no answer and takes no error."""
        for number, count in inode_list:
            try:
                self._browser.forget(number, count)
            except (KeyError, ValueError):
                log.exception("the kernel forgot inode %d, %d times", number, count)

    @_answered
    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        """fuse_lowlevel.h: open. For reading only."""
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & (os.O_TRUNC | os.O_APPEND):
            raise pyfuse3.FUSEError(errno.EROFS)
        return pyfuse3.FileInfo(fh=await self._browser.open(inode))

    @_answered
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """fuse_lowlevel.h: read."""
        return await self._browser.read(fh, off, size)

    @_answered
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        """fuse_lowlevel.h: release."""
        self._browser.release(fh)

    @_answered
    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        """fuse_lowlevel.h: opendir."""
        return await self._browser.opendir(inode)

    @_answered
    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """fuse_lowlevel.h: readdirplus. An entry that the reply holds is counted, and only then."""
        for one in self._browser.listing(fh, start_id):
            if not pyfuse3.readdir_reply(token, one.entry, _reply(one.attrs), one.position):
                return
            self._browser.count(one)

    @_answered
    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        """fuse_lowlevel.h: releasedir."""
        self._browser.releasedir(fh)

    @_answered
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """statvfs(3): no space of its own, so df(1) leaves it out as it does /proc; an inode a domain."""
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = data.f_bfree = data.f_bavail = 0
        data.f_files = len(self._view.index.records)
        data.f_ffree = data.f_favail = 0
        data.f_namemax = ENTRY_MAX_BYTES
        return data

    @_answered
    async def getxattr(
        self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext
    ) -> bytes:
        """getxattr(2)."""
        value = await self._browser.getxattr(inode, name)
        if value is None:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return value

    @_answered
    async def listxattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> Sequence[pyfuse3.XAttrNameT]:
        """listxattr(2)."""
        return await self._browser.listxattr(inode)

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
        """rename(2), renameat2(2): of a domain's directory; the one change that can be made by hand."""
        if flags not in (0, pyfuse3.RENAME_NOREPLACE, pyfuse3.RENAME_EXCHANGE):
            raise pyfuse3.FUSEError(errno.EINVAL)
        groups = [self._browser.group_of(inode) for inode in (parent_inode_old, parent_inode_new)]
        old, new = Place(groups[0], name_old), Place(groups[1], name_new)
        await (self._swap if flags == pyfuse3.RENAME_EXCHANGE else self._rename)(old, new)

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
    own = {"fsname=namefs", "subtype=namefs", "nodev", "nosuid", "noexec"}
    pyfuse3.init(operations, mountpoint, {*pyfuse3.default_options, *own, *options})


async def serve() -> None:
    """Answer requests until `stop` is called or the view is unmounted."""
    await pyfuse3.main()


def stop() -> None:
    """Have `serve` return."""
    pyfuse3.terminate()


def close(unmount: bool) -> None:
    """Give the kernel's connection up; without ``unmount`` the mount stays and says ENOTCONN."""
    pyfuse3.close(unmount=unmount)


def withdraw(directory: int, entry: bytes) -> None:
    """Have the kernel forget what it knows of an entry of a directory. Blocks; raises OSError.

    ENOENT is success: it knew nothing. So is ENOSYS: it has not even said hello (libfuse, fuse_lowlevel.c:
    no minor version of the protocol is known yet).
    """
    try:
        pyfuse3.invalidate_entry(directory, entry)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOSYS):
            raise
        log.debug("the kernel knew nothing of %r", entry)
