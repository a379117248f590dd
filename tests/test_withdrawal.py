"""When the kernel is told to forget, and who waits for it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
import trio
import trio.testing

from namefs.invalidation import Invalidator
from namefs.model import Change, Key, Place

if TYPE_CHECKING:
    from collections.abc import Iterator

WEB, SHOP = Place(b"", b"web"), Place(b"", b"shop")
KEY = Key(UUID(int=10))
GONE = [Change(WEB, KEY, None), Change(SHOP, None, KEY)]
PATIENCE_S = 10.0


class Kernel:
    """Notes what it is told to forget, and takes its time for it, if it is to."""

    def __init__(self) -> None:
        self.forgot: list[Place] = []
        self._may_go_on = threading.Event()
        self._may_go_on.set()

    def withdraw(self, place: Place) -> None:
        assert self._may_go_on.wait(PATIENCE_S)
        self.forgot.append(place)

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """While this lasts it takes no notification, as behind a look-up."""
        self._may_go_on.clear()
        try:
            yield
        finally:
            self._may_go_on.set()


@pytest.mark.trio
async def test_before_anything_is_mounted_nothing_is_waited_for() -> None:
    invalidator = Invalidator(Kernel().withdraw)
    invalidator.submit(GONE)
    with trio.fail_after(PATIENCE_S):
        await invalidator.done()


@pytest.mark.trio
async def test_what_was_there_is_forgotten_before_it_is_done(nursery: trio.Nursery) -> None:
    kernel = Kernel()
    invalidator = Invalidator(kernel.withdraw)
    nursery.start_soon(invalidator.run)
    await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(PATIENCE_S):
        await invalidator.done()
        with kernel.held_up():
            invalidator.submit(GONE)
            with trio.move_on_after(0.01) as waiting:
                await invalidator.done()
            assert waiting.cancelled_caught
        await invalidator.done()
    assert kernel.forgot == [WEB]


@pytest.mark.trio
async def test_while_the_kernel_renames_it_is_told_nothing_and_nobody_waits_for_it(
    nursery: trio.Nursery,
) -> None:
    """It would take no notification, and whoever makes it can't be killed."""
    kernel = Kernel()
    invalidator = Invalidator(kernel.withdraw)
    nursery.start_soon(invalidator.run)
    with trio.fail_after(PATIENCE_S):
        with invalidator.kernel_renames():
            invalidator.submit(GONE)
            await trio.testing.wait_all_tasks_blocked()
            await invalidator.done()
            assert kernel.forgot == []
        await invalidator.done()
    assert kernel.forgot == [WEB]


@pytest.mark.trio
async def test_who_waits_goes_on_when_the_kernel_begins_to_rename(nursery: trio.Nursery) -> None:
    """It holds up the notification, and waits for an answer that may wait for us."""
    kernel = Kernel()
    invalidator = Invalidator(kernel.withdraw)
    nursery.start_soon(invalidator.run)
    with trio.fail_after(PATIENCE_S), kernel.held_up():
        invalidator.submit(GONE)
        async with trio.open_nursery() as waiting:
            waiting.start_soon(invalidator.done)
            await trio.testing.wait_all_tasks_blocked()
            with invalidator.kernel_renames():
                await trio.testing.wait_all_tasks_blocked()
