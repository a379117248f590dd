"""A directory on a disk that a power cut takes back what was not fsynced: ``python -m tests.lab.lossy``.

What it is called with: where to mount it, a directory for what is written, one for what is on the disk: of
each file, what it held when it was last fsynced. That is less than a real disk may keep, never more.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyfuse3
import trio

from tests.lab.mounted import PROJECT, is_mounted
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MOUNTED_WITHIN_S = 15.0


@contextmanager
def lossy(below: Path) -> Iterator[tuple[Path, Path]]:
    """Such a directory, and the one that has what is on the disk; both are made below ``below``."""
    mountpoint, written, on_disk = (below / name for name in ("mounted", "written", "on-disk"))
    for directory in (mountpoint, written, on_disk):
        directory.mkdir()
    command = [sys.executable, "-m", "tests.lab.lossy", *map(os.fspath, (mountpoint, written, on_disk))]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.fspath(PROJECT)}) as process:
        try:
            until(lambda: is_mounted(mountpoint) or process.poll(), MOUNTED_WITHIN_S, "it is mounted")
            yield mountpoint, on_disk
        finally:
            subprocess.run(["umount", "--lazy", os.fspath(mountpoint)], check=False)


class _Lossy(pyfuse3.Operations):
    """Files of one directory, without subdirectories. A handle is a descriptor."""

    enable_writeback_cache = False

    def __init__(self, written: Path, on_disk: Path) -> None:
        super().__init__()
        self._written = written
        self._on_disk = on_disk
        self._names: dict[int, str] = {}

    async def lookup(
        self, _parent: int, name: bytes, _context: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        try:
            info = os.stat(self._written / os.fsdecode(name))
        except FileNotFoundError:
            raise pyfuse3.FUSEError(errno.ENOENT) from None
        self._names[info.st_ino] = os.fsdecode(name)
        return _entry(info)

    async def getattr(self, inode: int, _context: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return _entry(os.stat(self._path(inode)), inode)

    async def setattr(
        self,
        inode: int,
        attributes: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        _handle: int | None,
        context: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        if fields.update_size:
            os.truncate(self._path(inode), attributes.st_size)
        if fields.update_mode:
            os.chmod(self._path(inode), stat.S_IMODE(attributes.st_mode))
        return await self.getattr(inode, context)

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, context: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        fd = os.open(self._written / os.fsdecode(name), _flags(flags) | os.O_CREAT, mode)
        return pyfuse3.FileInfo(fh=fd), await self.lookup(parent, name, context)

    async def unlink(self, _parent: int, name: bytes, _context: pyfuse3.RequestContext) -> None:
        os.unlink(self._written / os.fsdecode(name))

    async def open(self, inode: int, flags: int, _context: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=os.open(self._path(inode), _flags(flags)))

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        return os.pread(handle, size, offset)

    async def write(self, handle: int, offset: int, data: bytes) -> int:
        return os.pwrite(handle, data, offset)

    async def fsync(self, handle: int, _only_data: bool) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{handle}")).name
        draft = self._on_disk / f".{name}"
        shutil.copyfile(self._written / name, draft)
        draft.rename(self._on_disk / name)
        # A filesystem's own journal keeps the order of what happens to names: removed before is removed.
        for kept in self._on_disk.iterdir():
            if not (self._written / kept.name).exists():
                kept.unlink()

    async def release(self, handle: int) -> None:
        os.close(handle)

    async def opendir(self, inode: int, _context: pyfuse3.RequestContext) -> int:
        return inode

    async def readdir(self, _handle: int, start: int, token: pyfuse3.ReaddirToken) -> None:
        for number, found in enumerate(sorted(self._written.iterdir())):
            if number >= start:
                self._names[found.stat().st_ino] = found.name
                entry = _entry(found.stat())
                if not pyfuse3.readdir_reply(token, os.fsencode(found.name), entry, number + 1):
                    return

    async def fsyncdir(self, _handle: int, _only_data: bool) -> None:
        """Names go to the disk with what is in the files."""

    def _path(self, inode: int) -> Path:
        return self._written if inode == pyfuse3.ROOT_INODE else self._written / self._names[inode]


def _flags(flags: int) -> int:
    # The kernel says where an appending write goes, and has it written through a descriptor of another's.
    return (flags & ~(os.O_APPEND | os.O_ACCMODE)) | os.O_RDWR


def _entry(info: os.stat_result, inode: int | None = None) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = info.st_ino if inode is None else inode
    entry.st_mode, entry.st_nlink, entry.st_size = info.st_mode, info.st_nlink, info.st_size
    entry.st_uid, entry.st_gid, entry.st_blksize = info.st_uid, info.st_gid, 4096
    entry.entry_timeout = entry.attr_timeout = 0
    return entry


def _serve(arguments: Sequence[str]) -> None:
    mountpoint, written, on_disk = arguments
    pyfuse3.init(_Lossy(Path(written), Path(on_disk)), mountpoint, {"fsname=lossy"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    _serve(sys.argv[1:])
