"""The journal: what is saved comes back, whatever was killed or damaged meanwhile."""

from __future__ import annotations

import itertools
import logging
import os
import random
import re
import signal
import sqlite3
import stat
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from namefs import migration, naming, shown
from namefs.applying import apply
from namefs.errors import ExitCode, NamefsError
from namefs.index import Index
from namefs.journal import Journal, read
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
    Observed,
    Place,
    Record,
    Role,
    Run,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

A = UUID("1b4e28ba-2fa1-11d2-883f-b9a761bde3fb")
B = UUID("6ac0e4f5-4b35-4d1c-9b0e-2d9a30bb7a54")

# As libvirt and the file system give them: any bytes but NUL, those that are no UTF-8 as surrogates.
names = st.binary(min_size=1, max_size=12).map(
    lambda raw: raw.replace(b"\0", b"").decode(errors="surrogateescape")
)
times_ns = st.integers(0, 2**63 - 1)
named = st.lists(st.builds(Named, names, names), max_size=2).map(tuple)
disks = st.lists(
    st.builds(Disk, names, names, names, st.one_of(st.none(), st.lists(names, max_size=2).map(tuple))),
    max_size=2,
).map(tuple)
asked_names = st.builds(Asked, st.one_of(st.none(), names), times_ns, st.booleans())
domains = st.builds(
    Domain,
    uuid=st.uuids(),
    name=names,
    connection=names,
    state=st.sampled_from(["running", "shut off"]),
    persistent=st.booleans(),
    title=st.one_of(st.none(), names, st.just("æ\U0001f600\x01")),
    disks=disks,
    logs=named,
    sockets=named,
    nvram=st.one_of(st.none(), names),
    filesystems=st.lists(names, max_size=2).map(tuple),
    names=st.lists(st.tuples(st.sampled_from(["namefs", "nova", "libvirt"]), names), max_size=2).map(tuple),
    group=st.one_of(st.none(), names),
    asked=st.one_of(st.none(), asked_names),
    run=st.one_of(st.none(), st.builds(Run, names, names, names, names)),
)
# Device numbers and sizes as stat(2) has them: up to 64 bits without a sign.
marks = st.lists(st.builds(Mark, *[st.integers(0, 2**64 - 1)] * 3), max_size=2).map(tuple)


@st.composite
def former_names(draw: st.DrawFn) -> tuple[Former, ...]:
    held = draw(st.lists(st.tuples(names, marks), min_size=1, max_size=3))
    times = sorted(draw(st.lists(times_ns, min_size=2 * len(held), max_size=2 * len(held))))
    return tuple(
        Former(name, times[2 * number], times[2 * number + 1], seen)
        for number, (name, seen) in enumerate(held)
    )


@st.composite
def indexes(draw: st.DrawFn) -> Index:
    found = draw(st.lists(domains, max_size=4, unique_by=lambda domain: domain.uuid))
    records, departed, asked = {}, {}, {}
    for number, domain in enumerate(found):
        key = Key(domain.uuid, draw(st.integers(0, 2)))
        if draw(st.booleans()):
            asked[key.guest] = draw(asked_names)
        place = Place(
            naming.encode(domain.group or "")[:9], naming.encode(domain.name)[:200] + b"~%d" % number
        )
        name, source = shown.name_of(domain, asked.get(key.guest))
        role, is_owner = draw(st.sampled_from(Role)), draw(st.booleans())
        name += migration.suffix(role, is_owner)
        times = draw(times_ns), draw(times_ns)
        record = Record(key, domain, name, source, place, *times, role, is_owner)
        if draw(st.booleans()):
            records[key] = record
        else:
            departed[key] = Departed(record, draw(times_ns))
    strangers = draw(st.lists(st.uuids(), max_size=2))
    with_past = [Key(uuid) for uuid in sorted({*(key.uuid for key in records), *strangers})]
    shadows = {(key.uuid, "elsewhere"): draw(domains) for key in with_past if draw(st.booleans())}
    moves = {key: (Move("local", "second", draw(times_ns)),) for key in with_past if draw(st.booleans())}
    former, was_shown = (
        {key: draw(former_names()) for key in with_past if draw(st.booleans())} for _ in range(2)
    )
    by_place = {record.place: key for key, record in records.items()}
    return Index(records, by_place, former, was_shown, asked, departed, shadows, moves)


