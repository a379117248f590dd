"""What a domain's directory holds right now: the layout's rules, looked up among the files that are there.

Everything here may block on a disk and is called in threads; it changes nothing but its own cache.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from namefs import images, logs, naming
from namefs.layout import libvirt as layout
from namefs.layout.libvirt import Artefact, Kind
from namefs.model import Former, Mark, Record
from namefs.scans import Scans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from uuid import UUID

    from namefs.backing import Backing, Directory
    from namefs.index import Index
    from namefs.layout.directories import Directories
    from namefs.logs import Extent
    from namefs.model import Key

_WHOLE: tuple[Extent, ...] = ((0, None),)


@dataclass(frozen=True, slots=True)
class Guest:
    """A domain as a request sees it: one moment of the index, and where its connection's files lie."""

    record: Record
    places: Directories | None
    former: tuple[Former, ...]
    index: Index

    @property
    def former_names(self) -> tuple[str, ...]:
        """The libvirt names it had before and has no more, the latest last."""
        names = dict.fromkeys(f.name for f in self.former)
        names.pop(self.record.domain.name, None)
        return tuple(names)

    def has_left(self, name: str) -> bool:
        """Whether a file called by this name can only be the guest's: nobody has had the name since.

        No name: the file's place does not depend on one.
        """
        holders, current = self.holders_of(name)
        return not name or (current is None and bool(holders) and holders[-1][0] == self.record.key)

    def holders_of(self, name: str) -> tuple[tuple[tuple[Key, Former], ...], Key | None]:
        """Who had a libvirt name before, oldest first, and who has it now on the guest's connection."""
        connection = self.record.domain.connection
        return self.index.holders.get(name, ()), self.index.by_name.get((connection, name))


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
        b"user.namefs.former_names": b"\n".join(map(layout.bytes_of, guest.former_names)),
    }


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of a domain's directory and what is behind it.

    ``target`` is set for symlinks. ``extents`` are the parts of the file that are the domain's;
    None means all of it. ``info`` is of the real file, which a symlink is as old as.
    """

    subdir: bytes
    entry: bytes
    path: str
    artefact: Artefact
    file: bytes
    info: os.stat_result | None = None
    mode: int = 0
    target: bytes | None = None
    extents: tuple[Extent, ...] | None = None
    head: UUID | None = None
    """Who owns what precedes the first start in a QEMU log."""

    @property
    def size_bytes(self) -> int:
        """The size that the view shows."""
        if self.target is not None or self.info is None:
            return len(self.target or b"")
        return self.info.st_size if self.extents is None else logs.length(self.extents, self.info.st_size)


class Shelf:
    """Finds the items of guests; thread-safe."""

    def __init__(self, backing: Backing) -> None:
        self.backing = backing
        self._scans = Scans()

    def items(self, guest: Guest, subdir: bytes) -> list[Item]:
        """All that is there in one subdirectory (`layout.TOP`: of the directory itself), by entry."""
        if guest.places is None:
            return []
        found: dict[bytes, Item] = {}
        names = guest.former_names
        for artefact in layout.artefacts(guest.record.domain, names, guest.places, subdir):
            for item in self._present(guest, artefact):
                # The present name's file comes first, and is not hidden by one of a former name.
                found.setdefault(item.entry, item)
        if subdir == b"log":
            found = _with_main_log(found, guest.record.domain.name)
        return [found[entry] for entry in sorted(found)]

    def item(self, guest: Guest, subdir: bytes, entry: bytes) -> Item | None:
        """The item of that entry, if it is there."""
        if guest.places is None:
            return None
        names = guest.former_names
        try:
            name = naming.decode(entry)
        except naming.NotAnEntry:
            name = None
        if name is None or (subdir == b"log" and names):
            # Shortened, so that it tells nothing; or a log, whose entry depends on what others there are.
            return next((item for item in self.items(guest, subdir) if item.entry == entry), None)
        for artefact in layout.artefacts(guest.record.domain, names, guest.places, subdir):
            if artefact.may_show(name):
                for item in self._present(guest, artefact):
                    if item.entry == entry:
                        return item
        return None

    def holds_any(self, guest: Guest, subdir: bytes) -> bool:
        """Whether there is anything in the subdirectory."""
        if guest.places is None:
            return False
        found = layout.artefacts(guest.record.domain, guest.former_names, guest.places, subdir)
        return any(True for artefact in found for _ in self._present(guest, artefact))

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
            for artefact in layout.artefacts(guest.record.domain, (), guest.places, subdir):
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
        info = os.fstat(fd)
        extents = self._extents(
            guest, item.artefact, item.file, info, item.head, lambda: self._scans.starts(fd, info)
        )
        return replace(item, info=info, extents=None if extents == _WHOLE else extents)

    def read(self, guest: Guest, item: Item, fd: int, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes at ``offset`` of what the view shows of an open file."""
        if item.artefact.kind is Kind.FILE:
            return os.pread(fd, count, offset)
        item = self.refreshed(guest, item, fd)
        pieces = logs.locate(item.extents if item.extents is not None else _WHOLE, offset, count)
        return b"".join(os.pread(fd, size, at) for at, size in pieces)

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

    def measure(self, places: Directories | None, record: Record) -> tuple[Mark, ...]:
        """How long the logs under a domain's libvirt name are now, to be kept when it loses the name."""
        if places is None:
            return ()
        marks = []
        for artefact in layout.artefacts(record.domain, (), places, b"log"):
            if artefact.kind in (Kind.QEMU_LOG, Kind.NAMED_LOG):
                marks += [_mark(info) for _, _, info, _ in self._files(artefact)]
        return tuple(marks)

    def _files(self, artefact: Artefact) -> Iterator[tuple[Directory, bytes, os.stat_result, str]]:
        with self.backing.directory(artefact.base, artefact.below) as directory:
            if directory is None:
                return
            if isinstance(artefact.file, bytes):
                files = [(artefact.file, artefact.entry)]
            else:
                files = []
                for entry in self.backing.starting_with(directory, artefact.prefix):
                    if (groups := artefact.groups_of(entry)) is not None:
                        files.append((entry, artefact.shown_as(groups)))
            for file, shown in files:
                if (info := self.backing.stat(directory, file)) is not None:
                    yield directory, file, info, shown

    def _present(self, guest: Guest, artefact: Artefact) -> Iterator[Item]:
        for directory, file, info, shown in self._files(artefact):
            path = os.path.join(directory.path, os.fsdecode(file))
            item = Item(artefact.subdir, naming.encode(shown), path, artefact, file, info)
            regular = stat.S_ISREG(info.st_mode)
            if artefact.kind is Kind.IMAGE:
                yield replace(item, target=os.fsencode(path))
                yield from self._chain(guest.places, item, directory)
            elif artefact.kind is Kind.PROCESS:
                yield from self._process(item, directory)
            elif artefact.kind is Kind.MONITOR:
                yield from self._monitor(guest, item, directory)
            elif artefact.kind is Kind.LINK or not regular:
                if not stat.S_ISDIR(info.st_mode):
                    # Not ours to open: a socket, a FIFO, a device, a symlink. Who follows the link
                    # meets it with their own rights.
                    yield replace(item, target=os.fsencode(path))
            else:
                yield from self._lines(guest, item, directory, info)

    def _lines(self, guest: Guest, item: Item, directory: Directory, info: os.stat_result) -> Iterator[Item]:
        artefact, file, head = item.artefact, item.file, None

        def starts() -> tuple[logs.Start, ...]:
            return self._starts_of(directory, file, info)

        if artefact.kind is Kind.QEMU_LOG and not _packed(file):
            found = starts()
            if not found or found[0].offset > 0:
                head = self._head_owner(guest, artefact, directory, file, info)
        extents = self._extents(guest, artefact, file, info, head, starts)
        if extents:
            mode = self.backing.mode(directory, file, info)
            yield replace(item, mode=mode, extents=None if extents == _WHOLE else extents, head=head)

    def _chain(self, places: Directories | None, item: Item, directory: Directory) -> Iterator[Item]:
        artefact = item.artefact
        if artefact.backing is not None:
            chain: Iterable[str] = artefact.backing
        elif artefact.image_format == "qcow2":
            translate = str if places is None else places.translate
            chain = images.chain(self.backing, directory, item.file, translate)
        else:
            # A guest can write any header into an image that is raw.
            chain = ()
        for number, path in enumerate(chain, start=1):
            entry = naming.encode(f"{item.artefact.entry}.backing{number}")
            yield replace(item, entry=entry, path=path, target=os.fsencode(path))

    def _process(self, item: Item, directory: Directory) -> Iterator[Item]:
        text = self.backing.read_small(directory, item.file, 32) or b""
        with suppress(ValueError):
            target = f"/proc/{int(text)}"
            if os.path.isdir(target):
                yield replace(item, path=target, target=target.encode())

    def _monitor(self, guest: Guest, item: Item, directory: Directory) -> Iterator[Item]:
        # Here, since `namefs list` without a daemon must not wait 11 ms for an XML parser.
        from namefs import domxml

        with suppress(domxml.NotADomain):
            status = domxml.parse_status(self.backing.read_small(directory, item.file) or b"")
            if (
                status.monitor is not None
                and status.uuid == guest.record.key.uuid
                and guest.places is not None
            ):
                path = guest.places.translate(status.monitor)
                base, entry = os.path.split(path)
                with self.backing.directory(base) as at:
                    if at is not None and self.backing.stat(at, os.fsencode(entry)) is not None:
                        yield replace(item, path=path, target=os.fsencode(path))

    def _extents(
        self,
        guest: Guest,
        artefact: Artefact,
        file: bytes,
        info: os.stat_result,
        head: UUID | None,
        starts: Callable[[], tuple[logs.Start, ...]],
    ) -> tuple[Extent, ...]:
        if artefact.kind is Kind.FILE:
            return _WHOLE if guest.has_left(artefact.name) else ()
        uuid = guest.record.key.uuid
        if artefact.kind is Kind.QEMU_LOG and not _packed(file):
            return logs.owned(starts(), uuid, head)
        return logs.by_marks(_mark(info), *guest.holders_of(artefact.name), uuid)

    def _head_owner(
        self, guest: Guest, artefact: Artefact, directory: Directory, file: bytes, info: os.stat_result
    ) -> UUID | None:
        """Whose the lines before the first start are: they go on from the next older piece, if any."""
        for older in _older_pieces(artefact, file):
            if (older_info := self.backing.stat(directory, older)) is None:
                if older.endswith(b".0"):
                    # logrotate counts from 1.
                    continue
                break
            starts = self._starts_of(directory, older, older_info)
            if starts and starts[-1].uuid is not None:
                return starts[-1].uuid
        return logs.head_owner(_mark(info), *guest.holders_of(artefact.name))

    def _starts_of(self, directory: Directory, file: bytes, info: os.stat_result) -> tuple[logs.Start, ...]:
        known = self._scans.known(info)
        if known is not None:
            return known
        fd = self.backing.open(directory, file)
        try:
            return self._scans.starts(fd, os.fstat(fd))
        finally:
            os.close(fd)


