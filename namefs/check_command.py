"""``namefs check``: exit codes of its own, 0 clean, 1 differences, 2 could not check."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from namefs import mounts, table
from namefs.checking.gathering import gather
from namefs.checking.rules import differences
from namefs.control import ask
from namefs.errors import ExitCode, NamefsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from namefs.checking.facts import Facts
    from namefs.checking.rules import Difference
    from namefs.config import Config

CLEAN, DIFFERENT, UNCHECKED = 0, 1, 2

_LOOK_AGAIN_S = 0.5
"""What is in motion while it is looked at is none: an event on its way, a log that is being copied."""


def check(config: Config, *, repair: bool, as_json: bool) -> int:
    """Compare, print, and with ``repair`` mend what cannot lose anything."""
    try:
        found, facts = _lasting(config)
        repaired = _repair(config, found) if repair else []
        if repaired:
            found, facts = _lasting(config)
    except (NamefsError, OSError) as error:
        print(f"namefs: {table.safe(str(error))}", file=sys.stderr)
        return UNCHECKED
    unreachable = [one for one in facts.connections if one.domains is None]
    if as_json:
        print(json.dumps({"repaired": repaired, "differences": [_plain(one) for one in found]}, indent=2))
    else:
        _print(repaired, found, facts)
    for one in unreachable:
        print(f"namefs: {one.label} can't be checked: {table.safe(one.error or '')}", file=sys.stderr)
    return UNCHECKED if unreachable else DIFFERENT if found else CLEAN


def _lasting(config: Config) -> tuple[list[Difference], Facts]:
    """The differences that are there at two looks."""
    facts = gather(config)
    found = differences(facts)
    if found:
        time.sleep(_LOOK_AGAIN_S)
        facts = gather(config)
        again = differences(facts)
        found = [one for one in found if one in again]
    return found, facts


def _repair(config: Config, found: Sequence[Difference]) -> list[str]:
    done = []
    kinds = {one.repair for one in found}
    if "refresh" in kinds:
        try:
            ask(config.control_socket, {"op": "refresh"})
            done.append("the daemon has compared all guests with libvirt")
        except NamefsError as error:
            if error.exit_code is not ExitCode.DAEMON_UNREACHABLE:
                raise
    if "detach" in kinds:
        mounts.detach(config.mountpoint)
        done.append(f"the dead mount at {config.mountpoint} is detached")
    return done


def _plain(one: Difference) -> dict[str, str | None]:
    return asdict(one) | {"guest": None if one.guest is None else str(one.guest)}


def _print(repaired: Sequence[str], found: Sequence[Difference], facts: Facts) -> None:
    for what in repaired:
        print(f"repaired: {table.safe(what)}")
    for one in found:
        print(table.safe(f"{one.kind}  {one.about}: {one.what}; {one.do}"))
    if not found and table.on_terminal():
        print(f"{len(facts.index.records)} guests, no differences")
