"""Files given another place so that at every moment one whole file is there, and never two that differ.

Paths are as seen from here. On one filesystem a file gets a second name, and loses the first one later;
to another it is copied, and compared, before the copy gets its name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from namefs.adoption.plan import Present

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Progress = Callable[[str, int, int], None]

_PIECE_BYTES = 1 << 20
_OPENED = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
# struct flock of Linux's 64-bit ABIs, and of others with O_LARGEFILE, padded: l_type, l_whence, l_start,
# l_len, l_pid.
_FLOCK = "hhqqi0q"
SOCKET = "a socket"
_LOCKED_BYTES = ((0, 1), (100, 200))
"""(start, length): what virtlockd locks of an image (lock_driver_lockd.c), and where QEMU has its locks
(block/file-posix.c). Not byte 1: libvirt locks that while it changes owners, and would wait for 10 s."""

_KINDS = {
    stat.S_IFLNK: "a symlink",
    stat.S_IFDIR: "a directory",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: SOCKET,
}


class InUse(OSError):
    """Some process has a lock on the file, as QEMU does on the images that it has open."""


class Changed(OSError):
    """The file is not the one that it was."""


def look(path: str) -> Present | None:
    """What is at a path, without following a symlink there; None if nothing is. Raises OSError."""
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _present(info)


def _present(info: os.stat_result) -> Present:
    what = _KINDS.get(stat.S_IFMT(info.st_mode), "")
    return Present(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_nlink, what)


def same(file: Present, path: str) -> bool:
    """Whether the file is at a path, be it changed or not."""
    now = look(path)
    return now is not None and (now.dev, now.ino) == (file.dev, file.ino)


def mount_of(path: str) -> tuple[int, int]:
    """What link(2) asks to be the same of two paths: the filesystem and the mount that a directory is in.

    Of a directory that does not exist yet, those of the nearest one above it.
    """
    while True:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            break
        except (FileNotFoundError, NotADirectoryError):
            path = os.path.dirname(path)
    try:
        with open(f"/proc/self/fdinfo/{fd}") as lines:
            mount = next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))
        return os.fstat(fd).st_dev, mount
    finally:
        os.close(fd)


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Keeps QEMU from opening an image. Raises InUse if anybody has it open in earnest, and OSError."""
    fd = os.open(path, os.O_RDWR | _OPENED)
    try:
        try:
            for start, length in _LOCKED_BYTES:
                lock = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise InUse(error.errno, "a process has it open", path) from error
            raise
        yield
    finally:
        os.close(fd)


def link(file: Present, source: str, target: str) -> None:
    """Give the file a second name. Does nothing if it has it. Raises FileExistsError, Changed, OSError."""
    if not same(file, target):
        _check(file, look(source), source)
        os.link(source, target, follow_symlinks=False)
        if not same(file, target):
            os.unlink(target)
            raise Changed(errno.ESTALE, "it was replaced", source)
    sync_directory(target)


def copy(file: Present, source: str, target: str, progress: Progress) -> None:
    """Make a copy of the file that is like it in everything, holes included, and the same when read again.

    ``progress`` is called with what is being done to which file, how many bytes are done, and how many
    there are. Raises FileExistsError, Changed if the file is written to meanwhile, OSError (EIO if the
    copy reads otherwise).
    """
    draft = draft_of(target)
    with suppress(FileNotFoundError):
        os.unlink(draft)
    from_fd = os.open(source, os.O_RDONLY | _OPENED)
    try:
        _check(file, _present(os.fstat(from_fd)), source)
        to_fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _fill(from_fd, to_fd, file.size_bytes, source, progress)
            _furnish(from_fd, to_fd)
            os.fsync(to_fd)
            _compare(from_fd, to_fd, file.size_bytes, source, progress)
        finally:
            os.close(to_fd)
        _check(file, _present(os.fstat(from_fd)), source)
        os.link(draft, target)
        os.unlink(draft)
        sync_directory(target)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(draft)
        if isinstance(error, OSError) and error.filename is None:
            # pwrite(2) and fsync(2) know descriptors only.
            error.filename = target
        raise
    finally:
        os.close(from_fd)


def draft_of(target: str) -> str:
    """Where the copy that becomes ``target`` lies until it is whole."""
    directory, entry = os.path.split(target)
    return os.path.join(directory, f".{entry}.copying")


def remove(path: str) -> None:
    """Remove a name, if it is there, durably."""
    with suppress(FileNotFoundError):
        os.unlink(path)
        sync_directory(path)


def write(path: str, text: str) -> None:
    """Write a small file whole or not at all, durably, for root alone to read."""
    draft = f"{path}.draft"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(fd)
        os.rename(draft, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft)
        raise
    sync_directory(path)


def read(path: str) -> str | None:
    """The text of a small file, None if there is none."""
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def sync_directory(path: str) -> None:
    """Make what happened to the name ``path`` durable."""
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _check(file: Present, now: Present | None, path: str) -> None:
    if now is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    if (now.dev, now.ino, now.size_bytes, now.mtime_ns, now.what) != (
        file.dev,
        file.ino,
        file.size_bytes,
        file.mtime_ns,
        "",
    ):
        raise Changed(errno.ESTALE, "it changed meanwhile", path)


def _fill(from_fd: int, to_fd: int, size: int, source: str, progress: Progress) -> None:
    os.ftruncate(to_fd, size)
    for start, end in _data(from_fd, size):
        at = start
        while at < end:
            piece = os.pread(from_fd, min(_PIECE_BYTES, end - at), at)
            if not piece:
                # Truncated meanwhile; the caller's last check says so.
                return
            written = 0
            while written < len(piece):
                written += os.pwrite(to_fd, piece[written:], at + written)
            at += len(piece)
            progress(f"copying {source}", at, size)


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file has data, as (start, end); the rest of it are holes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def _furnish(from_fd: int, to_fd: int) -> None:
    """Owner, mode, extended attributes (ACLs and labels are such) and times, in the order in which one
    does not undo the other: chown(2) clears mode bits and capabilities."""
    info = os.fstat(from_fd)
    os.fchown(to_fd, info.st_uid, info.st_gid)
    os.fchmod(to_fd, stat.S_IMODE(info.st_mode))
    for name in os.listxattr(from_fd):
        os.setxattr(to_fd, name, os.getxattr(from_fd, name))
    os.utime(to_fd, ns=(info.st_atime_ns, info.st_mtime_ns))


def _compare(from_fd: int, to_fd: int, size: int, source: str, progress: Progress) -> None:
    # Both from the disk where the kernel allows it, not from what has just been written.
    for fd in (from_fd, to_fd):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    compared = 0
    for start, end in sorted([*_data(from_fd, size), *_data(to_fd, size)]):
        for at in range(max(start, compared), end, _PIECE_BYTES):
            count = min(_PIECE_BYTES, end - at)
            if os.pread(from_fd, count, at) != os.pread(to_fd, count, at):
                raise OSError(errno.EIO, "the copy reads otherwise than the original", source)
            progress(f"comparing {source}", at + count, size)
        compared = max(compared, end)
