"""Users who are not root: through the view they get at nothing that they can't get at by its own path."""

from __future__ import annotations

import os
import pwd
import stat
import struct
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tests.lab import guests
from tests.lab.mounted import Mounted
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.lab.host import Host

UUID_WEB = UUID("00000000-0000-4000-8000-00000000000a")
UUID_OFF = UUID("00000000-0000-4000-8000-00000000000b")
TIMEOUT_S = 5.0

ACL = "system.posix_acl_access"

PAIRS = {
    "web/config.xml": "/etc/libvirt/qemu/web.xml",
    "web/status.xml": "/run/libvirt/qemu/web.xml",
    "web/log/qemu.log": f"/var/log/libvirt/by-uuid/{UUID_WEB}/qemu.log",
    "web/log/serial0.log": "/var/log/libvirt/qemu/web-serial0.log",
    "web/log/swtpm.log": f"/var/log/libvirt/by-uuid/{UUID_WEB}/swtpm.log",
    "web/nvram/VARS.fd": "/var/lib/libvirt/qemu/nvram/web_VARS.fd",
    "web/run/pid": "/run/libvirt/qemu/web.pid",
    "web/tpm/tpm2-00.permall": f"/var/lib/libvirt/swtpm/{UUID_WEB}/tpm2/tpm2-00.permall",
    "off/save/managed.save": "/var/lib/libvirt/qemu/save/off.save",
    "off/snapshots/first.xml": "/var/lib/libvirt/qemu/snapshot/off/first.xml",
}
"""Files of the view, and what is behind each."""

DIRECTORIES = {
    "web/nvram": "/var/lib/libvirt/qemu/nvram",
    "web/tpm": f"/var/lib/libvirt/swtpm/{UUID_WEB}/tpm2",
    "off/save": "/var/lib/libvirt/qemu/save",
    "off/snapshots": "/var/lib/libvirt/qemu/snapshot/off",
}
"""The same for directories. (``log``, ``disks``, ``run`` and ``sockets`` are of several, and open to all.)"""

LOOK = """
for path; do
    opened=- found=-
    if { true; } 2>/dev/null <"$path"; then opened=r; fi
    if [ -e "$path" ]; then found=x; fi
    echo "$opened$found"
done
"""
"""Says of each path whether it can be opened for reading (or listed), and whether stat(2) answers."""


