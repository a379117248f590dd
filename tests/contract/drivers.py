"""Two ways to ask the view the same: the handlers themselves, and the kernel through a mount."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pyfuse3
import trio

from namefs.applying import apply
from namefs.backing import Backing
from namefs.browse import Browser
from namefs.fuse import Operations
from namefs.guest import Shelf
from namefs.index import Index
from namefs.layout.directories import for_uri
from namefs.model import Listed
from namefs.sources.libvirt import Connection, start_events
from namefs.view import View
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from contextlib import AbstractContextManager

    from namefs.model import Place
    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

TIMEOUT_S = 10.0
R = TypeVar("R")
LABEL = "local"
DT_SHIFT = 12


@dataclass(frozen=True)
class Found:
    """What stat(2) says, as far as it is compared."""

    ino: int
    mode: int
    size: int


@dataclass(frozen=True)
class Shown:
    """One entry of a listing: its name, inode number and the type in ``d_type``."""

    entry: str
    ino: int
    type: int


class Listing(Protocol):
    """An open directory."""

    def some(self) -> list[Shown]:
        """The next few entries, dots left out; none at the end."""

    def back(self) -> None:
        """Go back to the beginning of the same listing."""


class File(Protocol):
    """An open file."""

    def read(self, count: int, offset: int) -> bytes:
        """pread(2)."""

    def stat(self) -> Found:
        """fstat(2)."""


class Driver(Protocol):
    """The view, however it is asked. Paths are relative to its root; errors are OSError."""

    def settle(self, names: Sequence[str]) -> None:
        """Return once the view shows these guests, which libvirt has."""

    def stat(self, path: str) -> Found:
        """lstat(2)."""

    def readlink(self, path: str) -> str:
        """readlink(2)."""

    def xattrs(self, path: str) -> dict[str, bytes]:
        """All that listxattr(2) names, with getxattr(2)'s values."""

    def unlink(self, path: str) -> None:
        """unlink(2)."""

    def mkdir(self, path: str) -> None:
        """mkdir(2)."""

    def open_to_write(self, path: str) -> None:
        """open(2), for writing."""

    def open(self, path: str) -> AbstractContextManager[File]:
        """open(2), for reading, and close(2)."""

    def listing(self, path: str) -> AbstractContextManager[Listing]:
        """opendir(3), and closedir(3)."""


class _MountedListing:
    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._libc = ctypes.CDLL(None, use_errno=True)

    def some(self) -> list[Shown]:
        # Small, so that the kernel asks namefs to go on from the middle.
        buffer = ctypes.create_string_buffer(100)
        while True:
            size = self._libc.getdents64(self._fd, buffer, len(buffer))
            if size < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            found, at = [], 0
            while at < size:
                ino, _next, length, kind = struct.unpack_from("=QqHB", buffer, at)
                entry = os.fsdecode(buffer.raw[at + 19 : at + length].split(b"\0", 1)[0])
                at += length
                if entry not in (".", ".."):
                    found.append(Shown(entry, ino, kind << DT_SHIFT))
            if found or size == 0:
                return found

    def back(self) -> None:
        os.lseek(self._fd, 0, os.SEEK_SET)


class _MountedFile:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, count: int, offset: int) -> bytes:
        return os.pread(self._fd, count, offset)

    def stat(self) -> Found:
        return _found(os.fstat(self._fd))


def _found(info: os.stat_result) -> Found:
    return Found(info.st_ino, info.st_mode, info.st_size)


