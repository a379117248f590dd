"""``namefs adopt`` and ``release`` killed, or failing, at any step: the guest starts, with all it had."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import libvirt
import pytest

from namefs.errors import ExitCode
from tests.lab import guests
from tests.lab.adopting import Adopting, changed, failing, killed, killed_while_copying

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.host import Host

UUID_A = UUID("00000000-0000-4000-8000-00000000000a")
IMAGES = "/var/lib/libvirt/images"
STORE = f"/var/lib/libvirt/by-uuid/{UUID_A}"
SECURE_INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
MARK = b"written by the guest"


@pytest.fixture
def adopting(libvirt_host: Host, tmp_path: Path) -> Adopting:
    return Adopting(libvirt_host, tmp_path)


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A directory on another filesystem, which libvirt sees under the same path."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="nf") as directory:
        Path(directory).chmod(0o755)
        assert os.stat(directory).st_dev != os.stat("/tmp").st_dev
        yield Path(directory)


@pytest.fixture
def web(libvirt_host: Host, elsewhere: Path) -> Iterator[libvirt.virDomain]:
    """A guest that is off: one image to be linked, one to be copied, a log, a snapshot."""
    # The first of all runs has the store to make: one step more than all others.
    libvirt_host.outside(STORE).parent.mkdir(exist_ok=True)
    guests.make_disk(libvirt_host.images / "web.qcow2")
    guests.make_disk(elsewhere / "data.qcow2")
    log = libvirt_host.outside("/var/log/libvirt/qemu/web-serial.log")
    log.write_bytes(MARK)
    xml = guests.xml(
        "web",
        UUID_A,
        disks={"vda": f"{IMAGES}/web.qcow2", "vdb": f"{elsewhere}/data.qcow2"},
        serial_log="/var/log/libvirt/qemu/web-serial.log",
    )
    xml = xml.replace('web-serial.log"', 'web-serial.log" append="on"')
    with ExitStack() as undo:
        connection = libvirt_host.connect()
        undo.callback(connection.close)
        domain = connection.defineXML(xml)
        libvirt_host.virsh("snapshot-create-as", "web", "first")
        yield domain


def definitions(domain: libvirt.virDomain) -> list[str]:
    """Of the guest, of its snapshots and of its checkpoints."""
    moments = [*domain.listAllSnapshots(), *domain.listAllCheckpoints()]
    return [domain.XMLDesc(SECURE_INACTIVE), *(moment.getXMLDesc(1) for moment in moments)]


def contents(host: Host, elsewhere: Path) -> list[tuple[str, bytes]]:
    """Every file that is the guest's, by name and content: nothing lost, nothing twice."""
    directories = [host.images, elsewhere, host.outside(STORE), host.outside("/var/log/libvirt/qemu")]
    return sorted(
        (str(path), path.read_bytes())
        for directory in directories
        for path in directory.rglob("*")
        if path.is_file() and path.name != "web.log"
    )


def starts(domain: libvirt.virDomain, host: Host) -> None:
    """The guest runs, with files that are all there, and its log is the one that it had."""
    domain.create()
    xml = domain.XMLDesc()
    domain.destroy()
    log = STORE + "/log/serial0.log"
    assert host.outside(log if log in xml else "/var/log/libvirt/qemu/web-serial.log").read_bytes() == MARK


def done(adopting: Adopting, *arguments: str) -> str:
    code, printed = adopting.here(*arguments)
    assert code == 0, printed
    return printed


@pytest.mark.parametrize("arguments", [("adopt", "--disks"), ("release",)], ids=["adopt", "release"])
def test_killed_after_any_step_it_leaves_a_guest_that_starts_and_the_next_call_goes_on(
    libvirt_host: Host,
    adopting: Adopting,
    elsewhere: Path,
    web: libvirt.virDomain,
    arguments: tuple[str, ...],
) -> None:
    inverse = ("release",) if arguments[0] == "adopt" else ("adopt", "--disks")
    if arguments[0] == "release":
        done(adopting, *inverse, "web")
    before = definitions(web), contents(libvirt_host, elsewhere)
    done(adopting, *arguments, "web")
    after = definitions(web), contents(libvirt_host, elsewhere)
    done(adopting, *inverse, "web")
    assert (definitions(web), contents(libvirt_host, elsewhere)) == before
    steps = done(adopting, *arguments, "--dry-run", "web").splitlines()
    assert any(" copy " in step for step in steps)

    for number, step in enumerate(steps):
        adopting.call(*arguments, "web", command=changed(killed, number), expected=-signal.SIGKILL)
        starts(web, libvirt_host)
        if number % 2:
            done(adopting, "adopt", "--recover")
            now = definitions(web), contents(libvirt_host, elsewhere)
            assert now in (before, after), step
        done(adopting, *arguments, "web")
        assert (definitions(web), contents(libvirt_host, elsewhere)) == after, step
        done(adopting, *inverse, "web")
        assert (definitions(web), contents(libvirt_host, elsewhere)) == before, step


