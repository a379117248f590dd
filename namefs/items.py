"""The entries of a domain's directory: each artefact that is there, and what a link to it leads to.

Everything here may block on a disk and is called in threads; it changes nothing.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from namefs import images, logs, naming
from namefs.layout.artefact import Artefact, Kind
from namefs.pieces import NAMED, WHOLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from uuid import UUID

    from namefs.backing import Directory
    from namefs.guest import Guest
    from namefs.layout.directories import Directories
    from namefs.logs import Extent
    from namefs.pieces import Pieces


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


class Items:
    """Finds what an artefact is at the moment; thread-safe."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._backing = pieces.backing

    def present(self, guest: Guest, artefact: Artefact) -> Iterator[Item]:
        """The entries that the artefact has in the guest's directory; none if it is not there."""
        try:
            yield from self._found(guest, artefact)
        except PermissionError:
            # On a network file system that trusts no root, or in another user's directory: nobody can tell
            # whether it is there. The definition says so, and the guest's other disks are not to go with it.
            if artefact.kind is not Kind.IMAGE or not isinstance(artefact.file, bytes):
                raise
            path = os.path.join(artefact.directory, os.fsdecode(artefact.file))
            entry = naming.encode(artefact.entry)
            yield Item(artefact.subdir, entry, path, artefact, artefact.file, target=os.fsencode(path))

    def _found(self, guest: Guest, artefact: Artefact) -> Iterator[Item]:
        with self._backing.directory(artefact.base, artefact.below) as directory:
            if directory is None:
                return
            if artefact.kind in NAMED:
                yield from self._lines(guest, artefact, directory)
            for file, groups, info in self._pieces.files(directory, artefact):
                if artefact.kind not in NAMED or not stat.S_ISREG(info.st_mode):
                    item = _item(artefact, directory, file, groups, info)
                    yield from self._items_of(guest, item, directory, info)

    def _items_of(
        self, guest: Guest, item: Item, directory: Directory, info: os.stat_result
    ) -> Iterator[Item]:
        kind, linked = item.artefact.kind, replace(item, target=os.fsencode(item.path))
        if kind is Kind.IMAGE:
            yield linked
            with suppress(PermissionError):
                yield from self._chain(guest.places, item, directory)
        elif kind is Kind.PROCESS:
            yield from self._process(item, directory)
        elif kind is Kind.MONITOR:
            yield from self._monitor(guest, item, directory)
        elif kind is Kind.DIRECTORY:
            if stat.S_ISDIR(info.st_mode):
                yield linked
        elif kind is Kind.LINK or not stat.S_ISREG(info.st_mode):
            if not stat.S_ISDIR(info.st_mode):
                # Not ours to open: a socket, a FIFO, a device, a symlink. Who follows the link
                # meets it with their own rights.
                yield linked
        elif guest.has_left(item.artefact.name):
            yield replace(item, mode=self._backing.mode(directory, item.file, info))

    def _lines(self, guest: Guest, artefact: Artefact, directory: Directory) -> Iterator[Item]:
        for piece in self._pieces.lines(guest, artefact, directory):
            item = _item(artefact, directory, piece.file, piece.groups, piece.info)
            extents = None if piece.is_packed or piece.extents == WHOLE else piece.extents
            mode = self._backing.mode(directory, piece.file, piece.info)
            yield replace(item, mode=mode, extents=extents, head=piece.head)

    def _chain(self, places: Directories | None, item: Item, directory: Directory) -> Iterator[Item]:
        artefact = item.artefact
        if artefact.backing is not None:
            chain: Iterable[str] = artefact.backing
        elif artefact.image_format == "qcow2":
            translate = str if places is None else places.translate
            chain = images.chain(self._backing, directory, item.file, translate)
        else:
            # A guest can write any header into an image that is raw.
            chain = ()
        for number, path in enumerate(chain, start=1):
            entry = naming.encode(f"{item.artefact.entry}.backing{number}")
            yield replace(item, entry=entry, path=path, target=os.fsencode(path))

    def _process(self, item: Item, directory: Directory) -> Iterator[Item]:
        text = self._backing.read_small(directory, item.file, 32) or b""
        with suppress(ValueError):
            target = f"/proc/{int(text)}"
            if os.path.isdir(target):
                yield replace(item, path=target, target=target.encode())

    def _monitor(self, guest: Guest, item: Item, directory: Directory) -> Iterator[Item]:
        # Here, since `namefs list` without a daemon must not wait 11 ms for an XML parser.
        from namefs import domxml

        with suppress(domxml.NotADomain):
            status = domxml.parse_status(self._backing.read_small(directory, item.file) or b"")
            if (
                status.monitor is not None
                and status.uuid == guest.record.key.uuid
                and guest.places is not None
            ):
                path = guest.places.translate(status.monitor)
                base, entry = os.path.split(path)
                with self._backing.directory(base) as at:
                    if at is not None and self._backing.stat(at, os.fsencode(entry)) is not None:
                        yield replace(item, path=path, target=os.fsencode(path))


def _item(
    artefact: Artefact, directory: Directory, file: bytes, groups: dict[str, bytes], info: os.stat_result
) -> Item:
    path = os.path.join(directory.path, os.fsdecode(file))
    return Item(artefact.subdir, naming.encode(artefact.shown_as(groups)), path, artefact, file, info)


def identity(item: Item) -> tuple[int, int]:
    """Device and inode of the file behind it."""
    return (0, 0) if item.info is None else (item.info.st_dev, item.info.st_ino)


def with_main_log(found: dict[bytes, Item], name: str) -> dict[bytes, Item]:
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
