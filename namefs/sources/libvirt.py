"""libvirt: which domains there are, which may have changed, and the two calls that change anything.

All calls block and are made in threads, by way of `sources.reader`. Callbacks come on the thread that
runs libvirt's event loop and only pass UUIDs on.
"""

from __future__ import annotations

import errno
import logging
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import libvirt

from namefs import domxml, name_sources
from namefs.name_sources import ASKED_KEY, ASKED_URI

if TYPE_CHECKING:
    from collections.abc import Callable

    from namefs.model import Asked, Domain
    from namefs.name_sources import NameSources

log = logging.getLogger(__name__)
R = TypeVar("R")

_STATES = {
    libvirt.VIR_DOMAIN_NOSTATE: "no state",
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "idle",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "in shutdown",
    libvirt.VIR_DOMAIN_SHUTOFF: "shut off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "pmsuspended",
}
"""virsh's words (tools/virsh-domain-monitor.c)."""

_HINTS = (
    libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
    libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2,
    libvirt.VIR_DOMAIN_EVENT_ID_DISK_CHANGE,
)
"""What may change a definition, beside the life cycle. A driver may not know them all."""

_KEEPALIVE_S = 5
_KEEPALIVES_MISSED = 3
"""A libvirtd that hangs is given up after this many intervals; without, calls to it never return."""

_ELEMENT = libvirt.VIR_DOMAIN_METADATA_ELEMENT

_ERRNOS = {
    libvirt.VIR_ERR_NO_DOMAIN: errno.ENOENT,
    libvirt.VIR_ERR_OPERATION_DENIED: errno.EACCES,
    libvirt.VIR_ERR_ACCESS_DENIED: errno.EACCES,
    libvirt.VIR_ERR_AUTH_FAILED: errno.EACCES,
    libvirt.VIR_ERR_NO_SUPPORT: errno.EOPNOTSUPP,
    libvirt.VIR_ERR_XML_ERROR: errno.EINVAL,
    libvirt.VIR_ERR_INVALID_ARG: errno.EINVAL,
    # Another job of the domain's, such as a migration, took more than 30 s.
    libvirt.VIR_ERR_OPERATION_TIMEOUT: errno.EBUSY,
}


class Unreachable(Exception):
    """libvirt could not be reached, or went away; the message is libvirt's."""


@dataclass
class Refused(Exception):
    """libvirt refused a change: its own words, and the errno that means the same."""

    message: str
    errno: int

    def __str__(self) -> str:
        return self.message


class _EventLoop:
    """libvirt's default event loop on a thread of its own; one for the process, started once."""

    def __init__(self) -> None:
        # Before the first connection is opened, or it gets no events (virevent.c).
        libvirt.virEventRegisterDefaultImpl()
        # libvirt prints each error to stderr by default; they are raised as well.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        threading.Thread(target=self._run, name="libvirt events", daemon=True).start()

    def _run(self) -> None:
        while True:
            libvirt.virEventRunDefaultImpl()


_loop: _EventLoop | None = None


def start_events() -> None:
    """Start the event loop; calling again does nothing."""
    global _loop
    if _loop is None:
        _loop = _EventLoop()


