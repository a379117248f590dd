"""Adopting guests and releasing them: on real libvirt and QEMU, which have to find everything again."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING
from uuid import UUID

import libvirt
import pytest

from namefs.errors import ExitCode
from tests.lab import guests
from tests.lab.adopting import Adopting, changed, running
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

UUID_A = UUID("00000000-0000-4000-8000-00000000000a")
UUID_B = UUID("00000000-0000-4000-8000-00000000000b")
IMAGES = "/var/lib/libvirt/images"
STORE = f"/var/lib/libvirt/by-uuid/{UUID_A}"
SOON_S = 15.0
SECURE_INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE

DEVICES = f"""
<channel type='unix'><source mode='bind' path='{IMAGES}/agent.sock'/>
  <target type='virtio' name='org.x'/></channel>
<graphics type='vnc'><listen type='socket' socket='{IMAGES}/vnc/vnc.sock'/></graphics>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
  <source file='{IMAGES}/both.qcow2'/><target dev='vdb' bus='virtio'/></disk>
"""


def web_xml() -> str:
    """UEFI of libvirt's choice, a serial log, sockets, an image of its own, one that another's lies on."""
    xml = guests.xml(
        "web",
        UUID_A,
        disks={"vda": f"{IMAGES}/web.qcow2"},
        serial_log="/var/log/libvirt/qemu/web-serial.log",
        nvram=True,
        metadata='<other:program xmlns:other="urn:other" other:of="1 &gt; 0"/>',
    )
    return xml.replace("</devices>", f"{DEVICES}</devices>")


@pytest.fixture
def adopting(libvirt_host: Host, tmp_path: Path) -> Adopting:
    return Adopting(libvirt_host, tmp_path)


@pytest.fixture
def connection(libvirt_host: Host) -> Iterator[libvirt.virConnect]:
    connection = libvirt_host.connect()
    yield connection
    connection.close()


@pytest.fixture
def web(libvirt_host: Host, connection: libvirt.virConnect) -> libvirt.virDomain:
    """The guest, off, after a first start that gave it its UEFI variables."""
    guests.make_disk(libvirt_host.images / "web.qcow2")
    guests.make_disk(libvirt_host.images / "both.qcow2")
    guests.make_disk(libvirt_host.images / "over.qcow2", backing=f"{IMAGES}/both.qcow2")
    sockets = libvirt_host.images / "vnc"
    sockets.mkdir()
    shutil.chown(sockets, "libvirt-qemu", "libvirt-qemu")
    domain = connection.defineXML(web_xml())
    connection.defineXML(guests.xml("mail", UUID_B, disks={"vda": f"{IMAGES}/over.qcow2"}))
    domain.create()
    domain.destroy()
    variables(libvirt_host, "/var/lib/libvirt/qemu/nvram/web_VARS.fd")
    return domain


def variables(host: Host, path: str) -> None:
    """Make the UEFI variables ones that no firmware comes with."""
    file = host.outside(path)
    with file.open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(b"mine")


def has_variables(host: Host, path: str) -> bool:
    return host.outside(path).read_bytes().endswith(b"mine")


def definitions(domain: libvirt.virDomain) -> list[str]:
    return [
        domain.XMLDesc(SECURE_INACTIVE),
        *(s.getXMLDesc(1) for s in domain.listAllSnapshots(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL)),
        *(c.getXMLDesc(1) for c in domain.listAllCheckpoints()),
    ]


def files_below(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()}


def state_of(path: Path) -> tuple[object, ...]:
    info = path.lstat()
    attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    return (
        stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_size, info.st_mtime_ns, attributes,
        path.read_bytes(),
    )  # fmt: skip


def test_an_adopted_guest_starts_from_the_store_through_a_rename_and_is_released_as_it_was(
    libvirt_host: Host, adopting: Adopting, web: libvirt.virDomain
) -> None:
    libvirt_host.virsh("snapshot-create-as", "web", "first")
    libvirt_host.virsh("snapshot-create-as", "web", "second")
    before = definitions(web)
    everything = files_below(libvirt_host.root / "var")
    inode = (libvirt_host.images / "web.qcow2").stat().st_ino

    printed, _ = adopting.call("adopt", "--disks", "web")
    assert f"vdb stays, {IMAGES}/both.qcow2 is named by image" in printed
    assert web.snapshotCurrent().getName() == "second"
    store = libvirt_host.outside(STORE)
    assert files_below(store) == {"adopted.json", "disks/vda.qcow2", "log/serial0.log", "nvram/VARS.fd"}
    assert (store / "disks/vda.qcow2").stat().st_ino == inode
    assert not (libvirt_host.images / "web.qcow2").exists()
    assert adopting.call("adopt", "--disks", "web")[0].endswith("web: nothing to adopt\n")

    assert web.rename("shop") == 0
    web.create()
    assert {f"{STORE}/{place}" in web.XMLDesc() for place in (
        "disks/vda.qcow2", "log/serial0.log", "nvram/VARS.fd", "sockets/org.x", "sockets/vnc",
    )} == {True}  # fmt: skip
    assert stat.S_ISSOCK((store / "sockets/org.x").stat().st_mode)
    web.destroy()
    assert has_variables(libvirt_host, f"{STORE}/nvram/VARS.fd")
    assert not list(libvirt_host.outside("/var/lib/libvirt/qemu/nvram").iterdir())
    libvirt_host.virsh("snapshot-revert", "shop", "first")
    assert f"{STORE}/nvram/VARS.fd" in web.XMLDesc()
    assert web.snapshotCurrent().getName() == "first"
    libvirt_host.virsh("snapshot-revert", "shop", "second")
    assert web.rename("web") == 0

    adopting.call("release", "web")
    assert definitions(web) == before
    assert has_variables(libvirt_host, "/var/lib/libvirt/qemu/nvram/web_VARS.fd")
    left = files_below(libvirt_host.root / "var") ^ everything
    assert left <= {"lib/libvirt/by-uuid/.lock", "log/libvirt/qemu/shop.log"}
    assert os.listdir(store.parent) == [".lock"]
    web.create()


def test_the_view_shows_an_adopted_guest_and_what_its_administrator_puts_beside(
    libvirt_host: Host, adopting: Adopting, mounted: Mounted, web: libvirt.virDomain
) -> None:
    store = libvirt_host.outside(STORE)
    adopting.config = mounted.config
    adopting.call("adopt", "--disks", str(UUID_A))
    (store / "notes.txt").write_text("of the administrator")
    (store / "disks/old.qcow2").write_bytes(b"")
    (store / "scripts").mkdir()
    shown = mounted.path / "web"
    vda = os.fspath(store / "disks/vda.qcow2")
    until(
        lambda: os.path.lexists(shown / "disks/vda") and os.readlink(shown / "disks/vda") == vda,
        SOON_S,
        "the adopted image is shown",
    )
    assert sorted(os.listdir(shown / "disks")) == ["old.qcow2", "vda", "vdb"]
    assert os.listdir(shown / "nvram") == ["VARS.fd"]
    assert (shown / "nvram/VARS.fd").read_bytes().endswith(b"mine")
    assert (shown / "notes.txt").read_text() == "of the administrator"
    assert os.readlink(shown / "scripts") == os.fspath(store / "scripts")
    assert sorted(set(os.listdir(shown)) & {"adopted.json", ".adopting", "notes.txt"}) == ["notes.txt"]

    adopting.call("release", "web")
    assert files_below(store) == {"notes.txt", "disks/old.qcow2"}
    until(
        lambda: os.readlink(shown / "disks/vda") == os.fspath(libvirt_host.images / "web.qcow2"),
        SOON_S,
        "the released image is shown",
    )


def test_apparmors_profile_of_a_guest_has_every_path_in_the_store(
    libvirt_host: Host, adopting: Adopting, web: libvirt.virDomain
) -> None:
    """As libvirt's own helper writes it; whether the kernel has AppArmor is all the same to it."""
    adopting.call("adopt", "--disks", "web")
    command = ["/usr/lib/libvirt/virt-aa-helper", "--dryrun", "--create", "--uuid", f"libvirt-{UUID_A}"]
    xml = web.XMLDesc(SECURE_INACTIVE)
    done = subprocess.run(command, input=xml, capture_output=True, text=True, check=True)
    rules = {line.strip() for line in (done.stdout + done.stderr).splitlines()}
    files = {f'"{STORE}/{file}" rwk,' for file in ("disks/vda.qcow2", "nvram/VARS.fd")}
    assert files | {f'"{STORE}/sockets/{socket}" rw,' for socket in ("org.x", "vnc")} <= rules


