"""The index as rows of the tables that `journal` keeps, and back. Pure.

A row has its table's columns in order; a name is bytes there, as SQLite's text holds UTF-8 only.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from uuid import UUID

from namefs import migration, shown
from namefs.index import Index
from namefs.model import (
    Asked,
    Departed,
    Disk,
    Domain,
    Former,
    Key,
    Mark,
    Move,
    Named,
    Place,
    Record,
    Role,
    Run,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Row = tuple[Any, ...]


def of(index: Index, key: Key) -> Iterator[tuple[str, Row]]:
    """Each row that the index has for a key, with its table."""
    identity = (str(key.uuid), key.generation)
    record, gone_ns = index.records.get(key), None
    if record is None and (departed := index.departed.get(key)) is not None:
        record, gone_ns = departed.record, departed.gone_ns
    if record is not None:
        since = (record.since_ns, record.shown_since_ns, gone_ns)
        role = (record.role.value, record.is_owner)
        yield "domain", (*identity, *record.place, *since, *role, _facts(record.domain))
    if key != key.guest:
        return
    for of_shown, formers in enumerate((index.former, index.was_shown)):
        for one in formers.get(key, ()):
            held = (one.since_ns, one.until_ns, json.dumps(one.marks), one.connection)
            yield "former", (*identity, of_shown, _blob(one.name), *held)
    if (asked := index.asked.get(key)) is not None:
        name = None if asked.name is None else _blob(asked.name)
        yield "asked", (*identity, name, asked.asked_ns, asked.follows)
    for (uuid, connection), domain in index.shadows.items():
        if uuid == key.uuid:
            yield "shadow", (str(uuid), connection, _facts(domain))
    for move in index.moves.get(key, ()):
        yield "move", (str(key.uuid), move.source, move.target, move.at_ns)


def index(tables: Mapping[str, Iterable[Row]]) -> Index:
    """The index of which these are all rows, by table.

    Raises ValueError, TypeError, LookupError or AttributeError for what `of` cannot have made.
    """
    asked = {
        Key(UUID(uuid), generation): Asked(None if name is None else _text(name), asked_ns, bool(follows))
        for uuid, generation, name, asked_ns, follows in tables["asked"]
    }
    records, departed = _domains(tables["domain"], asked)
    former, was_shown = _formers(tables["former"])
    shadows = {
        (UUID(uuid), connection): _domain(json.loads(facts)) for uuid, connection, facts in tables["shadow"]
    }
    moves: dict[Key, tuple[Move, ...]] = {}
    for uuid, source, target, at_ns in tables["move"]:
        key = Key(UUID(uuid))
        moves[key] = (*moves.get(key, ()), Move(source, target, at_ns))
    by_place = {record.place: key for key, record in records.items()}
    places = {*by_place, *(one.record.place for one in departed.values())}
    if len(by_place) != len(records) or not all(
        isinstance(part, bytes) for place in places for part in place
    ):
        raise ValueError("domains without an entry of their own")
    return Index(records, by_place, former, was_shown, asked, departed, shadows, moves)


def _domains(
    domains: Iterable[Row], asked: Mapping[Key, Asked]
) -> tuple[dict[Key, Record], dict[Key, Departed]]:
    records: dict[Key, Record] = {}
    departed: dict[Key, Departed] = {}
    for uuid, generation, group, entry, *since, gone_ns, role, is_owner, facts in domains:
        key, domain = Key(UUID(uuid), generation), _domain(json.loads(facts))
        name, source = shown.name_of(domain, asked.get(key.guest))
        name += migration.suffix(Role(role), bool(is_owner))
        place = Place(group, entry)
        since_ns, shown_since_ns = since
        record = Record(
            key, domain, name, source, place, since_ns, shown_since_ns, Role(role), bool(is_owner)
        )
        if gone_ns is None:
            records[key] = record
        else:
            departed[key] = Departed(record, gone_ns)
    return records, departed


def _formers(formers: Iterable[Row]) -> tuple[dict[Key, tuple[Former, ...]], dict[Key, tuple[Former, ...]]]:
    """libvirt names, and shown ones."""
    found: tuple[dict[Key, tuple[Former, ...]], dict[Key, tuple[Former, ...]]] = ({}, {})
    for uuid, generation, of_shown, name, since_ns, until_ns, marks, connection in formers:
        key, seen = Key(UUID(uuid), generation), tuple(Mark(*m) for m in json.loads(marks))
        held = Former(_text(name), since_ns, until_ns, seen, connection)
        found[of_shown][key] = (*found[of_shown].get(key, ()), held)
    return found


def _facts(domain: Domain) -> str:
    return json.dumps(asdict(domain) | {"uuid": str(domain.uuid)})


def _domain(facts: dict[str, Any]) -> Domain:
    return Domain(
        **facts
        | {
            "uuid": UUID(facts["uuid"]),
            "disks": tuple(
                Disk(
                    d["target"], d["path"], d["format"], None if d["backing"] is None else tuple(d["backing"])
                )
                for d in facts["disks"]
            ),
            "logs": tuple(Named(**n) for n in facts["logs"]),
            "sockets": tuple(Named(**n) for n in facts["sockets"]),
            "filesystems": tuple(facts["filesystems"]),
            "names": tuple((source, name) for source, name in facts.get("names", ())),
            "run": None if facts.get("run") is None else Run(*facts["run"]),
            "asked": None if facts.get("asked") is None else Asked(**facts["asked"]),
        }
    )


def _blob(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
