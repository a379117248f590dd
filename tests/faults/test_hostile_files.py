"""What somebody may plant behind the view: it hangs nobody, leads nowhere, and the rest stays readable."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from tests.lab import guests
from tests.lab.opened import Opened
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

UUID_A = UUID("00000000-0000-4000-8000-00000000000a")
UUID_B = UUID("00000000-0000-4000-8000-00000000000b")
UUID_C = UUID("00000000-0000-4000-8000-00000000000c")

TIMEOUT_S = 20.0
HUGE_BYTES = 1 << 36
SECRET = "not to be read through the view"

FILES = {
    "config.xml": "/etc/libvirt/qemu/web.xml",
    "autostart.xml": "/etc/libvirt/qemu/autostart/web.xml",
    "status.xml": "/run/libvirt/qemu/web.xml",
    "run/pid": "/run/libvirt/qemu/web.pid",
    "log/qemu.log": "/var/log/libvirt/qemu/web.log",
    "log/qemu.log.0": "/var/log/libvirt/qemu/web.log.0",
    "log/qemu.log.1.gz": "/var/log/libvirt/qemu/web.log.1.gz",
    "log/virtiofsd-fs0.log": "/var/log/libvirt/qemu/web-fs0-virtiofsd.log",
    "log/swtpm.log": "/var/log/swtpm/libvirt/qemu/web-swtpm.log",
    "log/serial0.log": "/var/log/libvirt/qemu/web-serial.log",
    "snapshots/one.xml": "/var/lib/libvirt/qemu/snapshot/web/one.xml",
    "checkpoints/one.xml": "/var/lib/libvirt/qemu/checkpoint/web/one.xml",
    "save/managed.save": "/var/lib/libvirt/qemu/save/web.save",
    "nvram/VARS.fd": "/var/lib/libvirt/qemu/nvram/web_VARS.fd",
    "tpm/tpm2-00.permall": f"/var/lib/libvirt/swtpm/{UUID_A}/tpm2/tpm2-00.permall",
}
"""Each file of a guest ``web``, and where libvirt has it."""

COPIED = ("log/qemu.log", "log/qemu.log.0", "log/virtiofsd-fs0.log", "log/swtpm.log")
"""Those whose lines are copied to the store, and shown from there."""

DIRECTORIES = {
    "snapshots": "/var/lib/libvirt/qemu/snapshot/dirs",
    "checkpoints": "/var/lib/libvirt/qemu/checkpoint/dirs",
    "tpm": f"/var/lib/libvirt/swtpm/{UUID_B}/tpm2",
}
"""Each directory of a guest ``dirs`` that is in the view as one, and where libvirt has it."""

DISK = "/var/lib/libvirt/images/web.qcow2"

WALK = """\
import json, os, stat, sys
top, found = sys.argv[1], {}
for directory, subdirs, files in os.walk(top, onerror=print):
    for entry in subdirs + files:
        path = os.path.join(directory, entry)
        info = os.lstat(path)
        one = found[os.path.relpath(path, top)] = {"mode": info.st_mode, "size": info.st_size}
        if stat.S_ISLNK(info.st_mode):
            one["target"] = os.readlink(path)
            continue
        one["xattrs"] = {name: os.getxattr(path, name).decode() for name in os.listxattr(path)}
        if stat.S_ISREG(info.st_mode):
            fd = os.open(path, os.O_RDONLY)
            ends = os.pread(fd, 4096, 0) + os.pread(fd, 4096, max(0, info.st_size - 4096))
            one["text"] = ends.decode(errors="replace")
            os.close(fd)
print(json.dumps(found))
"""


def walk(path: Path) -> dict[str, dict[str, Any]]:
    """All that the view shows, looked at in every way; by another process, as a hang can't be called off."""
    command = [sys.executable, "-I", "-S", "-c", WALK, os.fspath(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=TIMEOUT_S)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def fifo(path: Path, _secret: Path) -> None:
    os.mkfifo(path, 0o666)


def device(path: Path, _secret: Path) -> None:
    # /dev/zero: reading it never ends.
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))


def unix_socket(path: Path, _secret: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listening:
        # By way of a short path: an address holds 107 bytes.
        directory = os.open(path.parent, os.O_PATH)
        try:
            listening.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)


def link_to_a_secret(path: Path, secret: Path) -> None:
    path.symlink_to(secret / "one.xml")