def _older_pieces(artefact: Artefact, file: bytes) -> Iterator[bytes]:
    """The entries of the older pieces of a log, the next older first (virtlogd's numbers grow with age)."""
    rotation = (artefact.groups_of(file) or {}).get("rotation", b"")
    stem = file[: len(file) - len(rotation)]
    if not rotation or rotation[1:].isdigit():
        first = int(rotation[1:]) + 1 if rotation else 0
        for number in range(first, first + 100):
            yield stem + b".%d" % number


def _mark(info: os.stat_result) -> Mark:
    return Mark(info.st_dev, info.st_ino, info.st_size)


def _packed(file: bytes) -> bool:
    return file.endswith((b".gz", b".xz", b".bz2", b".zst"))


def _with_main_log(found: dict[bytes, Item], name: str) -> dict[bytes, Item]:
    """``qemu.log`` is the domain's newest log, under whichever name libvirt wrote it.

    Right after a rename the log of the new name does not exist: until the next start the old name's
    is the domain's own, and whoever follows ``log/qemu.log`` goes on in it.
    """
    former = [
        i.artefact for i in found.values() if i.artefact.kind is Kind.QEMU_LOG and i.artefact.name != name
    ]
    if b"qemu.log" in found or not former:
        return found
    # The layout names the latest former name first.
    at = naming.encode(f"qemu@{former[0].name}.log")
    shown: dict[bytes, Item] = {}
    for entry, item in found.items():
        if item.artefact is former[0] and entry.startswith(at):
            entry = b"qemu.log" + entry[len(at) :]
        shown.setdefault(entry, replace(item, entry=entry))
    return shown
