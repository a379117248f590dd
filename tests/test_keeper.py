"""A log of a guest's whole life, against all that libvirt, logrotate, renames and kills do behind it."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from namefs import copying, lifefile
from namefs.backing import Backing
from namefs.guest import Shelf
from namefs.keeper import Keeper
from namefs.model import Domain, Key, Listed
from tests.test_guest import A, B, Desk, run

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ("web", "shop", "mail")
GUESTS = st.sampled_from([A, B])
KEPT_BYTES = 2000


class Killed(BaseException):
    """SIGKILL, at some system call that changes something."""


class Dying:
    """Stands for the module ``os``, whose n-th call that changes something, and each one after it, fails."""

    CHANGING = frozenset({"write", "rename", "unlink", "fsync", "fdatasync", "makedirs"})

    def __init__(self, calls_left: int, failure: BaseException) -> None:
        self._calls_left = calls_left
        self._failure = failure

    def __getattr__(self, name: str) -> object:
        attribute = getattr(os, name)
        return self._counted(attribute) if name in self.CHANGING else attribute

    def _counted(self, call: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            self._calls_left -= 1
            if self._calls_left < 0:
                raise self._failure
            if self._calls_left == 0 and call is os.write:
                # Half of it gets there.
                fd, data = cast("tuple[int, bytes]", arguments)
                return os.write(fd, data[: len(data) // 2 + 1])
            return call(*arguments, **options)

        return counted


class Host(RuleBasedStateMachine):
    """Two guests that write, stop, are renamed and take each other's names; namefs, which comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(copying, "AGAIN_S", 0.0)
        self.desk = Desk(self.root)
        self.names = {A: "web", B: "shop"}
        self.running: set[UUID] = set()
        self.written: dict[UUID, list[bytes]] = {A: [], B: []}
        self.clock = 0
        self.copies = False
        self.keeper: Keeper | None = None

    def teardown(self) -> None:
        try:
            self.start_namefs()
            self.keep_all()
        finally:
            self.patch.undo()
            shutil.rmtree(self.root)

    def log(self, guest: UUID) -> Path:
        return self.root / f"log/{self.names[guest]}.log"

    def append(self, guest: UUID, *lines: bytes) -> None:
        self.written[guest] += lines
        with self.log(guest).open("ab") as log:
            log.write(b"".join(lines))

    @rule(guest=GUESTS)
    def start(self, guest: UUID) -> None:
        if guest not in self.running:
            self.running.add(guest)
            self.clock += 1
            time = b"2026-11-24 05:%02d:%02d.000+0000" % divmod(self.clock, 60)
            command = f": starting up libvirt version: 9.0.0\n-uuid {guest} \\\n".encode()
            self.append(guest, time + command)

    @rule(guest=GUESTS, count=st.integers(1, 30))
    def write(self, guest: UUID, count: int) -> None:
        if guest in self.running:
            self.clock += 1
            self.append(
                guest, *(b"%d.%d of %s\n" % (self.clock, n, guest.bytes.hex().encode()) for n in range(count))
            )

    @rule(guest=GUESTS)
    def stop(self, guest: UUID) -> None:
        if guest in self.running:
            self.running.remove(guest)
            self.clock += 1
            self.append(guest, b"%d: shutting down\n" % self.clock)

    @rule(guest=GUESTS, name=st.sampled_from(NAMES))
    def rename(self, guest: UUID, name: str) -> None:
        if guest not in self.running and name not in self.names.values():
            self.names[guest] = name
            if self.keeper is not None:
                self.tell()

    @precondition(lambda self: not self.copies)
    @rule(guest=GUESTS)
    def rotate(self, guest: UUID) -> None:
        """As virtlogd does with the log of a guest that runs."""
        if guest in self.running:
            log = self.log(guest)
            self.shift(log, 0, 2)
            log.rename(log.with_name(f"{log.name}.0"))
            log.touch()

    @precondition(lambda self: self.copies)
    @rule(name=st.sampled_from(NAMES), half=st.booleans(), whole=st.booleans(), packs=st.booleans())
    def copy_and_truncate(self, name: str, half: bool, whole: bool, packs: bool) -> None:
        """As logrotate does, with looks in the middle of it or without."""
        log = self.root / f"log/{name}.log"
        if not log.exists():
            return
        self.shift(log, 1, 3)
        content = log.read_bytes()
        copy = log.with_name(f"{log.name}.1")
        if half:
            copy.write_bytes(content[: len(content) // 2])
            self.look(A)
            self.look(B)
        copy.write_bytes(content)
        if whole:
            self.look(A)
            self.look(B)
        os.truncate(log, 0)
        older = log.with_name(f"{log.name}.2")
        if packs and older.exists():
            with gzip.open(f"{older}.gz", "wb") as packed:
                packed.write(older.read_bytes())
            older.unlink()

    def shift(self, log: Path, first: int, last: int) -> None:
        for number in range(last, first - 1, -1):
            for suffix in ("", ".gz"):
                older = log.with_name(f"{log.name}.{number}{suffix}")
                if older.exists() and number == last:
                    self.drop(older)
                elif older.exists():
                    older.rename(log.with_name(f"{log.name}.{number + 1}{suffix}"))

    def drop(self, file: Path) -> None:
        """libvirt does not keep it any more: what was not copied by now can't be."""
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        file.unlink()
        for guest in (A, B):
            life = self.life(guest)
            self.written[guest] = [
                line for line in self.written[guest] if line not in content or line in life
            ]

    @initialize(copies=st.booleans())
    def furnish(self, copies: bool) -> None:
        self.copies = copies

    @rule()
    def start_namefs(self) -> None:
        if self.keeper is None:
            # Nothing is left of what the one before it knew.
            self.desk.shelf = Shelf(Backing("/nowhere/by-name"))
            self.tell()
            places = self.desk.places("system")
            self.keeper = Keeper({"system": places}, self.desk.shelf, lambda: self.desk.index, KEPT_BYTES)
            self.keeper.trust("system")
            self.keep_all()

    def tell(self) -> None:
        domains = (Domain(guest, name, "system") for guest, name in self.names.items())
        self.desk.see(Listed("system", tuple(domains)))

    @rule()
    def keep_all(self) -> None:
        """What the daemon's task does by itself."""
        if self.keeper is not None:
            waiting = [Key(A), Key(B)]
            while waiting:
                self.keeper.keep(waiting.pop())
                waiting += map(Key, self.keeper.take_found())
            self.check()

    @rule(guest=GUESTS)
    def look(self, guest: UUID) -> None:
        if self.keeper is not None:
            self.keeper.look(self.desk.guest(guest))

    @rule(guest=GUESTS, calls=st.integers(0, 15))
    def kill(self, guest: UUID, calls: int) -> None:
        if self.keeper is not None:
            with pytest.MonkeyPatch.context() as patch, suppress(Killed):
                patch.setattr(lifefile, "os", Dying(calls, Killed()))
                self.keeper.keep(Key(guest))
            self.keeper = None

    @rule(guest=GUESTS, calls=st.integers(0, 15))
    def keep_on_a_full_disk(self, guest: UUID, calls: int) -> None:
        if self.keeper is not None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(lifefile, "os", Dying(calls, OSError(errno.ENOSPC, "full")))
                with suppress(OSError):
                    self.keeper.keep(Key(guest))

    def life(self, guest: UUID) -> bytes:
        at = self.root / f"log-by-uuid/{guest}"
        return b"".join(f.read_bytes() for f in (at / "qemu.log.1", at / "qemu.log") if f.exists())

    def check(self) -> None:
        for guest in (A, B):
            whole, life = b"".join(self.written[guest]), self.life(guest)
            assert whole.endswith(life)
            assert len(life) >= min(len(whole), KEPT_BYTES)


Host.TestCase.settings = settings(deadline=None, max_examples=120, stateful_step_count=40)
TestHost = Host.TestCase


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A desk with a keeper, and guests A, called ``web``, and B, called ``db``."""
    monkeypatch.setattr(copying, "AGAIN_S", 0.0)
    desk = Desk(tmp_path)
    desk.named(A, "web")
    desk.named(B, "db")
    desk.shelf.lives["system"] = keeper_of(desk)
    return desk


def keeper_of(desk: Desk) -> Keeper:
    keeper = Keeper({"system": desk.places("system")}, desk.shelf, lambda: desk.index, 0)
    keeper.trust("system")
    return keeper


def test_a_log_is_shown_from_the_store_by_one_inode(desk: Desk) -> None:
    desk.append("log/web.log", run(A))
    (first,) = desk.items(A, b"log").values()
    rotated = desk.root / "log/web.log"
    rotated.rename(rotated.with_name("web.log.0"))
    desk.append("log/web.log", b"more\n")
    (second,) = desk.items(A, b"log").values()
    assert desk.texts(A) == {"qemu.log": run(A) + b"more\n"}
    assert first.info is not None
    assert second.info is not None
    assert first.info.st_ino == second.info.st_ino
    assert second.path == f"{desk.root}/log-by-uuid/{A}/qemu.log"
    assert second.info.st_mode & 0o777 == 0o600


def test_a_look_when_nothing_is_new_opens_no_file(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.append("log/web.log", run(A))
    assert desk.texts(A) == {"qemu.log": run(A)}
    keeper = desk.shelf.lives["system"]
    monkeypatch.setattr(desk.shelf.backing, "open", None)
    monkeypatch.setattr(lifefile, "os", Dying(0, AssertionError("changed something")))
    assert keeper.look(desk.guest(A)).joined


def test_while_the_store_is_full_libvirts_files_are_shown_and_it_is_said_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "namefs")
    desk.append("log/web.log", run(A))
    assert desk.texts(A) == {"qemu.log": run(A)}
    rotated = desk.root / "log/web.log"
    rotated.rename(rotated.with_name("web.log.0"))
    desk.append("log/web.log", b"more\n")
    with monkeypatch.context() as patch:
        patch.setattr(lifefile, "os", Dying(1, OSError(errno.ENOSPC, "No space left on device")))
        for _ in range(3):
            assert desk.texts(A) == {"qemu.log": b"more\n", "qemu.log.0": run(A)}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert desk.texts(A) == {"qemu.log": run(A) + b"more\n"}
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_line_that_may_become_the_start_of_another_guest_waits_for_its_end(desk: Desk) -> None:
    start, rest = run(B)[:40], run(B)[40:]
    desk.append("log/web.log", run(A) + start)
    assert desk.text(A, "qemu.log") == run(A)
    desk.append("log/web.log", rest)
    assert desk.text(A, "qemu.log") == run(A)
    desk.append("log/web.log", run(A, "no prompt ends in a newline: "))
    assert desk.text(A, "qemu.log") == run(A) + run(A, "no prompt ends in a newline: ")


def test_swtpms_lines_are_kept_for_who_had_the_name_when_they_were_written(desk: Desk) -> None:
    desk.append("swtpm-log/web-swtpm.log", b"of A\n")
    assert desk.texts(A) == {"swtpm.log": b"of A\n"}
    desk.named(A, "shop")
    desk.named(B, "web")
    desk.append("swtpm-log/web-swtpm.log", b"of B\n")
    assert desk.texts(A) == {"swtpm.log": b"of A\n"}
    assert desk.texts(B) == {"swtpm.log": b"of B\n"}


def test_a_name_that_was_had_and_lost_while_namefs_was_down_comes_first(desk: Desk) -> None:
    first = run(A, "first\n").replace(b"05:4", b"05:3")
    desk.append("log/db.log", first)
    desk.append("log/web.log", run(A, "second\n"))
    keeper_of(desk).keep(Key(A))
    assert desk.texts(A) == {"qemu.log": first + run(A, "second\n")}


def test_the_files_of_a_name_go_once_nobody_has_it_and_all_of_it_is_kept(desk: Desk) -> None:
    keeper = keeper_of(desk)
    stranger = UUID(int=99)
    desk.append("log/web.log", run(A) + run(B))
    desk.append("log/web.log.0", run(A, "older\n"))
    desk.append("log/webmaster.log", run(stranger))
    keeper.keep(Key(A))
    assert (desk.root / "log/web.log").exists(), "A has that name"
    desk.named(A, "shop")
    desk.append("log/db.log", run(stranger))
    desk.named(B, "mail")
    keeper.keep(Key(A))
    keeper.keep(Key(B))
    assert sorted(os.listdir(desk.root / "log")) == ["db.log", "webmaster.log"]
    assert desk.texts(A) == {"qemu.log": run(A, "older\n") + run(A)}


def test_only_the_logs_of_guests_that_are_gone_are_removed(desk: Desk) -> None:
    keeper = keeper_of(desk)
    for uuid, name in ((A, "web"), (B, "db")):
        desk.append(f"log/{name}.log", run(uuid))
        keeper.keep(Key(uuid))
    desk.append("log-by-uuid/notes", b"an administrator's")
    desk.named(A, None)
    keeper.expire([A, B, UUID(int=99)])
    assert sorted(os.listdir(desk.root / "log-by-uuid")) == sorted([str(B), "notes"])
    assert desk.texts(B) == {"qemu.log": run(B)}
