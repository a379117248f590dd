"""The lab itself: that what other tests stand on is a real libvirt, apart from the machine's own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import libvirt
import pytest

from tests.lab import guests
from tests.lab import host as lab_host
from tests.lab.host import Host
from tests.lab.process import has_ended
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

UUID_A = UUID("00000000-0000-4000-8000-00000000000a")
TIMEOUT_S = 10.0


@pytest.fixture
def connection(libvirt_host: Host) -> Iterator[libvirt.virConnect]:
    connection = libvirt_host.connect()
    yield connection
    connection.close()


def start(connection: libvirt.virConnect, definition: str) -> libvirt.virDomain:
    domain = connection.defineXML(definition)
    domain.create()
    return domain


def qemu_pid(host: Host, name: str) -> int:
    return int(host.outside(f"/run/libvirt/qemu/{name}.pid").read_text())


def processes_in(namespace: str) -> list[str]:
    """The names of all processes in a UTS namespace."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "ns/uts") == namespace:
                found.append((process / "comm").read_text().strip())
        except OSError:
            continue
    return found


def test_a_guest_of_64_mib_runs_and_virtlogd_writes_its_log(
    libvirt_host: Host, connection: libvirt.virConnect
) -> None:
    domain = start(connection, guests.xml("a", UUID_A))
    assert domain.UUIDString() == str(UUID_A)
    assert domain.info()[1] == 64 * 1024
    command = Path(f"/proc/{qemu_pid(libvirt_host, 'a')}/cmdline").read_bytes().split(b"\0")
    assert command[0] == b"/usr/bin/qemu-system-x86_64"
    log = libvirt_host.outside("/var/log/libvirt/qemu/a.log")
    assert "starting up libvirt version" in log.read_text()
    # The first line is libvirtd's; what QEMU prints goes through virtlogd.
    domain.destroy()
    until(lambda: "terminating on signal 15" in log.read_text(), TIMEOUT_S, "virtlogd logs the end")


def test_libvirt_works_with_what_the_test_puts_below_its_root(
    libvirt_host: Host, connection: libvirt.virConnect
) -> None:
    base = guests.make_disk(libvirt_host.images / "base.qcow2")
    top = guests.make_disk(libvirt_host.images / "top.qcow2", libvirt_host.inside(base))
    start(connection, guests.xml("a", disks={"vda": libvirt_host.inside(top)}))
    live = libvirt_host.virsh("dumpxml", "a")
    assert "<source file='/var/lib/libvirt/images/top.qcow2'" in live
    assert "<source file='/var/lib/libvirt/images/base.qcow2'" in live


def test_an_image_gets_its_owner_back_when_its_guest_stops_after_a_restart_of_libvirtd(
    libvirt_host: Host, connection: libvirt.virConnect
) -> None:
    image = guests.make_disk(libvirt_host.images / "a.qcow2")
    os.chown(image, 4711, 4712)
    start(connection, guests.xml("a", disks={"vda": libvirt_host.inside(image)}))
    assert image.stat().st_uid != 4711
    libvirt_host.restart_libvirtd()
    libvirt_host.virsh("destroy", "a")
    assert (image.stat().st_uid, image.stat().st_gid) == (4711, 4712)


def test_each_option_of_the_builder_makes_the_file_it_is_for(
    libvirt_host: Host, connection: libvirt.virConnect
) -> None:
    share = libvirt_host.outside("/var/lib/libvirt/images/share")
    share.mkdir()
    domain = start(
        connection,
        guests.xml(
            "a",
            UUID_A,
            serial_log="/var/log/libvirt/qemu/a-serial0.log",
            agent=True,
            vnc_socket=True,
            tpm=True,
            nvram=True,
            virtiofs=libvirt_host.inside(share),
            title="A title",
            metadata="<m:x xmlns:m='urn:m'/>",
        ),
    )
    log = libvirt_host.outside("/var/log/libvirt/qemu")
    state = libvirt_host.outside("/var/lib/libvirt")
    number = domain.ID()
    assert (log / "a-serial0.log").is_file()
    assert (log / "a-fs0-virtiofsd.log").is_file()
    assert libvirt_host.outside("/var/log/swtpm/libvirt/qemu/a-swtpm.log").is_file()
    assert (state / "swtpm" / str(UUID_A) / "tpm2").is_dir()
    assert (state / "qemu/nvram/a_VARS.fd").is_file()
    assert (state / f"qemu/channel/target/domain-{number}-a/{guests.AGENT}").is_socket()
    with socket.socket(socket.AF_UNIX) as vnc:
        vnc.connect(os.fspath(state / f"qemu/domain-{number}-a/vnc.sock"))
        assert vnc.recv(12).startswith(b"RFB ")
    assert domain.metadata(libvirt.VIR_DOMAIN_METADATA_TITLE, None) == "A title"
    assert domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, "urn:m")


