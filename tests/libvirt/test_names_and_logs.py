"""Names as libvirt takes them, and logs as tail(1) follows them: through rotations, and through renames."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from namefs import naming
from tests.lab import guests
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

UUID_A = UUID("00000000-0000-4000-8000-00000000000a")
UUID_B = UUID("00000000-0000-4000-8000-00000000000b")
SOON_S = 15.0
NAMES = [
    " ",
    "-rf",
    "a guest with blanks ",
    "tab\there",
    ".hidden",
    "100%",
    "%2F",
    "web~00000000",
    "ünïcödé",
    "u\u0308ni",
    "\u202egnp.exe",
    "\u200b",
    "*?[a]",
    "b" * 247,
    "\u00e4" * 123,
]


class Tail:
    """A tail(1) that runs, and what it has printed."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self._process = process
        self._output = output

    @property
    def text(self) -> str:
        return self._output.read_text()

    def prints(self, text: str) -> None:
        """Return when this is all that it has printed. Raises AssertionError if it prints anything else."""
        with suppress(TimeoutError):
            until(lambda: self.text == text or not text.startswith(self.text), SOON_S, "tail prints it")
        assert self.text == text

    def is_at(self, file: Path) -> bool:
        """Whether it holds this very file open."""
        wanted = file.stat()
        for fd in Path(f"/proc/{self._process.pid}/fd").iterdir():
            try:
                found = fd.stat()
            except FileNotFoundError:
                continue
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
        return False


@contextmanager
def tail(tmp_path: Path, *arguments: str, cwd: Path) -> Iterator[Tail]:
    """``tail -s 0.05``, and whatever else is given."""
    output = tmp_path / f"tail-{len(list(tmp_path.iterdir()))}"
    with output.open("wb") as out:
        process = subprocess.Popen(
            ["tail", "-s", "0.05", *arguments], cwd=cwd, stdout=out, stderr=subprocess.DEVNULL
        )
    try:
        yield Tail(process, output)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def define(host: Host, definition: str) -> None:
    file = host.root / "definition.xml"
    file.write_text(definition)
    host.virsh("define", os.fspath(file))


def real_log(host: Host, name: str) -> Path:
    return host.outside(f"/var/log/libvirt/qemu/{name}.log")


def append(file: Path, text: str) -> None:
    with file.open("a") as log:
        log.write(text)


@pytest.fixture
def web(libvirt_host: Host, mounted: Mounted) -> Path:
    """A guest that has run once, so that libvirt has begun its log."""
    define(libvirt_host, guests.xml("web", UUID_A))
    run_once(libvirt_host, "web")
    web = mounted.path / "web"
    until(web.exists, SOON_S, "web is shown")
    return web


def run_once(host: Host, name: str) -> None:
    host.virsh("start", name)
    host.virsh("destroy", name)
    log = real_log(host, name)
    until(lambda: log.read_text().endswith(": shutting down, reason=destroyed\n"), SOON_S, "the log ends")


def test_every_name_that_libvirt_takes_is_shown_and_can_be_read_back(
    libvirt_host: Host, mounted: Mounted
) -> None:
    for name in NAMES:
        define(libvirt_host, guests.xml(name))
    expected = {naming.encode(name): name for name in NAMES}
    assert len(expected) == len(NAMES)
    view = os.fsencode(mounted.path)
    until(lambda: set(os.listdir(view)) == set(expected), SOON_S, "all are shown")
    for entry, name in expected.items():
        guest = os.path.join(view, entry)
        assert os.getxattr(guest, "user.namefs.name") == os.fsencode(name)
        with open(os.path.join(guest, b"config.xml"), "rb") as config:
            assert b"<domain" in config.read()