@dataclass(frozen=True)
class User:
    """Who looks: a uid, a group, and other groups."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def look(self, paths: Sequence[Path]) -> list[str]:
        done = subprocess.run(
            ["sh", "-c", LOOK, "look", *map(str, paths)],
            user=self.uid,
            group=self.gid,
            extra_groups=self.groups,
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    def run(self, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            user=self.uid,
            group=self.gid,
            extra_groups=self.groups,
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
        )


NOBODY = User(65534, 65534)


def users() -> dict[str, User]:
    qemu, tss = pwd.getpwnam("libvirt-qemu"), pwd.getpwnam("tss")
    return {
        "nobody": NOBODY,
        "QEMU's": User(qemu.pw_uid, qemu.pw_gid),
        "swtpm's": User(tss.pw_uid, tss.pw_gid),
        "of all groups": User(65534, 65534, (0, qemu.pw_gid, qemu.pw_uid, tss.pw_gid)),
        # Owns some of the files below; not the directories above them.
        "owner": User(4711, 4711),
        "of the owner's group": User(4712, 4712, (4711,)),
    }


@dataclass
class Lab:
    host: Host
    view: Path

    def shown(self) -> list[Path]:
        return [self.view / entry for entry in (*PAIRS, *DIRECTORIES)]

    def real(self) -> list[Path]:
        return [self.host.outside(path) for path in (*PAIRS.values(), *DIRECTORIES.values())]


@pytest.fixture(scope="module")
def lab(host: Host) -> Iterator[Lab]:
    """One guest that runs and one that was saved; they stay as they are, but for the modes of their files."""
    with ExitStack() as undo:
        undo.callback(host.reset)
        mounted = Mounted([(host.uri, host.root)])
        undo.callback(mounted.close)
        mounted.start()
        define(
            host, guests.xml("web", UUID_WEB, serial_log=PAIRS["web/log/serial0.log"], tpm=True, nvram=True)
        )
        guests.make_disk(host.images / "off.qcow2")
        define(host, guests.xml("off", UUID_OFF, disks={"vda": "/var/lib/libvirt/images/off.qcow2"}))
        host.virsh("start", "web")
        host.virsh("snapshot-create-as", "off", "first")
        host.virsh("start", "off")
        host.virsh("managedsave", "off")
        lab = Lab(host, mounted.path)
        until(lambda: all(path.exists() for path in lab.shown()), TIMEOUT_S, "all is shown")
        yield lab


def define(host: Host, definition: str) -> None:
    file = host.root / "definition.xml"
    file.write_text(definition)
    host.virsh("define", os.fspath(file))


@pytest.fixture
def modes(lab: Lab) -> Iterator[None]:
    """Gives back mode, owner and ACL of all files and of all directories above them."""
    touched = {path for real in lab.real() for path in (real, *real.parents) if path != lab.host.root}
    touched = {path for path in touched if path.is_relative_to(lab.host.root)}
    before = {path: path.lstat() for path in touched}
    yield
    for path, was in before.items():
        if ACL in os.listxattr(path):
            os.removexattr(path, ACL)
        os.chown(path, was.st_uid, was.st_gid)
        path.chmod(stat.S_IMODE(was.st_mode))


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An ACL of (tag, permissions, id) in the form of include/uapi/linux/posix_acl_xattr.h."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER, ANY = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0xFFFFFFFF


def as_they_are(lab: Lab) -> None:
    """As libvirt makes them."""


def open_files(lab: Lab) -> None:
    """Files that all may read, behind directories that not all may enter."""
    for path in PAIRS.values():
        lab.host.outside(path).chmod(0o644)


def open_all(lab: Lab) -> None:
    for path in lab.real():
        for above in (path, *path.parents):
            if above.is_relative_to(lab.host.root):
                above.chmod(0o755)


def closed_above(lab: Lab) -> None:
    """Only a directory far above is closed."""
    open_all(lab)
    for directory in ("/etc/libvirt", "/run/libvirt", "/var/log", "/var/lib/libvirt"):
        lab.host.outside(directory).chmod(0o700)


def entered_by_the_group(lab: Lab) -> None:
    open_all(lab)
    tss = pwd.getpwnam("tss").pw_gid
    for directory in ("/etc/libvirt", "/run/libvirt", "/var/log", "/var/lib/libvirt"):
        os.chown(lab.host.outside(directory), -1, tss)
        lab.host.outside(directory).chmod(0o750)


def searched_but_not_listed(lab: Lab) -> None:
    open_all(lab)
    for path in lab.real():
        if path.is_dir():
            path.chmod(0o711)


def owned_by_a_user(lab: Lab) -> None:
    """A user's own files, behind directories that are not theirs."""
    for path in PAIRS.values():
        os.chown(lab.host.outside(path), 4711, 4711)
        lab.host.outside(path).chmod(0o640)


def others_only(lab: Lab) -> None:
    """Owner and group are worse off than all others: the first class that fits decides."""
    open_all(lab)
    for path in PAIRS.values():
        os.chown(lab.host.outside(path), 4711, 4711)
        lab.host.outside(path).chmod(0o004)


def acl_against_nobody(lab: Lab) -> None:
    open_all(lab)
    against = acl((USER_OBJ, 6, ANY), (USER, 0, 65534), (GROUP_OBJ, 4, ANY), (MASK, 4, ANY), (OTHER, 4, ANY))
    for path in PAIRS.values():
        os.setxattr(lab.host.outside(path), ACL, against)


