"""A guest on each of the connections that it is or was on: its logs are in the directories of all. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from namefs.model import Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from namefs.guest import Guest
    from namefs.layout.directories import Directories

_SOURCE_ENDS_NS = 10 * 10**9
"""A source writes its last line some 0.3 s after the target runs; its hooks may take longer."""


def faces(guest: Guest, places: Callable[[str], Directories | None], now_ns: int) -> list[Guest]:
    """The guest on each connection that it is or was on: whose lines come first, first.

    One that comes in is left out: its lines are not the guest's yet. So is the guest itself for a while after
    it came from another connection: the source has lines to write until it ends.
    """
    index, uuid, here = guest.index, guest.record.key.uuid, guest.record.domain.connection
    known = {connection for of, connection in index.domains if of == uuid} if index.shadows else set()
    elsewhere = (
        {f.connection for f in guest.former}
        | known
        | {
            record.domain.connection
            for record in map(index.records.get, index.keys_of.get(uuid, ()))
            if record
        }
    )
    found = [
        face
        for label in sorted(elsewhere - {"", here})
        if (face := _face(guest, label, places(label))) is not None
    ]
    return found if _source_still_writes(guest, now_ns) else [*found, guest]


def _face(guest: Guest, label: str, places: Directories | None) -> Guest | None:
    index, uuid = guest.index, guest.record.key.uuid
    record = index.at(uuid, label)
    if places is None or (record is not None and record.role is Role.INCOMING):
        return None
    names = [f.name for f in guest.former if f.connection == label]
    domain = index.domains.get((uuid, label)) or replace(
        guest.record.domain, connection=label, name=names[-1] if names else guest.record.domain.name
    )
    return replace(guest, record=replace(guest.record, domain=domain), places=places)


def _source_still_writes(guest: Guest, now_ns: int) -> bool:
    index, key = guest.index, guest.record.key
    if not index.is_fleeting(key.uuid) or not guest.record.is_owner:
        return False
    records = [index.records[one] for one in index.keys_of[key.uuid]]
    moved_ns = [move.at_ns for move in index.moves.get(key.guest, ())]
    run = guest.record.domain.run
    return (
        any(record.role is Role.OUTGOING for record in records if not record.is_owner)
        and bool(moved_ns)
        and now_ns < moved_ns[-1] + _SOURCE_ENDS_NS
        # With post-copy the source goes on for as long as the memory takes.
        and not (run is not None and run.reason == "post-copy")
    )
