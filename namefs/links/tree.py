"""Writing the tree: a reader sees the old or the new, and nothing of anybody else's goes.

A guest's directory is built aside and renamed into place; a guest that is renamed is one rename(2), two that
change names one renameat2(2); a symlink is replaced by rename(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING

from namefs.errors import ExitCode, NamefsError
from namefs.layout.artefact import str_of
from namefs.links import owned
from namefs.links.owned import MARKER, Marked
from namefs.links.wanted import Exchange, moves, parents, possible

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from namefs.links.wanted import Tree

_ASIDE = b".namefs-aside"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class Writer:
    """Keeps the tree in one directory, which is empty or such a tree already. Everything blocks.

    Raises NamefsError: USAGE for another directory, FILE_FAILED.
    """

    def __init__(self, directory: str) -> None:
        self._directory = os.fsencode(directory)
        self._made: dict[str, bytes] = {}
        self._marked: dict[str, Marked] = {}
        self._groups: set[bytes] = set()
        try:
            os.makedirs(self._directory, exist_ok=True)
            if owned.read(self._directory) is None:
                self._begin()
        except OSError as error:
            raise self._failed(error) from error

    def write(self, trees: Mapping[str, Tree]) -> int:
        """Make the directory hold these guests. Returns how many files were changed; 0: it was so already.

        What has something of somebody's in its way is left out, and all else made, before that is raised
        as NamefsError (FILE_FAILED).
        """
        try:
            changed, blocked = self._write(trees)
        except OSError as error:
            raise self._failed(error) from error
        if blocked:
            where = os.path.join(self._directory, min(blocked))
            others = f" (and {len(blocked) - 1} others)" if len(blocked) > 1 else ""
            what = f"{str_of(where)}{others} is not namefs's own, and in the way: move it elsewhere"
            raise NamefsError(ExitCode.FILE_FAILED, what)
        return changed

    def _failed(self, error: OSError) -> NamefsError:
        where = os.fsdecode(error.filename or self._directory)
        return NamefsError(ExitCode.FILE_FAILED, f"{where}: {error.strerror}")

    def _begin(self) -> None:
        if set(os.listdir(self._directory)) - {MARKER}:
            what = "is not empty and holds no tree of namefs's: give it a directory of its own"
            raise NamefsError(ExitCode.USAGE, f"{str_of(self._directory)} {what}")
        owned.write(self._directory, Marked())

    def _write(self, trees: Mapping[str, Tree]) -> tuple[int, list[bytes]]:
        self._scan(trees)
        self._clear_aside()
        changed = self._make_room(trees)
        wanted = possible(self._made, {guest: tree.path for guest, tree in trees.items()}, self._is_others)
        for group in parents(wanted.values()):
            changed += self._make_group(group)
        for step in moves(self._made, wanted):
            if isinstance(step, Exchange):
                self._exchange(self._at(step.one), self._at(step.other))
            else:
                os.rename(self._at(step.old), self._at(step.new))
            changed += 1
        blocked = [tree.path for guest, tree in trees.items() if wanted.get(guest) != tree.path]
        for guest, path in wanted.items():
            links = trees[guest].links
            if guest in self._made:
                count, in_the_way = owned.update(self._at(path), self._marked[guest], links)
                changed += count
                blocked += [os.path.join(path, one) for one in in_the_way]
            else:
                changed += self._build(guest, path, links)
        return changed + self._remove_groups(wanted.values()), blocked

    def _make_room(self, trees: Mapping[str, Tree]) -> int:
        """Remove guests that are gone, and those whose place becomes a group's, or their group's a guest's.

        These are made anew at their new places.
        """
        places = {tree.path for tree in trees.values()}
        groups = set(parents(places))
        due = [
            guest
            for guest, path in self._made.items()
            if guest not in trees or path in groups or not places.isdisjoint(parents([path]))
        ]
        return sum(map(self._remove, due)) + self._remove_groups([*places, *self._made.values()])

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self._directory, path)

    def _scan(self, trees: Mapping[str, Tree]) -> None:
        """Find what is namefs's. Of a directory that somebody copied, the one in its place counts."""
        self._made, self._marked, self._groups = {}, {}, set()
        due = [b""]
        while due:
            parent = due.pop()
            for entry in sorted(os.listdir(self._at(parent))):
                path = os.path.join(parent, entry)
                marked = None if entry == _ASIDE else owned.read(self._at(path))
                if marked is None:
                    continue
                guest = marked.guest
                if not guest:
                    if not parent:
                        self._groups.add(path)
                        due.append(path)
                elif guest not in self._made or (guest in trees and trees[guest].path == path):
                    self._made[guest], self._marked[guest] = path, marked

    def _is_others(self, path: bytes) -> bool:
        """Whether what is there, or where its group is to be, is not namefs's."""
        for group in parents([path]):
            if os.path.lexists(self._at(group)) and group not in self._groups:
                return True
        return os.path.lexists(self._at(path)) and path not in self._made.values()

    def _make_group(self, group: bytes) -> int:
        if group in self._groups:
            return 0
        self._new_aside(Marked())
        os.rename(self._at(_ASIDE), self._at(group))
        self._groups.add(group)
        return 1

    def _build(self, guest: str, path: bytes, links: Mapping[bytes, bytes]) -> int:
        self._new_aside(marked := Marked(guest))
        owned.update(self._at(_ASIDE), marked, links)
        os.rename(self._at(_ASIDE), self._at(path))
        return 1 + len(links)

    def _remove(self, guest: str) -> int:
        path, marked = self._made.pop(guest), self._marked.pop(guest)
        if owned.holds_only(self._at(path), marked):
            self._remove_aside(path, marked)
        else:
            owned.dismantle(self._at(path), marked)
        return 1

    def _remove_groups(self, paths: Iterable[bytes]) -> int:
        """Remove those in which none of the paths is, nor anything else."""
        empty = [g for g in self._groups - set(parents(paths)) if owned.holds_only(self._at(g), Marked())]
        self._groups -= set(empty)
        for group in empty:
            self._remove_aside(group, Marked())
        return len(empty)

    def _remove_aside(self, path: bytes, marked: Marked) -> None:
        # Out of sight at once; what a kill leaves there is known to be namefs's without a mark.
        os.rename(self._at(path), self._at(_ASIDE))
        owned.dismantle(self._at(_ASIDE), marked)

    def _new_aside(self, marked: Marked) -> None:
        os.mkdir(self._at(_ASIDE))
        owned.write(self._at(_ASIDE), marked)

    def _clear_aside(self) -> None:
        """Remove what a kill has left there."""
        aside = self._at(_ASIDE)
        if os.path.lexists(aside) and not owned.dismantle(aside, owned.read(aside) or Marked()):
            raise FileExistsError(errno.EEXIST, "is in the way: move it elsewhere", aside)

    def _exchange(self, one: bytes, other: bytes) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE) == 0:
            return
        number = ctypes.get_errno()
        if number not in _NO_EXCHANGE:
            raise OSError(number, os.strerror(number), one)
        # NFS, for one, has no exchange: both names are free for a moment, and none is ever another's.
        aside = self._at(_ASIDE)
        os.rename(one, aside)
        os.rename(other, one)
        os.rename(aside, other)