def test_a_name_that_is_not_utf8_is_shown(libvirt_host: Host, mounted: Mounted) -> None:
    define(libvirt_host, guests.xml("web", UUID_A))
    libvirt_host.virsh("domrename", "web", os.fsdecode(b"w\xffb"))
    view = os.fsencode(mounted.path)
    entry = naming.encode(os.fsdecode(b"w\xffb"))
    until(lambda: os.listdir(view) == [entry], SOON_S, "it is shown")
    assert os.getxattr(os.path.join(view, entry), "user.namefs.name") == b"w\xffb"
    with open(os.path.join(view, entry, b"config.xml"), "rb") as config:
        assert b"w\xffb" in config.read()
    # libvirt itself can neither list nor undefine it by that name.
    libvirt_host.virsh("undefine", str(UUID_A))


def test_a_line_is_there_for_the_next_look(libvirt_host: Host, web: Path) -> None:
    shown, real = web / "log/qemu.log", real_log(libvirt_host, "web")
    with shown.open("rb") as reader:
        assert reader.read() == real.read_bytes()
        for number in range(50):
            append(real, f"line {number}\n")
            assert os.fstat(reader.fileno()).st_size == real.stat().st_size == shown.stat().st_size
            assert reader.read() == f"line {number}\n".encode()
    assert shown.read_bytes() == real.read_bytes()


def test_tail_prints_each_line_once_through_rotations(libvirt_host: Host, web: Path, tmp_path: Path) -> None:
    """As virtlogd rotates: the log is renamed, and a new one made."""
    real = real_log(libvirt_host, "web")
    printed = real.read_text()
    with tail(tmp_path, "-n", "+1", "-F", "log/qemu.log", cwd=web) as tailed:
        for piece in range(4):
            for line in range(3):
                text = f"piece {piece}, line {line}\n"
                append(real, text)
                printed += text
                tailed.prints(printed)
            for number in (2, 1, 0):
                older = real.with_name(f"web.log.{number}")
                if older.exists():
                    older.rename(real.with_name(f"web.log.{number + 1}"))
            real.rename(real.with_name("web.log.0"))
            real.touch(0o600)
    assert os.listdir(web / "log") == ["qemu.log"]
    assert (web / "log/qemu.log").read_text() == printed


def test_tail_goes_on_after_a_log_is_copied_and_truncated(
    libvirt_host: Host, web: Path, tmp_path: Path
) -> None:
    """As the logrotate configuration that comes with libvirt does."""
    real = real_log(libvirt_host, "web")
    whole = real.read_text()
    with tail(tmp_path, "-n", "+1", "-F", "log/qemu.log", cwd=web) as tailed:
        tailed.prints(whole)
        real.with_name("web.log.1").write_bytes(real.read_bytes())
        os.truncate(real, 0)
        append(real, "after\n")
        tailed.prints(whole + "after\n")
        append(real, "more\n")
        tailed.prints(whole + "after\nmore\n")
    assert os.listdir(web / "log") == ["qemu.log"]
    assert (web / "log/qemu.log").read_text() == whole + "after\nmore\n"


def test_virtlogd_rotates_and_tail_loses_nothing(libvirt_host: Host, web: Path, tmp_path: Path) -> None:
    """At 2 MiB, virtlogd.conf's default. What QEMU prints goes into a pipe, and so can others write there."""
    real = real_log(libvirt_host, "web")
    libvirt_host.virsh("start", "web")
    qemu = int((web / "run/pid").read_text())
    line = "x" * 127 + "\n"
    half = line * 8000
    with (
        tail(tmp_path, "-n", "0", "-F", "log/qemu.log", cwd=web) as tailed,
        open(f"/proc/{qemu}/fd/2", "w", encoding="ascii") as stderr,
    ):
        until(lambda: tailed.is_at(web / "log/qemu.log"), SOON_S, "tail follows the log")
        for count in range(1, 4):
            stderr.write(half)
            stderr.flush()
            tailed.prints(half * count)
        until(lambda: real.with_name("web.log.0").exists(), SOON_S, "virtlogd has rotated")
        stderr.write("the end\n")
        stderr.flush()
        tailed.prints(half * 3 + "the end\n")
    both = real.with_name("web.log.0").read_text() + real.read_text()
    assert (web / "log/qemu.log").read_text() == both
    assert both.endswith(line + "the end\n")


