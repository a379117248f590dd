"""From facts to differences, each with what it means and what to do. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from namefs import naming
from namefs.following import Wait, libvirts_step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from namefs.checking.facts import Connected, Facts, Hook
    from namefs.model import Record


@dataclass(frozen=True, slots=True)
class Difference:
    """``kind`` is for programs, ``guest`` the UUID if it is about one, ``about`` a name or path.

    ``repair`` names what `--repair` can do about it without losing anything.
    """

    kind: str
    about: str
    what: str
    do: str
    guest: UUID | None = None
    repair: str | None = None


def differences(facts: Facts) -> list[Difference]:
    """All that does not agree, in an order of its own."""
    found = [*_view(facts), *_names(facts)]
    for connected in facts.connections:
        found += _index(facts, connected)
        found += _store(facts, connected)
        found += _files(facts, connected)
        if connected.hook is not None:
            found += _hook(connected.hook)
    return sorted(found, key=lambda one: (one.kind, one.about, one.what))


def _view(facts: Facts) -> Iterator[Difference]:
    if facts.view == "dead":
        yield Difference(
            "view-dead",
            facts.mountpoint,
            "the daemon died and left its mount: whoever looks gets ENOTCONN",
            "start the daemon, or namefs umount",
            repair="detach",
        )
    if facts.daemon and facts.view == "none":
        yield Difference(
            "view-gone", facts.mountpoint, "a daemon runs, and nothing is mounted", "restart the daemon"
        )


def _names(facts: Facts) -> Iterator[Difference]:
    for record in (one for one in facts.index.records.values() if one.is_owner):
        if record.entry != naming.encode(record.name):
            yield _of(
                record,
                "name-shared",
                f"is shown as {_shown(record)}, as another guest had the name first",
                "rename one of them: namefs rename UUID NEW",
            )
        due = libvirts_step(facts.index, record.key.guest)
        if isinstance(due, Wait) and ("another guest" in due.why or "transient" in due.why):
            yield _of(
                record,
                "rename-stuck",
                f"libvirt's own name, {naming.display(record.domain.name)}, can't follow: {due.why}",
                "rename the other guest, or namefs rename --cancel",
            )


def _index(facts: Facts, connected: Connected) -> Iterator[Difference]:
    if connected.domains is None:
        return
    there = {domain.uuid: domain for domain in connected.domains}
    known = {
        uuid: domain for (uuid, label), domain in facts.index.domains.items() if label == connected.label
    }
    do = (
        "namefs check --repair, while the daemon runs"
        if facts.daemon
        else "it is mended when the daemon starts"
    )
    for uuid in there.keys() - known.keys():
        name = naming.display(there[uuid].name)
        yield Difference("index-misses", name, "libvirt has it, the index does not", do, uuid, "refresh")
    for uuid in known.keys() - there.keys():
        name = naming.display(known[uuid].name)
        yield Difference("index-keeps", name, "the index has it, libvirt does not", do, uuid, "refresh")
    for uuid in known.keys() & there.keys():
        name, of_libvirt = (naming.display(domain.name) for domain in (known[uuid], there[uuid]))
        if name != of_libvirt:
            what = f"libvirt calls it {of_libvirt}, by the index it is another"
            yield Difference("index-differs", name, what, do, uuid, "refresh")


def _store(facts: Facts, connected: Connected) -> Iterator[Difference]:
    if connected.domains is None:
        return
    there = {domain.uuid for domain in connected.domains}
    departed = {key.uuid for key in facts.index.departed}
    for uuid, path in connected.store.items():
        if uuid not in there:
            yield Difference(
                "store-orphan",
                path,
                "a directory of the store, of no guest that libvirt has",
                "look what is in it, and remove it; namefs never does",
                uuid,
            )
    for uuid, path in connected.logs.items():
        if uuid not in there | departed:
            yield Difference(
                "log-orphan",
                path,
                "logs of a guest that neither libvirt nor the index knows",
                "remove them if nobody needs them",
                uuid,
            )
    for uuid in connected.unfinished:
        yield Difference(
            "adoption-unfinished",
            connected.store.get(uuid, str(uuid)),
            "namefs adopt or release was interrupted; the guest can be started all the same",
            "namefs adopt --recover",
            uuid,
        )


def _files(facts: Facts, connected: Connected) -> Iterator[Difference]:
    if connected.domains is None:
        return
    by_uuid = {r.key.uuid: r for r in facts.index.records.values() if r.domain.connection == connected.label}
    for uuid, record in by_uuid.items():
        for path in connected.missing.get(uuid, ()):
            what = f"its definition names {path}, which is not there"
            yield _of(record, "file-missing", what, "bring the file back, or change the definition")
        for path in connected.left_nvram.get(uuid, ()):
            yield _of(
                record,
                "nvram-left",
                f"its UEFI variables of a former name are left in {path}: libvirt starts it with fresh ones",
                "copy them over those of its present name while it is off, and namefs adopt it",
            )
        for path in connected.lost_checkpoints.get(uuid, ()):
            yield _of(
                record,
                "checkpoint-lost",
                f"a rename by libvirt put its checkpoint among the snapshots: {path}",
                "virsh checkpoint-create --redefine with that file",
            )
    names = {domain.name for domain in connected.domains}
    for name, path in connected.log_names.items():
        if name not in names and not any(name.startswith(other + "-") for other in names):
            yield Difference(
                "log-of-nobody",
                path,
                "a log under a name that no guest has: the next guest of that name would go on in it",
                "namefs removes it when it knows that it has all of it; else move it away",
            )


def _hook(hook: Hook) -> Iterator[Difference]:
    if not hook.installed:
        what = "libvirt's hook is not installed: a new guest is shown by libvirt's event, not before its log"
        yield Difference("hook-missing", hook.path, what, "copy contrib/libvirt-hook there, by rename")
    elif not hook.executable:
        yield Difference("hook-not-executable", hook.path, "libvirt passes it over", f"chmod 755 {hook.path}")
    elif hook.seen is False:
        what = "libvirt was started before there was any hook, and does not call it"
        yield Difference("hook-unseen", hook.path, what, "systemctl reload libvirtd (or virtqemud)")


def _of(record: Record, kind: str, what: str, do: str, repair: str | None = None) -> Difference:
    return Difference(kind, _shown(record), what, do, record.key.uuid, repair)


def _shown(record: Record) -> str:
    return "/".join(part.decode() for part in record.place if part)