class ThroughTheKernel:
    """A real mount."""

    def __init__(self, mounted: Mounted) -> None:
        self._top = mounted.path

    def settle(self, names: Sequence[str]) -> None:
        def shown() -> bool:
            return sorted(e for e in os.listdir(self._top) if e[0] != ".") == sorted(names)

        until(shown, TIMEOUT_S, f"the view shows {names}")

    def stat(self, path: str) -> Found:
        return _found((self._top / path).lstat())

    def readlink(self, path: str) -> str:
        return os.readlink(self._top / path)

    def xattrs(self, path: str) -> dict[str, bytes]:
        place = self._top / path
        return {name: os.getxattr(place, name) for name in os.listxattr(place)}

    def unlink(self, path: str) -> None:
        (self._top / path).unlink()

    def mkdir(self, path: str) -> None:
        (self._top / path).mkdir()

    def open_to_write(self, path: str) -> None:
        os.close(os.open(self._top / path, os.O_WRONLY))

    @contextmanager
    def open(self, path: str) -> Iterator[_MountedFile]:
        fd = os.open(self._top / path, os.O_RDONLY)
        try:
            yield _MountedFile(fd)
        finally:
            os.close(fd)

    @contextmanager
    def listing(self, path: str) -> Iterator[_MountedListing]:
        fd = os.open(self._top / path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield _MountedListing(fd)
        finally:
            os.close(fd)


class Token:
    """Stands for pyfuse3's: takes a few entries, as a reply has a size. The kernel counts what it takes."""

    ROOM = 3

    def __init__(self) -> None:
        self.taken: list[tuple[bytes, pyfuse3.EntryAttributes, int]] = []

    def reply(self, entry: bytes, attrs: pyfuse3.EntryAttributes, position: int) -> bool:
        """pyfuse3.readdir_reply."""
        if len(self.taken) == self.ROOM:
            return False
        self.taken.append((entry, attrs, position))
        return True


class InProcess:
    """The handlers, called as pyfuse3 calls them, by something that counts look-ups as the kernel does."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._index = Index()
        places = for_uri(host.uri, root=str(host.root), home="/root", environ={}, uid=0)
        self._view = View({LABEL: places}.get)
        self.browser = Browser(self._view, Shelf(Backing("/nowhere")))
        self.operations = Operations(self._view, self.browser, self._rename, self._rename)
        self._context = None

    async def _rename(self, _old: Place, _new: Place) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    def call(self, handler: Callable[..., Coroutine[Any, Any, R]], *args: object) -> R:
        """Run one handler; what it raises becomes what a caller of the kernel gets."""
        try:
            return trio.run(handler, *args)
        except pyfuse3.FUSEError as error:
            raise OSError(error.errno, os.strerror(error.errno)) from error

    def forget(self, *numbers: int) -> None:
        """Give one look-up of each back."""
        trio.run(self.operations.forget, [(number, 1) for number in numbers])

    @contextmanager
    def _at(self, path: str) -> Iterator[Any]:
        """The attributes of what is at the path, known for as long as this lasts."""
        number, known = pyfuse3.ROOT_INODE, []
        attrs = self.call(self.operations.getattr, number, self._context)
        try:
            for entry in Path(path).parts:
                attrs = self.call(self.operations.lookup, number, os.fsencode(entry), self._context)
                number = attrs.st_ino
                known.append(number)
            yield attrs
        finally:
            self.forget(*known)

    def settle(self, names: Sequence[str]) -> None:
        start_events()
        with closing(Connection(self._host.uri, LABEL, lambda _uuid: None, lambda _why: None)) as connection:
            index = apply(self._view.index, [Listed(LABEL, connection.listed())], 1).index
        self._view.publish(index, 1)
        assert list(index.listings[b""]) == sorted(map(os.fsencode, names))

    def stat(self, path: str) -> Found:
        with self._at(path) as attrs:
            return Found(attrs.st_ino, attrs.st_mode, attrs.st_size)

    def readlink(self, path: str) -> str:
        with self._at(path) as attrs:
            return os.fsdecode(self.call(self.operations.readlink, attrs.st_ino, self._context))

    def xattrs(self, path: str) -> dict[str, bytes]:
        with self._at(path) as attrs:
            names = self.call(self.operations.listxattr, attrs.st_ino, self._context)
            return {
                os.fsdecode(name): self.call(self.operations.getxattr, attrs.st_ino, name, self._context)
                for name in names
            }

    def unlink(self, path: str) -> None:
        with self._at(str(Path(path).parent)) as attrs:
            self.call(self.operations.unlink, attrs.st_ino, os.fsencode(Path(path).name), self._context)

    def mkdir(self, path: str) -> None:
        with self._at(str(Path(path).parent)) as attrs:
            name = os.fsencode(Path(path).name)
            self.call(self.operations.mkdir, attrs.st_ino, name, 0o755, self._context)

    def open_to_write(self, path: str) -> None:
        with self._at(path) as attrs:
            self.call(self.operations.open, attrs.st_ino, os.O_WRONLY, self._context)

    @contextmanager
    def open(self, path: str) -> Iterator[_File]:
        with self._at(path) as attrs:
            handle = self.call(self.operations.open, attrs.st_ino, os.O_RDONLY, self._context).fh
            try:
                yield _File(self, attrs.st_ino, handle)
            finally:
                self.call(self.operations.release, handle)

    @contextmanager
    def listing(self, path: str) -> Iterator[_Listing]:
        with self._at(path) as attrs:
            handle = self.call(self.operations.opendir, attrs.st_ino, self._context)
            try:
                yield _Listing(self, handle)
            finally:
                self.call(self.operations.releasedir, handle)


class _File:
    def __init__(self, driver: InProcess, number: int, handle: int) -> None:
        self._driver, self._number, self._handle = driver, number, handle

    def read(self, count: int, offset: int) -> bytes:
        return self._driver.call(self._driver.operations.read, self._handle, offset, count)

    def stat(self) -> Found:
        attrs = self._driver.call(self._driver.operations.getattr, self._number, None)
        return Found(attrs.st_ino, attrs.st_mode, attrs.st_size)


class _Listing:
    def __init__(self, driver: InProcess, handle: int) -> None:
        self._driver, self._handle, self._position = driver, handle, 0

    def some(self) -> list[Shown]:
        while True:
            token = Token()
            self._driver.call(self._driver.operations.readdir, self._handle, self._position, token)
            found = [
                Shown(os.fsdecode(entry), attrs.st_ino, stat.S_IFMT(attrs.st_mode))
                for entry, attrs, _ in token.taken
                if entry not in (b".", b"..")
            ]
            self._driver.forget(*(one.ino for one in found))
            if token.taken:
                self._position = token.taken[-1][2]
            if found or not token.taken:
                return found

    def back(self) -> None:
        self._position = 0
