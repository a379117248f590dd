"""Each kind of artefact, as stat(2), read(2) and the usual tools see it: the same as the file behind it."""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tests.lab import guests
from tests.lab.mounted import Mounted
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.host import Host

UUID_WEB = UUID("00000000-0000-4000-8000-00000000000a")
UUID_OFF = UUID("00000000-0000-4000-8000-00000000000b")
TIMEOUT_S = 5.0

FILES = {
    "config.xml": "/etc/libvirt/qemu/web.xml",
    "status.xml": "/run/libvirt/qemu/web.xml",
    "log/qemu.log": "/var/log/libvirt/qemu/web.log",
    "log/serial0.log": "/var/log/libvirt/qemu/web-serial0.log",
    "log/swtpm.log": "/var/log/swtpm/libvirt/qemu/web-swtpm.log",
    "log/virtiofsd-fs0.log": "/var/log/libvirt/qemu/web-fs0-virtiofsd.log",
    "nvram/VARS.fd": "/var/lib/libvirt/qemu/nvram/web_VARS.fd",
    "run/pid": "/run/libvirt/qemu/web.pid",
    "tpm/tpm2-00.permall": f"/var/lib/libvirt/swtpm/{UUID_WEB}/tpm2/tpm2-00.permall",
}
"""The regular files of the running guest: entry in the view, and libvirt's path."""

OFF_FILES = {
    "config.xml": "/etc/libvirt/qemu/off.xml",
    "log/qemu.log": "/var/log/libvirt/qemu/off.log",
    "save/managed.save": "/var/lib/libvirt/qemu/save/off.save",
    "snapshots/before.xml": "/var/lib/libvirt/qemu/snapshot/off/before.xml",
    "checkpoints/since.xml": "/var/lib/libvirt/qemu/checkpoint/off/since.xml",
}
"""The same of the guest that was saved."""

KEPT = {
    "log/qemu.log": "/var/log/libvirt/by-uuid/{}/qemu.log",
    "log/swtpm.log": "/var/log/libvirt/by-uuid/{}/swtpm.log",
    "log/virtiofsd-fs0.log": "/var/log/libvirt/by-uuid/{}/virtiofsd-fs0.log",
}
"""Where the lines of logs are kept, and shown from, that libvirt calls by the guest's name."""

ALL_FILES = [(f"web/{e}", KEPT.get(e, p).format(UUID_WEB)) for e, p in FILES.items()]
ALL_FILES += [(f"off/{e}", KEPT.get(e, p).format(UUID_OFF)) for e, p in OFF_FILES.items()]

ALL_LOGS = [(f"web/{e}", FILES[e]) for e in KEPT] + [("off/log/qemu.log", OFF_FILES["log/qemu.log"])]


@dataclass
class Lab:
    """Two guests: ``web`` runs, suspended so that nothing changes; ``off`` has all that one off may have."""

    host: Host
    mounted: Mounted
    links_while_off: dict[str, str] = field(default_factory=dict)

    @property
    def view(self) -> Path:
        return self.mounted.path

    @property
    def number(self) -> str:
        return self.host.virsh("domid", "web").strip()

    @property
    def pid(self) -> int:
        return int(self.host.outside("/run/libvirt/qemu/web.pid").read_text())

    def links(self) -> dict[str, str]:
        """The symlinks that ``web`` should have: entry and target."""
        private = self.host.outside(f"/var/lib/libvirt/qemu/domain-{self.number}-web")
        channel = self.host.outside(f"/var/lib/libvirt/qemu/channel/target/domain-{self.number}-web")
        return {
            "autostart.xml": str(self.host.outside("/etc/libvirt/qemu/autostart/web.xml")),
            "disks/vda": str(self.host.images / "top.qcow2"),
            "disks/vda.backing1": str(self.host.images / "middle.qcow2"),
            "disks/vda.backing2": str(self.host.images / "base.qcow2"),
            "run/process": f"/proc/{self.pid}",
            "sockets/monitor": str(private / "monitor.sock"),
            f"sockets/{guests.AGENT}": str(channel / guests.AGENT),
            "sockets/serial0": self.host.virsh("ttyconsole", "web").strip(),
            "sockets/vnc": str(private / "vnc.sock"),
        }


def define(host: Host, definition: str) -> None:
    file = host.root / "definition.xml"
    file.write_text(definition)
    host.virsh("define", os.fspath(file))


