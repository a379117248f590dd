"""An index while it is being changed: places given up and taken, names noted. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING
from uuid import UUID

from namefs import naming
from namefs.model import Former, Key, Place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from namefs.index import Index
    from namefs.model import Asked, Departed, Domain, Move, Record

_NO_UUID = UUID(int=0)


@dataclass
class Draft:
    """An index that is being changed. ``told_of`` is what each connection has by now, by UUID and connection.

    ``stirred`` are places whose answer may have changed, ``forgotten`` those that the kernel is to keep no
    more. The rules are in `applying`.
    """

    now_ns: int
    records: dict[Key, Record]
    by_place: dict[Place, Key]
    former: dict[Key, tuple[Former, ...]]
    was_shown: dict[Key, tuple[Former, ...]]
    asked: dict[Key, Asked]
    departed: dict[Key, Departed]
    shadows: dict[tuple[UUID, str], Domain]
    moves: dict[Key, tuple[Move, ...]]
    keys_of: dict[UUID, tuple[Key, ...]]
    told_of: dict[tuple[UUID, str], Domain]
    group_entries: dict[str, bytes]
    members: dict[bytes, int]
    touched: set[Key] = field(default_factory=set)
    stirred: set[Place] = field(default_factory=set)
    forgotten: set[Place] = field(default_factory=set)
    released: list[tuple[Key, Domain, Former]] = field(default_factory=list)

    @classmethod
    def of(cls, index: Index, now_ns: int) -> Draft:
        members: dict[bytes, int] = {}
        for place in index.by_place:
            if place.group:
                members[place.group] = members.get(place.group, 0) + 1
        return cls(
            now_ns,
            dict(index.records),
            dict(index.by_place),
            dict(index.former),
            dict(index.was_shown),
            dict(index.asked),
            dict(index.departed),
            dict(index.shadows),
            dict(index.moves),
            dict(index.keys_of),
            dict(index.domains),
            {name: entry for entry, name in index.groups.items()},
            members,
        )

    def records_of(self, uuid: UUID) -> list[Record]:
        return [self.records[key] for key in self.keys_of.get(uuid, ()) if key in self.records]

    def domains_of(self, uuid: UUID) -> dict[str, Domain]:
        """The guest's domains by connection, as known and as told since."""
        return {c: self.told_of[uuid, c] for c in sorted(self.connections) if (uuid, c) in self.told_of}

    @cached_property
    def connections(self) -> set[str]:
        return {connection for _uuid, connection in self.told_of}

    def tell(self, uuid: UUID, connection: str, domain: Domain | None) -> None:
        """What a connection has of a guest now."""
        if domain is None:
            self.told_of.pop((uuid, connection), None)
        else:
            self.told_of[uuid, connection] = domain
            self.connections.add(connection)

    def set_shadows(self, uuid: UUID, hidden: Mapping[str, Domain]) -> None:
        before = {c: d for c in self.connections if (d := self.shadows.get((uuid, c))) is not None}
        if before == hidden:
            return
        for connection in before:
            del self.shadows[uuid, connection]
        self.shadows |= {(uuid, connection): domain for connection, domain in hidden.items()}
        self.touched.add(Key(uuid))

    def move(self, uuid: UUID, move: Move) -> None:
        self.moves[Key(uuid)] = (*self.moves.get(Key(uuid), ()), move)
        self.touched.add(Key(uuid))

    def vacate(self, record: Record) -> None:
        del self.records[record.key]
        del self.by_place[record.place]
        self.stirred.add(record.place)
        self.touched.add(record.key)
        group = record.place.group
        if group:
            self.members[group] -= 1
            if not self.members[group]:
                del self.members[group]
                del self.group_entries[record.domain.group or ""]
                self.stirred.add(Place(b"", group))

    def occupy(self, record: Record) -> None:
        """Show the domain; where, is decided here, whatever its record says."""
        group = self._group(record.domain.group)
        place = Place(group, self._free(group, record.name, record.key.uuid))
        self.records[record.key] = replace(record, place=place)
        self.by_place[place] = record.key
        keys = self.keys_of.get(record.key.uuid, ())
        self.keys_of[record.key.uuid] = keys if record.key in keys else (*keys, record.key)
        self.stirred.add(place)
        self.touched.add(record.key)
        if group:
            self.members[group] = self.members.get(group, 0) + 1

    def leave_lost_names(
        self, uuid: UUID, known: Mapping[str, Record], domains: Mapping[str, Domain]
    ) -> None:
        """Note the libvirt names that the guest had on a connection and has there no more."""
        hidden = {c: d for c in self.connections if (d := self.shadows.get((uuid, c))) is not None}
        before = {label: record.domain for label, record in known.items()}
        for label, domain in (hidden | before).items():
            if label in domains and domains[label].name == domain.name:
                continue
            held = self.former.get(Key(uuid), ())
            # Of one that was not shown, nobody wrote down since when: not before the last one ended.
            since_ns = known[label].since_ns if label in known else held[-1].until_ns if held else 0
            former = Former(domain.name, since_ns, self._not_before(since_ns), connection=label)
            self.former[Key(uuid)] = (*held, former)
            self.touched.add(Key(uuid))
            self.released.append((Key(uuid), domain, former))

    def hide(self, record: Record) -> None:
        """The domain gives up its shown name."""
        former = Former(record.name, record.shown_since_ns, self._not_before(record.shown_since_ns))
        self.was_shown[record.key.guest] = (*self.was_shown.get(record.key.guest, ()), former)
        self.touched.add(record.key.guest)

    def _not_before(self, since_ns: int) -> int:
        # The wall clock may have been set back.
        return max(since_ns, self.now_ns)

    def _group(self, name: str | None) -> bytes:
        if name is None:
            return b""
        if name not in self.group_entries:
            self.group_entries[name] = self._free(b"", name, _NO_UUID)
            self.stirred.add(Place(b"", self.group_entries[name]))
        return self.group_entries[name]

    def _free(self, group: bytes, name: str, uuid: UUID) -> bytes:
        taken = set(self.group_entries.values()) if not group else set()
        for entry in (
            naming.encode(name),
            naming.disambiguated(name, uuid),
            naming.disambiguated(name, uuid, full=True),
        ):
            if Place(group, entry) not in self.by_place and entry not in taken:
                return entry
        raise AssertionError(f"no entry is free for {name!r} of {uuid}")
