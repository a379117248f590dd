"""Local migration: which of two domains with one UUID is the guest. Pure.

The rules are those that gave one name, never two, and no swap that did not happen, over all recorded
traces of libvirt 9.0 and 11.3. They read libvirt's status files: the state of a domain alone tells too
little, as a restore passes through the same states as a migration's target, and a source that rolls
back resumes as a target does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from namefs.model import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from namefs.model import Record, Run

IN = "migration in"
OUT = "migration out"

INCOMING_SUFFIX = "-incoming"
OUTGOING_SUFFIX = "-outgoing"

_RANK = {Role.ACTIVE: 3, Role.OUTGOING: 2, Role.INACTIVE: 1, Role.INCOMING: 0}


def role(run: Run | None, before: Role | None) -> Role:
    """What a domain is now, by its status file (None: there is none) and by what it was before."""
    if run is None:
        return Role.INACTIVE
    if before is Role.INCOMING and not _is_the_guest(run):
        return Role.INCOMING
    # A source whose libvirtd was started again was left behind, since nobody knew whether the target had
    # begun to run. It stays that until it is ended, also while it ends.
    if run.job == OUT or (before is Role.OUTGOING and not _is_the_guest(run)):
        return Role.OUTGOING
    # A target whose libvirtd was started again, or ends: the job is gone, and it waits until it is killed.
    waits = run.job == "none" and (run.state, run.reason) == ("paused", "migration")
    if waits or (run.job == IN and not _is_the_guest(run)):
        return Role.INCOMING
    return Role.ACTIVE


def _is_the_guest(run: Run) -> bool:
    """Whether a target has become the guest, or a source is it again. One that ends shows ``shutdown``."""
    if run.state == "paused":
        return run.reason not in ("migration", "starting up")
    return run.state == "running"


def owner(roles: Mapping[str, Role], before: str | None) -> str | None:
    """The connection whose domain has the guest's name: active before outgoing before off.

    None if there is only one that comes in: it is migrated from another host, and not there yet. Of two
    that are the same, whoever had the name ``before`` keeps it.
    """
    candidates = [label for label, its in roles.items() if its is not Role.INCOMING]
    return max(candidates, key=lambda label: (_RANK[roles[label]], label == before, label), default=None)


def suffix(its: Role, is_owner: bool) -> str:
    """What is put behind the name of a domain that is not the guest."""
    if is_owner:
        return ""
    return INCOMING_SUFFIX if its is Role.INCOMING else OUTGOING_SUFFIX if its is Role.OUTGOING else ""


def is_shown(its: Role, is_owner: bool) -> bool:
    """Whether there is a directory of the domain: not of one that is off while another has the name."""
    return is_owner or its is not Role.INACTIVE


def phase(records: Mapping[str, Record]) -> str | None:
    """Where a guest's migration stands, in a few words, by its domains' connections; None: there is none."""
    roles = {record.role for record in records.values()}
    if not roles & {Role.INCOMING, Role.OUTGOING}:
        return None
    runs = [record.domain.run for record in records.values() if record.domain.run is not None]
    if any(run.reason == "post-copy failed" for run in runs):
        return "failed after it had begun to run on the target"
    if Role.INCOMING not in roles:
        return "done, the source ends" if len(records) > 1 else "it goes to another host or begins"
    if Role.OUTGOING not in roles and Role.ACTIVE not in roles:
        return "it comes from another host"
    if any(run.state == "paused" and run.reason == "starting up" for run in runs):
        return "the target starts"
    outgoing = [r.domain.run for r in records.values() if r.role is Role.OUTGOING and r.domain.run]
    if any(run.state == "paused" for run in outgoing):
        return "it goes over"
    return "its memory is copied"
