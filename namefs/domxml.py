"""libvirt's domain XML to ``model.Domain``, and its status XML to ``Status``.

In: which files and sockets a definition names. Deliberately not here: the places that libvirt
derives from a domain's name (``layout``), and what a name becomes in the view (``naming``).

The element and attribute names are those of libvirt's formatdomain documentation; what 9.0.0 really
writes is in ``tests/pure/xml``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from uuid import UUID
from xml.etree import ElementTree

from namefs.model import Disk, Domain, Named, Run
from namefs.name_sources import DEFAULT, NameSources, asked_in

Volumes = Callable[[str, str], str | None]
"""Pool and volume to the volume's path, or None where it has none or is not known."""

_PATH_ATTRIBUTE = {"file": "file", "block": "dev", "dir": "dir"}
"""Which attribute of ``<source>`` is a path, by the type of a disk or image. The other types have
no file (network, nvme, vhostvdpa) or a socket in its stead (vhostuser)."""

# What XML 1.0 forbids and libvirt writes all the same (9.0.0 does: a rename takes any bytes, and its
# escaping lets these through). NUL is not among them: libvirt cannot hold one.
_NOT_IN_XML = re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_PRIVATE = range(0xF0000, 0xFFFFE)
_REFERENCE = re.compile("&#(?:x0*([0-9a-fA-F]{1,6})|0*([0-9]{1,7}));")
_PORT = re.compile("[0-9]{1,5}")


class NotADomain(ValueError):
    """This is not XML that libvirt wrote about a domain. The message is one line."""


@dataclass(frozen=True, slots=True)
class Status:
    """What libvirt's status file says of a running domain beyond its definition.

    ``pid`` is QEMU's, None while libvirt does not know it yet; ``monitor`` the QMP socket's path.
    """

    uuid: UUID
    name: str
    pid: int | None
    monitor: str | None


def _no_volumes(_pool: str, _volume: str) -> str | None:
    return None


def parse(
    connection: str,
    live: bytes | None,
    persistent: bytes | None,
    *,
    state: str,
    volumes: Volumes = _no_volumes,
    sources: NameSources = DEFAULT,
) -> Domain:
    """Merge the live and the persistent definition of one domain; at least one must be given.

    Live wins; what only the persistent one names is added, as it exists or will at the next start. Of
    what was asked for through namefs the later counts. ``sources`` are where names and group are looked for.

    ``name`` is the XML's. libvirt drops some control characters when it writes XML (9.0.0: most
    below 0x1f), and XML turns a carriage return into a newline, so virDomainGetName, where it can be
    asked, is the better witness.

    Raises NotADomain.
    """
    roots = [_domain(_root(xml)) for xml in (live, persistent) if xml is not None]
    if not roots:
        raise NotADomain("neither a live nor a persistent definition")
    identities = [_identity(root) for root in roots]
    if len({uuid for uuid, _name in identities}) > 1:
        raise NotADomain(f"two definitions of different domains: {identities[0][0]} and {identities[1][0]}")
    uuid, name = identities[0]
    devices = [_character_devices(root) for root in roots]
    names, group = sources.read(*roots)
    return Domain(
        uuid=uuid,
        name=name,
        connection=connection,
        state=state,
        persistent=persistent is not None,
        title=_first(root.findtext("title") or None for root in roots),
        disks=_disks(roots, volumes),
        logs=_merge(logs for logs, _sockets in devices),
        sockets=_merge(
            [*sockets, *_graphics(root)] for root, (_logs, sockets) in zip(roots, devices, strict=True)
        ),
        nvram=_first(_nvram(root) for root in roots),
        filesystems=tuple(dict.fromkeys(alias for root in roots for alias in _virtiofs(root))),
        names=names,
        group=group,
        asked=asked_in(*roots),
    )


_STATUS = re.compile(rb"<domstatus state='([^']*)' reason='([^']*)'")
_JOB = re.compile(rb"^  <job type='[^']*' async='([^']*)'(?: phase='([^']*)')?", re.MULTILINE)
_STATUS_UUID = re.compile(rb"^    <uuid>([0-9a-f-]{36})</uuid>", re.MULTILINE)


def parse_run(status: bytes) -> tuple[UUID, Run]:
    """Whose a status file is, and what it says of the run; without an XML parser, as it is read often.

    libvirt writes these lines itself (qemu_domain.c:qemuDomainObjPrivateXMLFormat), before the definition,
    whose metadata is the tenant's. Raises NotADomain.
    """
    head, _, definition = status.partition(b"\n  <domain ")
    said, uuid = _STATUS.search(head), _STATUS_UUID.search(definition)
    if said is None or uuid is None:
        raise NotADomain("not a <domstatus> of libvirt's")
    job = _JOB.search(head)
    name, phase = (job[1].decode(), (job[2] or b"").decode()) if job else ("none", "")
    return UUID(uuid[1].decode()), Run(said[1].decode(), said[2].decode(), name, phase)