@pytest.mark.parametrize("arguments", [("adopt", "--disks"), ("release",)], ids=["adopt", "release"])
def test_a_step_that_fails_undoes_those_before_it_or_is_finished_by_the_next_call(
    libvirt_host: Host,
    adopting: Adopting,
    elsewhere: Path,
    web: libvirt.virDomain,
    arguments: tuple[str, ...],
) -> None:
    if arguments[0] == "release":
        done(adopting, "adopt", "--disks", "web")
    before = definitions(web), contents(libvirt_host, elsewhere)
    steps = done(adopting, *arguments, "--dry-run", "web").splitlines()
    switched = next(number for number, step in enumerate(steps) if "have libvirt's definitions" in step)
    complaint = "namefs: web: a full filesystem, made for a test: No space left on device"
    for number, step in enumerate(steps[:switched]):
        code = ExitCode.FILE_FAILED
        _, said = adopting.call(*arguments, "web", command=changed(failing, number), expected=code)
        assert said == f"{complaint}; all is as it was\n"
        assert (definitions(web), contents(libvirt_host, elsewhere)) == before, step
    unfinished = ExitCode.UNFINISHED
    _, said = adopting.call(*arguments, "web", command=changed(failing, switched), expected=unfinished)
    assert said.startswith(f"{complaint}; what was begun is noted in ")
    assert adopting.here(*arguments, "--dry-run", "web")[0] == unfinished
    starts(web, libvirt_host)
    printed = done(adopting, "adopt", "--recover", "web")
    assert printed == f"web: an interrupted {arguments[0]} was finished\n"
    done(adopting, *(("release",) if arguments[0] == "adopt" else ("adopt", "--disks")), "web")
    assert (definitions(web), contents(libvirt_host, elsewhere)) == before


def test_killed_while_copying_it_leaves_no_half_of_a_file(
    libvirt_host: Host, adopting: Adopting, elsewhere: Path, web: libvirt.virDomain
) -> None:
    before = definitions(web), contents(libvirt_host, elsewhere)
    copying = changed(killed_while_copying, "")
    adopting.call("adopt", "--disks", "web", command=copying, expected=-signal.SIGKILL)
    assert libvirt_host.outside(f"{STORE}/disks/.vdb.qcow2.copying").exists()
    starts(web, libvirt_host)
    assert done(adopting, "adopt", "--recover") == "web: an interrupted adopt was undone\n"
    assert (definitions(web), contents(libvirt_host, elsewhere)) == before


def test_a_full_store_leaves_all_as_it_was(
    libvirt_host: Host, adopting: Adopting, elsewhere: Path, web: libvirt.virDomain
) -> None:
    """A tmpfs with too little room for the image, on what libvirt goes on to see as the store."""
    store = libvirt_host.outside(STORE).parent
    before = definitions(web), contents(libvirt_host, elsewhere)
    with ExitStack() as undo:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "lab", store], check=True)
        undo.callback(lambda: subprocess.run(["umount", store], check=True))
        code, printed = adopting.here("adopt", "--disks", "web")
        assert code == ExitCode.FILE_FAILED
        target = f"{store}/{UUID_A}/disks/vda.qcow2"
        assert printed == f"namefs: web: {target}: No space left on device; all is as it was\n"
        assert os.listdir(store) == [".lock"]
        subprocess.run(["mount", "-o", "remount,ro", store], check=True)
        code, printed = adopting.here("adopt", "--disks", "web")
        assert code == ExitCode.FILE_FAILED
        assert "Read-only file system" in printed
    assert (definitions(web), contents(libvirt_host, elsewhere)) == before
    starts(web, libvirt_host)


def test_a_guest_that_was_undefined_after_a_kill_keeps_its_files_where_they_were(
    libvirt_host: Host, adopting: Adopting, elsewhere: Path, web: libvirt.virDomain
) -> None:
    before = contents(libvirt_host, elsewhere)
    defined = changed(killed, "define ")
    adopting.call("adopt", "--disks", "web", command=defined, expected=-signal.SIGKILL)
    web.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)
    assert done(adopting, "adopt", "--recover", str(UUID_A)) == "web: an interrupted adopt was undone\n"
    assert contents(libvirt_host, elsewhere) == before


def test_what_is_copied_is_like_the_original_in_everything(
    libvirt_host: Host, adopting: Adopting, elsewhere: Path, web: libvirt.virDomain
) -> None:
    image = elsewhere / "data.qcow2"
    with image.open("r+b") as stream:
        stream.seek(3 << 20)
        stream.write(b"far behind a hole")
        stream.truncate(9 << 20)
    os.setxattr(image, "trusted.label", b"of the administrator")
    subprocess.run(["setfacl", "-m", "u:65534:r", image], check=True)
    os.chown(image, 65534, 65534)
    image.chmod(0o4640)
    os.utime(image, ns=(1_000_000_001, 2_000_000_003))
    before = everything_of(image)
    done(adopting, "adopt", "--disks", "web")
    copied = libvirt_host.outside(f"{STORE}/disks/vdb.qcow2")
    assert everything_of(copied) == before
    assert copied.stat().st_blocks * 512 < 2 << 20
    done(adopting, "release", "web")
    assert everything_of(image) == before
    assert image.stat().st_blocks * 512 < 2 << 20


def everything_of(path: Path) -> tuple[object, ...]:
    info = path.stat()
    attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    return (info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, attributes, path.read_bytes())


def test_checkpoints_which_have_to_be_laid_aside_for_the_snapshots_are_all_there_again(
    libvirt_host: Host, adopting: Adopting, web: libvirt.virDomain
) -> None:
    web.create()
    for name in ("monday", "tuesday"):
        libvirt_host.virsh("checkpoint-create-as", "web", name)
    web.destroy()
    before = definitions(web)
    aside = changed(killed, "lay the")
    adopting.call("adopt", "--disks", "web", command=aside, expected=-signal.SIGKILL)
    assert not web.listAllCheckpoints()
    assert done(adopting, "adopt", "--recover") == "web: an interrupted adopt was finished\n"
    adopted = definitions(web)
    assert len(adopted) == len(before) == 4
    assert all(f"{STORE}/disks/vda.qcow2" in xml for xml in adopted)
    failed = changed(failing, "lay the")
    adopting.call("release", "web", command=failed, expected=ExitCode.FILE_FAILED)
    assert definitions(web) == adopted
    done(adopting, "release", "web")
    assert definitions(web) == before
    web.create()
    libvirt_host.virsh("checkpoint-create-as", "web", "wednesday")
