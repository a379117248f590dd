"""libvirt's definitions, for the commands that change them: read, compared and replaced.

In the command's own process. All calls block; what libvirt refuses is a NamefsError in libvirt's words.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from uuid import UUID

import libvirt

from namefs.adoption.plan import CHECKPOINT, SNAPSHOT, Moment
from namefs.errors import ExitCode, NamefsError
from namefs.sources.libvirt import start_events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_GONE = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT, libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT)
_PERSISTENT = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE


@contextmanager
def _libvirts_words() -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as error:
        code = ExitCode.NOT_FOUND if error.get_error_code() in _GONE else ExitCode.LIBVIRT_REFUSED
        raise NamefsError(code, str(error)) from error
    except UnicodeError as error:
        raise NamefsError(
            ExitCode.LIBVIRT_REFUSED, "libvirt-python passes only definitions that are UTF-8"
        ) from error


class Definitions:
    """One connection to a libvirt, with the right to change its guests."""

    def __init__(self, uri: str) -> None:
        """Raises NamefsError (LIBVIRT_UNREACHABLE)."""
        start_events()
        try:
            self._connection = libvirt.open(uri)
        except libvirt.libvirtError as error:
            raise NamefsError(ExitCode.LIBVIRT_UNREACHABLE, str(error)) from error

    def close(self) -> None:
        """Close the connection."""
        with suppress(libvirt.libvirtError):
            self._connection.close()

    def guest(self, what: str) -> GuestDefinition | None:
        """The guest of that UUID or libvirt name, if there is one."""
        try:
            with _libvirts_words():
                try:
                    return GuestDefinition(self._connection.lookupByUUIDString(str(UUID(what))))
                except (ValueError, libvirt.libvirtError):
                    return GuestDefinition(self._connection.lookupByName(what))
        except NamefsError as error:
            if error.exit_code is ExitCode.NOT_FOUND:
                return None
            raise

    def other_documents(self, uuid: str) -> Iterator[tuple[str, str]]:
        """Every definition of every other guest, of its snapshots and checkpoints: (its name, the XML).

        A guest that goes meanwhile is left out.
        """
        with _libvirts_words():
            domains = self._connection.listAllDomains()
        for domain in domains:
            if domain.UUIDString() == uuid:
                continue
            guest = GuestDefinition(domain)
            try:
                for xml in guest.all_documents():
                    yield guest.name, xml
            except NamefsError as error:
                if error.exit_code is not ExitCode.NOT_FOUND:
                    raise

    def pool_documents(self) -> list[str]:
        """The definitions of the active storage pools."""
        try:
            pools = self._connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE)
        except libvirt.libvirtError:
            # A libvirt without its storage driver has none.
            return []
        found = []
        for pool in pools:
            with suppress(libvirt.libvirtError):
                found.append(str(pool.XMLDesc(0)))
        return found


class GuestDefinition:
    """One guest and its moments, as libvirt has them. What is gone raises NamefsError (NOT_FOUND)."""

    def __init__(self, domain: libvirt.virDomain) -> None:
        self._domain = domain

    @property
    def uuid(self) -> str:
        """In libvirt's spelling."""
        return str(self._domain.UUIDString())

    @property
    def name(self) -> str:
        """libvirt's name, as it was when the guest was looked up."""
        try:
            return str(self._domain.name())
        except UnicodeDecodeError as error:
            return bytes(error.object).decode("utf-8", "surrogateescape")

    def why_not_off(self) -> str:
        """Why the files of the guest may not be moved now; '' if they may."""
        with _libvirts_words():
            if not self._domain.isPersistent():
                return "is transient: its definition ends with it"
            if self._domain.isActive():
                return "is not shut off: shut it down first"
            if self._domain.hasManagedSaveImage():
                return "has a managed save image: start it and shut it down first"
        return ""

    def persistent(self) -> str:
        """The persistent definition."""
        with _libvirts_words():
            return _text(lambda: self._domain.XMLDesc(_PERSISTENT))

    def live(self) -> str | None:
        """The definition in force, if the guest is active."""
        with _libvirts_words():
            if not self._domain.isActive():
                return None
            return _text(lambda: self._domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE))

    def for_migration(self) -> str | None:
        """The definition in force, as a migration takes it; None if the guest is off."""
        with _libvirts_words():
            if not self._domain.isActive():
                return None
            return _text(lambda: self._domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE))

    def moments(self) -> tuple[Moment, ...]:
        """All snapshots and checkpoints, each after its parent."""
        with _libvirts_words():
            snapshots = self._domain.listAllSnapshots(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL)
            return (*map(_snapshot, snapshots), *map(_checkpoint, self._checkpoints()))

    def moment(self, kind: str, name: str) -> Moment | None:
        """That one snapshot or checkpoint as it is now, if there is such a one."""
        try:
            with _libvirts_words():
                if kind == SNAPSHOT:
                    return _snapshot(self._domain.snapshotLookupByName(name))
                return _checkpoint(self._domain.checkpointLookupByName(name))
        except NamefsError as error:
            if error.exit_code is ExitCode.NOT_FOUND:
                return None
            raise

    def all_documents(self) -> Iterator[str]:
        """The definition in force, the persistent one, and those of all moments."""
        if (live := self.live()) is not None:
            yield live
        with _libvirts_words():
            persistent = self._domain.isPersistent()
        if persistent:
            yield self.persistent()
        for moment in self.moments():
            yield moment.xml

    def define(self, xml: str) -> None:
        """Replace the persistent definition."""
        with _libvirts_words():
            # typing: the connection of a domain has no annotation.
            self._domain.connect().defineXML(xml)

    def describe(self, moment: Moment) -> None:
        """Replace the description of a moment, or bring it back; the guest and its disks stay as they are."""
        with _libvirts_words():
            if moment.kind == SNAPSHOT:
                flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
                if moment.current:
                    flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
                self._domain.snapshotCreateXML(moment.xml, flags)
            else:
                self._domain.checkpointCreateXML(moment.xml, libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE)

    def has_checkpoints(self) -> bool:
        """Whether libvirt knows any."""
        with _libvirts_words():
            return bool(self._checkpoints())

    def forget_checkpoints(self) -> None:
        """Remove the descriptions of all checkpoints; what they describe in the images stays."""
        with _libvirts_words():
            for checkpoint in reversed(self._checkpoints()):
                checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)

    def _checkpoints(self) -> list[libvirt.virDomainCheckpoint]:
        try:
            found = self._domain.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise
            return []
        return list(found)


def _snapshot(snapshot: libvirt.virDomainSnapshot) -> Moment:
    xml = _text(lambda: snapshot.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE))
    return Moment(SNAPSHOT, snapshot.getName(), xml, current=snapshot.isCurrent() == 1)


def _checkpoint(checkpoint: libvirt.virDomainCheckpoint) -> Moment:
    xml = _text(lambda: checkpoint.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_SECURE))
    return Moment(CHECKPOINT, checkpoint.getName(), xml)


def _text(description: Callable[[], str]) -> str:
    try:
        return str(description())
    except UnicodeDecodeError as error:
        # libvirt-python has no str for a name or a path that is not UTF-8; the exception has the bytes.
        return bytes(error.object).decode("utf-8", "surrogateescape")