def parse_running(connection: str, status: bytes, sources: NameSources = DEFAULT) -> Domain:
    """The domain that a status file is of, as long as libvirt itself can't be asked. Raises NotADomain."""
    root = _root(status)
    definition = root.find("domain")
    if root.tag != "domstatus" or definition is None:
        raise NotADomain("not a <domstatus> with a <domain>")
    live = ElementTree.tostring(definition)
    _uuid, run = parse_run(status)
    domain = parse(connection, live, None, state=run.state, sources=sources)
    return replace(domain, persistent=False, run=run)


def parse_status(xml: bytes) -> Status:
    """Read a status file (``/run/libvirt/qemu/NAME.xml``). Raises NotADomain."""
    root = _root(xml)
    if root.tag != "domstatus":
        raise NotADomain(f"not a <domstatus>: {root.tag!r}")
    domain = root.find("domain")
    if domain is None:
        raise NotADomain("a <domstatus> without <domain>")
    uuid, name = _identity(domain)
    pid = root.get("pid", "")
    monitor = root.find("monitor[@type='unix']")
    return Status(
        uuid=uuid,
        name=name,
        # libvirt writes 0 until QEMU has daemonized. pid_max is at most 2**22.
        pid=int(pid) if re.fullmatch("[1-9][0-9]{0,9}", pid) else None,
        monitor=None if monitor is None else _absolute(monitor.get("path")),
    )


class _Builder(ElementTree.TreeBuilder):
    def doctype(self, _name: str, _public: str | None, _system: str | None) -> None:
        # Titles and metadata are the tenant's. libvirt never writes a DOCTYPE, and with it go
        # entities, internal and external.
        raise NotADomain("a document with a DOCTYPE")


def _root(xml: bytes) -> ElementTree.Element:
    text = xml.decode("utf-8", "surrogateescape")
    stand_ins = _stand_ins(text)
    parser = ElementTree.XMLParser(target=_Builder())
    try:
        # As str, not as bytes: a declared encoding would undo the decoding above.
        parser.feed(text.translate(stand_ins))
        root = parser.close()
    except ElementTree.ParseError as error:
        raise NotADomain(f"not well-formed XML: {error}") from None
    if stand_ins:
        _put_back(root, {private: original for original, private in stand_ins.items()})
    return root


def _stand_ins(text: str) -> dict[int, int]:
    """A private-use character, unused in this text, for each that expat would refuse."""
    refused = sorted({ord(char) for char in _NOT_IN_XML.findall(text)})
    if not refused:
        return {}
    used = {ord(char) for char in text if char >= "\U000f0000"}
    for hexadecimal, decimal in _REFERENCE.findall(text):
        used.add(int(hexadecimal, 16) if hexadecimal else int(decimal))
    free = (code for code in _PRIVATE if code not in used)
    stand_ins = dict(zip(refused, free, strict=False))
    if len(stand_ins) < len(refused):
        raise NotADomain("every private-use character is in use")
    return stand_ins


def _put_back(root: ElementTree.Element, originals: dict[int, int]) -> None:
    for element in root.iter():
        if element.text:
            element.text = element.text.translate(originals)
        for attribute, value in element.items():
            element.set(attribute, value.translate(originals))


def _domain(root: ElementTree.Element) -> ElementTree.Element:
    if root.tag != "domain":
        raise NotADomain(f"not a <domain>: {root.tag!r}")
    return root


def _identity(domain: ElementTree.Element) -> tuple[UUID, str]:
    name = domain.findtext("name")
    if not name:
        raise NotADomain("a <domain> without <name>")
    try:
        return UUID((domain.findtext("uuid") or "").strip()), name
    except ValueError:
        raise NotADomain("a <domain> without a valid <uuid>") from None


def _first(values: Iterable[str | None]) -> str | None:
    return next((value for value in values if value is not None), None)


def _absolute(path: str | None) -> str | None:
    return path if path is not None and path.startswith("/") else None


def _unused(name: str, used: Iterable[str]) -> str:
    candidate, suffix = name, 0
    while candidate in used:
        suffix += 1
        candidate = f"{name}-{suffix}"
    return candidate


def _merge(definitions: Iterable[Iterable[Named]]) -> tuple[Named, ...]:
    """One list of several, the first one winning; no path and no name twice.

    A path is not repeated because libvirt lists the first serial port as a <console> as well. Two
    devices of one definition may ask for the same name: the second gets a suffix. The same name
    in a later definition is the same device, with a path that is not in force.
    """
    merged: dict[str, str] = {}
    paths: set[str] = set()
    for definition in definitions:
        settled = frozenset(merged)
        for named in definition:
            if named.path in paths or named.name in settled:
                continue
            merged[_unused(named.name, merged)] = named.path
            paths.add(named.path)
    return tuple(Named(name, path) for name, path in merged.items())


