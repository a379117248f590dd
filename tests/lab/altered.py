"""namefs with one thing changed: ``python -m tests.lab.altered CHANGE mount ...``.

A test that something stale is withdrawn, or that a bug is survived, proves nothing unless the stale answer
and the bug are there when nothing is done about them. These changes put them there.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import trio

from namefs import cli, fuse, journal
from namefs.attributes import Attributes, Attrs
from namefs.guest import Guest, Shelf
from namefs.invalidation import Invalidator
from namefs.model import Observed, Wished
from namefs.projection import Projection
from namefs.sources.libvirt import Connection
from namefs.sources.reader import Hint, Reader

if TYPE_CHECKING:
    from collections.abc import Callable

    from namefs.items import Item
    from namefs.model import Seen

P = ParamSpec("P")
R = TypeVar("R")

KEPT_S = 3600.0
FORGOTTEN_AFTER_S = 0.2
LOST_S = 0.05

NOT_WITHDRAWN = "not withdrawn: "
"""What the daemon prints, followed by the entry, where it would have told the kernel to forget one."""

BUGGY_ENTRY = b"config.xml"
BUG = "a bug, made for a test"

FATAL = "fatal"
"""The file in the daemon's directory that says where it is killed: ``after set_asked 2``, say."""

STEPS: tuple[tuple[object, str], ...] = (
    (journal.Journal, "save"),
    (journal, "_write_one"),
    (fuse, "withdraw"),
    (Connection, "set_asked"),
    (Connection, "rename"),
)
"""What a rename does, one after the other: the calls before and after which it can be killed. A save that a
power cut must not take back, which nothing but a wish is, is ``save durably``."""


def without_withdrawal() -> None:
    """The kernel is never told that an entry changed."""

    def withdraw(directory: int, entry: bytes) -> None:
        print(f"{NOT_WITHDRAWN}{entry.decode()}", file=sys.stderr, flush=True)

    fuse.withdraw = withdraw


def with_slow_forgetting() -> None:
    """The kernel takes long to forget an entry, as behind a look-up in its directory."""
    withdraw_at_once = fuse.withdraw

    def withdraw(directory: int, entry: bytes) -> None:
        time.sleep(FORGOTTEN_AFTER_S)
        withdraw_at_once(directory, entry)

    fuse.withdraw = withdraw


def answered_before_forgotten() -> None:
    """The same, and nothing waits for it."""

    async def done(self: Invalidator) -> None:
        pass

    with_slow_forgetting()
    Invalidator.done = done  # type: ignore[method-assign]


def in_two_transactions() -> None:
    """Of several names that are asked for at once each is given by itself."""
    apply = Projection.apply

    async def apply_each(self: Projection, *seen: Seen) -> None:
        if all(isinstance(one, Wished) for one in seen):
            for one in seen:
                await apply(self, one)
        else:
            await apply(self, *seen)

    Projection.apply = apply_each  # type: ignore[method-assign]


def lost_before_found() -> None:
    """A guest that has got another name, or another group, is gone from the old place for a moment."""
    apply = Projection.apply

    async def apply_in_steps(self: Projection, *seen: Seen) -> None:
        for one in seen:
            if isinstance(one, Observed) and one.domain is not None:
                known = self._view.index.at(one.key.uuid, one.connection)
                now = one.domain.name, one.domain.group
                if known is not None and (known.domain.name, known.domain.group) != now:
                    await apply(self, replace(one, domain=None))
                    await trio.sleep(LOST_S)
        await apply(self, *seen)

    Projection.apply = apply_in_steps  # type: ignore[method-assign]


def with_files_kept() -> None:
    """The kernel may keep the attributes of files, as it may those of domain directories."""
    of_item = Attributes.of_item

    def of_item_kept(self: Attributes, ino: int, item: Item) -> Attrs:
        return replace(of_item(self, ino, item), entry_kept_s=KEPT_S, attrs_kept_s=KEPT_S)

    Attributes.of_item = of_item_kept  # type: ignore[method-assign]


def with_a_bug() -> None:
    """Looking for one entry fails as only a programming error does."""
    item_of = Shelf.item

    def item(self: Shelf, guest: Guest, subdir: bytes, entry: bytes) -> Item | None:
        if entry == BUGGY_ENTRY:
            raise KeyError(BUG)
        return item_of(self, guest, subdir, entry)

    Shelf.item = item  # type: ignore[method-assign]


def killed_at_a_step() -> None:
    """SIGKILL before or after the Nth call of one of `STEPS`, counted from when `FATAL` is there."""
    calls: Counter[str] = Counter()

    def pass_by(moment: str) -> None:
        try:
            where, _, number = Path(FATAL).read_text().rpartition(" ")
        except FileNotFoundError:
            return
        if moment == where:
            calls[moment] += 1
            if calls[moment] == int(number):
                os.kill(os.getpid(), signal.SIGKILL)

    def watched(call: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(call)
        def passing(*args: P.args, **kwargs: P.kwargs) -> R:
            moment = call.__name__ + " durably" * (args[-1] is True)
            pass_by(f"before {moment}")
            result = call(*args, **kwargs)
            pass_by(f"after {moment}")
            return result

        return passing

    for owner, name in STEPS:
        setattr(owner, name, watched(getattr(owner, name)))


def deaf() -> None:
    """Of what happens on the connection ``b`` nothing is heard."""
    hint = Reader.hint

    def heard(self: Reader, what: Hint) -> None:
        if self.label != "b":
            hint(self, what)

    Reader.hint = heard  # type: ignore[method-assign]


CHANGES: dict[str, Callable[[], None]] = {
    change.__name__: change
    for change in (
        without_withdrawal,
        with_slow_forgetting,
        answered_before_forgotten,
        in_two_transactions,
        lost_before_found,
        with_files_kept,
        with_a_bug,
        killed_at_a_step,
        deaf,
    )
}


def command(change: Callable[[], None]) -> tuple[str, ...]:
    """What starts namefs so changed; for `Mounted`."""
    return (sys.executable, "-m", "tests.lab.altered", change.__name__)


if __name__ == "__main__":
    CHANGES[sys.argv[1]]()
    sys.exit(cli.main(sys.argv[2:]))
