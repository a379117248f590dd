"""How the index changes: every rule about who is shown by which name, here alone. Pure.

Nothing here replays events. What is applied is what was just read (`Observed`), the whole truth about a
connection (`Listed`), or what somebody asked for (`Wished`), so that a late, doubled or lost hint can do
no harm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from types import MappingProxyType
from typing import TYPE_CHECKING

from namefs import migration, naming, shown
from namefs.draft import Draft
from namefs.index import Index
from namefs.model import (
    GROUP,
    Asked,
    Change,
    Departed,
    Domain,
    Former,
    Key,
    Listed,
    Move,
    Observed,
    Place,
    Record,
    Sighted,
    Wished,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from uuid import UUID

    from namefs.model import Run, Seen

DEPARTED_KEPT_NS = 90 * 86400 * 10**9
"""How long the names of a domain that is gone are remembered: they tell whose the old logs are."""

_NOWHERE = Place(b"", b"")


@dataclass(frozen=True)
class Applied:
    """What became of what was seen.

    ``changes`` are the entries whose answer differs, ``touched`` the keys to save, and ``released`` the
    libvirt names that were given up (their files are to be looked at). ``asked``: a wish is among what
    changed, which is in no other place yet and must not be lost with the power.
    """

    index: Index
    changes: tuple[Change, ...] = ()
    touched: frozenset[Key] = frozenset()
    released: tuple[tuple[Key, Domain, Former], ...] = ()
    asked: bool = False


def apply(
    index: Index,
    seen: Sequence[Seen],
    now_ns: int,
    runs: Mapping[tuple[UUID, str], Run | None] = MappingProxyType({}),
) -> Applied:
    """The index after all of ``seen``, as one transaction: no reader sees a state in between.

    ``runs`` are the status files, by UUID and connection, of the guests concerned, as read just now; where
    one is not in it, what was seen says it.

    Domains that lost or changed a name give up their entries before any entry is taken, so that a
    name passing from one to another within one transaction never looks like a collision.
    """
    draft = Draft.of(index, now_ns)
    wished: dict[UUID, Asked] = {}
    concerned: dict[UUID, None] = {}
    for one in seen:
        if isinstance(one, Listed):
            concerned |= dict.fromkeys(_list(draft, one))
        elif isinstance(one, Observed):
            concerned[one.key.uuid] = None
            # "No such domain" is an old answer where its status file is there now.
            if one.domain is not None or runs.get((one.key.uuid, one.connection)) is None:
                draft.tell(one.key.uuid, one.connection, one.domain)
        elif isinstance(one, Wished):
            if one.instead_of in (None, draft.asked.get(one.key)):
                concerned[one.key.uuid] = None
                wished[one.key.uuid] = one.asked
        elif isinstance(one, Sighted):
            concerned[one.uuid] = None
        else:
            _expire(draft, one.key)

    arriving: list[Record] = []
    for uuid in concerned:
        domains = draft.domains_of(uuid)
        for connection, domain in domains.items():
            if (uuid, connection) in runs and runs[uuid, connection] != domain.run:
                domains[connection] = replace(domain, run=runs[uuid, connection])
        if domains:
            arriving += _settle(draft, uuid, domains, wished.get(uuid))
        else:
            _depart(draft, uuid)
    for record in sorted(arriving, key=lambda record: record.key):
        draft.occupy(record)
    if any(isinstance(one, Listed) for one in seen):
        _tidy(draft)

    if not draft.touched:
        return Applied(index)
    after = Index(
        draft.records,
        draft.by_place,
        draft.former,
        draft.was_shown,
        draft.asked,
        draft.departed,
        draft.shadows,
        draft.moves,
    )
    return Applied(
        after,
        _changes(index, after, draft.stirred | draft.forgotten, draft.forgotten),
        frozenset(draft.touched),
        tuple(draft.released),
        asked=bool(wished),
    )


def _settle(draft: Draft, uuid: UUID, domains: dict[str, Domain], wish: Asked | None) -> list[Record]:
    """Bring one guest up to date; returns the records that have yet to be given a place."""
    known = {record.domain.connection: record for record in draft.records_of(uuid)}
    was_owner = next((label for label, record in known.items() if record.is_owner), None)
    roles = {
        label: migration.role(domain.run, known[label].role if label in known else None)
        for label, domain in domains.items()
    }
    owner = migration.owner(roles, was_owner)
    shown_on = [label for label in domains if migration.is_shown(roles[label], label == owner)]
    draft.leave_lost_names(uuid, known, domains)
    draft.set_shadows(uuid, {label: domain for label, domain in domains.items() if label not in shown_on})
    if owner is not None and was_owner is not None and owner != was_owner:
        draft.move(uuid, Move(was_owner, owner, draft.now_ns))
    asked = _note_asked(draft, uuid, known, None if owner is None else domains[owner], wish)
    keys = _keys(uuid, known, shown_on, owner, was_owner)
    if len(shown_on) > 1 and len(known) == 1:
        # From now on the kernel keeps none of the guest's entries: forget what it keeps.
        draft.forgotten |= {record.place for record in known.values()}

    found: list[Record] = []
    for label in shown_on:
        name, source = shown.name_of(domains[label], asked)
        name += migration.suffix(roles[label], label == owner)
        record = Record(
            keys[label],
            domains[label],
            name,
            source,
            _NOWHERE,
            draft.now_ns,
            draft.now_ns,
            roles[label],
            label == owner,
        )
        found.append(_aged(draft, record, known.get(label), known.get(was_owner or "")))
    stays = {record.key for record in found if _is_in_place(draft.records.get(record.key), record)}
    for record in known.values():
        if record.key not in stays:
            draft.vacate(record)
    for record in found:
        if record.key in stays and draft.records[record.key] != record:
            draft.records[record.key] = record
            draft.touched.add(record.key)
    return [record for record in found if record.key not in stays]


def _aged(draft: Draft, record: Record, before: Record | None, former_owner: Record | None) -> Record:
    """The record, with the times since when it has its names."""
    if before is not None and before.domain.name == record.domain.name:
        record = replace(record, since_ns=before.since_ns)
    named = former_owner if record.is_owner and former_owner is not None else before
    if before is None and named is not None and named.domain.name == record.domain.name:
        record = replace(record, since_ns=named.since_ns)
    if named is not None and named.name == record.name:
        record = replace(record, shown_since_ns=named.shown_since_ns)
    elif named is not None and record.is_owner:
        draft.hide(named)
    if before is not None and (before.name, before.domain.group) == (record.name, record.domain.group):
        record = replace(record, place=before.place)
    elif named is not None and (named.name, named.domain.group) == (record.name, record.domain.group):
        record = replace(record, place=named.place)
    return record


def _is_in_place(before: Record | None, record: Record) -> bool:
    return before is not None and (before.name, before.domain.group) == (record.name, record.domain.group)


def _keys(
    uuid: UUID, known: Mapping[str, Record], shown_on: Sequence[str], owner: str | None, was_owner: str | None
) -> dict[str, Key]:
    """Which generation each shown domain is. Whoever is shown already stays what it is."""
    keys = {label: known[label].key for label in shown_on if label in known}
    if owner is not None and owner not in keys and was_owner is not None and was_owner not in shown_on:
        # It was off there, and goes on here: no two processes, so it is the same to whoever is in it.
        keys[owner] = known[was_owner].key
    for label in sorted(shown_on, key=lambda label: label != owner):
        if label not in keys:
            used = {key.generation for key in (*keys.values(), *(r.key for r in known.values()))}
            keys[label] = Key(uuid, next(number for number in count() if number not in used))
    return keys


def _note_asked(
    draft: Draft, uuid: UUID, known: Mapping[str, Record], domain: Domain | None, wish: Asked | None
) -> Asked | None:
    key = Key(uuid)
    if draft.departed.pop(key, None) is not None:
        # Defined anew: what was asked for of old counts no more than its metadata says.
        draft.asked.pop(key, None)
        draft.touched.add(key)
    asked = wish or (draft.asked.get(key) if domain is None else _asked(draft, key, known, domain))
    if draft.asked.get(key) != asked and asked is not None:
        draft.asked[key] = asked
        draft.touched.add(key)
    return asked


def _asked(draft: Draft, key: Key, known: Mapping[str, Record], domain: Domain) -> Asked | None:
    """What counts of what was asked for, when nothing is asked for now."""
    before, record = draft.asked.get(key), known.get(domain.connection)
    asked = shown.later(before, domain)
    if record is None:
        return asked
    aside = shown.on_the_way(key.uuid)
    if asked is None or asked.name is None:
        if record.domain.name == domain.name or domain.name != aside:
            return asked
        # It was taken back while libvirt was being asked: back to the name that it gave up.
        return Asked(record.domain.name, max(draft.now_ns, asked.asked_ns + 1 if asked else 0))
    if asked != before or not asked.follows:
        return asked
    # libvirt may have been asked to follow an earlier wish when this one came, and does so only now.
    overtaken = {f.name for f in draft.was_shown.get(key, ()) if f.until_ns >= record.since_ns}
    if domain.name in {record.domain.name, asked.name, aside, *overtaken}:
        return asked
    # Somebody had libvirt rename it, which is the later wish.
    return Asked(None, max(draft.now_ns, asked.asked_ns + 1))


def _depart(draft: Draft, uuid: UUID) -> None:
    known = {record.domain.connection: record for record in draft.records_of(uuid)}
    draft.leave_lost_names(uuid, known, {})
    for record in known.values():
        draft.vacate(record)
    # One that only came in from another host, and went again, was never here.
    for record in [record for record in known.values() if record.is_owner]:
        draft.hide(record)
        gone_ns = max(record.shown_since_ns, draft.now_ns)
        draft.departed[record.key.guest] = Departed(record, gone_ns)
        draft.touched.add(record.key.guest)
    draft.set_shadows(uuid, {})


def _expire(draft: Draft, key: Key) -> None:
    if draft.departed.pop(key, None) is not None:
        draft.asked.pop(key, None)
        draft.touched.add(key)


def _list(draft: Draft, one: Listed) -> list[UUID]:
    """Tell the draft all that a connection has; returns the guests that it has or had."""
    found = {domain.uuid: domain for domain in one.domains}
    before = {uuid for uuid, connection in draft.told_of if connection == one.connection}
    for uuid in (*before, *found):
        draft.tell(uuid, one.connection, found.get(uuid))
    return list(dict.fromkeys((*before, *found)))


def _tidy(draft: Draft) -> None:
    """With a listing: give back plain entries that have become free, forget who left long ago.

    Only then, so that a plain entry does not pass to another domain behind the back of a reader
    that still follows the first one by name.
    """
    for _key, record in sorted(draft.records.items()):
        plain = naming.encode(record.name)
        free = Place(record.place.group, plain) not in draft.by_place and (
            record.place.group or plain not in draft.group_entries.values()
        )
        if record.entry != plain and free:
            draft.vacate(record)
            draft.occupy(record)
    present = {uuid for uuid, _connection in draft.told_of}
    for names in (draft.former, draft.was_shown):
        for key, formers in list(names.items()):
            if key.uuid not in present and formers[-1].until_ns < draft.now_ns - DEPARTED_KEPT_NS:
                del names[key]
                draft.touched.add(key)


def _changes(
    before: Index, after: Index, stirred: Iterable[Place], forgotten: Collection[Place]
) -> tuple[Change, ...]:
    pairs = ((place, _leads_to(before, place), _leads_to(after, place)) for place in sorted(stirred))
    return tuple(Change(place, was, now) for place, was, now in pairs if was != now or place in forgotten)


def _leads_to(index: Index, place: Place) -> Key | None:
    if not place.group and place.entry in index.groups:
        return GROUP
    return index.by_place.get(place)
