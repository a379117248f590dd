"""What is kept on disk of adoptions, as JSON: what is adopted, and what is under way. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from namefs.adoption.definition import Kind
from namefs.adoption.plan import Guest, Item, Kept, Moment, Move, Plan, Present

_VERSION = 1


class Damaged(ValueError):
    """The text is none that was written here. The message is one line."""


def items_to_json(items: tuple[Item, ...]) -> str:
    """``adopted.json``: what is in the store, and where it was."""
    table = {"version": _VERSION, "adopted": [_plain(item) for item in items]}
    return json.dumps(table, indent=2) + "\n"


def items_from_json(text: str) -> tuple[Item, ...]:
    """The items of an ``adopted.json``. Raises Damaged."""
    try:
        return tuple(_item(item) for item in _table(text)["adopted"])
    except (LookupError, TypeError, ValueError) as error:
        raise Damaged(f"not what namefs wrote: {error}") from error


def plan_to_json(plan: Plan) -> str:
    """The journal of a plan that is being carried out."""
    return json.dumps({"version": _VERSION, "plan": _plain(plan)}) + "\n"


def plan_from_json(text: str) -> Plan:
    """The plan of a journal. Raises Damaged."""
    try:
        plan = _table(text)["plan"]
        return Plan(
            operation=plan["operation"],
            guest=_guest(plan["guest"]),
            moves=tuple(_move(move) for move in plan["moves"]),
            kept=tuple(Kept(**kept) for kept in plan["kept"]),
            items_before=tuple(_item(item) for item in plan["items_before"]),
            items=tuple(_item(item) for item in plan["items"]),
        )
    except (LookupError, TypeError, ValueError) as error:
        raise Damaged(f"not what namefs wrote: {error}") from error


def _table(text: str) -> dict[str, Any]:
    table = json.loads(text)
    if table["version"] != _VERSION:
        raise ValueError(f"of another version, {table['version']}")
    return dict(table)


def _plain(value: object) -> object:
    def of_enum(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: found.value if isinstance(found, Kind) else found for key, found in pairs}

    return asdict(value, dict_factory=of_enum)  # type: ignore[call-overload]


def _item(item: dict[str, Any]) -> Item:
    return Item(**{**item, "kind": Kind(item["kind"])})


def _move(move: dict[str, Any]) -> Move:
    file = None if move["file"] is None else Present(**move["file"])
    return Move(**{**move, "kind": Kind(move["kind"]), "file": file})


def _guest(guest: dict[str, Any]) -> Guest:
    return Guest(**{**guest, "moments": tuple(Moment(**moment) for moment in guest["moments"])})
