"""The daemon killed at any moment: the mount says so, and the next daemon shows the guests, all of them."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import subprocess
import threading
from contextlib import closing
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from namefs import journal
from namefs.errors import ExitCode
from tests.lab import guests
from tests.lab.mounted import NAMEFS, TIMEOUT_S, is_mounted
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import libvirt

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

KILLS = 10
UUIDS = [UUID(int=0x4000_8000_0000_0000_0000 | number) for number in range(1, 5)]
STEADY = UUIDS[:3]
"""Those that are only renamed; the others come and go as well."""

# Twice as many as guests, so that names are taken over, and some are free.
NAMES = [f"g{number}" for number in range(2 * len(UUIDS))]


@pytest.fixture
def connection(libvirt_host: Host) -> Iterator[libvirt.virConnect]:
    connection = libvirt_host.connect()
    yield connection
    connection.close()


class Turmoil:
    """Guests that are renamed, undefined and defined, one after the other, while this is entered."""

    def __init__(self, host: Host, seed: int) -> None:
        self._host = host
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.changes = 0
        self.error: Exception | None = None

    def __enter__(self) -> Turmoil:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            with closing(self._host.connect()) as connection:
                while not self._over.is_set():
                    self._change(connection)
                    self.changes += 1
        except Exception as error:
            self.error = error

    def _change(self, connection: libvirt.virConnect) -> None:
        taken = {domain.name(): domain for domain in connection.listAllDomains()}
        uuid = self._random.choice(UUIDS)
        name = self._random.choice([name for name in NAMES if name not in taken])
        domain = next((d for d in taken.values() if d.UUIDString() == str(uuid)), None)
        if domain is None:
            connection.defineXML(guests.xml(name, uuid))
        elif uuid in STEADY or self._random.random() < 0.5:
            domain.rename(name)
        else:
            domain.undefine()


def of_libvirt(connection: libvirt.virConnect) -> dict[str, str]:
    """Name to UUID of all guests."""
    return {domain.name(): domain.UUIDString() for domain in connection.listAllDomains()}


def of_view(path: Path) -> dict[str, str]:
    """Entry to UUID of all guests; one that went meanwhile is left out."""
    found = {}
    for entry in (entry for entry in os.listdir(path) if not entry.startswith(".")):
        try:
            found[entry] = os.getxattr(path / entry, "user.namefs.uuid").decode()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
    return found


def of_journal(path: Path) -> dict[str, str]:
    """Entry to UUID of all guests in the saved index."""
    index = journal.read(os.fspath(path))
    return {os.fsdecode(place.entry): str(key.uuid) for place, key in index.by_place.items()}


def shows_what_libvirt_has(mounted: Mounted, connection: libvirt.virConnect) -> None:
    """Return once the view does; what the view shows is saved already."""
    wanted = of_libvirt(connection)
    until(lambda: of_view(mounted.path) == wanted, TIMEOUT_S, "the view shows what libvirt has")
    assert of_journal(mounted.journal) == wanted


def assert_dead(path: Path) -> None:
    """The mount is there and answers nothing: it does not look empty."""
    for look in (os.listdir, os.statvfs):
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            look(path)
    assert is_mounted(path)


def test_killed_while_guests_change_it_is_replaced_by_one_that_shows_what_libvirt_has(
    libvirt_host: Host, mounted: Mounted, connection: libvirt.virConnect
) -> None:
    for name, uuid in zip(NAMES, STEADY, strict=False):
        connection.defineXML(guests.xml(name, uuid))
    until(lambda: len(of_view(mounted.path)) == len(STEADY), TIMEOUT_S, "the guests are in the view")
    delays = random.Random(1)
    never = threading.Event()
    for kill in range(KILLS):
        with Turmoil(libvirt_host, kill) as turmoil:
            until(lambda: turmoil.changes > 1, TIMEOUT_S, "guests change")
            never.wait(delays.uniform(0, 0.1))
            mounted.kill()
            assert_dead(mounted.path)
            # What a kill leaves is a whole index, whatever it was doing.
            saved = list(of_journal(mounted.journal).values())
            assert len(set(saved)) == len(saved)
            assert set(map(str, STEADY)) <= set(saved)
            mounted.start()
        shows_what_libvirt_has(mounted, connection)


def test_what_was_open_when_it_was_killed_fails_and_does_not_hinder_the_next(
    mounted: Mounted, connection: libvirt.virConnect
) -> None:
    connection.defineXML(guests.xml("web", UUIDS[0]))
    config = mounted.path / "web/config.xml"
    until(config.exists, TIMEOUT_S, "the guest is in the view")
    fd = os.open(config, os.O_RDONLY)
    mounted.kill()
    dead = os.strerror(errno.ENOTCONN)
    with pytest.raises(OSError, match=dead):
        os.read(fd, 1)
    mounted.start()
    assert "<name>web</name>" in config.read_text()
    with pytest.raises(OSError, match=dead):
        os.close(fd)


def spoil(path: Path) -> None:
    """Overwrite the middle of each page of a database but the first's header."""
    data = bytearray(path.read_bytes())
    for at in range(200, len(data), 512):
        data[at : at + 64] = b"\xff" * min(64, len(data) - at)
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    os.truncate(path, 100)


def make_older(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 0")


def replace_by_text(path: Path) -> None:
    path.write_text("This is no database. " * 100)


@pytest.mark.parametrize("damage", [spoil, cut_short, make_older, replace_by_text])
def test_an_index_that_cannot_be_used_is_put_aside_and_made_anew(
    mounted: Mounted, connection: libvirt.virConnect, damage: Callable[[Path], None]
) -> None:
    connection.defineXML(guests.xml("web", UUIDS[0]))
    until(lambda: of_view(mounted.path), TIMEOUT_S, "the guest is in the view")
    mounted.terminate()
    damage(mounted.journal)
    damaged = mounted.journal.read_bytes()
    mounted.expect_warning("WARNING .*index.sqlite cannot be used .*: kept as ")
    mounted.start()
    shows_what_libvirt_has(mounted, connection)
    (aside,) = (p for p in mounted.journal.parent.glob("index.sqlite.unusable-*") if p.suffix != "-wal")
    assert aside.read_bytes() == damaged
    assert any("kept as" in line and aside.name in line for line in mounted.log)


def test_a_journal_that_cannot_be_written_ends_it_with_a_message_before_anything_is_mounted(
    mounted: Mounted,
) -> None:
    mounted.terminate()
    # Not by its mode: the tests are root's.
    in_the_way = mounted.config.parent / "file"
    in_the_way.write_text("")
    journal_line = f'journal = "{mounted.journal}"'
    text = mounted.config.read_text()
    assert journal_line in text
    mounted.config.write_text(text.replace(journal_line, f'journal = "{in_the_way}/index.sqlite"'))
    done = subprocess.run(
        [*NAMEFS, "mount", "--config", mounted.config],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == ExitCode.FILE_FAILED
    (message,) = done.stderr.splitlines()
    assert message.startswith(f"namefs: the index {in_the_way}/index.sqlite cannot be used: ")
    assert not is_mounted(mounted.path)
