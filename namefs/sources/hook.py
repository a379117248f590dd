"""The spool in which ``contrib/libvirt-hook`` leaves a record of each call that libvirt makes to it.

A record is the file ``UUID.OPERATION``, written in place, so it can be read while it is replaced, and
the end of a longer one may lie behind it::

    namefs 1 PID LENGTH
    OPERATION
    SUBOPERATION
    EXTRA
    UUID
    NAME, of LENGTH bytes, any but NUL
    PID
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from uuid import UUID

_HEAD = re.compile(
    rb"namefs 1 (?P<pid>[0-9]{1,10}) (?P<length>[0-9]{1,10})\n"
    rb"(?P<operation>[a-z]+)\n(?P<suboperation>[ -~]*)\n(?P<extra>[ -~]*)\n"
    rb"(?P<uuid>[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\n"
)


class Incomplete(ValueError):
    """A record that is not whole: being written, cut short by a kill or a full disk, or no record at all."""


@dataclass(frozen=True, slots=True)
class HookCall:
    """One call of the hook, as described in libvirt's docs/hooks.rst.

    ``name`` may hold lone surrogates (PEP 383). ``extra`` is ``-`` where libvirt says nothing there.
    """

    operation: str
    suboperation: str
    extra: str
    uuid: UUID
    name: str


def parse(record: bytes) -> HookCall:
    """The call that a spool file tells of. Raises Incomplete if the record is not whole."""
    head = _HEAD.match(record)
    if head is None:
        raise Incomplete(f"no record of the hook: {record[:40]!r}")
    end = head.end() + int(head["length"])
    if not record.startswith(b"\n" + head["pid"] + b"\n", end):
        raise Incomplete(f"a record of {len(record)} bytes does not end as it begins")
    return HookCall(
        operation=head["operation"].decode(),
        suboperation=head["suboperation"].decode(),
        extra=head["extra"].decode(),
        uuid=UUID(head["uuid"].decode()),
        name=record[head.end() : end].decode("utf-8", "surrogateescape"),
    )