def test_a_guest_is_only_adopted_while_it_is_off(
    libvirt_host: Host, adopting: Adopting, connection: libvirt.virConnect
) -> None:
    define(libvirt_host, connection)
    everything = files_below(libvirt_host.root / "var/lib")
    domain = connection.lookupByUUIDString(str(UUID_A))
    domain.create()
    _, complaint = adopting.call("adopt", "web", expected=ExitCode.NOT_NOW)
    assert complaint == "namefs: web: is not shut off: shut it down first\n"
    domain.managedSave()
    _, complaint = adopting.call("adopt", "web", expected=ExitCode.NOT_NOW)
    assert complaint == "namefs: web: has a managed save image: start it and shut it down first\n"
    domain.managedSaveRemove()
    transient = connection.createXML(guests.xml("brief", UUID_B))
    # One that is refused keeps nobody else from it.
    _, complaint = adopting.call("adopt", "brief", "nobody", "web", expected=ExitCode.NOT_NOW)
    assert complaint == (
        "namefs: brief: is transient: its definition ends with it\nnamefs: nobody: there is no such guest\n"
    )
    transient.destroy()
    _, complaint = adopting.call("adopt", "--recover", "nobody", expected=ExitCode.NOT_FOUND)
    assert complaint == "namefs: nobody: there is no such guest\n"
    assert libvirt_host.outside(f"{STORE}/adopted.json").exists()
    adopting.call("release", "web")
    assert files_below(libvirt_host.root / "var/lib") - everything == {"libvirt/by-uuid/.lock"}


