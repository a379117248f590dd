"""The files behind the view: found by directory and entry, no symlink followed that is not trusted.

Every path is walked one component at a time with openat(2) and O_NOFOLLOW, so that nothing planted
behind the view leads out of the directories that are served. Everything here may block and is
called in threads.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from sortedcontainers import SortedList

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_CLOEXEC
_LINKS_MAX = 40
"""As many symlinks on one path as the kernel follows (path_resolution(7))."""

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""How a file says that it is not there: not at all, or what leads there is no directory of ours."""

_RACY_NS = 50_000_000
"""A directory that changed this short before it was listed may change again under the same mtime:
the clock of timestamps ticks every 4 to 10 ms (git's "racy" index has the same cause)."""

_LISTINGS_MAX = 64

_ACL = "system.posix_acl_access"


@dataclass(frozen=True, slots=True)
class Guard:
    """What the directories above a file allow: (uid, gid, permission bits) of each that bars anyone."""

    narrow: tuple[tuple[int, int, int], ...] = ()

    def under(self, uid: int, gid: int, mode: int) -> Guard:
        """The guard of what lies in such a directory, in addition."""
        return self if mode & 0o111 == 0o111 else Guard((*self.narrow, (uid, gid, mode)))

    def limit(self, uid: int, gid: int, mode: int) -> int:
        """The mode, less the bits of whoever could not get to the file by its own path.

        The kernel checks a file of the view by its mode alone (default_permissions), so what a
        directory above the real file forbids has to be taken out of it. Where owner or group can't
        be told to pass, they don't.
        """
        for dir_uid, dir_gid, dir_mode in self.narrow:
            mode &= ~0o007
            # Both bits, as the directory's owner may be in the group, and is held to the owner's.
            if gid != dir_gid or dir_mode & 0o110 != 0o110:
                mode &= ~0o070
            if uid != 0 and (uid != dir_uid or not dir_mode & 0o100):
                mode &= ~0o700
        return mode


def effective_mode(info: os.stat_result, acl: bytes | None) -> int:
    """The mode that gives nobody more than mode and ACL together do.

    With an ACL the group bits are its mask (acl(5)): they grant to named users, not to the group.
    """
    if not acl or len(acl) < 4:
        return info.st_mode
    entries = list(struct.iter_unpack("<HHI", acl[4:]))
    mask = next((perm for tag, perm, _ in entries if tag == 0x10), 0o7)
    group = next((perm for tag, perm, _ in entries if tag == 0x04), 0) & mask
    other = info.st_mode & 0o7
    for tag, perm, _ in entries:
        if tag == 0x02:
            group &= perm & mask
        if tag in (0x02, 0x08):
            other &= perm & mask
    return (info.st_mode & ~0o077) | group << 3 | other


@dataclass(frozen=True, slots=True)
class Directory:
    """An open directory and what it took to get there."""

    fd: int
    path: str
    guard: Guard
    info: os.stat_result
    mode: int


class _Listing:
    """The entries of a directory, sorted, as of one modification time."""

    __slots__ = ("entries", "mtime_ns", "racy")

    def __init__(self, fd: int, info: os.stat_result) -> None:
        self.mtime_ns = info.st_mtime_ns
        self.racy = abs(time.time_ns() - info.st_mtime_ns) < _RACY_NS
        self.entries: SortedList[bytes] = SortedList(os.fsencode(name) for name in os.listdir(fd))


