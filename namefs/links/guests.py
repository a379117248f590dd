"""From an index to the symlinks of its guests. Blocks: files are looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from namefs.layout.artefact import SUBDIRECTORIES, TOP
from namefs.links.wanted import Tree
from namefs.view import guest_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from namefs.guest import Guest, Shelf
    from namefs.index import Index
    from namefs.layout.directories import Directories
    from namefs.model import Key


def trees(index: Index, places: Callable[[str], Directories | None], shelf: Shelf) -> dict[str, Tree]:
    """What there is of each guest, as symlinks to the real paths."""
    found = {}
    for place, key in index.by_place.items():
        guest = guest_in(index, key, places)
        if guest is not None:
            found[_identity(key)] = Tree(b"/".join(part for part in place if part), _links(guest, shelf))
    return found


def _identity(key: Key) -> str:
    return f"{key.uuid}/{key.generation}" if key.generation else str(key.uuid)


def _links(guest: Guest, shelf: Shelf) -> dict[bytes, bytes]:
    links = {}
    for subdir in (TOP, *SUBDIRECTORIES):
        for item in shelf.items(guest, subdir):
            path = b"/".join(part for part in (subdir, item.entry) if part)
            links[path] = (
                item.target if item.target is not None else item.path.encode(errors="surrogateescape")
            )
    return links
