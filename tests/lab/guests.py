"""Guests for a lab host: definitions, and images to put into them. None has an operating system."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

VIRTIOFS_TAG = "shared"
AGENT = "org.qemu.guest_agent.0"
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"


def xml(
    name: str,
    uuid: UUID | None = None,
    *,
    disks: Mapping[str, str] | None = None,
    serial_log: str | None = None,
    agent: bool = False,
    vnc_socket: bool = False,
    tpm: bool = False,
    nvram: bool = False,
    virtiofs: str | None = None,
    title: str | None = None,
    metadata: str | None = None,
    memory_mib: int = 64,
    memory_file: str | None = None,
    type: str = "qemu",  # noqa: A002 - the attribute's name
) -> str:
    """A domain definition.

    ``disks`` maps target names (``vda``) to qcow2 images; ``serial_log`` and ``virtiofs`` (a directory to
    share) are paths too: all as libvirt sees them. ``metadata`` is one XML element. ``vnc_socket`` and
    ``nvram`` leave it to libvirt where these files lie. ``memory_file`` is what its memory holds from 16 MiB
    on when it starts: without, there is next to nothing to copy when it is migrated.
    """
    domain = ET.Element("domain", type=type)
    _add(domain, "name", name)
    if uuid is not None:
        _add(domain, "uuid", str(uuid))
    if title is not None:
        _add(domain, "title", title)
    if metadata is not None:
        _add(domain, "metadata").append(ET.fromstring(metadata))
    _add(domain, "memory", str(memory_mib), unit="MiB")
    if virtiofs is not None:
        backing = _add(domain, "memoryBacking")
        _add(backing, "source", type="memfd")
        _add(backing, "access", mode="shared")
    system = _add(domain, "os", **({"firmware": "efi"} if nvram else {}))
    # pc starts faster; only q35 has UEFI firmware.
    _add(system, "type", "hvm", arch="x86_64", machine="q35" if nvram else "pc")
    if nvram:
        features = _add(domain, "features")
        _add(features, "acpi")
    devices = _add(domain, "devices")
    for target, image in (disks or {}).items():
        disk = _add(devices, "disk", type="file", device="disk")
        _add(disk, "driver", name="qemu", type="qcow2")
        _add(disk, "source", file=image)
        _add(disk, "target", dev=target, bus="virtio" if target.startswith("vd") else "scsi")
    if serial_log is not None:
        serial = _add(devices, "serial", type="pty")
        _add(serial, "log", file=serial_log)
    if agent:
        channel = _add(devices, "channel", type="unix")
        _add(channel, "target", type="virtio", name=AGENT)
    if vnc_socket:
        graphics = _add(devices, "graphics", type="vnc")
        _add(graphics, "listen", type="socket")
    if tpm:
        device = _add(devices, "tpm", model="tpm-tis")
        _add(device, "backend", type="emulator", version="2.0")
    if virtiofs is not None:
        filesystem = _add(devices, "filesystem", type="mount", accessmode="passthrough")
        _add(filesystem, "driver", type="virtiofs")
        _add(filesystem, "source", dir=virtiofs)
        _add(filesystem, "target", dir=VIRTIOFS_TAG)
    # What libvirt would add by itself, and QEMU take time to make.
    _add(devices, "controller", type="usb", model="none")
    _add(devices, "memballoon", model="none")
    _add(_add(devices, "video"), "model", type="none")
    if memory_file is not None:
        command = _add(domain, f"{{{QEMU}}}commandline")
        for value in ("-device", f"loader,file={memory_file},addr={16 << 20:#x},force-raw=on"):
            _add(command, f"{{{QEMU}}}arg", value=value)
    return ET.tostring(domain, encoding="unicode")


def make_disk(path: str | os.PathLike[str], backing: str | None = None, size: str = "8M") -> Path:
    """Make a qcow2 image at ``path``, which is seen from outside; return that path.

    ``backing`` is the qcow2 image below it, as libvirt sees it: it is not looked at, and need not exist.
    """
    below = [] if backing is None else ["-u", "-F", "qcow2", "-b", backing]
    command = ["qemu-img", "create", "-q", "-f", "qcow2", *below, os.fspath(path), size]
    subprocess.run(command, check=True, capture_output=True)
    return Path(path)


def _add(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element
