"""Where stock libvirt keeps what belongs to a domain, nearly all of it under the domain's name.

The rules follow libvirt 9.0 to 11.3: qemu_conf.c, qemu_domain.c, qemu_process.c, qemu_tpm.c,
qemu_virtiofs.c, and virrotatingfile.c for the rotated pieces. Pure: nothing here looks at a disk.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING

from namefs.layout.artefact import TOP, Artefact, Kind, at_path, bytes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from namefs.layout.directories import Directories
    from namefs.model import Domain

_ROTATION = rb"(?P<rotation>(?:\.\d{1,4}|-\d{8}(?:-\d+)?)?(?:\.(?:gz|xz|bz2|zst))?)"
"""virtlogd's ``.0``, logrotate's ``.1.gz`` and, with dateext, ``-20261124.gz``."""

ROTATED = re.compile(_ROTATION)
"""What may follow a log's name in its directory: nothing, or which rotated piece it is."""


def artefacts(
    domain: Domain, former_names: tuple[str, ...], places: Directories, subdir: bytes
) -> Iterator[Artefact]:
    """What the domain may have in ``subdir`` of its directory; whether it is there is for others to see.

    ``former_names`` are the names that libvirt may have left files under, the latest last.
    """
    rule = _RULES.get(subdir)
    if rule is not None:
        yield from rule(domain, former_names, places)


def _top(domain: Domain, _former: tuple[str, ...], places: Directories) -> Iterator[Artefact]:
    definition = bytes_of(domain.name) + b".xml"
    yield Artefact(TOP, "config.xml", Kind.FILE, places.etc, definition)
    yield Artefact(TOP, "autostart.xml", Kind.FILE, places.etc, definition, below=(b"autostart",))
    yield Artefact(TOP, "status.xml", Kind.FILE, places.run, definition)


def _log(domain: Domain, former: tuple[str, ...], places: Directories) -> Iterator[Artefact]:
    for name in (domain.name, *reversed(former)):
        yield from logs_called(name, domain, places)
    for log in domain.logs:
        base, file = at_path(places.translate(log.path))
        yield _rotated(f"{log.name}.log", Kind.FILE, base, file, "")


def logs_called(name: str, domain: Domain, places: Directories) -> Iterator[Artefact]:
    """The logs that the domain may have under a libvirt name, its present one or a former one."""
    stem, at = bytes_of(name), "" if name == domain.name else f"@{name}"
    yield _rotated(f"qemu{at}.log", Kind.QEMU_LOG, places.log, stem + b".log", name)
    yield _rotated(f"swtpm{at}.log", Kind.NAMED_LOG, places.swtpm_log, stem + b"-swtpm.log", name)
    # Only aliases that libvirt would give or that the definition names: with any alias allowed,
    # web's pattern would match web-db's logs.
    aliases = b"|".join([rb"fs\d+", *(re.escape(bytes_of(a)) for a in sorted(domain.filesystems))])
    pattern = b"(?P<alias>" + aliases + rb")-virtiofsd\.log" + _ROTATION
    yield Artefact(
        b"log",
        f"virtiofsd-\0alias\0{at}.log\0rotation\0",
        Kind.NAMED_LOG,
        places.log,
        re.compile(pattern, re.DOTALL),
        prefix=stem + b"-",
        name=name,
    )


def _rotated(shown: str, kind: Kind, base: str, file: bytes, name: str) -> Artefact:
    return Artefact(b"log", f"{shown}\0rotation\0", kind, base, ROTATED, prefix=file, name=name)


def _disks(domain: Domain, _former: tuple[str, ...], places: Directories) -> Iterator[Artefact]:
    for disk in domain.disks:
        base, file = at_path(places.translate(disk.path))
        backing = None if disk.backing is None else tuple(places.translate(path) for path in disk.backing)
        yield Artefact(
            b"disks", disk.target, Kind.IMAGE, base, file, image_format=disk.format, backing=backing
        )


def _nvram(domain: Domain, former: tuple[str, ...], places: Directories) -> Iterator[Artefact]:
    if domain.nvram is not None:
        path = places.translate(domain.nvram)
        base, file = at_path(path)
        suffix = posixpath.splitext(path)[1] or ".fd"
        yield Artefact(b"nvram", f"VARS{suffix}", Kind.FILE, base, file)
    else:
        path = posixpath.join(places.lib, "nvram", f"{domain.name}_VARS.fd")
        file = bytes_of(domain.name) + b"_VARS.fd"
        yield Artefact(b"nvram", "VARS.fd", Kind.FILE, places.lib, file, below=(b"nvram",))
    # Where libvirt chooses the firmware, a rename makes it start with fresh variables and leave these.
    for name in former:
        file = bytes_of(name) + b"_VARS.fd"
        left = Artefact(
            b"nvram", f"VARS@{name}.fd", Kind.FILE, places.lib, file, below=(b"nvram",), name=name
        )
        if not left.claims(path):
            yield left


def _run(domain: Domain, _former: tuple[str, ...], places: Directories) -> Iterator[Artefact]:
    pid_file = bytes_of(domain.name) + b".pid"
    yield Artefact(b"run", "pid", Kind.FILE, places.run, pid_file)
    yield Artefact(b"run", "process", Kind.PROCESS, places.run, pid_file)


def _save(domain: Domain, _former: tuple[str, ...], places: Directories) -> Iterator[Artefact]:
    file = bytes_of(domain.name) + b".save"
    yield Artefact(b"save", "managed.save", Kind.FILE, places.lib, file, below=(b"save",))


TPM_STATE = re.compile(rb"(?P<file>[^.].*)", re.DOTALL)
"""TPM state; swtpm's ``.lock`` beside it is none."""

_XML = re.compile(rb"(?P<file>.+\.xml)", re.DOTALL)


def _snapshots(domain: Domain, _former: tuple[str, ...], places: Directories) -> Iterator[Artefact]:
    below = (b"snapshot", bytes_of(domain.name))
    yield Artefact(b"snapshots", "\0file\0", Kind.FILE, places.lib, _XML, below=below)


def _checkpoints(domain: Domain, _former: tuple[str, ...], places: Directories) -> Iterator[Artefact]:
    below = (b"checkpoint", bytes_of(domain.name))
    yield Artefact(b"checkpoints", "\0file\0", Kind.FILE, places.lib, _XML, below=below)


def _sockets(domain: Domain, _former: tuple[str, ...], places: Directories) -> Iterator[Artefact]:
    status = bytes_of(domain.name) + b".xml"
    yield Artefact(b"sockets", "monitor", Kind.MONITOR, places.run, status)
    for socket in domain.sockets:
        base, file = at_path(places.translate(socket.path))
        yield Artefact(b"sockets", socket.name, Kind.LINK, base, file)


def _tpm(domain: Domain, _former: tuple[str, ...], places: Directories) -> Iterator[Artefact]:
    for version in (b"tpm2", b"tpm1.2"):
        below = (str(domain.uuid).encode(), version)
        yield Artefact(
            b"tpm",
            "\0file\0",
            Kind.FILE,
            places.swtpm_state,
            TPM_STATE,
            below=below,
        )


_RULES = {
    TOP: _top,
    b"checkpoints": _checkpoints,
    b"disks": _disks,
    b"log": _log,
    b"nvram": _nvram,
    b"run": _run,
    b"save": _save,
    b"snapshots": _snapshots,
    b"sockets": _sockets,
    b"tpm": _tpm,
}