class Backing:
    """Access to the files behind the view; thread-safe.

    ``shunned`` is the mount point: a definition may name a path inside the view, and looking at it
    from here would have the daemon wait for itself.
    """

    def __init__(self, shunned: str) -> None:
        self._shunned = shunned.rstrip("/")
        self._listings: dict[tuple[int, int], _Listing] = {}
        self._lock = threading.Lock()

    @contextmanager
    def directory(self, base: str, below: Sequence[bytes] = ()) -> Iterator[Directory | None]:
        """The directory ``below`` a base, open; None when there is none that may be entered.

        On the way to ``base`` symlinks are followed if root made them where only root can, as
        systemd's chase_symlinks() does; below it, none is.
        """
        fd: int | None = None
        try:
            try:
                fd, guard, path = self._walk(base, below)
                info = os.fstat(fd)
            except OSError as gone:
                if gone.errno not in _ABSENT:
                    raise
                yield None
                return
            yield Directory(fd, path, guard, info, effective_mode(info, _acl(fd)))
        finally:
            if fd is not None:
                os.close(fd)

    def _walk(self, base: str, below: Sequence[bytes]) -> tuple[int, Guard, str]:
        if not base.startswith("/") or self._is_shunned(base):
            raise FileNotFoundError(errno.ENOENT, "not served", base)
        pending = [part for part in os.fsencode(base).split(b"/") if part not in (b"", b".")]
        fd = os.open("/", _DIRECTORY)
        guard, path, links = Guard(), "/", 0
        trusted_left = len(pending)
        pending += below
        try:
            while pending:
                part = pending.pop(0)
                info = os.fstat(fd)
                guard = guard.under(info.st_uid, info.st_gid, effective_mode(info, _acl(fd)))
                trusted_left -= 1
                if part in (b".", b"..") or b"/" in part:
                    raise FileNotFoundError(errno.ENOENT, "not a plain entry", part)
                at = f"{path.rstrip('/')}/{os.fsdecode(part)}"
                if self._is_shunned(at):
                    raise FileNotFoundError(errno.ENOENT, "not served", at)
                try:
                    following = os.open(part, _DIRECTORY, dir_fd=fd)
                except OSError as refused:
                    # Nearly always a directory: only what is none is asked whether it is a symlink.
                    if trusted_left < 0 or refused.errno not in (errno.ENOTDIR, errno.ELOOP):
                        raise
                    target = self._trusted_link(fd, info, part)
                    if target is None:
                        raise
                    links += 1
                    if links > _LINKS_MAX:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), base) from None
                    resolved = os.path.normpath(os.path.join(os.fsencode(path), target))
                    parts = [p for p in resolved.split(b"/") if p]
                    pending, trusted_left = parts + pending, trusted_left + len(parts)
                    os.close(fd)
                    fd = -1
                    fd = os.open("/", _DIRECTORY)
                    guard, path = Guard(), "/"
                    continue
                os.close(fd)
                fd, path = following, at
        except BaseException:
            if fd >= 0:
                os.close(fd)
            raise
        return fd, guard, path

    def _trusted_link(self, fd: int, directory: os.stat_result, part: bytes) -> bytes | None:
        info = os.lstat(part, dir_fd=fd)
        if not stat.S_ISLNK(info.st_mode):
            return None
        if info.st_uid != 0 or directory.st_uid != 0 or directory.st_mode & 0o022:
            raise OSError(errno.ELOOP, "a symlink that others than root could have made", part)
        return os.readlink(part, dir_fd=fd)

    def _is_shunned(self, path: str) -> bool:
        return path == self._shunned or path.startswith(self._shunned + "/")

    def starting_with(self, directory: Directory, prefix: bytes) -> list[bytes]:
        """The directory's entries that start with ``prefix``, sorted.

        One directory holds the logs of thousands of guests: it is listed again only when its mtime
        says so, and searched by prefix.
        """
        identity = (directory.info.st_dev, directory.info.st_ino)
        with self._lock:
            listing = self._listings.get(identity)
            if listing is None or listing.racy or listing.mtime_ns != directory.info.st_mtime_ns:
                if len(self._listings) >= _LISTINGS_MAX:
                    self._listings.clear()
                listing = self._listings[identity] = _Listing(directory.fd, directory.info)
            return list(takewhile(lambda entry: entry.startswith(prefix), listing.entries.irange(prefix)))

    def stat(self, directory: Directory, entry: bytes) -> os.stat_result | None:
        """lstat(2) of an entry; None when it is not there."""
        try:
            return os.lstat(entry, dir_fd=directory.fd)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise

    def mode(self, directory: Directory, entry: bytes, info: os.stat_result) -> int:
        """The file's mode, less what the directories above it and its ACL forbid."""
        # lgetxattr by way of /proc: there is no getxattrat(2) before Linux 6.13, and opening a file
        # for its ACL would update its atime or wake a tape.
        acl = _acl_at(f"/proc/self/fd/{directory.fd}/".encode() + entry) if info.st_mode & 0o077 else None
        inside = directory.guard.under(directory.info.st_uid, directory.info.st_gid, directory.mode)
        return inside.limit(info.st_uid, info.st_gid, effective_mode(info, acl))

    def open(self, directory: Directory, entry: bytes) -> int:
        """A descriptor of a regular file, for reading. Raises OSError, EINVAL if it is no regular file.

        Nothing else is ever opened, whatever comes into its place meanwhile: opening a FIFO waits for
        a writer or wakes one, and a device may rewind a tape or start a watchdog.
        """
        place = os.open(entry, _PLACE, dir_fd=directory.fd)
        try:
            if not stat.S_ISREG(os.fstat(place).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", entry)
            return os.open(f"/proc/self/fd/{place}", _FILE)
        finally:
            os.close(place)

    def read_small(self, directory: Directory, entry: bytes, most_bytes: int = 1 << 20) -> bytes | None:
        """The content of a small regular file; None when it is absent, no regular file, or larger."""
        try:
            fd = self.open(directory, entry)
        except OSError as error:
            if error.errno in (*_ABSENT, errno.EINVAL, errno.ENXIO):
                return None
            raise
        with os.fdopen(fd, "rb") as file:
            data = file.read(most_bytes + 1)
        return data if len(data) <= most_bytes else None


def _acl(fd: int) -> bytes | None:
    try:
        return os.getxattr(fd, _ACL)
    except OSError:
        # ENODATA where there is no ACL, ENOTSUP where there are none at all.
        return None


def _acl_at(path: bytes) -> bytes | None:
    try:
        return os.getxattr(path, _ACL, follow_symlinks=False)
    except OSError:
        return None
