"""What stat(2) says of each node, and how long the kernel may believe it. Pure."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from namefs.index import Index
    from namefs.items import Item
    from namefs.model import Record

NAMES_KEPT_S = 3600.0
"""For what is withdrawn when it changes; finite, as a net below an invalidation that failed."""

BLOCK_BYTES = 512
"""The unit of st_blocks (stat(2))."""


@dataclass(frozen=True, slots=True)
class Attrs:
    """The attributes of one inode."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int = 0
    blocks: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    entry_kept_s: float = 0.0
    attrs_kept_s: float = 0.0


class Attributes:
    """Makes attributes. ``uid`` and ``gid`` are the daemon's: it owns what is namefs's own."""

    def __init__(self, uid: int, gid: int) -> None:
        self._uid = uid
        self._gid = gid

    def of_root(self, ino: int, index: Index, changed_ns: int) -> Attrs:
        """The root directory: writable by its owner, since a rename writes to it."""
        nlink = 2 + len(index.listings[b""])
        return Attrs(
            ino,
            stat.S_IFDIR | 0o755,
            nlink,
            self._uid,
            self._gid,
            mtime_ns=changed_ns,
            ctime_ns=changed_ns,
            atime_ns=changed_ns,
        )

    def of_group(self, ino: int, changed_ns: int) -> Attrs:
        """A group's directory: writable as the root is. Its entry is withdrawn when it is gone."""
        return self._directory(ino, 0o755, changed_ns, NAMES_KEPT_S, 0)

    def of_special(self, ino: int, changed_ns: int) -> Attrs:
        """A directory of the root's that begins with a dot. Nothing of it is kept: it is not withdrawn."""
        return self._directory(ino, 0o555, changed_ns, 0, 0)

    def of_alias(self, ino: int, target: bytes, changed_ns: int) -> Attrs:
        """A symlink to a domain's directory. Nothing of it is kept: it is not withdrawn."""
        at = changed_ns
        return Attrs(
            ino,
            stat.S_IFLNK | 0o777,
            1,
            self._uid,
            self._gid,
            size=len(target),
            atime_ns=at,
            mtime_ns=at,
            ctime_ns=at,
        )

    def of_domain(self, ino: int, record: Record, kept_s: float = NAMES_KEPT_S) -> Attrs:
        """A domain's directory.

        One link, as on btrfs: "not counted" to find(1) and all. The true count would need a look at
        every file of every domain for one ``ls -l``.
        """
        return self._directory(ino, 0o555, record.shown_since_ns, kept_s, kept_s)

    def _directory(self, ino: int, mode: int, at_ns: int, entry_kept_s: float, attrs_kept_s: float) -> Attrs:
        return Attrs(
            ino,
            stat.S_IFDIR | mode,
            1,
            self._uid,
            self._gid,
            atime_ns=at_ns,
            mtime_ns=at_ns,
            ctime_ns=at_ns,
            entry_kept_s=entry_kept_s,
            attrs_kept_s=attrs_kept_s,
        )

    def of_dots(self, ino: int) -> Attrs:
        """``.`` and ``..``, and what lost its name since a listing began: only number and type count."""
        return Attrs(ino, stat.S_IFDIR | 0o555, 2, self._uid, self._gid)

    def of_subdir(self, ino: int, record: Record, mode: int, uid: int | None, gid: int | None) -> Attrs:
        """A directory in a domain's directory; it holds no other. No uid: namefs's own."""
        at = record.since_ns
        return Attrs(
            ino,
            stat.S_IFDIR | mode,
            2,
            self._uid if uid is None else uid,
            self._gid if gid is None else gid,
            atime_ns=at,
            mtime_ns=at,
            ctime_ns=at,
        )

    def of_item(self, ino: int, item: Item) -> Attrs:
        """A file as it is, or a symlink, which is as old as what it stands for.

        Always one link: a file is in one place of the view.
        """
        if item.info is None or item.target is not None:
            at = 0 if item.info is None else item.info.st_mtime_ns
            return Attrs(
                ino,
                stat.S_IFLNK | 0o777,
                1,
                self._uid,
                self._gid,
                size=item.size_bytes,
                atime_ns=at,
                mtime_ns=at,
                ctime_ns=at,
            )
        info, size = item.info, item.size_bytes
        blocks = info.st_blocks if item.extents is None else -(-size // BLOCK_BYTES)
        return Attrs(
            ino,
            stat.S_IFREG | (item.mode & 0o7777),
            1,
            info.st_uid,
            info.st_gid,
            size=size,
            blocks=blocks,
            atime_ns=info.st_atime_ns,
            mtime_ns=info.st_mtime_ns,
            ctime_ns=info.st_ctime_ns,
        )
