"""What is still to be done for names that were asked for, and why it waits. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from namefs import naming, shown

if TYPE_CHECKING:
    from namefs.index import Index
    from namefs.model import Asked, Key


@dataclass(frozen=True, slots=True)
class Write:
    """The domain's metadata is to say what was asked for; None: nothing."""

    key: Key
    asked: Asked | None


@dataclass(frozen=True, slots=True)
class Rename:
    """libvirt is to rename the domain."""

    key: Key
    new: str


@dataclass(frozen=True, slots=True)
class Done:
    """libvirt's name is the one that was asked for: nothing is pending any more."""

    key: Key


@dataclass(frozen=True, slots=True)
class Wait:
    """libvirt's name can't follow now. ``why`` is a clause for people."""

    key: Key
    why: str


Step = Write | Rename | Done | Wait


def step(index: Index, key: Key) -> Step | None:
    """The next step for a domain; None if there is nothing to do."""
    asked, record = index.asked.get(key), index.owner(key.uuid)
    if asked is None or record is None:
        return None
    if index.is_fleeting(key.uuid):
        return Wait(key, "it is being migrated")
    wanted = asked if asked.name is not None else None
    last = libvirts_step(index, key)
    if isinstance(last, Done) or record.domain.asked == wanted:
        return last
    return Write(key, wanted)


def libvirts_step(index: Index, key: Key) -> Rename | Done | Wait | None:
    """What is to be done about libvirt's own name; None if that is as it should be."""
    asked, record = index.asked.get(key), index.owner(key.uuid)
    if asked is None or record is None or asked.name is None or not asked.follows:
        return None
    domain = record.domain
    if asked.name == domain.name:
        return Done(key)
    if not domain.persistent:
        return Wait(key, "it is transient, and libvirt renames no such guest")
    if domain.state != "shut off":
        return Wait(key, f"it is {domain.state}, and libvirt renames only what is off")
    return _rename(index, key, domain.connection, asked.name)


def _rename(index: Index, key: Key, connection: str, new: str) -> Rename | Wait:
    holder_key = index.by_name.get((connection, new))
    if holder_key is None:
        return Rename(key, new)
    holder, asked = index.at(holder_key.uuid, connection), index.asked.get(holder_key.guest)
    if holder is None or asked is None or asked.name is None or not asked.follows:
        return Wait(key, f"{naming.display(new)} is libvirt's name of another guest, {holder_key.uuid}")
    if holder.domain.state != "shut off" or not holder.domain.persistent:
        return Wait(key, f"{naming.display(new)} is still the libvirt name of a guest that is not off")
    if (connection, asked.name) not in index.by_name:
        return Wait(key, f"{naming.display(new)} is about to be given up by another guest")
    # Both wait for each other, or for a third: this one steps aside.
    return Rename(holder_key.guest, shown.on_the_way(holder_key.uuid))
