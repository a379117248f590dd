"""The index: which domain is shown where, and had which names before. What changes it is in `applying`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from namefs import naming
from namefs.model import Key

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from namefs.model import Asked, Departed, Domain, Former, Mark, Move, Place, Record


@dataclass(frozen=True)
class Index:
    """One moment of it; a change makes another.

    ``former`` and ``was_shown`` are the libvirt names and the shown names of former times, oldest first;
    they outlive their domain. ``asked`` are the shown names that were asked for through namefs.
    ``departed`` are domains that libvirt has no more, while something of theirs is kept. ``shadows`` are
    domains, by UUID and connection, that are off while another connection's has the guest's name: they
    have no directory. ``moves`` are the guests' migrations between connections. All but ``records`` and
    ``shadows`` are kept by the guest's key, of generation 0.
    """

    records: Mapping[Key, Record] = field(default_factory=dict)
    by_place: Mapping[Place, Key] = field(default_factory=dict)
    former: Mapping[Key, tuple[Former, ...]] = field(default_factory=dict)
    was_shown: Mapping[Key, tuple[Former, ...]] = field(default_factory=dict)
    asked: Mapping[Key, Asked] = field(default_factory=dict)
    departed: Mapping[Key, Departed] = field(default_factory=dict)
    shadows: Mapping[tuple[UUID, str], Domain] = field(default_factory=dict)
    moves: Mapping[Key, tuple[Move, ...]] = field(default_factory=dict)

    @cached_property
    def keys_of(self) -> Mapping[UUID, tuple[Key, ...]]:
        """The keys of each guest: two while it is migrated on this host."""
        found: dict[UUID, tuple[Key, ...]] = {}
        for key in self.records:
            found[key.uuid] = (*found.get(key.uuid, ()), key)
        return found

    @cached_property
    def domains(self) -> Mapping[tuple[UUID, str], Domain]:
        """What each connection has, by UUID and connection, shown or not."""
        shown = {(key.uuid, r.domain.connection): r.domain for key, r in self.records.items()}
        return {**self.shadows, **shown}

    @cached_property
    def connections(self) -> frozenset[str]:
        """The connections that have any domains."""
        return frozenset(connection for _uuid, connection in self.domains)

    def owner(self, uuid: UUID) -> Record | None:
        """The domain that has the guest's name; of one that only comes in from another host, that."""
        records = [self.records[key] for key in self.keys_of.get(uuid, ())]
        return next((record for record in records if record.is_owner), records[0] if records else None)

    def at(self, uuid: UUID, connection: str) -> Record | None:
        """The domain that a connection has of a guest, if it is shown."""
        records = (self.records[key] for key in self.keys_of.get(uuid, ()))
        return next((record for record in records if record.domain.connection == connection), None)

    def is_fleeting(self, uuid: UUID) -> bool:
        """Whether the guest's entries may go over to another domain at any moment."""
        return len(self.keys_of.get(uuid, ())) > 1

    @cached_property
    def groups(self) -> Mapping[bytes, str]:
        """The groups' entries in the root directory, and their names."""
        return {
            record.place.group: record.domain.group or ""
            for record in self.records.values()
            if record.place.group
        }

    @cached_property
    def listings(self) -> Mapping[bytes, tuple[bytes, ...]]:
        """The entries of each group's directory, sorted; of b"": the root's, groups among them."""
        found: dict[bytes, list[bytes]] = {b"": list(self.groups)}
        for place in self.by_place:
            found.setdefault(place.group, []).append(place.entry)
        return {group: tuple(sorted(entries)) for group, entries in found.items()}

    @cached_property
    def by_name(self) -> Mapping[tuple[str, str], Key]:
        """(connection, libvirt name) to key; libvirt keeps these unique.

        To the guest's key for a domain that is not shown, as another connection's is the guest.
        """
        hidden = {(connection, d.name): Key(uuid) for (uuid, connection), d in self.shadows.items()}
        return hidden | {(r.domain.connection, r.domain.name): key for key, r in self.records.items()}

    @cached_property
    def by_libvirt_entry(self) -> Mapping[bytes, Key]:
        """What a libvirt name would be as an entry, to key; of several connections, the first by label."""
        named = sorted(self.by_name.items(), reverse=True)
        return {naming.encode(name): key for (_connection, name), key in named}

    @cached_property
    def names_in_use(self) -> frozenset[str]:
        """All libvirt and shown names that domains have now."""
        return frozenset(name for r in self.records.values() for name in (r.domain.name, r.name))

    @cached_property
    def holders(self) -> Mapping[str, tuple[tuple[Key, Former], ...]]:
        """For each libvirt name, who had it before and when, oldest first."""
        return _holders(self.former)

    @cached_property
    def shown_before(self) -> Mapping[str, tuple[tuple[Key, Former], ...]]:
        """For each shown name, who had it before and when, oldest first."""
        return _holders(self.was_shown)

    @cached_property
    def deleted(self) -> Mapping[bytes, Key]:
        """The entries of the domains that are gone: ``NAME@DATE``, in UTC; apart by UUID if need be."""
        found: dict[bytes, Key] = {}
        for key, departed in sorted(self.departed.items(), key=lambda item: (item[1].gone_ns, item[0])):
            date = datetime.fromtimestamp(departed.gone_ns / 1e9, UTC).date()
            name = f"{departed.record.name}@{date}"
            plain, short = naming.encode(name), naming.disambiguated(name, key.uuid)
            full = naming.disambiguated(name, key.uuid, full=True)
            found[next(entry for entry in (plain, short, full) if entry not in found)] = key
        return found

    def marked(self, marks: Mapping[tuple[Key, int], tuple[Mark, ...]]) -> Index:
        """The same, with the marks taken for former names, which (key, until_ns) picks out."""
        former = dict(self.former)
        for key, until_ns in marks:
            former[key] = tuple(
                replace(f, marks=marks[key, until_ns]) if f.until_ns == until_ns else f
                for f in former.get(key, ())
            )
        return replace(self, former=former)


def _holders(former: Mapping[Key, tuple[Former, ...]]) -> dict[str, tuple[tuple[Key, Former], ...]]:
    found: dict[str, list[tuple[Key, Former]]] = {}
    for key, formers in former.items():
        for one in formers:
            found.setdefault(one.name, []).append((key, one))
    return {name: tuple(sorted(held, key=lambda h: h[1].until_ns)) for name, held in found.items()}