def make_web(lab: Lab) -> None:
    host = lab.host
    share = host.images / "share"
    share.mkdir()
    guests.make_disk(host.images / "base.qcow2")
    # One backing image is named by its path, one by its name beside the image.
    guests.make_disk(host.images / "middle.qcow2", "base.qcow2")
    guests.make_disk(host.images / "top.qcow2", "/var/lib/libvirt/images/middle.qcow2")
    define(
        host,
        guests.xml(
            "web",
            UUID_WEB,
            disks={"vda": "/var/lib/libvirt/images/top.qcow2"},
            serial_log=FILES["log/serial0.log"],
            agent=True,
            vnc_socket=True,
            tpm=True,
            nvram=True,
            virtiofs=host.inside(share),
        ),
    )
    until((lab.view / "web").exists, TIMEOUT_S, "web is shown")
    disks = lab.view / "web/disks"
    lab.links_while_off.update({f"disks/{e}": os.readlink(disks / e) for e in os.listdir(disks)})
    host.virsh("autostart", "web")
    host.virsh("start", "web", "--paused")
    until(lambda: state(lab, "web") == b"paused", TIMEOUT_S, "web is shown as paused")
    # Something to compare: the firmware has written nothing yet.
    host.outside(FILES["log/serial0.log"]).write_bytes(b"hello\r\n")


def make_off(lab: Lab) -> None:
    host = lab.host
    guests.make_disk(host.images / "off.qcow2")
    define(host, guests.xml("off", UUID_OFF, disks={"vda": "/var/lib/libvirt/images/off.qcow2"}))
    host.virsh("snapshot-create-as", "off", "before")
    host.virsh("start", "off")
    host.virsh("checkpoint-create-as", "off", "since")
    host.virsh("managedsave", "off")
    until(lambda: state(lab, "off") == b"shut off", TIMEOUT_S, "off is shown as shut off")


def state(lab: Lab, name: str) -> bytes:
    return os.getxattr(lab.view / name, "user.namefs.state")


@pytest.fixture(scope="module")
def lab(host: Host) -> Iterator[Lab]:
    """Both guests, for all tests of this module: none of them changes anything that another looks at."""
    mounted = Mounted([(host.uri, host.root)])
    try:
        mounted.start()
        lab = Lab(host, mounted)
        make_web(lab)
        make_off(lab)
        yield lab
    finally:
        try:
            mounted.close()
        finally:
            host.reset()


def walk(top: Path) -> dict[str, str]:
    """Every entry below ``top`` and the type that lstat(2) says it has, as find(1) spells it."""
    kinds = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l"}
    return {str(p.relative_to(top)): kinds[stat.S_IFMT(p.lstat().st_mode)] for p in top.rglob("*")}


def expected(lab: Lab) -> dict[str, str]:
    found = {entry: "f" for entry, _ in ALL_FILES}
    found |= {f"web/{entry}": "l" for entry in lab.links()}
    found["off/disks/vda"] = "l"
    for entry in list(found):
        for above in Path(entry).parents[:-1]:
            found[str(above)] = "d"
    return found


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_guest_has_all_its_artefacts_and_nothing_else(lab: Lab) -> None:
    assert walk(lab.view) == expected(lab)


@pytest.mark.parametrize(("entry", "path"), ALL_FILES)
def test_a_file_has_the_content_the_attributes_and_the_path_of_the_one_behind_it(
    lab: Lab, entry: str, path: str
) -> None:
    shown, real = lab.view / entry, lab.host.outside(path)
    assert shown.read_bytes() == real.read_bytes()
    assert real.stat().st_size > 0 or entry.endswith("virtiofsd-fs0.log")
    here, there = shown.lstat(), real.lstat()
    for what in ("st_size", "st_blocks", "st_uid", "st_gid", "st_mtime_ns", "st_ctime_ns", "st_nlink"):
        assert getattr(here, what) == getattr(there, what), what
    assert stat.S_ISREG(here.st_mode)
    assert stat.S_IMODE(here.st_mode) == stat.S_IMODE(there.st_mode)
    assert os.getxattr(shown, "user.namefs.path") == os.fsencode(real)


@pytest.mark.parametrize(("entry", "path"), ALL_LOGS)
def test_a_log_that_is_kept_has_the_lines_of_libvirts_and_is_roots(lab: Lab, entry: str, path: str) -> None:
    shown = lab.view / entry
    assert shown.read_bytes() == lab.host.outside(path).read_bytes()
    info = shown.stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (0o600, 0, 0)


