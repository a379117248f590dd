"""Which guest is meant by a word: by any of its names, its UUID or the beginning of that. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from namefs import naming
from namefs.errors import ExitCode, NamefsError
from namefs.layout.artefact import bytes_of
from namefs.model import Key, Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from uuid import UUID

    from namefs.index import Index
    from namefs.model import Record

_PREFIX = re.compile("[0-9a-f]{4,32}")
"""The beginning of a UUID, without dashes: shorter ones are too often words."""


def find(index: Index, what: str) -> Record:
    """The guest of that name or UUID.

    What comes first of: its place in the view (``web``, ``project/web``), its shown name, its libvirt name,
    its title, a name that it had last and nobody has now, its UUID or a beginning of that.

    Raises NamefsError: NOT_FOUND, AMBIGUOUS.
    """
    return index.records[_one(index, what, _present(index, what))]


def find_any(index: Index, what: str) -> Key:
    """The same, among those that are gone as well, by ``NAME@DATE``, UUID, or a name that they had last."""
    candidates = [*_present(index, what), *_gone(index, what)]
    return _one(index, what, candidates)


def _one(index: Index, what: str, candidates: Iterable[set[Key]]) -> Key:
    found: set[Key] = next((keys for keys in candidates if keys), set())
    if not found:
        raise NamefsError(ExitCode.NOT_FOUND, f"there is no such guest: {naming.display(what)}")
    if len(found) > 1:
        names = ", ".join(f"{_called(index, key)} ({key.uuid})" for key in sorted(found))
        raise NamefsError(ExitCode.AMBIGUOUS, f"{naming.display(what)} could be {names}: give the UUID")
    return found.pop()


def _called(index: Index, key: Key) -> str:
    record = index.records.get(key)
    return naming.display(record.name) if record else "gone"


def _present(index: Index, what: str) -> Iterator[set[Key]]:
    records = index.records.values()
    yield _at(index, what)
    yield {record.key for record in records if record.name == what}
    yield {record.key for record in records if record.domain.name == what}
    yield {record.key for record in records if record.domain.title == what}
    yield _owners(index, (key.uuid for key in _last_holders(index, what)))
    yield _owners(index, (uuid for uuid in index.keys_of if _begins(uuid, what)))


def _gone(index: Index, what: str) -> Iterator[set[Key]]:
    by_entry = index.deleted.get(bytes_of(what)) if _can_be_an_entry(what) else None
    yield set() if by_entry is None else {by_entry}
    yield _last_holders(index, what)
    gone = {*index.departed, *index.former, *index.was_shown}
    yield {key for key in gone if key.uuid not in index.keys_of and _begins(key.uuid, what)}


def _owners(index: Index, uuids: Iterable[UUID]) -> set[Key]:
    """The domains that are these guests now, of those that are there."""
    return {record.key for uuid in uuids if (record := index.owner(uuid)) is not None}


def _at(index: Index, path: str) -> set[Key]:
    if not _can_be_an_entry(path):
        return set()
    group, _, entry = bytes_of(path).rpartition(b"/")
    key = index.by_place.get(Place(group, entry))
    return set() if key is None else {key}


def _last_holders(index: Index, name: str) -> set[Key]:
    held = [*index.holders.get(name, ()), *index.shown_before.get(name, ())]
    last = max(held, key=lambda one: one[1].until_ns, default=None)
    return set() if last is None else {last[0]}


def _begins(uuid: UUID, what: str) -> bool:
    digits = what.lower().replace("-", "")
    return bool(_PREFIX.fullmatch(digits)) and uuid.hex.startswith(digits)


def _can_be_an_entry(what: str) -> bool:
    try:
        bytes_of(what)
    except UnicodeEncodeError:
        return False
    return True