def link_to_a_secret_directory(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def link_to_itself(path: Path, _secret: Path) -> None:
    path.symlink_to(path)


def directory(path: Path, _secret: Path) -> None:
    path.mkdir()
    (path / "one.xml").mkdir()
    os.mkfifo(path / "two.xml")


def huge(path: Path, _secret: Path) -> None:
    path.touch(0o644)
    os.truncate(path, HUGE_BYTES)


SPECIAL = (fifo, device, unix_socket, link_to_a_secret, link_to_a_secret_directory, link_to_itself)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A directory outside all that is served; with files such as an artefact's."""
    for entry in ("one.xml", "tpm2-00.permall"):
        (tmp_path / entry).write_text(f"<domainsnapshot>{SECRET}</domainsnapshot>\n")
    return tmp_path


@pytest.fixture
def hosted(libvirt_host: Host, mounted: Mounted) -> Mounted:
    """namefs, with guests ``web``, ``dirs`` and ``other`` in the view."""
    with closing(libvirt_host.connect()) as connection:
        connection.defineXML(
            guests.xml("web", UUID_A, disks={"vda": DISK}, serial_log=FILES["log/serial0.log"], nvram=True)
        )
        connection.defineXML(guests.xml("dirs", UUID_B))
        connection.defineXML(guests.xml("other", UUID_C))
    until(lambda: sorted(mounted.names()) == ["dirs", "other", "web"], TIMEOUT_S, "all are there")
    return mounted


@contextmanager
def planted(
    host: Host, paths: list[str], plant: Callable[[Path, Path], None], secret: Path
) -> Iterator[None]:
    """Something in each of these places, and what was there before put back in the end."""
    with ExitStack() as undo:
        for inside in paths:
            path = host.outside(inside)
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                aside = path.with_name(f".{path.name}.aside")
                path.rename(aside)
                undo.callback(aside.rename, path)
            plant(path, secret)
            undo.callback(remove, path)
        yield


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def assert_others_are_readable(found: dict[str, dict[str, Any]]) -> None:
    assert "<name>other</name>" in found["other/config.xml"]["text"]


def assert_no_secret(found: dict[str, dict[str, Any]]) -> None:
    assert not [entry for entry, one in found.items() if SECRET in one.get("text", "")]


@pytest.mark.parametrize("plant", SPECIAL)
def test_what_is_no_regular_file_is_shown_as_a_link_to_itself_and_never_opened(
    libvirt_host: Host, hosted: Mounted, secret: Path, plant: Callable[[Path, Path], None]
) -> None:
    with planted(libvirt_host, [*FILES.values(), DISK], plant, secret), Opened() as opened:
        for inside in (*FILES.values(), DISK):
            if plant in (fifo, device, unix_socket):
                opened.watch(libvirt_host.outside(inside))
        found = walk(hosted.path)
        assert opened.count() == 0
    for shown, inside in FILES.items():
        assert found[f"web/{shown}"]["target"] == str(libvirt_host.outside(inside)), shown
    assert found["web/disks/vda"]["target"] == str(libvirt_host.outside(DISK))
    assert "web/run/process" not in found
    assert "web/sockets" not in found
    assert_no_secret(found)
    assert_others_are_readable(found)


def test_a_directory_in_a_files_place_is_not_shown(libvirt_host: Host, hosted: Mounted, secret: Path) -> None:
    with planted(libvirt_host, [*FILES.values(), DISK], directory, secret):
        found = walk(hosted.path)
    assert sorted(entry for entry in found if entry.startswith("web/")) == ["web/disks", "web/disks/vda"]
    assert_others_are_readable(found)


@pytest.mark.parametrize("plant", [*SPECIAL, huge])
def test_what_is_in_a_directorys_place_is_not_entered(
    libvirt_host: Host, hosted: Mounted, secret: Path, plant: Callable[[Path, Path], None]
) -> None:
    with planted(libvirt_host, list(DIRECTORIES.values()), plant, secret):
        found = walk(hosted.path)
    assert sorted(entry for entry in found if entry.startswith("dirs/")) == ["dirs/config.xml"]
    assert_no_secret(found)
    assert_others_are_readable(found)


def test_the_directories_are_shown_where_they_are_directories(
    libvirt_host: Host, hosted: Mounted, secret: Path
) -> None:
    # The control of the test above: what it finds missing is there when nobody interferes.
    def copy(path: Path, secret: Path) -> None:
        shutil.copytree(secret, path)

    with planted(libvirt_host, list(DIRECTORIES.values()), copy, secret):
        found = walk(hosted.path)
    for entry in ("dirs/snapshots/one.xml", "dirs/checkpoints/one.xml", "dirs/tpm/tpm2-00.permall"):
        assert SECRET in found[entry]["text"]


def test_a_huge_file_is_shown_without_being_read(libvirt_host: Host, hosted: Mounted, secret: Path) -> None:
    with planted(libvirt_host, [*FILES.values(), DISK], huge, secret):
        found = walk(hosted.path)
    for shown in FILES:
        if shown not in COPIED:
            assert found[f"web/{shown}"]["size"] == HUGE_BYTES, shown
    # There is nothing in them to copy: holes are no lines.
    assert {found[f"web/{shown}"]["size"] for shown in COPIED if f"web/{shown}" in found} == {0}
    assert "web/run/process" not in found
    assert "web/sockets" not in found
    assert_others_are_readable(found)
    status = Path(f"/proc/{hosted.pid}/status").read_text()
    peak_kib = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
    assert peak_kib < 256 << 10


def qcow2(path: Path, backing: bytes, *, offset: int = 64, size: int | None = None) -> None:
    """A qcow2 header that names a backing file; nothing follows it."""
    named = len(backing) if size is None else size
    header = struct.pack(">4sIQI", b"QFI\xfb", 3, offset, named).ljust(64, b"\0")
    path.write_bytes(header + backing)


def disks(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Entry and target of all that is in ``web/disks``."""
    below = "web/disks/"
    return {e.removeprefix(below): one["target"] for e, one in found.items() if e.startswith(below)}


def test_a_loop_of_backing_images_ends(libvirt_host: Host, hosted: Mounted) -> None:
    images = libvirt_host.images
    qcow2(images / "web.qcow2", b"second.qcow2")
    qcow2(images / "second.qcow2", b"web.qcow2")
    shown = disks(walk(hosted.path))
    assert shown == {"vda": str(images / "web.qcow2"), "vda.backing1": str(images / "second.qcow2")}


@pytest.mark.parametrize("backing", ["fifo.qcow2", "/dev/zero", "web.qcow2/below", "link.qcow2"])
def test_a_backing_image_that_is_no_regular_file_ends_the_chain(
    libvirt_host: Host, hosted: Mounted, secret: Path, backing: str
) -> None:
    os.mkfifo(libvirt_host.images / "fifo.qcow2")
    qcow2(secret / "secret.qcow2", b"named-by-a-secret")
    (libvirt_host.images / "link.qcow2").symlink_to(secret / "secret.qcow2")
    qcow2(libvirt_host.images / "web.qcow2", backing.encode())
    shown = disks(walk(hosted.path))
    assert shown["vda.backing1"] == str(libvirt_host.images / backing)
    assert len(shown) == 2


@pytest.mark.parametrize(
    ("backing", "offset", "size"),
    [
        (b"x", 1 << 63, None),
        (b"x", (1 << 64) - 1, None),
        (b"x", 64, (1 << 32) - 1),
        (b"json:{}", 64, None),
        (b"nbd://server/disk", 64, None),
    ],
)
def test_a_header_that_names_no_file_ends_the_chain(
    libvirt_host: Host, hosted: Mounted, backing: bytes, offset: int, size: int | None
) -> None:
    qcow2(libvirt_host.images / "web.qcow2", backing, offset=offset, size=size)
    assert list(disks(walk(hosted.path))) == ["vda"]


def test_a_backing_image_whose_name_holds_a_nul_hurts_nobody(libvirt_host: Host, hosted: Mounted) -> None:
    qcow2(libvirt_host.images / "web.qcow2", b"a\0b")
    found = walk(hosted.path)
    assert list(disks(found)) == ["vda"]
    assert_others_are_readable(found)


def test_a_disk_and_a_log_inside_the_view_do_not_have_namefs_wait_for_itself(
    libvirt_host: Host, hosted: Mounted
) -> None:
    inside = hosted.path / "other/config.xml"
    qcow2(libvirt_host.images / "web.qcow2", os.fsencode(inside))
    with closing(libvirt_host.connect()) as connection:
        connection.defineXML(guests.xml("self", disks={"vda": str(inside)}, serial_log=str(inside)))
    until((hosted.path / "self").exists, TIMEOUT_S, "the guest is in the view")
    found = walk(hosted.path)
    assert disks(found)["vda.backing1"] == str(inside)
    assert "self/log" not in found
    assert "self/disks" not in found