def keys_of(*indexes: Index) -> set[Key]:
    return {
        key
        for index in indexes
        for part in (index.records, index.former, index.was_shown, index.asked, index.departed, index.moves)
        for key in part
    } | {Key(uuid) for index in indexes for uuid, _connection in index.shadows}


def some_index(generation: int = 1, count: int = 12) -> Index:
    """All of whose rows name the generation, so that a mixture of two is seen."""
    index = Index()
    for name in (f"old{generation}", f"web{generation}"):
        seen = [
            Observed(
                Key(UUID(int=number)),
                "system",
                Domain(UUID(int=number), f"{name}-{number}", "system", title="t" * 200),
            )
            for number in range(count)
        ]
        index = apply(index, seen, generation).index
    return index


def saved(path: Path, index: Index) -> None:
    with closing(Journal(str(path))) as journal:
        journal.save(index, keys_of(index))


def loaded(path: Path) -> Index:
    with closing(Journal(str(path))) as journal:
        return journal.load()


def aside(path: Path) -> list[Path]:
    return sorted(p for p in path.parent.iterdir() if re.search(r"unusable-\d{8}T\d{6}\+*$", p.name))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "namefs" / "index.sqlite"


def test_a_new_journal_is_empty_and_for_root_alone(path: Path) -> None:
    assert loaded(path) == Index()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_what_sqlite_keeps_beside_the_journal_is_for_root_alone(path: Path) -> None:
    with closing(Journal(str(path))) as journal:
        journal.save(some_index(), keys_of(some_index()))
        beside = [p for p in path.parent.iterdir() if p != path]
        assert beside, "write-ahead logging has files of its own"
        assert {stat.S_IMODE(p.stat().st_mode) for p in beside} == {0o600}


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=indexes(), then=indexes(), data=st.data())
def test_any_index_comes_back_and_so_does_the_one_that_replaces_it(
    tmp_path: Path, index: Index, then: Index, data: st.DataObject
) -> None:
    path = tmp_path / f"{time.monotonic_ns()}.sqlite"
    touched = data.draw(st.permutations(sorted(keys_of(index, then))))
    with closing(Journal(str(path))) as journal:
        journal.save(index, keys_of(index))
        assert journal.load() == index
        journal.save(then, touched)
        assert journal.load() == then
    assert loaded(path) == then
    assert read(str(path)) == then


def test_only_what_was_touched_is_saved(path: Path) -> None:
    index, other = some_index(1), some_index(2)
    saved(path, index)
    with closing(Journal(str(path))) as journal:
        journal.save(other, [Key(UUID(int=3))])
        now = journal.load()
    assert now.records[Key(UUID(int=3))] == other.records[Key(UUID(int=3))]
    assert now.records[Key(UUID(int=4))] == index.records[Key(UUID(int=4))]


@pytest.mark.parametrize("order", [(A, B), (B, A)])
def test_two_domains_swap_entries_in_one_save(path: Path, order: tuple[UUID, UUID]) -> None:
    def seen(uuid: UUID, name: str) -> Observed:
        return Observed(Key(uuid), "system", Domain(uuid, name, "system"))

    before = apply(Index(), [seen(A, "one"), seen(B, "two")], 1).index
    swapped = apply(before, [seen(A, "two"), seen(B, "one")], 2).index
    saved(path, before)
    with closing(Journal(str(path))) as journal:
        journal.save(swapped, [Key(uuid) for uuid in order])
        assert journal.load() == swapped


def test_a_save_that_fails_changes_nothing(path: Path) -> None:
    index = some_index()
    saved(path, index)
    key = Key(UUID(int=1))
    broken = replace(index, former={key: (Former("web", 2**63, 2**64),)})
    with closing(Journal(str(path))) as journal:
        with pytest.raises((NamefsError, OverflowError)):
            journal.save(broken, [Key(UUID(int=0)), key])
        assert journal.load() == index


def generation_of(index: Index) -> int:
    found = {record.since_ns for record in index.records.values()}
    assert len(found) == 1, f"rows of several saves: {found}"
    generation = found.pop()
    assert index == some_index(generation)
    return generation


