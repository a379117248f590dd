"""Which name a domain is shown by: the first of its names that counts. Pure.

What people asked for through namefs is known twice: in the domain's own metadata, which travels with it
to another host and into backups, and in the index, which a revert to an old snapshot does not turn
back. The later of the two counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID

    from namefs.model import Asked, Domain

NAMEFS = "namefs"
LIBVIRT = "libvirt"


def name_of(domain: Domain, asked: Asked | None) -> tuple[str, str]:
    """The shown name and the source that it comes from; libvirt's own name where no other source has one."""
    for source, name in domain.names or ((NAMEFS, ""), (LIBVIRT, domain.name)):
        if source == LIBVIRT:
            break
        if source != NAMEFS:
            return name, source
        if asked is not None and asked.name is not None:
            return asked.name, NAMEFS
    return domain.name, LIBVIRT


def name_without(domain: Domain) -> tuple[str, str]:
    """The same, had nobody ever asked for a name."""
    return name_of(domain, None)


def can_ask(domain: Domain) -> bool:
    """Whether a name that is asked for would be shown: not where namefs is not the first source."""
    sources = [source for source, _name in domain.names] or [NAMEFS]
    return sources[0] == NAMEFS


def later(known: Asked | None, domain: Domain) -> Asked | None:
    """What counts of what the index knows and what the domain's metadata says."""
    told = domain.asked
    if told is None or (known is not None and known.asked_ns >= told.asked_ns):
        return known
    return told


def on_the_way(uuid: UUID) -> str:
    """The libvirt name of a domain that has given up its own to another, and waits for the one asked for."""
    return f"namefs-{uuid}"
