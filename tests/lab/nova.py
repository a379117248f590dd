"""A compute host of OpenStack's as namefs sees it: Nova's files and definitions, and what it does with them.

Each step is one call, so that a test can look between them. Formats and order as in nova/virt/libvirt:
config.py (the metadata), driver.py (migrate_disk_and_power_off, finish_migration, _cleanup_resize,
finish_revert_migration, _cleanup, delete_instance_files, _hard_reboot, rescue), guest.py (set_metadata).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import libvirt

if TYPE_CHECKING:
    from uuid import UUID

NAMESPACE = "http://openstack.org/xmlns/libvirt/nova/1.1"

_INSTANCE = """\
<nova:instance{declaration}>
  <nova:package version="29.0.1"/>
  <nova:name>{name}</nova:name>
  <nova:creationTime>2026-11-24 06:28:31</nova:creationTime>
  <nova:flavor name="{flavor}">
    <nova:memory>64</nova:memory>
    <nova:disk>1</nova:disk>
    <nova:swap>0</nova:swap>
    <nova:ephemeral>1</nova:ephemeral>
    <nova:vcpus>1</nova:vcpus>
  </nova:flavor>
  <nova:owner>
    <nova:user uuid="e8d1bd9adc4f4f7b9d2e2a5a4a1f5b37">alice</nova:user>
    <nova:project uuid="0b9a6ff1bd9e4f6a8cb2a9b6b2bbd5d4">{project}</nova:project>
  </nova:owner>
  <nova:root type="image" uuid="155d900f-4e14-4e4c-a73d-069cbf4541e6"/>
</nova:instance>"""

_DOMAIN = """\
<domain type="qemu">
  <uuid>{uuid}</uuid>
  <name>{libvirt_name}</name>
  <memory>65536</memory>
  <metadata>{instance}</metadata>
  <os><type arch="x86_64" machine="pc">hvm</type></os>
  <devices>
    {disks}
    <serial type="pty"><log file="{console}" append="off"/></serial>
    <console type="pty"><log file="{console}" append="off"/></console>
    <controller type="usb" model="none"/>
    <memballoon model="none"/>
    <video><model type="none"/></video>
  </devices>