@pytest.mark.parametrize("end", ["stop_libvirtd", "kill_libvirtd"])
def test_a_guest_outlives_its_libvirtd_and_is_known_to_the_next(
    libvirt_host: Host, connection: libvirt.virConnect, end: str
) -> None:
    start(connection, guests.xml("a", UUID_A))
    qemu = qemu_pid(libvirt_host, "a")
    before = libvirt_host.libvirtd_pid
    getattr(libvirt_host, end)()
    assert has_ended(before)
    assert not has_ended(qemu)
    with pytest.raises(RuntimeError, match="failed to connect"):
        libvirt_host.virsh("list")
    libvirt_host.start_libvirtd()
    assert libvirt_host.virsh("list", "--uuid").split() == [str(UUID_A)]
    assert qemu_pid(libvirt_host, "a") == qemu
    assert not has_ended(qemu)


def test_a_frozen_libvirtd_answers_only_after_it_is_thawed(libvirt_host: Host) -> None:
    libvirt_host.freeze_libvirtd()
    asking = subprocess.Popen(
        ["virsh", "-q", "-c", libvirt_host.uri, "uri"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    # No reply is the one thing that no condition tells of.
    with pytest.raises(subprocess.TimeoutExpired):
        asking.wait(0.3)
    libvirt_host.thaw_libvirtd()
    assert asking.communicate(timeout=TIMEOUT_S)[0].strip()
    assert asking.returncode == 0


def test_a_hook_counts_from_the_moment_it_is_put_in_place(
    libvirt_host: Host, connection: libvirt.virConnect
) -> None:
    libvirt_host.install_hook('#!/bin/sh\necho "$1 $2" >>/var/lib/libvirt/images/calls\n')
    start(connection, guests.xml("a")).destroy()
    calls = (libvirt_host.images / "calls").read_text().splitlines()
    assert calls == ["a prepare", "a start", "a started", "a stopped", "a release"]


def test_a_reset_host_has_no_guests_whatever_became_of_libvirtd(host: Host) -> None:
    for spoil in ("freeze_libvirtd", "stop_libvirtd", "kill_libvirtd"):
        image = guests.make_disk(host.images / "a.qcow2")
        host.virsh("define", _written(host, guests.xml("off", nvram=True)))
        host.virsh("create", _written(host, guests.xml("transient", disks={"vda": host.inside(image)})))
        getattr(host, spoil)()
        host.reset()
        assert host.virsh("list", "--all").strip() == ""
        left = [path for path in host.root.rglob("*") if path.name.startswith(("off", "transient", "a."))]
        assert left == []


def test_a_guest_that_libvirtd_can_not_end_is_ended_all_the_same(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.virsh("create", _written(host, guests.xml("stuck")))
    pid = qemu_pid(host, "stuck")
    remove, calls = lab_host._remove, []

    def remove_but_the_first(domain: libvirt.virDomain) -> None:
        calls.append(domain.name())
        if len(calls) == 1:
            raise libvirt.libvirtError("cannot acquire state change lock")
        remove(domain)

    monkeypatch.setattr(lab_host, "_remove", remove_but_the_first)
    host.reset()
    assert has_ended(pid)
    assert host.virsh("list", "--all").strip() == ""


def _written(host: Host, definition: str) -> str:
    file = host.root / "definition.xml"
    file.write_text(definition)
    return os.fspath(file)


def test_nothing_of_a_host_is_seen_on_the_machine() -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    name = socket.gethostname()
    kvm = Path("/dev/kvm")
    kvm_before = kvm.stat() if kvm.exists() else None
    machine = [Path("/etc/libvirt"), Path("/var/lib/libvirt"), Path("/var/log/libvirt"), Path("/var/log")]
    before = [sorted(directory.rglob("*")) for directory in machine]
    host = Host()
    try:
        host.start()
        host.virsh("define", _written(host, guests.xml("only-here")))
        assert host.virsh("domcapabilities", "--virttype", "qemu")
        assert (kvm.stat() if kvm.exists() else None) == kvm_before
        assert Path("/proc/self/mountinfo").read_text() == mounts
        assert socket.gethostname() == name
        assert [sorted(directory.rglob("*")) for directory in machine] == before
        assert host.outside("/etc/libvirt/qemu/only-here.xml").is_file()
    finally:
        host.stop()


def test_a_stopped_host_leaves_no_process_no_mount_and_no_file() -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    host = Host()
    try:
        host.start()
        namespace = os.readlink(f"/proc/{host.anchor_pid}/ns/uts")
        host.virsh("create", _written(host, guests.xml("a", tpm=True)))
        running = processes_in(namespace)
        assert {"libvirtd", "virtlogd", "swtpm", "qemu-system-x86"} <= set(running)
        host.freeze_libvirtd()
    finally:
        host.stop()
    assert processes_in(namespace) == []
    assert not host.root.exists()
    assert Path("/proc/self/mountinfo").read_text() == mounts


def test_a_host_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from tests.lab.host import Host
host = Host()
host.start()
print(host.root, host.anchor_pid, host.libvirtd_pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.fspath(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        check=False,
    )
    root, anchor, libvirtd = done.stdout.decode().split()
    until(lambda: has_ended(int(anchor)), TIMEOUT_S, "the anchor ends")
    assert has_ended(int(libvirtd))
    subprocess.run(["rm", "-r", root], check=True)