def define(host: Host, connection: libvirt.virConnect) -> libvirt.virDomain:
    """A guest that has only an image and a log."""
    guests.make_disk(host.images / "web.qcow2")
    host.outside("/var/log/libvirt/qemu/web-serial.log").write_text("a line\n")
    disks = {"vda": f"{IMAGES}/web.qcow2"}
    log = "/var/log/libvirt/qemu/web-serial.log"
    return connection.defineXML(guests.xml("web", UUID_A, disks=disks, serial_log=log))


def test_a_dry_run_prints_what_is_then_done_and_does_nothing(
    libvirt_host: Host, adopting: Adopting, connection: libvirt.virConnect
) -> None:
    domain = define(libvirt_host, connection)
    log = libvirt_host.outside("/var/log/libvirt/qemu/web-serial.log")
    log.with_name("web-serial.log.0").write_text("an older line\n")
    shutil.rmtree(libvirt_host.outside(STORE).parent, ignore_errors=True)
    before = definitions(domain), files_below(libvirt_host.root / "var")
    store, images = libvirt_host.outside(STORE), libvirt_host.images
    printed, _ = adopting.call("adopt", "--disks", "--dry-run", "web")
    assert printed.splitlines() == [
        f"web: make {store.parent}",
        f"web: make {store}",
        f"web: write down all steps in {store}/.adopting",
        f"web: make {store}/disks",
        f"web: make {store}/log",
        f"web: link {images}/web.qcow2 to {store}/disks/vda.qcow2",
        f"web: link {log} to {store}/log/serial0.log",
        f"web: link {log}.0 to {store}/log/serial0.log.0",
        "web: define web with other paths for vda, serial0",
        f"web: write {store}/adopted.json",
        "web: have libvirt's definitions on the disk",
        f"web: remove {images}/web.qcow2",
        f"web: remove {log}",
        f"web: remove {log}.0",
        f"web: remove {store}/.adopting",
    ]
    assert (definitions(domain), files_below(libvirt_host.root / "var")) == before
    adopting.call("adopt", "--disks", "web")
    assert (store / "log/serial0.log.0").read_text() == "an older line\n"
    adopting.call("release", "web")
    assert (
        definitions(domain),
        files_below(libvirt_host.root / "var") - {"lib/libvirt/by-uuid/.lock"},
    ) == before


