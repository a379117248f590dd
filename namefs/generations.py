"""The two places that a process's own files have in the store, in turn. Pure.

Source and target of a local migration run at once. What belongs to the guest (disks, UEFI variables, TPM) is
one for both; a log or a socket of a process's own has to be another file for each: ``STORE/UUID/log/...`` and
``STORE/UUID/generation-1/log/...``, to and fro with each migration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from namefs.adoption import definition
from namefs.adoption.definition import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

OTHER = "generation-1"
SOCKET_MAX_BYTES = 107
"""sun_path without its NUL (unix(7))."""

_OF_A_PROCESS = (Kind.LOG, Kind.SOCKET)


class TooLong(ValueError):
    """A socket's path would be longer than an address can hold."""


def counterpart(path: str, directory: str) -> str | None:
    """The other generation's path of a file in the guest's directory; None if it is not in that."""
    below = path.removeprefix(directory + "/")
    if below == path:
        return None
    away = below.removeprefix(OTHER + "/")
    return f"{directory}/{OTHER}/{below}" if away == below else f"{directory}/{away}"


def moves(xml: str, directory: str) -> Mapping[str, str]:
    """Paths of a process's own, and their counterparts. Raises TooLong, NotXml."""
    found = {}
    for place in definition.places(xml):
        if place.kind in _OF_A_PROCESS and place.path is not None and not place.kept:
            other = counterpart(place.path, directory)
            if other is not None:
                if place.kind is Kind.SOCKET and len(other.encode()) > SOCKET_MAX_BYTES:
                    raise TooLong(f"{other} is longer than a socket's path may be ({SOCKET_MAX_BYTES} bytes)")
                found[place.path] = other
    return found


def moved(xml: str, directory: str) -> str:
    """The definition for the target; all else in it stays byte for byte. Raises TooLong, NotXml."""
    return definition.rewritten(xml, moves(xml, directory))
