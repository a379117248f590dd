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

log = logging.getLogger(__name__)

_LOOK_S = 3600.0


async def run(view: View, apply: Apply, remove: Remove, kept_ns: int) -> None:
    """Look at the start and once an hour, until cancelled. ``remove`` and ``apply`` are as in `forget`."""
    while True:
        try:
            await forget(view, apply, remove, time.time_ns() - kept_ns)
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