def test_an_image_that_a_process_has_open_or_that_is_a_symlink_is_not_moved(
    libvirt_host: Host, adopting: Adopting, connection: libvirt.virConnect
) -> None:
    define(libvirt_host, connection)
    image = libvirt_host.images / "web.qcow2"
    command = ["qemu-storage-daemon", "--blockdev", f"file,node-name=web,filename={image}", "--nbd-server"]
    command += [f"addr.type=unix,addr.path={libvirt_host.images}/nbd", "--export"]
    command += ["nbd,id=web,node-name=web,writable=on"]
    holder = subprocess.Popen(command)
    try:
        until((libvirt_host.images / "nbd").exists, SOON_S, "the image is open")
        _, complaint = adopting.call("adopt", "--disks", "web", expected=ExitCode.NOT_NOW)
    finally:
        holder.kill()
        holder.wait()
    assert complaint == f"namefs: web: {image}: a process has it open; all is as it was\n"
    assert not libvirt_host.outside(STORE).exists()

    image.rename(image.with_name("elsewhere.qcow2"))
    image.symlink_to("elsewhere.qcow2")
    printed, _ = adopting.call("adopt", "--disks", "web")
    assert f"web: vda stays, {IMAGES}/web.qcow2 is a symlink\n" in printed
    assert image.is_symlink()


def test_an_image_that_anything_else_names_stays(
    libvirt_host: Host, adopting: Adopting, connection: libvirt.virConnect
) -> None:
    targets = {f"vd{letter}": f"{IMAGES}/{letter}.qcow2" for letter in "abcde"}
    for path in targets.values():
        guests.make_disk(libvirt_host.outside(path))
    connection.defineXML(guests.xml("web", UUID_A, disks=targets))
    # b by another name; c by a snapshot alone; d by an image that no definition names; e by the guest itself.
    (libvirt_host.images / "alias").symlink_to("b.qcow2")
    mail = connection.defineXML(guests.xml("mail", UUID_B, disks={"vda": f"{IMAGES}/alias"}))
    old = guests.xml("mail", UUID_B, disks={"vda": targets["vdc"]})
    head = "<name>first</name><state>shutoff</state><creationTime>1</creationTime>"
    mail.snapshotCreateXML(
        f"<domainsnapshot>{head}{old}</domainsnapshot>", libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
    )
    guests.make_disk(libvirt_host.images / "lost.qcow2", backing="d.qcow2")
    specs = [f"vd{letter},snapshot={'external' if letter == 'e' else 'no'}" for letter in "abcde"]
    options = [word for spec in specs for word in ("--diskspec", spec)]
    libvirt_host.virsh("snapshot-create-as", "web", "outer", "--disk-only", *options)

    printed, _ = adopting.call("adopt", "--disks", "web")
    assert printed.splitlines() == [
        f"web: vdb stays, {IMAGES}/b.qcow2 is named by guest mail too",
        f"web: vdc stays, {IMAGES}/c.qcow2 is named by guest mail too",
        f"web: vdd stays, {IMAGES}/d.qcow2 is named by image {libvirt_host.images}/lost.qcow2 too",
        f"web: vde stays, {IMAGES}/e.outer is named by another part of this guest's definitions too",
        "web: adopted vda",
    ]
    adopting.call("release", "web")


