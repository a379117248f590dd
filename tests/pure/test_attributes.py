"""What stat(2) says of each kind of node."""

from __future__ import annotations

import os
import stat
from uuid import UUID

import pytest

from namefs.applying import apply
from namefs.attributes import NAMES_KEPT_S, Attributes
from namefs.index import Index
from namefs.items import Item
from namefs.layout.artefact import Artefact, Kind
from namefs.model import Domain, Key, Observed

A = UUID("1b4e28ba-2fa1-11d2-883f-b9a761bde3fb")
B = UUID("6ac0e4f5-4b35-4d1c-9b0e-2d9a30bb7a54")
ARTEFACT = Artefact(b"log", "qemu.log", Kind.QEMU_LOG, "/var/log", b"web.log")
NAMEFS = Attributes(uid=7, gid=8)


def index_of(*uuids: UUID) -> Index:
    seen = [Observed(Key(uuid), "system", Domain(uuid, str(uuid), "system")) for uuid in uuids]
    return apply(Index(), seen, 1234).index


def info(**fields: int) -> os.stat_result:
    """A file's stat, as the kernel tells it."""
    order = ("mode", "ino", "dev", "nlink", "uid", "gid", "size", "atime", "mtime", "ctime")
    whole = [fields.get(name, 0) for name in order]
    times_ns = [fields.get(name, 0) for name in ("atime_ns", "mtime_ns", "ctime_ns")]
    # 3 times as float, 3 in nanoseconds, block size, blocks, device.
    return os.stat_result([*whole, 0.0, 0.0, 0.0, *times_ns, 4096, fields.get("blocks", 0), 0])


FILE = info(
    mode=stat.S_IFREG | 0o644,
    nlink=3,
    uid=1000,
    gid=1001,
    size=10_000,
    blocks=24,
    atime_ns=1_000_000_001,
    mtime_ns=2_000_000_002,
    ctime_ns=3_000_000_003,
)


def test_the_root_counts_a_link_for_each_domain_and_two_for_itself() -> None:
    for uuids in ((), (A,), (A, B)):
        attrs = NAMEFS.of_root(1, index_of(*uuids), 55)
        assert attrs.nlink == 2 + len(uuids)
        assert (attrs.ino, attrs.mode) == (1, stat.S_IFDIR | 0o755)
        assert attrs.mtime_ns == attrs.ctime_ns == 55


def test_the_roots_attributes_are_not_kept_as_they_change_with_each_domain() -> None:
    assert NAMEFS.of_root(1, index_of(A), 55).attrs_kept_s == 0


def test_a_domains_directory_cannot_be_written_to_and_is_as_old_as_its_name() -> None:
    record = index_of(A).records[Key(A)]
    attrs = NAMEFS.of_domain(5, record)
    assert attrs.mode == stat.S_IFDIR | 0o555
    assert attrs.nlink == 1, "not counted: any other number would have to be true"
    assert attrs.atime_ns == attrs.mtime_ns == attrs.ctime_ns == 1234
    assert attrs.entry_kept_s == attrs.attrs_kept_s == NAMES_KEPT_S


def test_what_is_namefs_own_belongs_to_the_daemon() -> None:
    record = index_of(A).records[Key(A)]
    for attrs in (
        NAMEFS.of_root(1, index_of(A), 0),
        NAMEFS.of_domain(2, record),
        NAMEFS.of_dots(3),
        NAMEFS.of_subdir(4, record, 0o555, None, None),
        NAMEFS.of_item(5, Item(b"disks", b"vda", "/img", ARTEFACT, b"img", target=b"/img")),
    ):
        assert (attrs.uid, attrs.gid) == (7, 8)


def test_a_subdirectory_has_the_owner_and_mode_of_the_directory_behind_it() -> None:
    record = index_of(A).records[Key(A)]
    attrs = NAMEFS.of_subdir(4, record, 0o550, 0, 64055)
    assert (attrs.mode, attrs.uid, attrs.gid) == (stat.S_IFDIR | 0o550, 0, 64055)
    assert attrs.nlink == 2, "find -type d stops looking for directories in it"
    assert attrs.entry_kept_s == attrs.attrs_kept_s == 0


def test_a_whole_file_has_the_real_ones_size_blocks_times_and_owner() -> None:
    item = Item(b"log", b"qemu.log", "/var/log/web.log", ARTEFACT, b"web.log", info=FILE, mode=0o100640)
    attrs = NAMEFS.of_item(6, item)
    assert attrs.mode == stat.S_IFREG | 0o640, "the mode that its own path leaves, not the file's"
    assert (attrs.size, attrs.blocks, attrs.nlink) == (10_000, 24, 1)
    assert (attrs.uid, attrs.gid) == (1000, 1001)
    assert (attrs.atime_ns, attrs.mtime_ns, attrs.ctime_ns) == (1_000_000_001, 2_000_000_002, 3_000_000_003)
    assert attrs.entry_kept_s == attrs.attrs_kept_s == 0, "libvirt changes it, and nobody tells"


@pytest.mark.parametrize(
    ("extents", "size", "blocks"),
    [
        (((0, 512),), 512, 1),
        (((0, 100), (600, 1013)), 513, 2),
        (((9_000, None),), 1_000, 2),
        (((10_000, None),), 0, 0),
    ],
)
def test_a_part_of_a_file_has_its_own_size_and_as_many_blocks_as_that_takes(
    extents: tuple[tuple[int, int | None], ...], size: int, blocks: int
) -> None:
    item = Item(b"log", b"qemu.log", "/l", ARTEFACT, b"web.log", info=FILE, mode=0o100600, extents=extents)
    attrs = NAMEFS.of_item(6, item)
    assert (attrs.size, attrs.blocks) == (size, blocks)


def test_a_symlinks_size_is_its_targets_length() -> None:
    target = "/var/lib/libvirt/images/wéb".encode()
    attrs = NAMEFS.of_item(6, Item(b"disks", b"vda", "/img", ARTEFACT, b"img", target=target))
    assert attrs.mode == stat.S_IFLNK | 0o777
    assert (attrs.size, attrs.nlink) == (len(target), 1)
    assert attrs.mtime_ns == 0, "it stands for nothing that is there"


def test_a_symlink_is_as_old_as_what_it_stands_for() -> None:
    item = Item(b"disks", b"vda", "/img", ARTEFACT, b"img", info=FILE, target=b"/img")
    attrs = NAMEFS.of_item(6, item)
    assert attrs.mode == stat.S_IFLNK | 0o777
    assert attrs.atime_ns == attrs.mtime_ns == attrs.ctime_ns == 2_000_000_002
    assert attrs.size == len(b"/img")