def acl_for_nobody(lab: Lab) -> None:
    open_all(lab)
    allow = acl((USER_OBJ, 6, ANY), (USER, 4, 65534), (GROUP_OBJ, 0, ANY), (MASK, 4, ANY), (OTHER, 0, ANY))
    for path in PAIRS.values():
        os.chown(lab.host.outside(path), 0, 4711)
        os.setxattr(lab.host.outside(path), ACL, allow)


def acl_on_directories(lab: Lab) -> None:
    """Directories that look open to the group by their mode: it is the mask that shows there."""
    open_all(lab)
    allow = acl((USER_OBJ, 7, ANY), (USER, 5, 4712), (GROUP_OBJ, 0, ANY), (MASK, 5, ANY), (OTHER, 0, ANY))
    for directory in {lab.host.outside(path).parent for path in PAIRS.values()}:
        os.chown(directory, -1, 4711)
        os.setxattr(directory, ACL, allow)
    for path in PAIRS.values():
        os.chown(lab.host.outside(path), -1, 4711)


SHAPES = [
    as_they_are,
    open_files,
    open_all,
    closed_above,
    entered_by_the_group,
    searched_but_not_listed,
    owned_by_a_user,
    others_only,
    acl_against_nobody,
    acl_for_nobody,
    acl_on_directories,
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("modes")
def test_nothing_is_easier_to_reach_through_the_view(lab: Lab, shape: Callable[[Lab], None]) -> None:
    shape(lab)
    reached = 0
    for who, user in users().items():
        shown, real = user.look(lab.shown()), user.look(lab.real())
        for path, by_view, by_path in zip(lab.shown(), shown, real, strict=True):
            said = f"{who}: {path} {by_view}, by its own path {by_path}"
            assert "r" not in by_view or "r" in by_path, said
            # Whether a log or a definition exists is no secret; whether a snapshot does may be one.
            if path.parent.name in ("snapshots", "save", "nvram", "tpm"):
                assert "x" not in by_view or "x" in by_path, said
            reached += "r" in by_view
    # The view may be stricter, but not by forbidding everything.
    if shape in (open_all, searched_but_not_listed):
        assert reached >= len(PAIRS) * len(users())
    assert (reached == 0) == (shape is closed_above)


@pytest.mark.usefixtures("modes")
def test_what_all_may_read_by_its_own_path_all_may_read_in_the_view(lab: Lab) -> None:
    open_all(lab)
    for user in users().values():
        assert user.look(lab.shown()) == ["rx"] * len(lab.shown())


def test_an_ordinary_user_sees_which_guests_there_are_and_not_what_they_are(lab: Lab) -> None:
    assert NOBODY.run("ls", cwd=lab.view).stdout.split() == ["off", "web"]
    found = NOBODY.run("getfattr", "-n", "user.namefs.state", "--only-values", "web", cwd=lab.view)
    assert found.stdout == "running"
    for entry in ("web/config.xml", "web/status.xml", "web/log/qemu.log", "web/log/serial0.log"):
        done = NOBODY.run("cat", entry, cwd=lab.view)
        assert done.returncode == 1
        assert "Permission denied" in done.stderr
    for entry in ("web/nvram", "web/tpm", "off/save", "off/snapshots"):
        assert "Permission denied" in NOBODY.run("ls", entry, cwd=lab.view).stderr
    assert int(NOBODY.run("cat", "web/run/pid", cwd=lab.view).stdout) > 1


def test_qemus_user_reads_the_firmware_variables_in_the_view_too(lab: Lab) -> None:
    qemu = users()["QEMU's"]
    assert qemu.look([lab.view / "web/nvram/VARS.fd", lab.view / "web/config.xml"]) == ["rx", "-x"]


@pytest.mark.usefixtures("modes")
def test_a_mode_that_changes_counts_at_once(lab: Lab) -> None:
    shown, real = lab.view / "web/log/serial0.log", lab.host.outside(PAIRS["web/log/serial0.log"])
    for _ in range(3):
        real.chmod(0o644)
        assert NOBODY.look([shown]) == ["rx"]
        real.chmod(0o600)
        assert NOBODY.look([shown]) == ["-x"]