def killed_in_the_middle(work: Callable[[Callable[[int], None]], None], within_s: float) -> list[int]:
    """Run ``work`` in a process of its own and kill it some moment after its first report; what it reported.

    A fork, since starting Python anew takes far longer than what is to be interrupted.
    """
    reports, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work(lambda number: (os.write(told, b"%d\n" % number), None)[1])
        finally:
            os._exit(1)
    os.close(told)
    with os.fdopen(reports) as lines:
        first = lines.readline()
        # It is the moment that is tried out; nothing is waited for.
        time.sleep(random.uniform(0, within_s))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return [int(line) for line in (first, *lines) if line.endswith("\n")]


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_state(path: Path) -> None:
    def save_for_ever(report: Callable[[int], None]) -> None:
        journal = Journal(str(path))
        for generation in itertools.count(last + 1):
            index = some_index(generation)
            journal.save(index, keys_of(index))
            report(generation)

    last = 0
    for _ in range(48):
        known = max(killed_in_the_middle(save_for_ever, 0.02))
        last = generation_of(loaded(path))
        assert known <= last <= known + 1, "what was saved is there, and no more than what was being saved"
        assert not aside(path)


def test_a_kill_while_the_journal_is_made_leaves_one_that_can_be_used(path: Path) -> None:
    def make(report: Callable[[int], None]) -> None:
        report(1)
        Journal(str(path))

    for _ in range(24):
        killed_in_the_middle(make, 0.01)
        assert loaded(path) == Index()
        assert not aside(path)
        path.unlink()


def of_another_schema(path: Path, version: int) -> None:
    saved(path, some_index())
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {version}")


def of_another_program(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE bookmarks (url)")
        database.execute("PRAGMA user_version = 1")


def with_other_tables(path: Path) -> None:
    saved(path, some_index())
    with closing(sqlite3.connect(path)) as database:
        database.execute("ALTER TABLE former RENAME TO formed")


def with_facts(path: Path, facts: str) -> None:
    saved(path, some_index())
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE domain SET facts = ? WHERE entry = ?", (facts, b"web1-1"))


def with_garbage(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"garbage, not a database\n" * 1000)


def cut_short(path: Path) -> None:
    saved(path, some_index())
    os.truncate(path, path.stat().st_size // 2)


def with_zeroed_pages(path: Path) -> None:
    saved(path, some_index())
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(8192))


def with_text_that_is_none(path: Path) -> None:
    saved(path, some_index())
    path.write_bytes(path.read_bytes().replace(b'"connection": "system"', b'"connection": "s\xff\xfe\xffem"'))


def with_two_domains_of_one_entry(path: Path) -> None:
    saved(path, some_index())
    data = path.read_bytes()
    path.write_bytes(data.replace(b"web1-10", b"web1-11"))


DAMAGE = {
    "older": lambda path: of_another_schema(path, 0),
    "newer": lambda path: of_another_schema(path, 99),
    "another program's": of_another_program,
    "without a table": with_other_tables,
    "facts that are no JSON": lambda path: with_facts(path, "{"),
    "facts without a name": lambda path: with_facts(path, "{}"),
    "facts that are a list": lambda path: with_facts(path, "[]"),
    "facts of a newer namefs": lambda path: with_facts(path, f'{{"uuid": "{A}", "colour": 1}}'),
    "garbage": with_garbage,
    "cut short": cut_short,
    "zeroed pages": with_zeroed_pages,
    "text that is not UTF-8": with_text_that_is_none,
    "two domains of one entry": with_two_domains_of_one_entry,
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_journal_that_cannot_be_used_is_put_aside_and_made_anew(
    path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGE[what](path)
    content = path.read_bytes()
    with pytest.raises(NamefsError, match=re.escape(str(path))) as refused:
        read(str(path))
    assert refused.value.exit_code is ExitCode.FILE_FAILED
    assert path.read_bytes() == content
    with caplog.at_level(logging.WARNING):
        assert loaded(path) == Index()
    (kept,) = aside(path)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(kept) in caplog.text
    assert ("no index of namefs's" in caplog.text) == (what == "another program's")
    if what != "another program's":  # which was not in write-ahead mode yet
        assert kept.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    caplog.clear()
    saved(path, some_index())
    assert loaded(path) == some_index()
    assert not caplog.records


def test_several_that_are_put_aside_are_all_kept(path: Path) -> None:
    path.parent.mkdir()
    for number in range(3):
        path.write_bytes(b"garbage %d\n" % number * 100)
        assert loaded(path) == Index()
    assert sorted(kept.read_bytes()[:9] for kept in aside(path)) == [b"garbage 0", b"garbage 1", b"garbage 2"]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(1, 255)), min_size=1, max_size=6))