</domain>"""

_DISK = """\
<disk type="file" device="{device}">
      <driver name="qemu" type="{format}"/>
      <source file="{file}"/>
      <target dev="{target}" bus="{bus}"/>
    </disk>"""

_RESCUE_BASE = "f1d2d2f924e986ac86fdf7b36c94bcdf32beec15"


@dataclass(frozen=True, slots=True)
class Server:
    """A server as its owner knows it, and what libvirt calls it."""

    uuid: UUID
    name: str
    project: str
    libvirt_name: str = "instance-000002ff"
    flavor: str = "m1.tiny"


class Nova:
    """What nova-compute does on a host, and its instances directory, which libvirt and namefs both see."""

    def __init__(self, connection: libvirt.virConnect) -> None:
        # In /tmp, whatever TMPDIR says, and not pytest's: QEMU has to get there.
        state = Path(tempfile.mkdtemp(dir="/tmp", prefix="nfn"))
        state.chmod(0o755)
        self._state = state
        self._connection = connection
        self.instances = state / "instances"
        self.base = self.instances / "_base" / "da39a3ee5e6b4b0d3255bfef95601890afd80709"
        self.base.parent.mkdir(parents=True)
        for image in (self.base, self.base.with_name(_RESCUE_BASE)):
            image.write_bytes(bytes(1 << 20))

    def close(self) -> None:
        """Remove all files."""
        shutil.rmtree(self._state)

    def directory(self, server: Server, what: str = "") -> Path:
        """The instance directory, or what it is renamed to: ``_resize``, ``_del``."""
        return self.instances / f"{server.uuid}{what}"

    def domain(self, server: Server) -> libvirt.virDomain:
        """The server's domain."""
        return self._connection.lookupByUUIDString(str(server.uuid))

    def spawn(self, server: Server) -> None:
        """Make a server and start it."""
        directory = self.directory(server)
        directory.mkdir()
        self._overlay(directory / "disk", self.base)
        self._overlay(directory / "disk.eph0", None)
        (directory / "disk.config").write_bytes(bytes(1 << 19))
        formats = {os.fspath(directory / "disk"): "qcow2", os.fspath(directory / "disk.eph0"): "qcow2"}
        (directory / "disk.info").write_text(json.dumps(formats))
        self._start(server, self._named(server))

    def attach_interface(self, server: Server) -> None:
        """What becomes of the definition then: metadata written anew, with Nova's own key as prefix."""
        xml = _instance(server, "").replace("nova:", "")
        affected = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
        element = libvirt.VIR_DOMAIN_METADATA_ELEMENT
        self.domain(server).setMetadata(element, xml, "instance", NAMESPACE, affected)

    def migrate_disk_and_power_off(self, server: Server) -> None:
        """The first half of a resize, on the host that the server stays on."""
        self.domain(server).destroy()
        directory, before = self.directory(server), self.directory(server, "_resize")
        directory.rename(before)
        directory.mkdir()
        for name in ("disk", "disk.eph0", "disk.config", "disk.info"):
            shutil.copyfile(before / name, directory / name)

    def finish_migration(self, server: Server, flavor: str) -> Server:
        """The second half: the server with its new flavor, started."""
        (self.directory(server) / "console.log").touch()
        subprocess.run(
            ["qemu-img", "resize", "-q", self.directory(server) / "disk", "16M"],
            check=True,
            capture_output=True,
        )
        resized = replace(server, flavor=flavor)
        self._start(resized, self._named(resized))
        return resized

    def confirm_migration(self, server: Server) -> None:
        """The user is content."""
        shutil.rmtree(self.directory(server, "_resize"))

    def destroy_resized(self, server: Server) -> None:
        """The user is not: the resized domain goes, with its files still there."""
        self._destroy(server)
        self.domain(server).undefine()

    def finish_revert_migration(self, server: Server) -> None:
        """The server as it was before, started."""
        shutil.rmtree(self.directory(server))
        self.directory(server, "_resize").rename(self.directory(server))
        self._start(server, self._named(server))

    def hard_reboot(self, server: Server) -> None:
        """Also what a start is: the definition is made anew, and the domain is undefined for a moment."""
        if self.domain(server).isActive():
            self._destroy(server)
        self.domain(server).undefine()
        self._start(server, self._named(server))

    def rescue(self, server: Server) -> None:
        """The server boots from another image, with its own disk as the second."""
        directory = self.directory(server)
        (directory / "unrescue.xml").write_text(self.domain(server).XMLDesc())
        self._overlay(directory / "disk.rescue", self.base.with_name(_RESCUE_BASE))
        self._destroy(server)
        self._start(server, {"vda": "disk.rescue", "vdb": "disk"})

    def unrescue(self, server: Server) -> None:
        """It boots from its own disk again."""
        directory = self.directory(server)
        self._destroy(server)
        self._start(server, self._named(server))
        for leftover in ("unrescue.xml", "disk.rescue"):
            (directory / leftover).unlink()

    def rename_to_delete(self, server: Server) -> None:
        """The first step of a delete."""
        self._destroy(server)
        self.directory(server).rename(self.directory(server, "_del"))

    def delete_files(self, server: Server) -> None:
        """The second."""
        shutil.rmtree(self.directory(server, "_del"))

    def undefine(self, server: Server) -> None:
        """The last."""
        self.domain(server).undefine()

    def _start(self, server: Server, disks: dict[str, str]) -> None:
        self._connection.defineXML(self._definition(server, disks)).create()

    def _destroy(self, server: Server) -> None:
        self.domain(server).destroy()

    def _named(self, server: Server) -> dict[str, str]:
        files = {"vda": "disk", "vdb": "disk.eph0", "hda": "disk.config"}
        return {target: name for target, name in files.items() if (self.directory(server) / name).exists()}

    def _definition(self, server: Server, disks: dict[str, str]) -> str:
        directory = self.directory(server)
        return _DOMAIN.format(
            uuid=server.uuid,
            libvirt_name=server.libvirt_name,
            instance=_instance(server, f' xmlns:nova="{NAMESPACE}"'),
            console=directory / "console.log",
            disks="".join(_disk(target, directory / name) for target, name in disks.items()),
        )

    def _overlay(self, image: Path, base: Path | None) -> None:
        below = [] if base is None else ["-F", "raw", "-b", os.fspath(base)]
        command = ["qemu-img", "create", "-q", "-f", "qcow2", *below, os.fspath(image), "8M"]
        subprocess.run(command, check=True, capture_output=True)


def _instance(server: Server, declaration: str) -> str:
    return _INSTANCE.format(
        declaration=declaration,
        name=escape(server.name),
        project=escape(server.project),
        flavor=server.flavor,
    )


def _disk(target: str, file: Path) -> str:
    is_config = file.name == "disk.config"
    return _DISK.format(
        device="cdrom" if is_config else "disk",
        format="raw" if is_config else "qcow2",
        file=file,
        target=target,
        bus="ide" if is_config else "virtio",
    )
