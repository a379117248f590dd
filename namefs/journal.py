"""The index in SQLite, so that the view outlives the daemon and does not need libvirt to be shown.

Write-ahead logging with synchronous=NORMAL: a kill at any moment leaves the state before or after a
transaction; so does a power cut, which may take the last transactions with it. libvirt is asked
again at every start, so what they held comes back but for the moment of a change.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from uuid import UUID

from namefs.errors import ExitCode, NamefsError
from namefs.index import Index
from namefs.model import Disk, Domain, Former, Key, Mark, Named, Record

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

log = logging.getLogger(__name__)

_APPLICATION_ID = 0x6E616D65
"""``name``: what file(1) tells an SQLite database by."""

_SCHEMA_VERSION = 1

_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_SCHEMA_VERSION};

-- The domains that libvirt has, as last seen. Written by each change, replaced by each full listing.
CREATE TABLE domain (
    uuid TEXT NOT NULL,
    generation INTEGER NOT NULL,    -- 0 but during a local migration
    entry BLOB NOT NULL UNIQUE,     -- the file name in the view's root directory
    since_ns INTEGER NOT NULL,      -- when it got its present libvirt name, since the epoch
    facts TEXT NOT NULL,            -- model.Domain as JSON; \\udcXX stands for a byte that is not UTF-8
    PRIMARY KEY (uuid, generation)
) WITHOUT ROWID;

-- The libvirt names that domains had before, of domains that are gone too: they tell whose the logs
-- are that libvirt left under a name. Nobody but namefs knows them: lost, they cannot be rebuilt.
CREATE TABLE former (
    uuid TEXT NOT NULL,
    generation INTEGER NOT NULL,
    name BLOB NOT NULL,
    since_ns INTEGER NOT NULL,
    until_ns INTEGER NOT NULL,
    marks TEXT NOT NULL             -- [[dev, ino, size_bytes], ...] of the logs, at until_ns
);
CREATE INDEX former_by_domain ON former (uuid, generation);
"""


class Unusable(Exception):
    """The file is no journal of this version: damaged, of another schema, or something else."""


_DAMAGE = (Unusable, sqlite3.DatabaseError, UnicodeDecodeError)
"""How a damaged file shows; SQLite's message about one may itself hold what is no UTF-8."""