def test_a_symlink_leads_to_the_real_path(lab: Lab) -> None:
    links = lab.links()
    assert {entry: os.readlink(lab.view / "web" / entry) for entry in links} == links
    assert os.readlink(lab.view / "off/disks/vda") == str(lab.host.images / "off.qcow2")
    for entry, target in links.items():
        assert (lab.view / "web" / entry).lstat().st_size == len(target)


def test_a_backing_chain_is_the_same_while_off_and_while_running(lab: Lab) -> None:
    disks = {entry: target for entry, target in lab.links().items() if entry.startswith("disks/")}
    assert lab.links_while_off == disks
    assert len(disks) == 3


def test_a_vnc_client_connects_through_the_view(lab: Lab) -> None:
    with socket.socket(socket.AF_UNIX) as vnc:
        vnc.settimeout(TIMEOUT_S)
        vnc.connect(os.fspath(lab.view / "web/sockets/vnc"))
        assert vnc.recv(12).startswith(b"RFB ")


def test_sockets_ptys_and_the_process_are_what_the_links_lead_to(lab: Lab) -> None:
    web = lab.view / "web"
    assert (web / "sockets/monitor").is_socket()
    assert (web / "sockets" / guests.AGENT).is_socket()
    assert (web / "sockets/serial0").is_char_device()
    assert (web / "run/process/comm").read_text().startswith("qemu-system")
    assert str(UUID_WEB) in (web / "run/process/cmdline").read_text()


def test_find_sees_each_type_without_a_stat(lab: Lab) -> None:
    kinds = expected(lab)
    for kind in "fdl":
        found = run("find", ".", "-mindepth", "1", "-type", kind, cwd=lab.view).split()
        assert sorted(found) == sorted(f"./{entry}" for entry, is_kind in kinds.items() if is_kind == kind)


def raw_entries(directory: Path) -> dict[str, tuple[int, int]]:
    """Inode number and type of each entry, as getdents64(2) has them: os.scandir() asks lstat if in doubt."""
    found: dict[str, tuple[int, int]] = {}
    buffer = ctypes.create_string_buffer(1 << 15)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while (size := ctypes.CDLL(None).getdents64(fd, buffer, len(buffer))) > 0:
            at = 0
            while at < size:
                number, _offset, length, kind = struct.unpack_from("=QqHB", buffer.raw, at)
                found[buffer.raw[at + 19 : at + length].split(b"\0", 1)[0].decode()] = (number, kind)
                at += length
    finally:
        os.close(fd)
    return found


def test_a_listing_has_the_types_and_inode_numbers_that_stat_has(lab: Lab) -> None:
    for directory in [lab.view, *(p for p in lab.view.rglob("*") if p.is_dir() and not p.is_symlink())]:
        listed = raw_entries(directory)
        assert listed.pop(".") == (directory.stat().st_ino, stat.S_IFDIR >> 12)
        if directory != lab.view:
            assert listed.pop("..") == (directory.parent.stat().st_ino, stat.S_IFDIR >> 12)
        listed.pop("..", None)
        for entry, known in listed.items():
            itself = (directory / entry).lstat()
            assert known == (itself.st_ino, stat.S_IFMT(itself.st_mode) >> 12), directory / entry
    entries = [(p.lstat().st_ino, p) for p in lab.view.rglob("*")]
    assert len({number for number, _ in entries}) == len(entries)


def test_link_counts_let_find_and_others_skip_nothing(lab: Lab) -> None:
    """A directory's count is 2 and one for each directory in it, or 1: not counted."""
    for directory in [lab.view, *(p for p in lab.view.rglob("*") if p.is_dir() and not p.is_symlink())]:
        below = [p for p in directory.iterdir() if p.is_dir() and not p.is_symlink()]
        assert directory.stat().st_nlink in (1, 2 + len(below)), directory
    assert lab.view.stat().st_nlink == 2 + 2


def test_ls_prints_the_same_line_as_for_the_real_file(lab: Lab) -> None:
    for entry, path in ALL_FILES:
        real = lab.host.outside(path)
        line = run("ls", "-l", "--time-style=full-iso", entry, cwd=lab.view)
        of_real = run("ls", "-l", "--time-style=full-iso", str(real), cwd=lab.view)
        assert line == of_real.replace(str(real), entry)


