"""Backing images, as the images' own headers name them (QEMU, docs/interop/qcow2.txt).

libvirt tells a chain only while the guest runs. A guest can write to its image, so a header may say
anything: only names are taken from it, and of a file so named nothing is read but its own header.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from namefs.backing import Backing, Directory

_HEADER_MAX_BYTES = 1 << 21
"""qcow2's largest cluster. QEMU demands the name to be in the first one (docs/interop/qcow2.txt)."""
_EXTERNAL_DATA = 1 << 2
"""The bit of a version 3 header's incompatible features that says so."""

_BACKING_MAX = 64
"""Longest backing chain that is followed; libvirt itself stops at 200 (virstoragefile.c)."""


def chain(
    backing: Backing, directory: Directory, file: bytes, translate: Callable[[str], str]
) -> Iterator[str]:
    """The paths of the backing images of a qcow2 image, nearest first. Blocks.

    ``translate`` turns an absolute path as libvirt's host sees it into one as seen from here.
    """
    named = _backing_file(backing, directory, file)
    at, seen = directory.path, {os.path.join(directory.path, os.fsdecode(file))}
    for _ in range(_BACKING_MAX):
        if not named or b"\0" in named or b":" in named.split(b"/", 1)[0]:
            return
        path = os.path.normpath(os.path.join(at, os.fsdecode(named)))
        if named.startswith(b"/"):
            path = translate(path)
        if path in seen:
            return
        seen.add(path)
        yield path
        at, name = os.path.split(path)
        with backing.directory(at) as above:
            named = _backing_file(backing, above, os.fsencode(name)) if above is not None else None


def _backing_file(backing: Backing, directory: Directory, file: bytes) -> bytes | None:
    try:
        fd = backing.open(directory, file)
    except OSError:
        return None
    try:
        found = header(fd)
    finally:
        os.close(fd)
    return None if found is None else found.backing


@dataclass(frozen=True, slots=True)
class Header:
    """What a qcow2 image says of other files: the name of its backing image, and whether the guest's data
    are in a file of their own."""

    backing: bytes | None
    external_data: bool


def header(fd: int) -> Header | None:
    """The header of an open image; None if it is no qcow2 image."""
    start = os.pread(fd, 80, 0).ljust(80, b"\0")
    magic, version, offset, size = struct.unpack(">4sIQI", start[:20])
    if magic != b"QFI\xfb":
        return None
    incompatible = int.from_bytes(start[72:80], "big") if version >= 3 else 0
    named = os.pread(fd, size, offset) if 0 < size <= 1023 and offset <= _HEADER_MAX_BYTES else None
    return Header(named, bool(incompatible & _EXTERNAL_DATA))
