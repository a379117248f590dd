"""The values that namefs's parts hand to each other. Standard library only, no I/O, no rules.

A str that came from libvirt or from a file name may hold bytes that are not UTF-8, as lone
surrogates (PEP 383): libvirt lets a rename give a domain such a name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple
from uuid import UUID


class Key(NamedTuple):
    """What identifies a domain in the view: the guest, and which of its processes.

    While a guest is migrated from one libvirt of this host to another, it has two of them; the
    generation tells them apart, and goes to and fro with each migration. What belongs to the guest
    as a whole (its former names, what was asked for) is kept by the key of generation 0.
    """

    uuid: UUID
    generation: int = 0

    @property
    def guest(self) -> Key:
        """The key that what belongs to the guest as a whole is kept by."""
        return Key(self.uuid)


class Role(Enum):
    """What a domain of one libvirt is to its guest."""

    ACTIVE = "active"
    INCOMING = "incoming"
    OUTGOING = "outgoing"
    INACTIVE = "inactive"


class Run(NamedTuple):
    """What libvirt's status file says of a running domain: libvirt's own words.

    ``job`` is the asynchronous job's name (``migration in``), ``none`` if there is none, ``phase`` its phase.
    """

    state: str
    reason: str
    job: str = "none"
    phase: str = ""


@dataclass(frozen=True, slots=True)
class Named:
    """A file that a definition names: what the view calls it, and its real, absolute path."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk by its target name (``vda``).

    ``backing`` holds the backing images' paths, nearest first, where libvirt told them (it does in
    live definitions); None means unknown: read the image's header.
    """

    target: str
    path: str
    format: str
    backing: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A shown name that was asked for through namefs, and when (nanoseconds since the epoch).

    ``name`` None: what was asked before no longer counts. ``follows``: libvirt's own name is to become
    the same as soon as libvirt allows it; not where libvirt's name is another system's business (Nova).
    """

    name: str | None
    asked_ns: int
    follows: bool = True


@dataclass(frozen=True, slots=True)
class Domain:
    """What is known of a domain: the facts that its artefacts' places follow from.

    ``connection`` is the label of the libvirt connection that it lives on. ``state`` is one of
    virsh's words: running, idle, paused, in shutdown, shut off, crashed, pmsuspended, no state.

    ``names`` are the names that the connection's sources gave, (source, name), the first one that counts
    first; the source ``namefs`` has an empty one, which ``asked`` or the index fills. None: libvirt's.
    ``group`` is the name of the group that it is shown in; None: in no group. ``asked`` is what its own
    metadata says was asked for.
    """

    uuid: UUID
    name: str
    connection: str
    state: str = "no state"
    persistent: bool = True
    title: str | None = None
    disks: tuple[Disk, ...] = ()
    logs: tuple[Named, ...] = ()
    sockets: tuple[Named, ...] = ()
    nvram: str | None = None
    filesystems: tuple[str, ...] = ()
    """Aliases of the virtiofs filesystems (``fs0``), as virtiofsd's log files are called by them."""
    names: tuple[tuple[str, str], ...] = ()
    group: str | None = None
    asked: Asked | None = None
    run: Run | None = None
    """None while it is off, and where libvirt's files are not on this host."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What was just read of one domain; ``domain`` is None when libvirt knows no such one.

    ``key`` is the guest's: which generation the domain is, the index decides.
    """

    key: Key
    connection: str
    domain: Domain | None


@dataclass(frozen=True, slots=True)
class Wished:
    """A shown name that was just asked for, of a domain that is there.

    ``instead_of``: only if that is what counts until now; another wish may have come first.
    """

    key: Key
    asked: Asked
    instead_of: Asked | None = None


@dataclass(frozen=True, slots=True)
class Sighted:
    """Something that decides a guest's roles may have changed: they are looked at again."""

    uuid: UUID


@dataclass(frozen=True, slots=True)
class Expired:
    """A domain that is gone, and of which nothing is to be kept any more."""

    key: Key


@dataclass(frozen=True, slots=True)
class Listed:
    """All domains of a connection: the complete truth about it, replacing what was known."""

    connection: str
    domains: tuple[Domain, ...]


Seen = Observed | Listed | Wished | Sighted | Expired
"""What the index learns from."""


class Mark(NamedTuple):
    """How far a file had been written when its domain lost the name that the file is called by."""

    dev: int
    ino: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Former:
    """A libvirt or shown name that a domain had, and when (nanoseconds since the epoch)."""

    name: str
    since_ns: int
    until_ns: int
    marks: tuple[Mark, ...] = ()
    connection: str = ""
    """Of a libvirt name: where it was the domain's."""


@dataclass(frozen=True, slots=True)
class Move:
    """A guest went from one libvirt to another, and when (nanoseconds since the epoch)."""

    source: str
    target: str
    at_ns: int


class Place(NamedTuple):
    """Where the view shows a domain: its group's entry in the root directory (b"": none), and its own."""

    group: bytes
    entry: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """A domain in the index: its facts, its shown name, and where that puts it.

    ``role`` is what it is to its guest; the one that ``is_owner`` has the guest's name, others have it
    with a suffix. ``source`` is the name source that ``name`` comes from. ``since_ns`` is when it got
    its libvirt name, ``shown_since_ns`` when it got its shown one (nanoseconds since the epoch).
    """

    key: Key
    domain: Domain
    name: str
    source: str
    place: Place
    since_ns: int
    shown_since_ns: int
    role: Role = Role.INACTIVE
    is_owner: bool = True

    @property
    def identity(self) -> Key:
        """What the files in its directory are known by: those of the guest's own outlive its processes."""
        return Key(self.key.uuid, OWNER) if self.is_owner else self.key

    @property
    def entry(self) -> bytes:
        """Its directory's entry."""
        return self.place.entry

    @property
    def group(self) -> str | None:
        """The name of the group that it is shown in."""
        return self.domain.group


@dataclass(frozen=True, slots=True)
class Departed:
    """A domain that libvirt has no more, as it was last, and since when (nanoseconds since the epoch)."""

    record: Record
    gone_ns: int


@dataclass(frozen=True, slots=True)
class Change:
    """An entry whose answer changed; ``before``/``after`` None: no such entry.

    The entry of a group in the root directory stands for the group: its key is `GROUP`.
    """

    place: Place
    before: Key | None
    after: Key | None


OWNER = -1
"""The generation of whichever domain has the guest's name."""

GROUP = Key(UUID(int=0))
"""What a group's entry leads to."""