class Journal:
    """The open file. Its methods block; one at a time is called, from whichever thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._database = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            if not os.path.exists(self._path):
                # SQLite would make it readable for all.
                os.close(os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            try:
                return _connect(self._path)
            except _DAMAGE as why:
                if _is_of_the_environment(why):
                    raise
                aside = _put_aside(self._path)
                log.warning("%s cannot be used (%s): kept as %s, a new one is made", self._path, why, aside)
                os.close(os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
                return _connect(self._path)
        except (OSError, sqlite3.Error) as error:
            raise _failed(self._path, error) from error

    def load(self) -> Index:
        """The index as it was last saved."""
        try:
            return _read(self._database)
        except sqlite3.Error as error:
            raise _failed(self._path, error) from error

    def save(self, index: Index, touched: Collection[Key]) -> None:
        """Save what the index says of these keys, in one transaction. Raises NamefsError."""
        try:
            with self._database as transaction:
                for key in touched:
                    _write(transaction, index, key)
        except sqlite3.Error as error:
            raise _failed(self._path, error) from error

    def checkpoint(self) -> None:
        """Move what was saved from the log to the file. Nobody who saves waits for it.

        SQLite would do it by itself within every 250th save or so, which then took 17 ms. Raises NamefsError.
        """
        try:
            with closing(sqlite3.connect(self._path)) as database:
                database.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as error:
            raise _failed(self._path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def read(path: str) -> Index:
    """The index in the file at ``path``, which is left as it is.

    Raises NamefsError: NOT_FOUND if there is none, PERMISSION, FILE_FAILED.
    """
    try:
        with open(path, "rb"):
            pass
        with closing(sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True)) as database:
            _check(database)
            return _read(database)
    except FileNotFoundError as error:
        raise NamefsError(ExitCode.NOT_FOUND, f"there is no index yet at {path}") from error
    except PermissionError as error:
        raise NamefsError(ExitCode.PERMISSION, f"{path}: {error.strerror}") from error
    except (OSError, sqlite3.Error, *_DAMAGE) as error:
        raise _failed(path, error) from error


def _quoted(path: str) -> str:
    from urllib.parse import quote

    return quote(path)


def _is_of_the_environment(error: Exception) -> bool:
    """Whether the file may be sound: locked, a full disk, no permission. Then it is not put aside."""
    # Of the operational errors, a table that is missing and text that is no UTF-8 (an error of the
    # sqlite3 module's, without a code) are the file's own.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return isinstance(error, sqlite3.OperationalError) and code != sqlite3.SQLITE_ERROR


def _failed(path: str, error: Exception) -> NamefsError:
    return NamefsError(ExitCode.FILE_FAILED, f"the index {path} cannot be used: {error}")


def _connect(path: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False, isolation_level="IMMEDIATE", timeout=10)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA wal_autocheckpoint = 0")
        if not database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            with _exclusive(database):
                for statement in _SCHEMA.split(";\n"):
                    database.execute(statement)
        _check(database)
        _read(database)
    except BaseException:
        database.close()
        raise
    return database


@contextmanager
def _exclusive(database: sqlite3.Connection) -> Iterator[None]:
    # executescript() would commit after each statement, and a kill leave half a schema.
    database.execute("BEGIN EXCLUSIVE")
    with database:
        yield


def _check(database: sqlite3.Connection) -> None:
    if database.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
        raise Unusable("it is no index of namefs's")
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version != _SCHEMA_VERSION:
        raise Unusable(f"its schema is {version}, this namefs's is {_SCHEMA_VERSION}")
    damage = database.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if damage != "ok":
        raise Unusable(f"it is damaged: {damage}")


def _put_aside(path: str) -> str:
    aside = f"{path}.unusable-{time.strftime('%Y%m%dT%H%M%S')}"
    while os.path.lexists(aside):
        aside += "+"
    os.rename(path, aside)
    for suffix in ("-wal", "-shm"):
        if os.path.lexists(path + suffix):
            os.rename(path + suffix, aside + suffix)
    return aside


def _write(database: sqlite3.Connection, index: Index, key: Key) -> None:
    identity = (str(key.uuid), key.generation)
    database.execute("DELETE FROM domain WHERE uuid = ? AND generation = ?", identity)
    database.execute("DELETE FROM former WHERE uuid = ? AND generation = ?", identity)
    record = index.records.get(key)
    if record is not None:
        # An entry passes from one domain to another within a transaction, in either order.
        database.execute("DELETE FROM domain WHERE entry = ?", (record.entry,))
        database.execute(
            "INSERT INTO domain VALUES (?, ?, ?, ?, ?)",
            (*identity, record.entry, record.since_ns, _facts(record.domain)),
        )
    database.executemany(
        "INSERT INTO former VALUES (?, ?, ?, ?, ?, ?)",
        [
            (*identity, _blob(f.name), f.since_ns, f.until_ns, json.dumps(f.marks))
            for f in index.former.get(key, ())
        ],
    )


def _read(database: sqlite3.Connection) -> Index:
    records: dict[Key, Record] = {}
    former: dict[Key, tuple[Former, ...]] = {}
    try:
        for uuid, generation, entry, since_ns, facts in database.execute("SELECT * FROM domain"):
            key = Key(UUID(uuid), generation)
            records[key] = Record(key, _domain(json.loads(facts)), entry, since_ns)
        for uuid, generation, name, since_ns, until_ns, marks in database.execute(
            "SELECT * FROM former ORDER BY rowid"
        ):
            key = Key(UUID(uuid), generation)
            held = Former(_text(name), since_ns, until_ns, tuple(Mark(*m) for m in json.loads(marks)))
            former[key] = (*former.get(key, ()), held)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Unusable(f"it holds what namefs did not write: {error}") from error
    by_entry = {record.entry: key for key, record in records.items()}
    if len(by_entry) != len(records) or not all(isinstance(entry, bytes) for entry in by_entry):
        # SQLite's check does not look at types.
        raise Unusable("it holds what namefs did not write: domains without an entry of their own")
    return Index(records, by_entry, former)


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
        }
    )


def _blob(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
