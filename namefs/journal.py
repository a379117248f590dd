"""The index in SQLite, so that the view outlives the daemon and does not need libvirt to be shown.

Write-ahead logging with synchronous=NORMAL: a kill at any moment leaves the state before or after a
transaction; so does a power cut, which may take the last transactions with it. libvirt is asked
again at every start, so what they held comes back but for the moment of a change.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

from namefs import rows
from namefs.errors import ExitCode, NamefsError

if TYPE_CHECKING:
    from collections.abc import Collection

    from namefs.index import Index
    from namefs.model import Key

log = logging.getLogger(__name__)

_APPLICATION_ID = 0x6E616D65
"""``name``: what file(1) tells an SQLite database by."""

_SCHEMA_VERSION = 2

_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_SCHEMA_VERSION};

-- The domains that libvirt has, as last seen, and for a time (gone_ns) those that it has no more.
-- Written by each change, replaced by each full listing.
CREATE TABLE domain (
    uuid TEXT NOT NULL,
    generation INTEGER NOT NULL,    -- 0 but during a local migration
    group_entry BLOB NOT NULL,      -- of the group that it is shown in, empty for none
    entry BLOB NOT NULL,            -- the file name in its group's directory, or the root's
    since_ns INTEGER NOT NULL,      -- when it got its present libvirt name, since the epoch
    shown_since_ns INTEGER NOT NULL,
    gone_ns INTEGER,                -- since when libvirt has it no more
    role TEXT NOT NULL,             -- model.Role: what it is to its guest
    is_owner INTEGER NOT NULL,      -- 1: it has the guest's name
    facts TEXT NOT NULL,            -- model.Domain as JSON; \\udcXX stands for a byte that is not UTF-8
    PRIMARY KEY (uuid, generation)
) WITHOUT ROWID;
CREATE UNIQUE INDEX domain_by_place ON domain (group_entry, entry) WHERE gone_ns IS NULL;

-- The names that domains had before, of domains that are gone too: they tell whose the logs
-- are that libvirt left under a name. Nobody but namefs knows them: lost, they cannot be rebuilt.
CREATE TABLE former (
    uuid TEXT NOT NULL,
    generation INTEGER NOT NULL,
    shown INTEGER NOT NULL,         -- 1: a name in the view, 0: a libvirt name
    name BLOB NOT NULL,
    since_ns INTEGER NOT NULL,
    until_ns INTEGER NOT NULL,
    marks TEXT NOT NULL,            -- [[dev, ino, size_bytes], ...] of the logs, at until_ns
    connection TEXT NOT NULL        -- of a libvirt name: where it was the domain's
);
CREATE INDEX former_by_domain ON former (uuid, generation);

-- The shown names that were asked for through namefs, until libvirt's own name has followed (name NULL
-- from then on, so that an old snapshot's metadata does not bring it back).
CREATE TABLE asked (
    uuid TEXT NOT NULL,
    generation INTEGER NOT NULL,
    name BLOB,
    asked_ns INTEGER NOT NULL,
    follows INTEGER NOT NULL,
    PRIMARY KEY (uuid, generation)
) WITHOUT ROWID;

-- Domains that are off while another connection's domain of the same UUID has the name.
CREATE TABLE shadow (
    uuid TEXT NOT NULL,
    connection TEXT NOT NULL,
    facts TEXT NOT NULL,
    PRIMARY KEY (uuid, connection)
) WITHOUT ROWID;

-- Migrations from one connection to another.
CREATE TABLE move (
    uuid TEXT NOT NULL,
    source TEXT NOT NULL,
    target TEXT NOT NULL,
    at_ns INTEGER NOT NULL
);
CREATE INDEX move_by_domain ON move (uuid);
"""


_FROM_1 = """
ALTER TABLE domain RENAME TO domain_1;
ALTER TABLE former RENAME TO former_1;
DROP INDEX former_by_domain;
{schema}
INSERT INTO domain
    SELECT uuid, generation, X'', entry, since_ns, since_ns, NULL, 'inactive', 1, facts FROM domain_1;
INSERT INTO former
    SELECT uuid, generation, 0, name, since_ns, until_ns, marks, 'local' FROM former_1 ORDER BY rowid;
INSERT INTO former
    SELECT uuid, generation, 1, name, since_ns, until_ns, '[]', '' FROM former_1 ORDER BY rowid;
DROP TABLE domain_1;
DROP TABLE former_1;
""".replace("{schema}", _SCHEMA)
"""From the schema of namefs 0.1, where the shown name was libvirt's."""


_ORDERS = {"domain": "uuid", "former": "rowid", "asked": "uuid", "shadow": "uuid", "move": "rowid"}
"""How each table is read: what happened one after the other, in that order."""


class Unusable(Exception):
    """The file is no journal of this version: damaged, of another schema, or something else."""


_DAMAGE = (Unusable, sqlite3.DatabaseError, UnicodeDecodeError)
"""How a damaged file shows; SQLite's message about one may itself hold what is no UTF-8."""


class Journal:
    """The open file. Its methods block; one at a time is called, from whichever thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._database = self._open()
        # SQLite keeps a descriptor of the first checkpoint's for good, since closing it would drop this
        # process's locks (fcntl(2)): now, not after a minute.
        self.checkpoint()

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

    def save(self, index: Index, touched: Collection[Key], durably: bool = False) -> None:
        """Save what the index says of these keys, in one transaction. Raises NamefsError.

        ``durably``: on the disk when this returns, so that a power cut does not take it back.
        """
        try:
            if durably:
                self._database.execute("PRAGMA synchronous = FULL")
            try:
                with self._database as transaction:
                    _write(transaction, index, touched)
            finally:
                if durably:
                    self._database.execute("PRAGMA synchronous = NORMAL")
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
            _execute(database, _SCHEMA)
        if _version(database) == 1:
            log.info("%s is of namefs 0.1: brought up to date", path)
            _execute(database, _FROM_1)
        _check(database)
        _read(database)
    except BaseException:
        database.close()
        raise
    return database


def _execute(database: sqlite3.Connection, script: str) -> None:
    # executescript() would commit after each statement, and a kill leave half a schema.
    database.execute("BEGIN EXCLUSIVE")
    with database:
        for statement in script.split(";\n"):
            database.execute(statement)


def _version(database: sqlite3.Connection) -> int:
    if database.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
        raise Unusable("it is no index of namefs's")
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _check(database: sqlite3.Connection) -> None:
    version = _version(database)
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


def _write(database: sqlite3.Connection, index: Index, touched: Collection[Key]) -> None:
    for key in touched:
        # All of them first: an entry passes from one domain to another within a transaction.
        for table in ("domain", "former", "asked"):
            database.execute(
                f"DELETE FROM {table} WHERE uuid = ? AND generation = ?",
                (str(key.uuid), key.generation),
            )
        if key == key.guest:
            for table in ("shadow", "move"):
                database.execute(f"DELETE FROM {table} WHERE uuid = ?", (str(key.uuid),))
    for key in touched:
        _write_one(database, index, key)


def _write_one(database: sqlite3.Connection, index: Index, key: Key) -> None:
    for table, row in rows.of(index, key):
        database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def _read(database: sqlite3.Connection) -> Index:
    tables = {
        table: database.execute(f"SELECT * FROM {table} ORDER BY {order}") for table, order in _ORDERS.items()
    }
    try:
        return rows.index(tables)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # SQLite's check does not look at types.
        raise Unusable(f"it holds what namefs did not write: {error}") from error
