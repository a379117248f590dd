"""What a name is in each place that knows it: the view, the index, libvirt, the domain's metadata."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import re
from typing import TYPE_CHECKING
from uuid import UUID

import libvirt

from namefs import control, journal, name_sources
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.lab.mounted import Mounted

SOON_S = 30.0
AT_FDCWD, RENAME_EXCHANGE = -100, 2
BOTH_DEFINITIONS = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG

Names = dict[str, UUID]
"""Whose each name is."""


def in_view(mounted: Mounted) -> Names:
    """The root's entries, and whose they are: of one listing, each looked up after it."""
    return {name: UUID(attribute(mounted, name, "uuid")) for name in mounted.names()}


def attribute(mounted: Mounted, name: str, which: str) -> str:
    """One of the attributes ``user.namefs.*`` of a guest's directory."""
    return os.getxattr(mounted.path / name, f"user.namefs.{which}").decode()


def in_journal(mounted: Mounted, file: Path | None = None) -> Names:
    """The shown names in the saved index, or in that copy of it."""
    index = journal.read(os.fspath(file or mounted.journal))
    # Each entry once, which the database sees to; here, that each guest has one.
    assert len(set(index.by_place.values())) == len(index.records)
    return {os.fsdecode(place.entry): key.uuid for place, key in index.by_place.items()}


def in_libvirt(connection: libvirt.virConnect) -> Names:
    """Libvirt's own names."""
    return {domain.name(): UUID(domain.UUIDString()) for domain in connection.listAllDomains()}


def in_metadata(domain: libvirt.virDomain, flags: int = libvirt.VIR_DOMAIN_AFFECT_CONFIG) -> str | None:
    """The name that the domain's metadata says was asked for."""
    try:
        element = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, name_sources.ASKED_URI, flags)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            raise
        return None
    found = re.search(">([^<]*)</", str(element))
    return found[1] if found else None


def _says(domain: libvirt.virDomain, flags: int, wanted: str | None) -> bool:
    return in_metadata(domain, flags) == wanted


def all_agree(mounted: Mounted, connection: libvirt.virConnect, names: Names) -> None:
    """Return once view, index, metadata and libvirt have these names, and nothing is pending."""
    until(lambda: in_libvirt(connection) == names, SOON_S, f"libvirt has {names}")
    until(lambda: in_view(mounted) == names, SOON_S, f"the view has {names}")
    found = connection.listAllDomains()
    until(lambda: not any(map(in_metadata, found)), SOON_S, "no metadata says that anything is asked for")
    until(lambda: in_journal(mounted) == names, SOON_S, f"the index has {names}")
    assert ask(mounted, op="status")["pending"] == []


def ask(mounted: Mounted, **request: object) -> dict[str, object]:
    """What the daemon answers; raises NamefsError."""
    return control.ask(os.fspath(mounted.runtime_directory / "control.sock"), request)


def connected(mounted: Mounted) -> bool:
    """Whether the daemon has all its connections."""
    connections = ask(mounted, op="status")["connections"]
    assert isinstance(connections, list)
    return all(one["state"] == "connected" for one in connections)


def metadata_follows(mounted: Mounted, connection: libvirt.virConnect, names: Names) -> None:
    """Return once each domain's metadata says what was asked for, where that is not its libvirt name."""
    for name, uuid in names.items():
        domain = connection.lookupByUUIDString(str(uuid))
        wanted = None if domain.name() == name else name
        for flags in BOTH_DEFINITIONS if domain.isActive() else BOTH_DEFINITIONS[1:]:
            until(functools.partial(_says, domain, flags, wanted), SOON_S, f"{name}'s metadata: {wanted}")
    # After that namefs knows it too, and does nothing more.
    until(lambda: connected(mounted), SOON_S, "libvirt is connected")
    ask(mounted, op="refresh")


def renameat2(old: Path, new: Path, flags: int) -> int:
    """renameat2(2), which Python lacks; its errno, 0 for success."""
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)
    return 0 if done == 0 else ctypes.get_errno()


def swap(one: Path, other: Path) -> None:
    """renameat2(2) with RENAME_EXCHANGE."""
    if (number := renameat2(one, other, RENAME_EXCHANGE)) != 0:
        raise OSError(number, os.strerror(number))


def asking(call: Callable[..., object], *args: object) -> None:
    """A call that the daemon may not live to answer."""
    try:
        call(*args)
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
            raise


def let_run(mounted: Mounted, *running: libvirt.virDomain) -> None:
    """Start these, and return when they are shown running."""
    for domain in running:
        domain.create()
    for domain in running:
        name = domain.name()
        until(functools.partial(_is_running, mounted, name), SOON_S, f"{name} is shown running")


def _is_running(mounted: Mounted, name: str) -> bool:
    return attribute(mounted, name, "state") == "running"
