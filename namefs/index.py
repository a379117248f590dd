"""The index: which domain has which entry, and had which names before. Every rule about names is here.

Nothing here replays events. What is applied is what was just read (`Observed`) or the whole truth
about a connection (`Listed`), so that a late, doubled or lost hint can do no harm.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from namefs import naming
from namefs.model import Change, Domain, Former, Key, Listed, Mark, Observed, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DEPARTED_KEPT_NS = 90 * 86400 * 10**9
"""How long the names of a domain that is gone are remembered: they tell whose the old logs are."""


@dataclass(frozen=True)
class Index:
    """The domains by key and by entry, and their former names; `former` outlives its domain."""

    records: Mapping[Key, Record] = field(default_factory=dict)
    by_entry: Mapping[bytes, Key] = field(default_factory=dict)
    former: Mapping[Key, tuple[Former, ...]] = field(default_factory=dict)

    @cached_property
    def entries(self) -> tuple[bytes, ...]:
        """All entries of the root directory, sorted, so that a listing has an order of its own."""
        return tuple(sorted(self.by_entry))

    @cached_property
    def by_name(self) -> Mapping[tuple[str, str], Key]:
        """(connection, libvirt name) to key; libvirt keeps these unique."""
        return {(r.domain.connection, r.domain.name): key for key, r in self.records.items()}

    @cached_property
    def holders(self) -> Mapping[str, tuple[tuple[Key, Former], ...]]:
        """For each libvirt name, who had it before and when, oldest first."""
        found: dict[str, list[tuple[Key, Former]]] = {}
        for key, formers in self.former.items():
            for former in formers:
                found.setdefault(former.name, []).append((key, former))
        return {n: tuple(sorted(held, key=lambda h: h[1].until_ns)) for n, held in found.items()}

    def marked(self, marks: Mapping[tuple[Key, int], tuple[Mark, ...]]) -> Index:
        """The same, with the marks taken for former names, which (key, until_ns) picks out."""
        former = dict(self.former)
        for key, until_ns in marks:
            former[key] = tuple(
                replace(f, marks=marks[key, until_ns]) if f.until_ns == until_ns else f
                for f in former.get(key, ())
            )
        return replace(self, former=former)


@dataclass(frozen=True)
class Applied:
    """What became of an observation.

    ``changes`` are the root entries whose answer differs, ``touched`` the keys to save, and
    ``released`` the former names that came into being (their files are to be measured).
    """

    index: Index
    changes: tuple[Change, ...] = ()
    touched: frozenset[Key] = frozenset()
    released: tuple[tuple[Key, Domain, Former], ...] = ()


@dataclass
class _Draft:
    now_ns: int
    records: dict[Key, Record]
    by_entry: dict[bytes, Key]
    former: dict[Key, tuple[Former, ...]]
    touched: set[Key] = field(default_factory=set)
    stirred: set[bytes] = field(default_factory=set)
    released: list[tuple[Key, Domain, Former]] = field(default_factory=list)

    def vacate(self, key: Key) -> None:
        record = self.records.pop(key)
        del self.by_entry[record.entry]
        self.stirred.add(record.entry)
        self.touched.add(key)
        # Not before it began: the wall clock may have been set back.
        until_ns = max(record.since_ns, self.now_ns)
        former = Former(record.domain.name, record.since_ns, until_ns)
        self.former[key] = (*self.former.get(key, ()), former)
        self.released.append((key, record.domain, former))

    def occupy(self, key: Key, domain: Domain, since_ns: int) -> None:
        entry = self._free_entry(key, domain)
        self.records[key] = Record(key, domain, entry, since_ns)
        self.by_entry[entry] = key
        self.stirred.add(entry)
        self.touched.add(key)

    def _free_entry(self, key: Key, domain: Domain) -> bytes:
        plain = naming.encode(domain.name)
        if plain not in self.by_entry:
            return plain
        short = naming.disambiguated(domain.name, key.uuid)
        return short if short not in self.by_entry else naming.disambiguated(domain.name, key.uuid, full=True)


def apply(index: Index, seen: Sequence[Observed | Listed], now_ns: int) -> Applied:
    """The index after all of ``seen``, as one transaction: no reader sees a state in between.

    Domains that lost or changed a name give up their entries before any entry is taken, so that a
    name passing from one to another within one transaction never looks like a collision.
    """
    draft = _Draft(now_ns, dict(index.records), dict(index.by_entry), dict(index.former))
    wanted: dict[Key, Domain | None] = {}
    for one in seen:
        wanted |= _listed(draft, wanted, one) if isinstance(one, Listed) else _observed(draft, wanted, one)

    arriving: list[tuple[Key, Domain]] = []
    for key, domain in wanted.items():
        record = draft.records.get(key)
        if record is not None and (domain is None or domain.name != record.domain.name):
            draft.vacate(key)
            record = None
        if domain is None:
            continue
        if record is None:
            arriving.append((key, domain))
        elif record.domain != domain:
            draft.records[key] = replace(record, domain=domain)
            draft.touched.add(key)
    for key, domain in sorted(arriving):
        draft.occupy(key, domain, now_ns)
    if any(isinstance(one, Listed) for one in seen):
        _tidy(draft)

    if not draft.touched:
        return Applied(index)
    after = Index(draft.records, draft.by_entry, draft.former)
    return Applied(
        after, _changes(index, after, draft.stirred), frozenset(draft.touched), tuple(draft.released)
    )


def _observed(draft: _Draft, wanted: Mapping[Key, Domain | None], one: Observed) -> dict[Key, Domain | None]:
    if one.domain is None and _connection(draft, wanted, one.key) != one.connection:
        # Gone from there, alive here: a domain that another connection answers for stays.
        return {}
    return {one.key: one.domain}


def _listed(draft: _Draft, wanted: Mapping[Key, Domain | None], one: Listed) -> dict[Key, Domain | None]:
    gone: dict[Key, Domain | None] = {
        key: None for key in (*draft.records, *wanted) if _connection(draft, wanted, key) == one.connection
    }
    return gone | {Key(domain.uuid): domain for domain in one.domains}


def _connection(draft: _Draft, wanted: Mapping[Key, Domain | None], key: Key) -> str | None:
    """Where the domain lives, by what was seen earlier in the transaction, else by the index."""
    record = draft.records.get(key)
    domain = wanted.get(key, None if record is None else record.domain)
    return None if domain is None else domain.connection


def _tidy(draft: _Draft) -> None:
    """With a listing: give back plain entries that have become free, forget who left long ago.

    Only then, so that a plain entry does not pass to another domain behind the back of a reader
    that still follows the first one by name.
    """
    for key, record in sorted(draft.records.items()):
        plain = naming.encode(record.domain.name)
        if record.entry != plain and plain not in draft.by_entry:
            del draft.by_entry[record.entry]
            draft.stirred.add(record.entry)
            draft.occupy(key, record.domain, record.since_ns)
    for key, formers in list(draft.former.items()):
        if key not in draft.records and formers[-1].until_ns < draft.now_ns - DEPARTED_KEPT_NS:
            del draft.former[key]
            draft.touched.add(key)


def _changes(before: Index, after: Index, stirred: Iterable[bytes]) -> tuple[Change, ...]:
    pairs = ((entry, before.by_entry.get(entry), after.by_entry.get(entry)) for entry in sorted(stirred))
    return tuple(Change(entry, was, now) for entry, was, now in pairs if was != now)