def test_no_flipped_byte_makes_the_journal_fail_or_hold_what_is_no_index(
    tmp_path: Path, flips: list[tuple[int, int]]
) -> None:
    path = tmp_path / f"{time.monotonic_ns()}.sqlite"
    saved(path, some_index(count=4))
    data = bytearray(path.read_bytes())
    for at, flip in flips:
        data[at % len(data)] ^= flip
    path.write_bytes(data)
    with closing(Journal(str(path))) as journal:
        index = journal.load()
        assert len(index.by_place) == len(index.records)
        assert all(isinstance(place.entry, bytes) for place in index.by_place)
        assert all(isinstance(r.since_ns, int) for r in index.records.values())
        assert all(isinstance(r.domain.name, str) for r in index.records.values())
        assert all(
            isinstance(f.name, str) and f.until_ns >= 0 for held in index.former.values() for f in held
        )
        # It can be gone on with: the next listing replaces what the damage put into it.
        journal.save(some_index(count=4), keys_of(some_index(count=4), index))


def test_a_directory_in_its_place_is_an_error_that_names_it(path: Path) -> None:
    path.mkdir(parents=True)
    for attempt in (lambda: Journal(str(path)), lambda: read(str(path))):
        with pytest.raises(NamefsError, match=re.escape(str(path))) as refused:
            attempt()
        assert refused.value.exit_code is ExitCode.FILE_FAILED
    assert path.is_dir()


def test_a_journal_that_another_holds_is_not_put_aside(path: Path) -> None:
    saved(path, some_index())
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(NamefsError, match="locked"):
            read(str(path))
    assert not aside(path)
    assert loaded(path) == some_index()


def test_reading_leaves_the_file_as_it_is_and_sees_what_a_running_daemon_saved(path: Path) -> None:
    saved(path, some_index(1))
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert read(str(path)) == some_index(1)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    with closing(Journal(str(path))) as journal:
        journal.save(some_index(2), keys_of(some_index(2)))
        assert read(str(path)) == some_index(2)


def test_reading_where_there_is_none_says_so_and_makes_none(path: Path) -> None:
    with pytest.raises(NamefsError) as refused:
        read(str(path))
    assert refused.value.exit_code is ExitCode.NOT_FOUND
    assert not path.parent.exists()


def test_a_path_with_question_marks_and_percent_signs_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a?b%41#c" / "index.sqlite"
    saved(path, some_index())
    assert read(str(path)) == some_index()


SCHEMA_1 = """
PRAGMA application_id = 0x6E616D65;
PRAGMA user_version = 1;
CREATE TABLE domain (
    uuid TEXT NOT NULL, generation INTEGER NOT NULL, entry BLOB NOT NULL UNIQUE, since_ns INTEGER NOT NULL,
    facts TEXT NOT NULL, PRIMARY KEY (uuid, generation)
) WITHOUT ROWID;
CREATE TABLE former (
    uuid TEXT NOT NULL, generation INTEGER NOT NULL, name BLOB NOT NULL, since_ns INTEGER NOT NULL,
    until_ns INTEGER NOT NULL, marks TEXT NOT NULL
);
CREATE INDEX former_by_domain ON former (uuid, generation);
"""
FACTS_1 = (
    f'{{"uuid": "{A}", "name": "web", "connection": "local", "state": "running", "persistent": true, '
    '"title": null, "disks": [], "logs": [], "sockets": [], "nvram": null, "filesystems": []}'
)


def test_a_journal_of_namefs_0_1_is_taken_over_with_all_its_names(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(path)) as database, database:
        database.executescript(SCHEMA_1)
        database.execute("INSERT INTO domain VALUES (?, 0, ?, 30, ?)", (str(A), b"web", FACTS_1))
        database.execute("INSERT INTO former VALUES (?, 0, ?, 10, 20, '[[1, 2, 3]]')", (str(A), b"old"))
    for _ in range(2):
        with closing(Journal(str(path))) as journal:
            index = journal.load()
        domain = Domain(A, "web", "local", state="running")
        assert index.records == {Key(A): Record(Key(A), domain, "web", "libvirt", Place(b"", b"web"), 30, 30)}
        assert index.former == {Key(A): (Former("old", 10, 20, (Mark(1, 2, 3),), "local"),)}
        assert index.was_shown == {Key(A): (Former("old", 10, 20),)}
    assert [entry.name for entry in path.parent.iterdir() if "unusable" in entry.name] == []
