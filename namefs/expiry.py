"""Guests that are gone are forgotten after a time, and their logs removed: nothing else ever is."""

from __future__ import annotations

import functools
import logging
import time
from typing import TYPE_CHECKING

import trio

from namefs.errors import NamefsError
from namefs.model import Expired

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from uuid import UUID

    from namefs.view import View

    Apply = Callable[..., Awaitable[None]]
    Remove = Callable[[Collection[UUID]], None]
    HasLogs = Callable[[UUID], bool]

log = logging.getLogger(__name__)

_LOOK_S = 60.0

_COPIED_NS = 60 * 10**9
"""Longer than it takes to copy what a guest wrote last."""


async def run(view: View, apply: Apply, remove: Remove, has_logs: HasLogs, kept_ns: int) -> None:
    """Look at the start and once a minute, until cancelled. The others are as in `forget`."""
    while True:
        now_ns = time.time_ns()
        try:
            await forget(view, apply, remove, now_ns - kept_ns)
            await forget_logless(view, apply, has_logs, now_ns - _COPIED_NS)
        except (OSError, NamefsError) as error:
            log.error("logs of guests that are gone are not removed: %s", error)
        await trio.sleep(_LOOK_S)


async def forget(view: View, apply: Apply, remove: Remove, before_ns: int) -> None:
    """Forget who went before a time. Raises OSError, NamefsError.

    ``remove`` removes the logs of these guests from the store; blocks. They go first: killed in between, the
    guest is still known, and is forgotten the next time.
    """
    due = [key for key, departed in view.index.departed.items() if departed.gone_ns < before_ns]
    if due:
        await trio.to_thread.run_sync(functools.partial(remove, {key.uuid for key in due}))
        await apply(*map(Expired, due))
        log.info("%d guests that are gone are forgotten, and their logs removed", len(due))


async def forget_logless(view: View, apply: Apply, has_logs: HasLogs, before_ns: int) -> None:
    """Forget who went before a time and has left no log: there is nothing of it to show. Raises NamefsError.

    ``has_logs`` tells whether the store has any of a guest's; blocks.
    """
    gone = [key for key, departed in view.index.departed.items() if departed.gone_ns < before_ns]
    due = await trio.to_thread.run_sync(lambda: [key for key in gone if not has_logs(key.uuid)])
    if due:
        await apply(*map(Expired, due))
