"""What the steps do with files: each gets its new place, and later leaves the old one, or the reverse."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from namefs.adoption import files
from namefs.adoption.definition import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import ExitStack

    from namefs.adoption.files import Progress
    from namefs.adoption.plan import Move, Present
    from namefs.adoption.survey import Site

_DIRECTORY_MODE = 0o711
"""Of the store, of each guest's directory in it and of those below. Search for all: QEMU, swtpm and
virtiofsd run as users of their own and open by path what libvirt has given them (its DAC labelling
changes owners of files, never of directories). Listing for root alone, as names of devices and
images are nobody else's business. As of /var/lib/libvirt/images."""


class Placing:
    """Moves files of one guest.

    ``again``: an interrupted run may have done any of it before. ``orphaned``: libvirt has no such guest
    any more. ``copied`` is called as `files.copy` says.
    """

    def __init__(self, site: Site, copied: Progress) -> None:
        self._site = site
        self._copied = copied
        self.again = False
        self.orphaned = False

    def make(self, path: str) -> None:
        """Make a directory of the store, as it has to be; leave one that is there as it is."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            os.mkdir(path)
        except FileExistsError:
            return
        os.chmod(path, _DIRECTORY_MODE)
        if os.path.basename(path) == Kind.SOCKET.value:
            # QEMU makes graphics sockets by itself, and is nobody's but its user's. That user owns
            # libvirt's own directory: libvirt sees to it whenever it starts (qemu_driver.c).
            owner = os.stat(self._site.places.lib)
            os.chown(path, owner.st_uid, owner.st_gid)
        files.sync_directory(path)

    def lock(self, moves: Iterable[Move], locks: ExitStack) -> None:
        """Keep QEMU from opening the images among the files, until ``locks`` is closed."""
        for move in moves:
            if move.kind in (Kind.DISK, Kind.NVRAM):
                locks.enter_context(files.locked(self._site.here(move.source)))

    def place(self, move: Move) -> None:
        """Give the file the new name, or make it a copy of that name."""
        assert move.file is not None
        source, target = self._site.here(move.source), self._site.here(move.target)
        if self.again and (files.look(target) is not None or files.look(source) is None):
            return
        if move.copied:
            files.copy(move.file, source, target, self._copied)
        else:
            files.link(move.file, source, target)

    def leave(self, move: Move) -> None:
        """Remove the old name, where the file has the new one, or the copy is like it."""
        assert move.file is not None
        source, target = self._site.here(move.source), self._site.here(move.target)
        files.remove(files.draft_of(target))
        now = files.look(source)
        if now is None or (now.dev, now.ino) != (move.file.dev, move.file.ino):
            return
        changed = (now.size_bytes, now.mtime_ns) != (move.file.size_bytes, move.file.mtime_ns)
        if files.look(target) is None or (changed if move.copied else now.links < 2):
            raise files.Changed(errno.ESTALE, f"it is not the same as {target}: remove one of them", source)
        files.remove(source)

    def unplace(self, move: Move) -> None:
        """Remove the new name, where the file still has the old one."""
        assert move.file is not None
        source, target = self._site.here(move.source), self._site.here(move.target)
        if os.path.isdir(os.path.dirname(target)):
            files.remove(files.draft_of(target))
        old, new = files.look(source), files.look(target)
        if new is None or not _is_of(move, new):
            return
        if old is None:
            if self.orphaned:
                # Its guest is gone, and so this is the one place left where it is looked for.
                return
            files.link(new, target, source)
        files.remove(target)


def _is_of(move: Move, new: Present) -> bool:
    """Whether what is at the new path was put there for the move: nothing was when it was planned."""
    assert move.file is not None
    if move.copied:
        return (new.size_bytes, new.mtime_ns, new.what) == (move.file.size_bytes, move.file.mtime_ns, "")
    return (new.dev, new.ino) == (move.file.dev, move.file.ino)


def remove_socket(path: str) -> None:
    """Remove the socket that QEMU left behind, as it does with those that it makes by itself."""
    file = files.look(path)
    if file is not None and file.what == files.SOCKET:
        files.remove(path)


def remove_if_empty(path: str) -> None:
    """Remove a directory, if nothing is in it."""
    try:
        os.rmdir(path)
    except OSError as error:
        # In use as a mount point: the administrator's, like what is in it.
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
            raise
