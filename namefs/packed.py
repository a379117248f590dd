"""Logs that logrotate has packed, as far as Python's standard library unpacks them."""

from __future__ import annotations

import bz2
import lzma
import os
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_PIECE_BYTES = 1 << 20
_MOST_BYTES = 64 << 20
"""Thirty times as large as libvirt's logs get, and little enough to be in memory for a moment."""

_PACKED = (b".gz", b".xz", b".bz2", b".zst")


def is_packed(file: bytes) -> bool:
    """Whether the file's name says that it is packed, in whichever way."""
    return file.endswith(_PACKED)


def unpacked(fd: int, file: bytes) -> bytes | None:
    """The content of a packed file, of one that is still being written what is there of it.

    None if it is damaged, larger than 64 MiB, or packed in another way than gzip's, xz's or bzip2's.
    """
    unpack = _unpacker(file)
    if unpack is None:
        return None
    content, offset = b"", 0
    try:
        while (piece := os.pread(fd, _PIECE_BYTES, offset)) and len(content) <= _MOST_BYTES:
            offset += len(piece)
            content += unpack(piece, _MOST_BYTES + 1 - len(content))
    except (zlib.error, lzma.LZMAError, OSError, EOFError):
        return None
    return content if len(content) <= _MOST_BYTES else None


def _unpacker(file: bytes) -> Callable[[bytes, int], bytes] | None:
    if file.endswith(b".gz"):
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress
    if file.endswith(b".xz"):
        return lzma.LZMADecompressor().decompress
    if file.endswith(b".bz2"):
        return bz2.BZ2Decompressor().decompress
    return None
