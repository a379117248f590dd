"""Shown name to entry, and back.

A *name* is a str; bytes of it that are not UTF-8 come as lone surrogates (PEP 383). An *entry* is
the file name, bytes, that a name becomes in a directory. Whatever the name, its entry is valid
UTF-8 of at most 255 bytes, without ``/``, control or direction-changing characters, does not start
with a dot, and belongs to that name alone. The forms:

``web``
    A name stands for itself wherever it can.
``%2Ehidden``
    What can't stand for itself is written ``%XX``, byte by byte: control characters, ``/``,
    invisible and direction-changing characters, bytes that are not UTF-8, a leading dot (hidden
    from ``ls``, and namefs's own), leading and trailing blanks. So is a ``%`` or ``~`` that would
    otherwise be taken for one of these forms; ``100%`` and ``a~b`` are left alone.
``web~1b4e28ba``, ``web~1b4e28ba-2fa1-11d2-883f-b9a761bde3fb``
    Told apart by the UUID's first 8 digits, or the whole of it, from another domain's ``web``.
``webwebweb...~<32 hex digits>``
    A name too long: its head, and a hash of all of it. A UUID may follow.
``%empty``
    The empty name.
``%uD800``
    A surrogate that no bytes decode to. No libvirt name has one; the form keeps two strs from
    sharing an entry.

The same name has the same entry for ever, with every version of Python and of namefs: entries
lie in people's scripts and backups. Changing a rule here renames guests.
"""

from __future__ import annotations

import re
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID

ENTRY_MAX_BYTES = 255
"""NAME_MAX. The kernel passes longer ones on to a FUSE file system: its own limit is 1,024."""

_EMPTY = "%empty"

# What follows the % or ~ of each form.
_BYTE = r"([0-9A-Fa-f]{2})"
_SURROGATE = r"u(D[89A-F][0-9A-F]{2})"
_TAG = r"(?:[0-9a-f]{8}|[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\Z"

# Fixed ranges, not unicodedata: there, categories change from one Python to the next. U+200C and
# U+200D are not in them: they are invisible, but Persian and emoji are misspelt without.
_UNSHOWABLE = (
    "\x00-\x1f\x7f-\x9f"
    "\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e0fff"
)

# Linear in the name's length, as a title can have megabytes of blanks: hence the look-behind.
_TO_ESCAPE = re.compile(
    rf"[/{_UNSHOWABLE}]"
    r"|\A\.|\A +|(?<! ) +\Z"
    rf"|%(?={_BYTE}|{_SURROGATE})|\A%(?=empty\Z)|~(?={_TAG})"
    "|(?P<bytes>[\udc80-\udcff]+)|(?P<surrogate>[\ud800-\udfff])"
)
_BYTE_ESCAPE = re.compile(b"%" + _BYTE.encode())
_SURROGATE_ESCAPE = re.compile(b"%" + _SURROGATE.encode())
_SUFFIX = re.compile(b"~" + _TAG.encode())


class NotAnEntry(ValueError):
    """The entry stands for no name: it can't be one, or the name can't be read from it."""


def encode(name: str) -> bytes:
    """The entry of a name that no other domain has."""
    return _entry(name, b"")


def disambiguated(name: str, uuid: UUID, full: bool = False) -> bytes:
    """The entry of a domain whose name another has already.

    It ends in the UUID's first 8 digits; with ``full``, for domains that share these too, in the
    whole UUID. It differs from every entry that `encode` makes.
    """
    return _entry(name, f"~{uuid if full else uuid.hex[:8]}".encode())


def decode(entry: bytes) -> str:
    """The name that an entry stands for: ``decode(encode(name)) == name`` unless it was shortened.

    It takes all that a user may type as the target of a rename, so more than `encode` makes:
    needless escapes, lower-case ones, and characters that should have been escaped. The entry
    shown afterwards is ``encode(decode(entry))``. The name may be one that libvirt must not be
    given: ``..`` (written ``%2E.``), one with a ``/``, or one with surrogates that are no bytes.

    Raises NotAnEntry if the entry ends like a shortened or disambiguated one, and if no directory
    can hold it: empty, ``.``, ``..``, longer than 255 bytes, with ``/`` or NUL.
    """
    if not entry or entry in {b".", b".."} or b"/" in entry or b"\0" in entry:
        raise NotAnEntry(f"{_quoted(entry)} can't be a file name")
    if len(entry) > ENTRY_MAX_BYTES:
        raise NotAnEntry(f"a file name of {len(entry)} bytes is too long, {ENTRY_MAX_BYTES} is the most")
    if _SUFFIX.search(entry):
        raise NotAnEntry(f"{_quoted(entry)} ends as namefs's own suffixes do: write its last ~ as %7E")
    if entry == _EMPTY.encode():
        return ""
    # Text and surrogates take turns. Bytes on the two sides of a surrogate never join to one character.
    parts = _SURROGATE_ESCAPE.split(entry)
    texts = [_BYTE_ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), text) for text in parts[::2]]
    surrogates = [chr(int(digits, 16)) for digits in parts[1::2]]
    return "".join(
        text.decode(errors="surrogateescape") + surrogate
        for text, surrogate in zip(texts, [*surrogates, ""], strict=True)
    )


def display(name: str) -> str:
    """The name, safe on a terminal and in a message: escaped like an entry, but of any length."""
    return "".join(_escaped(name))


def _escaped(name: str) -> list[str]:
    """What stands for each character of the name, in turn; for the empty name, one piece."""
    pieces = list(name) or [_EMPTY]
    for match in _TO_ESCAPE.finditer(name):
        run = match["bytes"]
        # A run that a decoder would have read as characters is not bytes that failed to decode:
        # as %XX it would share an entry with these characters.
        surrogates = match["surrogate"] or (run and _decoded_again(run) != run)
        for at in range(*match.span()):
            pieces[at] = f"%u{ord(name[at]):X}" if surrogates else _percent(name[at])
    return pieces


def _decoded_again(run: str) -> str:
    return run.encode(errors="surrogateescape").decode(errors="surrogateescape")


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode(errors="surrogateescape"))


def _entry(name: str, tag: bytes) -> bytes:
    """The escaped name and the tag; of a name too long, the characters that fit and its hash."""
    pieces = [piece.encode() for piece in _escaped(name)]
    plain = b"".join(pieces)
    if len(plain) + len(tag) <= ENTRY_MAX_BYTES:
        return plain + tag
    # Here, for the few who need it: hashlib loads OpenSSL, 5 ms of every command's start.
    from hashlib import blake2b

    tail = b"~" + blake2b(plain, digest_size=16).hexdigest().encode() + tag
    ends = accumulate(len(piece) for piece in pieces)
    head_bytes = max(takewhile(lambda end: end + len(tail) <= ENTRY_MAX_BYTES, ends))
    return plain[:head_bytes] + tail


def _quoted(entry: bytes) -> str:
    return repr(entry.decode(errors="surrogateescape"))
