"""The values that namefs's parts hand to each other. Standard library only, no I/O, no rules.

A str that came from libvirt or from a file name may hold bytes that are not UTF-8, as lone
surrogates (PEP 383): libvirt lets a rename give a domain such a name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from uuid import UUID


class Key(NamedTuple):
    """What identifies a domain. The generation is 0 but during a local migration."""

    uuid: UUID
    generation: int = 0


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
class Domain:
    """What is known of a domain: the facts that its artefacts' places follow from.

    ``connection`` is the label of the libvirt connection that it lives on. ``state`` is one of
    virsh's words: running, idle, paused, in shutdown, shut off, crashed, pmsuspended, no state.
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


@dataclass(frozen=True, slots=True)
class Observed:
    """What was just read of one domain; ``domain`` is None when libvirt knows no such one."""

    key: Key
    connection: str
    domain: Domain | None


@dataclass(frozen=True, slots=True)
class Listed:
    """All domains of a connection: the complete truth about it, replacing what was known."""

    connection: str
    domains: tuple[Domain, ...]


class Mark(NamedTuple):
    """How far a file had been written when its domain lost the name that the file is called by."""

    dev: int
    ino: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Former:
    """A libvirt name that a domain had, and when (nanoseconds since the epoch)."""

    name: str
    since_ns: int
    until_ns: int
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """A domain in the index: its facts, its entry in the view, and since when it has its name."""

    key: Key
    domain: Domain
    entry: bytes
    since_ns: int


@dataclass(frozen=True, slots=True)
class Change:
    """An entry of the root directory whose answer changed; ``before``/``after`` None: no such entry."""

    entry: bytes
    before: Key | None
    after: Key | None