def test_du_counts_what_the_real_files_use(lab: Lab) -> None:
    real = [os.fspath(lab.host.outside(path)) for entry, path in ALL_FILES if entry.startswith("web/")]
    blocks = sum(Path(path).stat().st_blocks for path in real)
    assert run("du", "-s", "--block-size=512", "web", cwd=lab.view) == f"{blocks}\tweb\n"
    total = run("du", "-c", "-b", *real, cwd=lab.view).splitlines()[-1].split()[0]
    links = sum(len(target) for target in lab.links().values())
    assert run("du", "-s", "-b", "web", cwd=lab.view) == f"{int(total) + links}\tweb\n"


@pytest.mark.parametrize("tool", ["tar", "cp", "rsync"])
def test_a_copy_of_the_view_is_complete(lab: Lab, tmp_path: Path, tool: str) -> None:
    if tool == "tar":
        run("tar", "-cf", str(tmp_path / "view.tar"), "web", "off", cwd=lab.view)
        run("tar", "-xpf", "view.tar", cwd=tmp_path)
        (tmp_path / "view.tar").unlink()
    else:
        run(tool, "-a", "web", "off", str(tmp_path), cwd=lab.view)
    assert walk(tmp_path) == walk(lab.view)
    for entry, path in ALL_FILES:
        copy, real = tmp_path / entry, lab.host.outside(path)
        assert copy.read_bytes() == real.read_bytes()
        assert int(copy.stat().st_mtime) == int(real.stat().st_mtime)
        assert (copy.stat().st_uid, copy.stat().st_gid) == (real.stat().st_uid, real.stat().st_gid)
    assert os.readlink(tmp_path / "web/disks/vda") == str(lab.host.images / "top.qcow2")


def test_a_guest_says_in_attributes_which_one_it_is(lab: Lab) -> None:
    web = lab.view / "web"
    assert {name: os.getxattr(web, name) for name in os.listxattr(web)} == {
        "user.namefs.uuid": str(UUID_WEB).encode(),
        "user.namefs.name": b"web",
        "user.namefs.state": b"paused",
        "user.namefs.connection": b"local",
        "user.namefs.former_names": b"",
    }


def test_the_attributes_and_acls_of_others_are_readable_as_they_are(lab: Lab) -> None:
    shown, real = lab.view / "off/log/qemu.log", lab.host.outside(KEPT["log/qemu.log"].format(UUID_OFF))
    # acl(5) in the form of include/uapi/linux/posix_acl_xattr.h: user::rw-, user:4711:r--, group::---,
    # mask::r--, other::---
    entries = [(0x01, 6, 0xFFFFFFFF), (0x02, 4, 4711), (0x04, 0, 0xFFFFFFFF), (0x10, 4, 0xFFFFFFFF)]
    entries.append((0x20, 0, 0xFFFFFFFF))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(real, "user.colour", b"\0red")
    os.setxattr(real, "system.posix_acl_access", acl)
    assert os.getxattr(shown, "user.colour") == b"\0red"
    assert os.getxattr(shown, "system.posix_acl_access") == acl
    assert set(os.listxattr(shown)) == {"user.namefs.path", *os.listxattr(real)}
    assert run("getfacl", "-n", "-c", "-p", str(shown), cwd=lab.view) == run(
        "getfacl", "-n", "-c", "-p", str(real), cwd=lab.view
    )
    with pytest.raises(OSError, match="No data available"):
        os.getxattr(shown, "user.other")


def test_the_view_has_no_space_of_its_own_and_names_of_up_to_255_bytes(lab: Lab) -> None:
    space = os.statvfs(lab.view)
    assert (space.f_blocks, space.f_bavail, space.f_namemax, space.f_files) == (0, 0, 255, 2)
    assert run("df", "--output=size,used,avail", str(lab.view), cwd=Path("/")).split()[-3:] == ["0", "0", "0"]


def test_inode_numbers_are_the_same_after_a_restart_of_the_daemon(lab: Lab) -> None:
    def numbers() -> dict[str, int]:
        return {str(p.relative_to(lab.view)): p.lstat().st_ino for p in lab.view.rglob("*")}

    before = numbers()
    lab.mounted.terminate()
    lab.mounted.start()
    until(lambda: numbers() == before, TIMEOUT_S, "the same files have the same numbers")
    assert len(before) == len(expected(lab))
