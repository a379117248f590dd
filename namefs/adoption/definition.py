"""Which files and sockets a definition gives a place, and the same definition with other places. Pure.

What is said here of a domain's definition holds for those in its snapshots and checkpoints too. The
elements are those of libvirt's formatdomain documentation and of what libvirt 9.0 to 11.3 write.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from namefs.adoption import spans
from namefs.name_sources import NOVA, WELL_KNOWN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from namefs.adoption.spans import Edit, Element


class Kind(Enum):
    """What has a place; the value is the directory of the store that it belongs in."""

    DISK = "disks"
    NVRAM = "nvram"
    LOG = "log"
    SOCKET = "sockets"


@dataclass(frozen=True, slots=True)
class Place:
    """One file or socket that a definition names.

    ``device`` is what the view calls it; ``image_format`` that of a disk's image. ``path`` is None
    where libvirt derives one from the domain's name and the definition may name one instead. ``kept``
    says why it may not get another place; '' if it may.
    """

    kind: Kind
    device: str
    path: str | None
    kept: str = ""
    image_format: str = ""


_CHARACTER_DEVICES = ("serial", "parallel", "console", "channel")
_IMAGE_FORMATS = ("raw", "qcow2")
_WRITERS = {
    **dict.fromkeys(NOVA, "OpenStack Nova"),
    WELL_KNOWN["one"]: "OpenNebula",
    WELL_KNOWN["ovirt-vm"]: "oVirt",
    WELL_KNOWN["kubevirt"]: "KubeVirt",
}
"""By the namespace of what they put into a definition's metadata."""

_PORT = re.compile("[0-9]{1,5}")


def uuid(xml: str) -> str:
    """The domain's UUID as the definition has it; '' without one. Raises NotXml."""
    found = spans.parse(xml).child("uuid")
    return "" if found is None else found.text.strip()


def writer(xml: str) -> str:
    """The stack that writes the definition anew, mostly at each start, with paths of its own; '' for none."""
    for element in spans.parse(xml).all("metadata"):
        for child in element.children:
            prefix = child.tag.rpartition(":")[0]
            declared = child.attributes.get(f"xmlns:{prefix}" if prefix else "xmlns")
            if declared in _WRITERS:
                return _WRITERS[declared]
    return ""


def places(xml: str) -> tuple[Place, ...]:
    """All that a domain's definition (not a snapshot's) names and could name elsewhere. Raises NotXml.

    A device that libvirt lists twice, as it does the first serial port as a console, is listed once.
    """
    found: dict[tuple[Kind, str | None], Place] = {}
    for place, _edit in _found(spans.parse(xml)):
        found.setdefault((place.kind, place.path), place)
    return tuple(found.values())


def rewritten(xml: str, moved: Mapping[str, str], chosen: str | None = None, left: str | None = None) -> str:
    """The definition, snapshot or checkpoint with each place that ``moved`` names at its new path.

    ``chosen``: the UEFI variables' path where libvirt chooses firmware and path. ``left``: the path
    of theirs that is to be libvirt's choice again. All else stays as it is, byte for byte. Raises NotXml.
    """
    edits: list[Edit] = []
    for domain in _domains(spans.parse(xml)):
        for place, make in _found(domain):
            if place.kept:
                continue
            if place.path is None:
                if chosen is not None:
                    edits.append(make(chosen))
            elif place.path == left and place.kind is Kind.NVRAM and _chooses_firmware(domain):
                edits.append(_without_nvram(domain))
            elif place.path in moved:
                edits.append(make(moved[place.path]))
    return spans.edited(xml, edits)


def names(xml: str) -> frozenset[str]:
    """Every absolute path that stands in the document, whatever it is for. Raises NotXml."""
    return frozenset(path for _element, path in _paths(spans.parse(xml)))


def names_besides(xml: str) -> frozenset[str]:
    """Those absolute paths that `rewritten` would leave where they stand. Raises NotXml.

    Backing images, the files of external snapshots, anything in metadata: what has such a path for its
    own is named by something that would not follow.
    """
    root = spans.parse(xml)
    followed = {
        (edit.start, edit.end)
        for domain in _domains(root)
        for place, make in _found(domain)
        if not place.kept and place.path is not None
        for edit in (make(place.path),)
    }
    besides = set()
    for element, path in _paths(root):
        at = {where for attribute, where in element.values.items() if element.attributes[attribute] == path}
        if element.text.strip() == path:
            at.add((element.inside, element.close))
        if at - followed:
            besides.add(path)
    return frozenset(besides)


def raw_images(xml: str) -> frozenset[str]:
    """The images that are raw, says the definition: a guest may have written any header into one. Raises
    NotXml."""
    root = spans.parse(xml)
    found = (place for domain in _domains(root) for place, _make in _disks(domain))
    return frozenset(place.path for place in found if place.image_format == "raw" and place.path)


def saved_memory(xml: str) -> str:
    """The file that a snapshot has the guest's memory in, '' if none. It holds a definition too. Raises
    NotXml."""
    memory = spans.parse(xml).child("memory")
    return "" if memory is None else memory.attributes.get("file", "")


_Make = Callable[[str], "Edit"]
"""Makes the edit that puts a path where a place's path stands."""


def _attribute(element: Element, name: str) -> _Make:
    return lambda path: spans.value(element, name, path)


def _text(element: Element) -> _Make:
    return lambda path: spans.content(element, path)


def _domains(root: Element) -> Iterator[Element]:
    if root.tag == "domain":
        yield root
    else:
        for tag in ("domain", "inactiveDomain"):
            yield from root.all(tag)