def test_release_is_refused_where_a_place_is_taken(
    libvirt_host: Host, adopting: Adopting, connection: libvirt.virConnect
) -> None:
    domain = define(libvirt_host, connection)
    adopting.call("adopt", "--disks", "web")
    adopted = definitions(domain), files_below(libvirt_host.outside(STORE))
    image = libvirt_host.images / "web.qcow2"
    image.write_bytes(b"of another guest")
    _, complaint = adopting.call("release", "web", expected=ExitCode.NOT_NOW)
    assert complaint == (
        f"namefs: web: {IMAGES}/web.qcow2, where vda was, is taken now: move that away first\n"
    )
    assert (definitions(domain), files_below(libvirt_host.outside(STORE))) == adopted
    assert image.read_bytes() == b"of another guest"


def test_two_calls_at_once_do_not_work_at_once(
    libvirt_host: Host, adopting: Adopting, connection: libvirt.virConnect
) -> None:
    define(libvirt_host, connection)
    lock = libvirt_host.outside("/var/lib/libvirt/by-uuid") / ".lock"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        _, complaint = adopting.call("adopt", "web", expected=ExitCode.NOT_NOW)
    assert complaint == "namefs: another `namefs adopt` or `release` is at work: wait until it is done\n"
    adopting.call("adopt", "web")


@pytest.mark.parametrize(
    ("meanwhile", "code", "words"),
    [
        ("virsh -q -c $URI start web", ExitCode.NOT_NOW, "is not shut off"),
        ("virsh -q -c $URI desc web --config other", ExitCode.NOT_NOW, "changed meanwhile"),
        ("virsh -q -c $URI snapshot-create-as web other", ExitCode.NOT_NOW, "changed meanwhile"),
        ("virsh -q -c $URI undefine web", ExitCode.NOT_FOUND, ""),
    ],
)
def test_what_happens_to_the_guest_in_the_middle_undoes_what_was_begun(
    libvirt_host: Host,
    adopting: Adopting,
    connection: libvirt.virConnect,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: str,
    code: int,
    words: str,
) -> None:
    define(libvirt_host, connection)
    files = {path: path.stat().st_ino for path in libvirt_host.images.iterdir()}
    monkeypatch.setenv("URI", libvirt_host.uri)
    monkeypatch.setenv("MEANWHILE", meanwhile)
    # The log alone: what QEMU has open it could not open while the image is being moved.
    _, complaint = adopting.call("adopt", "web", command=changed(running, "link "), expected=code)
    assert words in complaint
    assert {path: path.stat().st_ino for path in libvirt_host.images.iterdir()} == files
    assert not libvirt_host.outside(STORE).exists()
    assert libvirt_host.outside("/var/log/libvirt/qemu/web-serial.log").stat().st_nlink == 1


def test_while_an_image_is_moved_no_guest_can_start_with_it(
    libvirt_host: Host, adopting: Adopting, connection: libvirt.virConnect, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = define(libvirt_host, connection)
    monkeypatch.setenv("MEANWHILE", f"! virsh -q -c {libvirt_host.uri} start web")
    linked = f"link {libvirt_host.outside('/var/log')}"
    adopting.call("adopt", "--disks", "web", command=changed(running, linked))
    domain.create()
    assert f"{STORE}/disks/vda.qcow2" in domain.XMLDesc()


def test_an_image_that_was_replaced_since_it_was_looked_at_is_not_moved(
    libvirt_host: Host, adopting: Adopting, connection: libvirt.virConnect, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(libvirt_host, connection)
    image = libvirt_host.images / "web.qcow2"
    monkeypatch.setenv("MEANWHILE", f"cp -p {image} {image}.new && mv {image}.new {image}")
    noted = changed(running, "write down")
    _, complaint = adopting.call("adopt", "--disks", "web", command=noted, expected=ExitCode.NOT_NOW)
    assert complaint == f"namefs: web: {image}: it changed meanwhile; all is as it was\n"
    assert image.exists()
    assert not libvirt_host.outside(STORE).exists()
