"""The log of a guest's whole life as files: the log, its older part, and where its bytes came from.

Nothing here is undone by a kill: what tells of a file or of a run of bytes is on the disk before these are.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from namefs import lifelog
from namefs.layout.artefact import bytes_of
from namefs.layout.store import OLDER
from namefs.lifelog import Origins

if TYPE_CHECKING:
    from collections.abc import Iterator

    from namefs.lifelog import Run

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o600
"""As libvirt makes its own."""


class LifeFile:
    """The log called ``name`` in a directory. Its methods block, and are not to be called by two at once.

    More than ``keep_bytes`` of it (0: no limit) begin a new part, and only one older part is kept.
    """

    def __init__(self, directory: str, name: str, keep_bytes: int) -> None:
        self._directory = directory
        self._name = bytes_of(name)
        self._keep_bytes = keep_bytes
        self._draft = b"." + self._name + b".new"
        self._origins_file = b"." + self._name + b".origins"
        self.origins = Origins()
        self._ino = 0
        self._base = 0
        self._size = 0

    @property
    def end(self) -> int:
        """Where the life ends by now."""
        return self._base + self._size

    @property
    def exists(self) -> bool:
        """Whether there is any of it."""
        return self._ino != 0

    def is_as_loaded(self) -> bool:
        """Whether nobody has changed the log since: costs one stat(2)."""
        try:
            info = os.lstat(os.path.join(os.fsencode(self._directory), self._name))
        except OSError:
            return False
        return (info.st_ino, info.st_size) == (self._ino, self._size)

    @property
    def first(self) -> int:
        """The first position of which the bytes are still there."""
        with suppress(FileNotFoundError), self._opened() as at:
            older = os.lstat(self._name + OLDER, dir_fd=at)
            base = self.origins.base(older.st_ino)
            if base + older.st_size == self._base:
                return base
        return self._base

    def load(self, *, repair: bool = True) -> None:
        """Read how things stand, and, unless told otherwise, finish what a kill interrupted."""
        self.origins, self._ino, self._base, self._size = Origins(), 0, 0, 0
        with suppress(FileNotFoundError), self._opened() as at:
            self.origins = self._read_origins(at, repair)
            info = self._part(at)
            if info is None and repair and self._is_whole(at):
                os.rename(self._draft, self._name, src_dir_fd=at, dst_dir_fd=at)
                info = self._part(at)
            if info is not None:
                self._ino, self._size = info.st_ino, info.st_size
                self._base = self.origins.base(info.st_ino)
            standing = self.origins.until(self.end)
            if standing != self.origins and repair:
                self._write_origins(at, standing)
            self.origins = standing

    def make(self) -> None:
        """Begin the log, if there is none yet."""
        if not self._ino:
            with self._opened(make=True) as at:
                self._begin_part(at)

    def begin(self, run: Run) -> None:
        """Note from where the bytes come that are appended next; on the disk when this returns."""
        self.make()
        with self._opened() as at:
            flags = os.O_WRONLY | os.O_APPEND | _FILE
            fd = os.open(self._origins_file, flags, dir_fd=at)
            try:
                _write(fd, lifelog.line_of_run(run))
                os.fdatasync(fd)
            finally:
                os.close(fd)
        self.origins = Origins(self.origins.files, (*self.origins.runs, run))

    def append(self, data: bytes) -> None:
        """Append bytes of the run that was begun last."""
        with self._opened() as at:
            while data:
                room = len(data)
                if self._keep_bytes:
                    if self._size >= self._keep_bytes:
                        self._begin_part(at)
                    room = self._keep_bytes - self._size
                # Whole lines, if there are any: nobody wants one in two files.
                count = len(data) if len(data) <= room else data.rfind(b"\n", 0, room) + 1
                if not count:
                    count = min(len(data), data.find(b"\n") + 1 or room)
                piece, data = data[:count], data[count:]
                self._append(at, piece)
                if self._keep_bytes and data:
                    self._begin_part(at)

    def kept(self, begin: int, end: int) -> bytes | None:
        """The life's bytes between two positions; None if they are there no more."""
        with suppress(FileNotFoundError), self._opened() as at:
            if begin >= self._base:
                return _read(at, self._name, begin - self._base, end - begin)
            base = self.first
            if base <= begin:
                head = _read(at, self._name + OLDER, begin - base, min(end, self._base) - begin)
                return head + (_read(at, self._name, 0, end - self._base) if end > self._base else b"")
        return None

    def sync(self) -> None:
        """Have all of it on the disk."""
        with self._opened() as at:
            fd = os.open(self._name, os.O_RDONLY | _FILE, dir_fd=at)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            os.fsync(at)

    def _append(self, at: int, data: bytes) -> None:
        fd = os.open(self._name, os.O_WRONLY | os.O_APPEND | _FILE, dir_fd=at)
        try:
            _write(fd, data)
        finally:
            self._size = os.fstat(fd).st_size
            os.close(fd)

    def _begin_part(self, at: int) -> None:
        """Begin a part, the first or the next; the one before it becomes the older part."""
        with suppress(FileNotFoundError):
            os.unlink(self._draft, dir_fd=at)
        fd = os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, _MODE, dir_fd=at)
        try:
            os.fsync(fd)
            ino = os.fstat(fd).st_ino
        finally:
            os.close(fd)
        shortened = self.origins.shortened()
        self._write_origins(at, Origins((*shortened.files, (self.end, ino)), shortened.runs))
        if self._ino:
            os.rename(self._name, self._name + OLDER, src_dir_fd=at, dst_dir_fd=at)
        os.rename(self._draft, self._name, src_dir_fd=at, dst_dir_fd=at)
        os.fsync(at)
        self._ino, self._base, self._size = ino, self.end, 0

    def _write_origins(self, at: int, origins: Origins) -> None:
        draft = self._origins_file + b".new"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FILE, _MODE, dir_fd=at)
        try:
            _write(fd, origins.text())
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(draft, self._origins_file, src_dir_fd=at, dst_dir_fd=at)
        os.fsync(at)
        self.origins = origins

    def _read_origins(self, at: int, repair: bool) -> Origins:
        try:
            fd = os.open(self._origins_file, os.O_RDONLY | _FILE, dir_fd=at)
        except FileNotFoundError:
            return Origins()
        with os.fdopen(fd, "rb") as file:
            text = file.read()
        origins = lifelog.parse(text)
        if repair and text and not text.endswith(b"\n"):
            self._write_origins(at, origins)
        return origins

    def _part(self, at: int) -> os.stat_result | None:
        with suppress(FileNotFoundError):
            return os.lstat(self._name, dir_fd=at)
        return None

    def _is_whole(self, at: int) -> bool:
        """Whether a new part was ready and only its name was not yet given to it."""
        with suppress(FileNotFoundError):
            ino = os.lstat(self._draft, dir_fd=at).st_ino
            return any(one == ino for _at, one in self.origins.files)
        return False

    @contextmanager
    def _opened(self, make: bool = False) -> Iterator[int]:
        if make and not os.path.isdir(self._directory):
            os.makedirs(self._directory, exist_ok=True)
        at = os.open(self._directory, _DIRECTORY)
        try:
            yield at
        finally:
            os.close(at)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _read(at: int, name: bytes, offset: int, count: int) -> bytes:
    fd = os.open(name, os.O_RDONLY | _FILE, dir_fd=at)
    try:
        return os.pread(fd, count, offset)
    finally:
        os.close(fd)
