"""When guests that are gone are forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest
import trio

from namefs import expiry
from namefs.applying import apply
from namefs.index import Index
from namefs.model import Domain, Key, Observed
from namefs.view import View

if TYPE_CHECKING:
    from collections.abc import Collection

    from namefs.model import Seen

A, B = UUID(int=1), UUID(int=2)
DAY_NS = 86400 * 10**9


def gone_on_days(**days: int) -> View:
    """A view of guests that went on these days."""
    view, index = View(lambda _label: None), Index()
    for number, day in enumerate(days.values(), start=1):
        uuid = UUID(int=number)
        there = Observed(Key(uuid), "local", Domain(uuid, f"guest{number}", "local"))
        index = apply(index, [there], 0).index
        index = apply(index, [Observed(Key(uuid), "local", None)], day * DAY_NS + 1).index
    view.publish(index, 0)
    return view


def test_logs_are_removed_in_time_and_before_the_guest_is_forgotten() -> None:
    view, removed = gone_on_days(old=0, young=1), list[set[UUID]]()

    def remove(uuids: Collection[UUID]) -> None:
        assert set(uuids) <= {key.uuid for key in view.index.departed}
        removed.append(set(uuids))

    async def apply_seen(*seen: Seen) -> None:
        view.publish(apply(view.index, seen, 0).index, 0)

    for before_ns, gone, left in ((0, [], {A, B}), (DAY_NS, [{A}], {B}), (2 * DAY_NS, [{A}, {B}], set())):
        trio.run(expiry.forget, view, apply_seen, remove, before_ns)
        assert removed == gone
        assert {key.uuid for key in view.index.departed} == left


def test_who_has_left_no_log_is_forgotten_once_it_can_be_known() -> None:
    view = gone_on_days(wrote=0, never_ran=0, young=1)

    async def apply_seen(*seen: Seen) -> None:
        view.publish(apply(view.index, seen, 0).index, 0)

    trio.run(expiry.forget_logless, view, apply_seen, A.__eq__, DAY_NS)
    assert {key.uuid for key in view.index.departed} == {A, UUID(int=3)}


def test_a_guest_of_which_logs_are_left_is_not_forgotten() -> None:
    view = gone_on_days(old=0)

    def remove(uuids: Collection[UUID]) -> None:
        raise OSError(f"{uuids} can't be removed")

    async def apply_seen(*_seen: Seen) -> None:
        raise AssertionError("it is forgotten")

    with pytest.raises(OSError, match="can't be removed"):
        trio.run(expiry.forget, view, apply_seen, remove, DAY_NS)