def _image_path(image: ElementTree.Element, volumes: Volumes) -> str | None:
    source = image.find("source")
    if source is None:
        return None
    kind = image.get("type", "file")
    if kind == "volume":
        pool, volume = source.get("pool"), source.get("volume")
        return _absolute(volumes(pool, volume)) if pool and volume else None
    attribute = _PATH_ATTRIBUTE.get(kind)
    return None if attribute is None else _absolute(source.get(attribute))


def _backing(disk: ElementTree.Element, volumes: Volumes) -> tuple[str, ...] | None:
    """The chain, if it is told to its end: an empty <backingStore/> says that there it ends.

    A persistent definition may pin only the first images; the rest is in the images' headers.
    """
    paths: list[str] = []
    store = disk.find("backingStore")
    while store is not None and len(store):
        path = _image_path(store, volumes)
        if path is not None:
            paths.append(path)
        store = store.find("backingStore")
    return None if store is None else tuple(paths)


def _disks(roots: Iterable[ElementTree.Element], volumes: Volumes) -> tuple[Disk, ...]:
    disks: dict[str, Disk] = {}
    settled: set[str] = set()
    for root in roots:
        seen: set[str] = set()
        for disk in root.iterfind("devices/disk"):
            target = disk.find("target")
            name = target.get("dev") if target is not None else None
            if not name or name in settled:
                continue
            # Also without a path: a CD-ROM that is empty now is not to show the persistent one's image.
            seen.add(name)
            path = _image_path(disk, volumes)
            if path is None:
                continue
            driver = disk.find("driver")
            image_format = driver.get("type", "raw") if driver is not None else "raw"
            name = _unused(name, disks)
            disks[name] = Disk(name, path, image_format, _backing(disk, volumes))
        settled |= seen
    return tuple(disks.values())


def _device_name(device: ElementTree.Element, position: int) -> str:
    target = device.find("target")
    if device.tag == "channel":
        named = target.get("name") if target is not None else None
        return named or f"channel{position}"
    # Not a console's port: 9.0.0 reports one device with port 1 before a start and 0 after it. By its
    # position the device is called as in libvirt's alias, which ``virsh console --devname`` takes.
    port = target.get("port", "") if target is not None and device.tag != "console" else ""
    return f"{device.tag}{int(port) if _PORT.fullmatch(port) else position}"


def _character_devices(root: ElementTree.Element) -> tuple[list[Named], list[Named]]:
    """Logs and sockets (ptys among them) of the serial, parallel, console and channel devices."""
    logs: list[Named] = []
    sockets: list[Named] = []
    # Consoles after serial ports, whatever the order in the document: of the two that share a path
    # it is the serial port that gives the name.
    for tag in ("serial", "parallel", "console", "channel"):
        for position, device in enumerate(root.iterfind(f"devices/{tag}")):
            name = _device_name(device, position)
            log = device.find("log")
            source = device.find("source")
            log_path = _absolute(log.get("file")) if log is not None else None
            path = _absolute(source.get("path")) if source is not None else None
            if log_path is not None:
                logs.append(Named(name, log_path))
            if path is not None and device.get("type") == "file":
                logs.append(Named(name, path))
            if path is not None and device.get("type") in ("unix", "pty"):
                sockets.append(Named(name, path))
    return logs, sockets


def _graphics(root: ElementTree.Element) -> Iterator[Named]:
    for graphics in root.iterfind("devices/graphics"):
        listen = graphics.find("listen[@type='socket']")
        socket = _absolute(graphics.get("socket"))
        if socket is None and listen is not None:
            socket = _absolute(listen.get("socket"))
        if socket is not None:
            yield Named(graphics.get("type") or "graphics", socket)


def _nvram(root: ElementTree.Element) -> str | None:
    nvram = root.find("os/nvram")
    if nvram is None:
        return None
    # The form with <source>, for images other than local files, is libvirt 8.5.0's.
    return _image_path(nvram, _no_volumes) or _absolute(nvram.text)


def _virtiofs(root: ElementTree.Element) -> Iterator[str]:
    """Aliases; a definition that is off has none, and gets fsN by position when it starts."""
    for position, filesystem in enumerate(root.iterfind("devices/filesystem")):
        driver = filesystem.find("driver")
        if driver is None or driver.get("type") != "virtiofs":
            continue
        source = filesystem.find("source")
        if source is not None and source.get("socket"):
            continue  # someone else's virtiofsd: libvirt keeps no log of it
        alias = filesystem.find("alias")
        yield (alias.get("name") if alias is not None else None) or f"fs{position}"
