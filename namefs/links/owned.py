"""Directories of namefs's own in a tree of links. A file in each says whose it is and which links are in it.

So a rename(2) takes along what is known of a directory, and whatever else somebody puts there is theirs.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from namefs.layout.artefact import bytes_of, str_of
from namefs.links.wanted import parents

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MARKER = b".namefs-links"
"""In the root of the tree, in each group's directory and in each guest's."""

_DRAFT = b".namefs-links.new"
_LINK_DRAFT = b".namefs-links.link"


@dataclass(frozen=True, slots=True)
class Marked:
    """What the file says: the guest, "" in a directory of guests; and the symlinks that namefs made there."""

    guest: str = ""
    links: frozenset[bytes] = frozenset()


def read(directory: bytes) -> Marked | None:
    """Whose the directory is; None if it is not namefs's, or not a directory. Raises OSError."""
    if not _is_directory(directory):
        return None
    try:
        with open(os.path.join(directory, MARKER), encoding="ascii") as file:
            said = json.load(file)
        return Marked(str(said["guest"]), frozenset(map(bytes_of, said["links"])))
    except (FileNotFoundError, PermissionError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write(directory: bytes, marked: Marked) -> None:
    """Mark the directory as namefs's. Raises OSError."""
    draft = os.path.join(directory, _DRAFT)
    with open(draft, "w", encoding="ascii") as file:
        json.dump({"guest": marked.guest, "links": sorted(map(str_of, marked.links))}, file)
    os.rename(draft, os.path.join(directory, MARKER))


def update(directory: bytes, marked: Marked, links: Mapping[bytes, bytes]) -> tuple[int, list[bytes]]:
    """Have a guest's directory hold these links, and no other of namefs's.

    Returns how many were changed, and which could not be made as something else is in their way.
    """
    stale, blocked = [], []
    for path, target in links.items():
        at = os.path.join(directory, path)
        if _is_blocked(directory, path, marked):
            blocked.append(path)
        elif not (os.path.lexists(at) and os.readlink(at) == target):
            stale.append(path)
    made = frozenset(links.keys() - set(blocked))
    if not made <= marked.links:
        # Before they are there: a kill in between leaves no link that would be taken for somebody's.
        write(directory, Marked(marked.guest, marked.links | made))
    for parent in parents(stale):
        with suppress(FileExistsError):
            os.mkdir(os.path.join(directory, parent))
    for path in stale:
        draft = os.path.join(directory, _LINK_DRAFT)
        with suppress(FileNotFoundError):
            os.unlink(draft)
        os.symlink(links[path], draft)
        os.rename(draft, os.path.join(directory, path))
    removed = _remove(directory, marked.links - made, keep=parents(made))
    if not marked.links <= made:
        write(directory, Marked(marked.guest, made))
    return len(stale) + removed, blocked


def holds_only(directory: bytes, marked: Marked) -> bool:
    """Whether there is nothing in the directory that namefs did not make."""
    own = {MARKER, _DRAFT, _LINK_DRAFT, *marked.links}
    inner = set(parents(marked.links))
    for at, subdirectories, files in os.walk(directory):
        for entry in subdirectories + files:
            path = os.path.relpath(os.path.join(at, entry), directory)
            is_inner = entry in subdirectories and not os.path.islink(os.path.join(at, entry))
            if path not in (inner if is_inner else own):
                return False
    return True


def dismantle(directory: bytes, marked: Marked) -> bool:
    """Remove what namefs made, and the directory if that was all. False: what is left is somebody's."""
    _remove(directory, marked.links, keep=())
    for own in (_LINK_DRAFT, _DRAFT, MARKER):
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, own))
    return _rmdir(directory)


def _is_blocked(directory: bytes, path: bytes, marked: Marked) -> bool:
    """Whether what lies at the path, or at a directory on the way, is not namefs's."""
    for parent in parents([path]):
        at = os.path.join(directory, parent)
        if os.path.lexists(at) and not _is_directory(at):
            return True
    at = os.path.join(directory, path)
    return os.path.lexists(at) and not (path in marked.links and os.path.islink(at))


def _is_directory(path: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _remove(directory: bytes, paths: Iterable[bytes], keep: Iterable[bytes]) -> int:
    removed, gone = 0, list(paths)
    for path in gone:
        # A file in the place of a link is somebody's; a symlink in the way there leads out of the tree.
        if all(_is_directory(os.path.join(directory, parent)) for parent in parents([path])):
            at = os.path.join(directory, path)
            if os.path.islink(at):
                os.unlink(at)
                removed += 1
    for parent in sorted(set(parents(gone)) - set(keep), reverse=True):
        _rmdir(os.path.join(directory, parent))
    return removed


def _rmdir(directory: bytes) -> bool:
    """False if something is in it."""
    try:
        os.rmdir(directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.ENOENT):
            raise
        return error.errno == errno.ENOENT
    return True