def _paths(root: Element) -> Iterator[tuple[Element, str]]:
    for element in root.below():
        for path in (*element.attributes.values(), element.text.strip()):
            if path.startswith("/"):
                yield element, path


def _found(domain: Element) -> Iterator[tuple[Place, _Make]]:
    yield from _disks(domain)
    yield from _nvram(domain)
    for tag in _CHARACTER_DEVICES:
        for position, device in enumerate(domain.all(f"devices/{tag}")):
            yield from _character_device(device, position)
    yield from _graphics(domain)


def _disks(domain: Element) -> Iterator[tuple[Place, _Make]]:
    for disk in domain.all("devices/disk"):
        target, source = disk.child("target"), disk.child("source")
        path = source.attributes.get("file", "") if source is not None else ""
        if source is not None and target is not None and path.startswith("/"):
            kept, image_format = _kept_disk(disk, source), _format(disk)
            place = Place(Kind.DISK, target.attributes.get("dev", ""), path, kept, image_format)
            yield place, _attribute(source, "file")


def _format(disk: Element) -> str:
    driver = disk.child("driver")
    return "raw" if driver is None else driver.attributes.get("type", "raw")


def _kept_disk(disk: Element, source: Element) -> str:
    if disk.attributes.get("type", "file") != "file":
        return f"is of the type {disk.attributes['type']}"
    if (device := disk.attributes.get("device", "disk")) != "disk":
        return f"is for a {device}"
    for tag, what in [
        ("readonly", "is read-only to the guest"),
        ("shareable", "is shared with other guests"),
        ("transient", "loses its changes when the guest stops"),
        ("mirror", "is being mirrored"),
    ]:
        if disk.child(tag) is not None:
            return what
    if source.child("dataStore") is not None:
        return "has its data in another file"
    kind = _format(disk)
    return "" if kind in _IMAGE_FORMATS else f"is in the format {kind}, which may name other files"


def _chooses_firmware(domain: Element) -> bool:
    system = domain.child("os")
    return system is not None and system.attributes.get("firmware") == "efi" and not _has_loader(system)


def _has_loader(system: Element) -> bool:
    loader = system.child("loader")
    return loader is not None and (bool(loader.text.strip()) or loader.attributes.get("stateless") == "yes")


def _nvram_in(system: Element) -> _Make:
    # After the loader or the type, with the blanks that stand before that one: libvirt's own place for it.
    sibling = system.child("loader") or system.child("type")
    assert sibling is not None, "libvirt writes no <os> without <type>"
    at, blanks = sibling.end, sibling.blanks
    return lambda path: spans.Edit(at, at, f"{blanks}{spans.element('nvram', path)}")


def _without_nvram(domain: Element) -> Edit:
    nvram = next(domain.all("os/nvram"))
    if nvram.attributes:
        # Of the template that it names, the definition goes on to speak.
        return spans.content(nvram, "")
    return spans.Edit(nvram.start - len(nvram.blanks.encode()), nvram.end, "")


def _nvram(domain: Element) -> Iterator[tuple[Place, _Make]]:
    system = domain.child("os")
    if system is None:
        return
    nvram = system.child("nvram")
    if nvram is None:
        if _chooses_firmware(domain):
            yield Place(Kind.NVRAM, "VARS", None), _nvram_in(system)
        return
    source = nvram.child("source")
    if source is not None:
        path = source.attributes.get("file", "")
        if nvram.attributes.get("type", "file") == "file" and path.startswith("/"):
            yield Place(Kind.NVRAM, "VARS", path), _attribute(source, "file")
        return
    path = nvram.text.strip()
    if path.startswith("/"):
        yield Place(Kind.NVRAM, "VARS", path), _text(nvram)
    elif not path and _chooses_firmware(domain):
        yield Place(Kind.NVRAM, "VARS", None), _text(nvram)


def _character_device(device: Element, position: int) -> Iterator[tuple[Place, _Make]]:
    name, source, log = _device_name(device, position), device.child("source"), device.child("log")
    kind = device.attributes.get("type", "")
    if log is not None and log.attributes.get("file", "").startswith("/"):
        yield Place(Kind.LOG, name, log.attributes["file"]), _attribute(log, "file")
    path = source.attributes.get("path", "") if source is not None else ""
    if source is None or not path.startswith("/"):
        return
    if kind == "file":
        yield Place(Kind.LOG, name, path), _attribute(source, "path")
    elif kind == "unix":
        # libvirt's default is to connect.
        served = source.attributes.get("mode") == "bind"
        kept = "" if served else "is a socket of another program, which the guest connects to"
        yield Place(Kind.SOCKET, name, path, kept), _attribute(source, "path")


def _device_name(device: Element, position: int) -> str:
    """What the view calls the device: see `namefs.domxml`."""
    target = device.child("target")
    if device.tag == "channel":
        named = target.attributes.get("name") if target is not None else None
        return named or f"channel{position}"
    port = target.attributes.get("port", "") if target is not None and device.tag != "console" else ""
    return f"{device.tag}{int(port) if _PORT.fullmatch(port) else position}"


def _graphics(domain: Element) -> Iterator[tuple[Place, _Make]]:
    # QEMU itself makes this socket, as the user it runs as; libvirt makes all others, as root.
    label = any(label.attributes.get("model") == "dac" for label in domain.all("seclabel"))
    kept = "is made by QEMU, which this guest runs as a user of its own" if label else ""
    for graphics in domain.all("devices/graphics"):
        name = graphics.attributes.get("type", "graphics")
        for element in (graphics, *graphics.all("listen")):
            path = element.attributes.get("socket", "")
            if path.startswith("/"):
                yield Place(Kind.SOCKET, name, path, kept), _attribute(element, "socket")
