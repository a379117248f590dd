"""Renaming by hand, with mv(1) and with ``namefs rename``. Nothing else can be changed in the view."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from tests.lab import guests
from tests.lab.mounted import PROJECT
from tests.lab.names import renameat2
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

UUID_A = UUID("00000000-0000-4000-8000-00000000000a")
UUID_B = UUID("00000000-0000-4000-8000-00000000000b")
SOON_S = 5.0

NOBODY = 65534
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

REFUSED = 5
"""Exit code of ``namefs rename`` when libvirt refuses."""


def write(host: Host, definition: str) -> str:
    file = host.root / "definition.xml"
    file.write_text(definition)
    return os.fspath(file)


def define(host: Host, definition: str) -> None:
    host.virsh("define", write(host, definition))


@pytest.fixture
def web(libvirt_host: Host, mounted: Mounted) -> Path:
    """A guest that is off and has an image."""
    guests.make_disk(libvirt_host.images / "web.qcow2")
    disks = {"vda": "/var/lib/libvirt/images/web.qcow2"}
    define(libvirt_host, guests.xml("web", UUID_A, disks=disks))
    web = mounted.path / "web"
    until(web.exists, SOON_S, "web is shown")
    return web


def names(host: Host) -> list[str]:
    return sorted(host.virsh("list", "--all", "--name").split())


def rename_error(old: Path, new: Path | str) -> int | None:
    try:
        os.rename(old, new)
    except OSError as error:
        return error.errno
    return 0


def namefs_rename(mounted: Mounted, old: str, new: str) -> tuple[int, str]:
    """``namefs rename``: exit code, and what it says on standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "namefs", "rename", "--config", str(mounted.config), "--", old, new],
        cwd="/",
        env={**os.environ, "PYTHONPATH": os.fspath(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr.strip()


def test_mv_renames_the_guest_and_whoever_is_in_it_notices_nothing(
    libvirt_host: Host, mounted: Mounted, web: Path
) -> None:
    libvirt_host.virsh("autostart", "web")
    libvirt_host.virsh("snapshot-create-as", "web", "first")
    inode = web.stat().st_ino
    # In the directory, and with a file open in it.
    sitting = subprocess.Popen(["cat"], cwd=web, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        with (web / "snapshots/first.xml").open("rb") as snapshot:
            subprocess.run(["mv", "-T", "web", "shop"], cwd=mounted.path, check=True)
            # At once: the answer comes after the view has it.
            shop = mounted.path / "shop"
            assert mounted.names() == ["shop"]
            assert not web.exists()
            assert names(libvirt_host) == ["shop"]
            assert shop.stat().st_ino == inode
            assert os.readlink(f"/proc/{sitting.pid}/cwd") == os.fspath(shop)
            assert os.stat(f"/proc/{sitting.pid}/cwd").st_ino == inode
            assert b"<name>first</name>" in snapshot.read()
        assert b"<name>shop</name>" in (shop / "config.xml").read_bytes()
        until(lambda: os.path.lexists(shop / "autostart.xml"), SOON_S, "autostart is shown")
        assert os.listdir(shop / "snapshots") == ["first.xml"]
    finally:
        sitting.kill()
        sitting.communicate()


def test_mv_takes_every_name_that_a_directory_can_have(
    libvirt_host: Host, mounted: Mounted, web: Path
) -> None:
    for name in ("with blanks", "-rf", "ünïcödé", "x" * 247, "web"):
        os.rename(mounted.path / mounted.names()[0], mounted.path / name)
        assert mounted.names() == [name]
        assert libvirt_host.virsh("domname", str(UUID_A)).strip() == name


def test_a_name_that_is_not_shown_as_it_was_typed_is_not_there_as_it_was_typed(
    libvirt_host: Host, mounted: Mounted, web: Path
) -> None:
    at = web
    for typed, name, shown in [
        (".hidden", ".hidden", "%2Ehidden"),
        (" x", " x", "%20x"),
        ("%61", "a", "a"),
        ("%2Ex", ".x", "%2Ex"),
    ]:
        assert rename_error(at, mounted.path / typed) == 0
        if typed != shown:
            # First of all: once the kernel has seen the directory by another name, it drops this one itself.
            until(lambda typed=typed: not (mounted.path / typed).exists(), SOON_S, f"{typed} is forgotten")  # type: ignore[misc]
        assert mounted.names() == [shown]
        at = mounted.path / shown
        assert (at / "config.xml").exists()
        assert libvirt_host.virsh("domname", str(UUID_A)).splitlines()[0] == name


def test_the_command_renames_the_guest(libvirt_host: Host, mounted: Mounted, web: Path) -> None:
    assert namefs_rename(mounted, "web", "shop") == (0, "")
    assert mounted.names() == ["shop"]
    assert names(libvirt_host) == ["shop"]
    assert namefs_rename(mounted, str(UUID_A), "web") == (0, "")
    assert mounted.names() == ["web"]


def test_the_flags_of_renameat2_are_kept(libvirt_host: Host, mounted: Mounted, web: Path) -> None:
    define(libvirt_host, guests.xml("mail", UUID_B))
    mail, shop = mounted.path / "mail", mounted.path / "shop"
    until(mail.exists, SOON_S, "mail is shown")
    assert renameat2(web, mail, RENAME_NOREPLACE) == errno.EEXIST
    assert renameat2(web, mail, RENAME_NOREPLACE | RENAME_EXCHANGE) == errno.EINVAL
    assert names(libvirt_host) == ["mail", "web"]
    assert renameat2(web, shop, RENAME_NOREPLACE) == 0
    assert names(libvirt_host) == ["mail", "shop"]


def test_a_taken_name_is_refused(libvirt_host: Host, mounted: Mounted, web: Path) -> None:
    define(libvirt_host, guests.xml("shop", UUID_B))
    until(lambda: sorted(mounted.names()) == ["shop", "web"], SOON_S, "the view has them all")
    assert rename_error(web, mounted.path / "shop") == errno.EEXIST
    code, said = namefs_rename(mounted, "web", "shop")
    assert code == REFUSED
    assert "there is a guest called shop already" in said
    assert names(libvirt_host) == sorted(mounted.names()) == ["shop", "web"]


def test_a_name_that_is_shown_otherwise_is_taken_all_the_same(
    libvirt_host: Host, mounted: Mounted, web: Path
) -> None:
    """mv without -T would move the directory into the other one."""
    define(libvirt_host, guests.xml("shop", UUID_B))
    until((mounted.path / "shop").exists, SOON_S, "shop is shown")
    into = subprocess.run(
        ["mv", "web", "shop"], cwd=mounted.path, capture_output=True, text=True, check=False
    )
    assert into.returncode == 1
    assert "Read-only file system" in into.stderr
    over = subprocess.run(
        ["mv", "-T", "web", "shop"], cwd=mounted.path, capture_output=True, text=True, check=False
    )
    assert over.returncode == 1
    assert "File exists" in over.stderr
    assert names(libvirt_host) == sorted(mounted.names()) == ["shop", "web"]


def test_a_name_that_no_guest_can_have_is_refused(libvirt_host: Host, mounted: Mounted, web: Path) -> None:
    for new, number in [
        ("two\nlines", errno.EINVAL),
        ("two\rlines", errno.EINVAL),
        ("a%2Fb", errno.EINVAL),
        ("%2E.", errno.EINVAL),
        ("web~0123abcd", errno.EINVAL),
        ("x" * 248, errno.ENAMETOOLONG),
        ("x" * 255, errno.ENAMETOOLONG),
        ("x" * 300, errno.ENAMETOOLONG),
    ]:
        assert rename_error(web, mounted.path / new) == number, new
    assert names(libvirt_host) == mounted.names() == ["web"]


def test_the_command_never_hands_libvirt_a_name_that_it_should_not_have(
    libvirt_host: Host, mounted: Mounted, web: Path
) -> None:
    """For ``.`` and ``..`` libvirt would delete all guests' snapshots."""
    libvirt_host.virsh("snapshot-create-as", "web", "first")
    snapshot = libvirt_host.outside("/var/lib/libvirt/qemu/snapshot/web/first.xml")
    for new in ("", ".", "..", "a/b", "two\nlines", "x" * 248):
        code, said = namefs_rename(mounted, "web", new)
        assert code == REFUSED, new
        assert len(said.splitlines()) == 1
        assert snapshot.is_file()
    assert names(libvirt_host) == mounted.names() == ["web"]


def test_a_guest_that_is_not_there_cannot_be_renamed(mounted: Mounted, web: Path) -> None:
    assert rename_error(mounted.path / "nobody", mounted.path / "shop") == errno.ENOENT
    assert namefs_rename(mounted, "nobody", "shop") == (4, "namefs: there is no such guest: nobody")


def test_what_an_earlier_guest_left_under_the_new_name_is_neither_destroyed_nor_taken(
    libvirt_host: Host, mounted: Mounted, web: Path
) -> None:
    for new, below in [
        ("a", "snapshot/a/old.xml"),
        ("b", "checkpoint/b/old.xml"),
        ("c", "save/c.save"),
    ]:
        left = libvirt_host.outside("/var/lib/libvirt/qemu") / below
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_text("of an earlier guest")
        assert rename_error(web, mounted.path / new) == errno.EEXIST
        code, said = namefs_rename(mounted, "web", new)
        assert code == REFUSED
        assert "move it away first" in said
        assert left.read_text() == "of an earlier guest"
    assert names(libvirt_host) == mounted.names() == ["web"]


def test_an_ordinary_user_renames_nothing(libvirt_host: Host, mounted: Mounted, web: Path) -> None:
    done = subprocess.run(
        ["mv", "-T", "web", "shop"],
        cwd=mounted.path,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Permission denied" in done.stderr
    assert names(libvirt_host) == mounted.names() == ["web"]


def every_change(web: Path, elsewhere: Path) -> dict[str, Callable[[], Any]]:
    """All that could change something in a file system, each on something that exists."""
    root, config, log, disk = web.parent, web / "config.xml", web / "log/qemu.log", web / "disks/vda"
    return {
        "create": lambda: os.open(web / "new", os.O_WRONLY | os.O_CREAT),
        "create in the root": lambda: os.open(root / "new", os.O_WRONLY | os.O_CREAT),
        "open for writing": lambda: os.open(config, os.O_WRONLY),
        "open for both": lambda: os.open(config, os.O_RDWR),
        "open to append": lambda: os.open(log, os.O_WRONLY | os.O_APPEND),
        "open and truncate": lambda: os.open(config, os.O_RDONLY | os.O_TRUNC),
        "truncate": lambda: os.truncate(log, 0),
        "mkdir": lambda: os.mkdir(root / "new"),
        "mkdir in a guest": lambda: os.mkdir(web / "new"),
        "mkfifo": lambda: os.mkfifo(web / "new"),
        "unlink": lambda: os.unlink(config),
        "unlink a symlink": lambda: os.unlink(disk),
        "rmdir": lambda: os.rmdir(web / "log"),
        "rmdir a guest": lambda: os.rmdir(web),
        "link": lambda: os.link(config, web / "new"),
        "symlink": lambda: os.symlink("target", web / "new"),
        "chmod": lambda: os.chmod(config, 0o666),
        "chmod a guest": lambda: os.chmod(web, 0o777),
        "chown": lambda: os.chown(log, NOBODY, NOBODY),
        "chown a symlink": lambda: os.lchown(disk, NOBODY, NOBODY),
        "utime": lambda: os.utime(log, (0, 0)),
        "setxattr": lambda: os.setxattr(config, "user.namefs.path", b"/etc/shadow"),
        "setxattr on a guest": lambda: os.setxattr(web, "user.namefs.uuid", b"mine"),
        "removexattr": lambda: os.removexattr(log, "user.colour"),
        "rename a file": lambda: os.rename(config, web / "other.xml"),
        "rename a directory in a guest": lambda: os.rename(web / "log", web / "logs"),
        "rename out of a guest": lambda: os.rename(web / "log", root / "log"),
        "rename into a guest": lambda: os.rename(root / "mail", web / "mail"),
        "rename from one guest to another": lambda: os.rename(config, root / "mail/config.xml"),
        "rename out of the view": lambda: os.rename(web, elsewhere / "web"),
        "rename into the view": lambda: os.rename(elsewhere, root / "new"),
    }


def test_every_other_change_is_refused_and_changes_nothing(
    libvirt_host: Host, mounted: Mounted, web: Path, tmp_path: Path
) -> None:
    define(libvirt_host, guests.xml("mail", UUID_B))
    until((mounted.path / "mail").exists, SOON_S, "mail is shown")
    libvirt_host.virsh("start", "web")
    libvirt_host.virsh("destroy", "web")
    log = libvirt_host.outside("/var/log/libvirt/qemu/web.log")
    until(lambda: "shutting down" in log.read_text(), SOON_S, "the log ends")
    os.setxattr(log, "user.colour", b"red")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    behind = [log, libvirt_host.outside("/etc/libvirt/qemu/web.xml"), libvirt_host.images / "web.qcow2"]
    before = [(file.read_bytes(), file.lstat()) for file in behind]
    listing = sorted(str(path) for path in mounted.path.rglob("*"))

    for what, change in every_change(web, elsewhere).items():
        number: int | None = 0
        try:
            change()
        except OSError as error:
            number = error.errno
        expected = {errno.EXDEV} if "the view" in what else {errno.EROFS, errno.EPERM}
        assert number in expected, f"{what}: {errno.errorcode.get(number or 0, number)}"

    after = [(file.read_bytes(), file.lstat()) for file in behind]
    for (content, was), (now_content, now) in zip(before, after, strict=True):
        assert now_content == content
        # All but when it was read last.
        assert [now[i] for i in range(7)] == [was[i] for i in range(7)]
        assert (now.st_mtime_ns, now.st_ctime_ns) == (was.st_mtime_ns, was.st_ctime_ns)
    assert os.getxattr(log, "user.colour") == b"red"
    assert sorted(str(path) for path in mounted.path.rglob("*")) == listing
    assert names(libvirt_host) == ["mail", "web"]