def test_whoever_holds_a_log_open_goes_on_through_a_rename_of_the_guest(
    libvirt_host: Host, mounted: Mounted, web: Path, tmp_path: Path
) -> None:
    real = real_log(libvirt_host, "web")
    first = real.read_text()
    shop = mounted.path / "shop"
    with (
        tail(tmp_path, "-n", "+1", "-f", "web/log/qemu.log", cwd=mounted.path) as by_descriptor,
        tail(tmp_path, "-n", "+1", "-F", "log/qemu.log", cwd=web) as from_within,
        tail(tmp_path, "-n", "+1", "-F", "shop/log/qemu.log", cwd=mounted.path) as by_new_name,
    ):
        by_descriptor.prints(first)
        from_within.prints(first)
        assert by_new_name.text == ""
        libvirt_host.virsh("domrename", "web", "shop")
        until(shop.exists, SOON_S, "shop is shown")
        by_new_name.prints(first)
        append(real, "renamed\n")
        for tailed in (by_descriptor, from_within, by_new_name):
            tailed.prints(first + "renamed\n")
        run_once(libvirt_host, "shop")
        whole = first + "renamed\n" + real_log(libvirt_host, "shop").read_text()
        for tailed in (by_descriptor, from_within, by_new_name):
            tailed.prints(whole)
    assert os.listdir(shop / "log") == ["qemu.log"]
    assert (shop / "log/qemu.log").read_text() == whole


def test_a_tail_of_a_former_name_is_not_given_the_lines_of_who_took_that_name(
    libvirt_host: Host, mounted: Mounted, web: Path, tmp_path: Path
) -> None:
    real = real_log(libvirt_host, "web")
    first = real.read_text()
    with tail(tmp_path, "-n", "+1", "-f", "log/qemu.log", cwd=web) as tailed:
        tailed.prints(first)
        libvirt_host.virsh("domrename", "web", "shop")
        define(libvirt_host, guests.xml("web", UUID_B))
        run_once(libvirt_host, "web")
        new = mounted.path / "web/log/qemu.log"
        until(lambda: new.exists() and new.stat().st_size, SOON_S, "the other one's log is shown")
        assert real.read_text().removeprefix(first) == new.read_text()
        assert tailed.is_at(mounted.path / "shop/log/qemu.log")
        append(real, "of the new one\n")
        until(lambda: new.read_text().endswith("of the new one\n"), SOON_S, "the line is shown")
        assert (mounted.path / "shop/log/qemu.log").read_text() == first
        assert tailed.text == first


@pytest.mark.parametrize("rotated", ["web.log.0", "web.log.1"])
def test_what_follows_a_rotation_belongs_to_who_wrote_last(
    libvirt_host: Host, mounted: Mounted, web: Path, rotated: str
) -> None:
    """The new piece has no start in it that says whose it is. virtlogd counts from 0, logrotate from 1."""
    real = real_log(libvirt_host, "web")
    first = real.read_text()
    libvirt_host.virsh("domrename", "web", "shop")
    define(libvirt_host, guests.xml("web", UUID_B))
    run_once(libvirt_host, "web")
    second = real.read_text().removeprefix(first)
    # The same inode, so that also what shop had in it must not be mistaken.
    real.with_name(rotated).write_bytes(real.read_bytes())
    os.truncate(real, 0)
    append(real, "line\n")
    log = mounted.path / "web/log/qemu.log"
    until(lambda: log.exists() and log.read_text().endswith("line\n"), SOON_S, "the line is shown")
    assert log.read_text() == second + "line\n"
    assert (mounted.path / "shop/log/qemu.log").read_text() == first