class Connection:
    """Two connections to one libvirt: one for events, which is read-only, and one for calls.

    ``hint`` is called with a UUID, and ``closed`` with a reason, on libvirt's thread. With the test
    driver there is one for both, as each connection to it has domains of its own.
    """

    def __init__(
        self,
        uri: str,
        label: str,
        hint: Callable[[UUID], None],
        closed: Callable[[str], None],
        sources: NameSources = name_sources.DEFAULT,
    ) -> None:
        self._label = label
        self._sources = sources
        self._hint = hint
        self._closed = closed
        self._callbacks: list[int] = []
        try:
            if uri.startswith("test"):
                self._events = self._calls = libvirt.open(uri)
            else:
                self._events = libvirt.openReadOnly(uri)
                self._calls = self._open_calls(uri)
            self._listen()
        except libvirt.libvirtError as error:
            raise Unreachable(str(error)) from error

    def _open_calls(self, uri: str) -> libvirt.virConnect:
        try:
            return libvirt.open(uri)
        except libvirt.libvirtError as error:
            # All but renaming and noting what was asked for works without the right to change anything.
            log.info("libvirt lets us only read: %s", error)
            return libvirt.openReadOnly(uri)

    def _listen(self) -> None:
        for connection in {self._events, self._calls}:
            with suppress(libvirt.libvirtError):
                connection.setKeepAlive(_KEEPALIVE_S, _KEEPALIVES_MISSED)
        with suppress(libvirt.libvirtError):
            self._events.registerCloseCallback(self._on_close, None)
        # typing: the stubs know one callback signature for all events.
        register: Any = self._events.domainEventRegisterAny
        self._callbacks.append(register(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_event, None))
        for event in _HINTS:
            with suppress(libvirt.libvirtError):
                self._callbacks.append(register(None, event, self._on_event, None))

    def _on_event(self, _connection: object, domain: libvirt.virDomain, *_details: object) -> None:
        self._hint(UUID(domain.UUIDString()))

    def _on_close(self, _connection: object, reason: int, _opaque: object) -> None:
        reasons = ("an error", "it ended", "it did not answer", "we closed")
        self._closed(reasons[reason] if reason < len(reasons) else str(reason))

    def alive(self) -> bool:
        """Whether both connections still stand, as far as this side knows."""
        try:
            return bool(self._events.isAlive() and self._calls.isAlive())
        except libvirt.libvirtError:
            return False

    def close(self) -> None:
        """Close both connections. Nothing is called after this."""
        with suppress(libvirt.libvirtError):
            self._events.unregisterCloseCallback()
        for callback in self._callbacks:
            with suppress(libvirt.libvirtError):
                self._events.domainEventDeregisterAny(callback)
        for connection in {self._events, self._calls}:
            with suppress(libvirt.libvirtError):
                connection.close()

    def listed(self) -> tuple[Domain, ...]:
        """All domains. One that goes while it is read is left out; raises Unreachable."""
        try:
            found = [self._read(domain) for domain in self._calls.listAllDomains()]
        except libvirt.libvirtError as error:
            raise Unreachable(str(error)) from error
        return tuple(domain for domain in found if domain is not None)

    def names(self) -> set[UUID]:
        """The UUIDs of all domains. Raises Unreachable."""
        try:
            return {UUID(domain.UUIDString()) for domain in self._calls.listAllDomains()}
        except libvirt.libvirtError as error:
            raise Unreachable(str(error)) from error

    def by_uuid(self, uuid: UUID) -> Domain | None:
        """The domain as it is now; None if there is no such one. Raises Unreachable."""
        return self._of(lambda: self._calls.lookupByUUIDString(str(uuid)), self._read)

    def name_of(self, uuid: UUID) -> str | None:
        """The domain's libvirt name now, in one call; None if there is no such one. Raises Unreachable."""
        return self._of(lambda: self._calls.lookupByUUIDString(str(uuid)), _name)

    def uuid_of(self, name: str) -> UUID | None:
        """The domain that has the libvirt name now, if there is one. Raises Unreachable."""
        return self._of(lambda: self._calls.lookupByName(name), lambda domain: UUID(domain.UUIDString()))

    def has_managed_save(self, uuid: UUID) -> bool:
        """Whether the domain has a managed save image; not if there is no such domain. Raises Unreachable."""
        look_up = self._calls.lookupByUUIDString
        return bool(self._of(lambda: look_up(str(uuid)), lambda domain: bool(domain.hasManagedSaveImage())))

    def _of(
        self, look_up: Callable[[], libvirt.virDomain], what: Callable[[libvirt.virDomain], R]
    ) -> R | None:
        try:
            return what(look_up())
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise Unreachable(str(error)) from error
        except UnicodeEncodeError:
            # libvirt-python can't ask for a name that is not UTF-8; its UUID finds it.
            return None

    def _read(self, domain: libvirt.virDomain) -> Domain | None:
        try:
            live = _xml(domain, 0)
            active = bool(domain.isActive())
            persistent = bool(domain.isPersistent())
            state, _reason = domain.state()
            if active and persistent:
                inactive: bytes | None = _xml(domain, libvirt.VIR_DOMAIN_XML_INACTIVE)
            else:
                inactive = None if active else live
            found = domxml.parse(
                self._label,
                live if active else None,
                inactive,
                state=_STATES.get(state, "no state"),
                volumes=self._volume,
                sources=self._sources,
            )
            # XML is no place for control characters: libvirt drops some of them there.
            return name_sources.renamed(found, _name(domain))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise
        except domxml.NotADomain as error:
            log.warning("domain %s is left out: %s", domain.UUIDString(), error)
            return None

    def _volume(self, pool: str, volume: str) -> str | None:
        try:
            return str(self._calls.storagePoolLookupByName(pool).storageVolLookupByName(volume).path())
        except libvirt.libvirtError:
            # The pool is not active, or the volume gone: then the disk has no path.
            return None

    def rename(self, uuid: UUID, new: str) -> None:
        """Have libvirt rename the domain. Raises Refused, Unreachable."""
        try:
            domain = self._calls.lookupByUUIDString(str(uuid))
            domain.rename(new)
        except libvirt.libvirtError as error:
            raise self._failure(error, lambda: self._why_not_renamed(uuid, new)) from error
        except UnicodeEncodeError as error:
            raise Refused("libvirt-python passes only names that are UTF-8", errno.EILSEQ) from error

    def set_asked(self, uuid: UUID, asked: Asked | None) -> None:
        """Have the domain's metadata say what was asked for through namefs; None: have it say nothing.

        In all definitions that there are, live and persistent; nothing is written where it is so already.
        Raises Refused, Unreachable.
        """
        wanted = None if asked is None or asked.name is None else name_sources.element(asked)
        try:
            domain = self._calls.lookupByUUIDString(str(uuid))
            flags = [libvirt.VIR_DOMAIN_AFFECT_LIVE] if domain.isActive() else []
            if domain.isPersistent():
                flags.append(libvirt.VIR_DOMAIN_AFFECT_CONFIG)
            if any(_metadata(domain, flag) != wanted for flag in flags):
                domain.setMetadata(_ELEMENT, wanted, ASKED_KEY, ASKED_URI, sum(flags))
        except libvirt.libvirtError as error:
            raise self._failure(error) from error

    def _failure(
        self, error: libvirt.libvirtError, why: Callable[[], int | None] = lambda: None
    ) -> Refused | Unreachable:
        """What a failed change means; ``why`` is asked for the errno where libvirt's code does not tell."""
        if not self.alive():
            return Unreachable(str(error))
        code = error.get_error_code()
        if code == libvirt.VIR_ERR_SYSTEM_ERROR:
            return Refused(str(error), error.get_int1() or errno.EIO)
        otherwise = errno.EBUSY if code == libvirt.VIR_ERR_OPERATION_INVALID else errno.EIO
        return Refused(str(error), _ERRNOS.get(code) or why() or otherwise)

    def _why_not_renamed(self, uuid: UUID, new: str) -> int | None:
        """The errno for a refusal. libvirt has one code for many reasons and words in many languages,
        so the reasons themselves are looked at, in the order in which qemuDomainRename checks them."""
        with suppress(libvirt.libvirtError):
            domain = self._calls.lookupByUUIDString(str(uuid))
            if not domain.isPersistent():
                return errno.EPERM
            if domain.isActive():
                return errno.EBUSY
            with suppress(libvirt.libvirtError):
                if domain.hasManagedSaveImage():
                    return errno.EBUSY
            with suppress(libvirt.libvirtError):
                self._calls.lookupByName(new)
                return errno.EEXIST
        return None


def _metadata(domain: libvirt.virDomain, flag: int) -> str | None:
    """namefs's element in one definition, as `name_sources.element` writes it; None: there is none."""
    try:
        return str(domain.metadata(_ELEMENT, ASKED_URI, flag))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return None
        raise
    except UnicodeDecodeError:
        return ""  # There is one, and not of namefs's making.


def _name(domain: libvirt.virDomain) -> str:
    try:
        return str(domain.name())
    except UnicodeDecodeError as error:
        return bytes(error.object).decode("utf-8", "surrogateescape")


def _xml(domain: libvirt.virDomain, flags: int) -> bytes:
    try:
        return str(domain.XMLDesc(flags)).encode()
    except UnicodeDecodeError as error:
        # A rename can give a domain a name that is not UTF-8, and libvirt-python then has no str
        # for it; the exception holds the bytes.
        return bytes(error.object)
