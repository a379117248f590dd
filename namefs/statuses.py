"""What libvirt's status files say of running domains, as of now. Blocks; called in threads.

They tell what no call to libvirt tells without waiting: during a migration libvirt holds the domain's
lock for seconds, and its answers come in no order. The files are libvirt's own, not its API: what they
hold has been the same from 9.0 to 11.3 (qemu_domain.c: qemuDomainObjPrivateXMLFormatJob).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from namefs import domxml
from namefs.layout.artefact import bytes_of
from namefs.model import Listed, Observed, Sighted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from uuid import UUID

    from namefs.backing import Backing
    from namefs.index import Index
    from namefs.layout.directories import Directories
    from namefs.model import Domain, Run, Seen

Whose = tuple["UUID", str, str]
"""UUID, connection, libvirt name."""


class Statuses:
    """Reads status files of all connections."""

    def __init__(self, places: Callable[[str], Directories | None], backing: Backing) -> None:
        self._places = places
        self._backing = backing

    def read(self, whose: Iterable[Whose]) -> dict[tuple[UUID, str], Run | None]:
        """What the files of these domains say; without those whose connection has no files here.

        None for a domain that has no status: it is off. So is one whose name is another's by now.
        """
        found: dict[tuple[UUID, str], Run | None] = {}
        for uuid, connection, name in whose:
            places = self._places(connection)
            if places is not None:
                status = self.file(places, bytes_of(name) + b".xml")
                found[uuid, connection] = None if status is None else _run(status, uuid)
        return found

    def file(self, places: Directories, entry: bytes) -> bytes | None:
        """A status file; None if there is none. libvirt replaces it by rename: it is always whole."""
        with self._backing.directory(places.run) as directory:
            return None if directory is None else self._backing.read_small(directory, entry)


def _run(status: bytes, uuid: UUID) -> Run | None:
    try:
        whose, run = domxml.parse_run(status)
    except domxml.NotADomain:
        return None
    return run if whose == uuid else None


def concerned(index: Index, seen: Sequence[Seen]) -> list[Whose]:
    """The domains whose status files decide what becomes of ``seen``: all that may run."""
    domains: dict[tuple[UUID, str], Domain | None] = {}
    for one in seen:
        if isinstance(one, Listed):
            domains |= {(domain.uuid, one.connection): domain for domain in one.domains}
        elif isinstance(one, Observed):
            at = one.key.uuid, one.connection
            domains[at] = one.domain or index.domains.get(at)
    guests = {uuid for uuid, _connection in domains} | {one.uuid for one in seen if isinstance(one, Sighted)}
    for uuid in guests:
        for connection in index.connections:
            if (known := index.domains.get((uuid, connection))) is not None:
                domains.setdefault((uuid, connection), known)
    return [
        (uuid, connection, domain.name)
        for (uuid, connection), domain in domains.items()
        if domain is not None
        and (domain.state != "shut off" or domain.run is not None or len(index.connections) > 1)
    ]
