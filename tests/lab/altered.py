"""namefs with one thing changed: ``python -m tests.lab.altered CHANGE mount ...``.

A test that something stale is withdrawn, or that a bug is survived, proves nothing unless the stale answer
and the bug are there when nothing is done about them. These changes put them there.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from namefs import cli, fuse
from namefs.attributes import Attributes, Attrs
from namefs.guest import Guest, Item, Shelf

if TYPE_CHECKING:
    from collections.abc import Callable

KEPT_S = 3600.0

NOT_WITHDRAWN = "not withdrawn: "
"""What the daemon prints, followed by the entry, where it would have told the kernel to forget one."""

BUGGY_ENTRY = b"config.xml"
BUG = "a bug, made for a test"


def without_withdrawal() -> None:
    """The kernel is never told that an entry changed."""

    def withdraw(entry: bytes) -> None:
        print(f"{NOT_WITHDRAWN}{entry.decode()}", file=sys.stderr, flush=True)

    fuse.withdraw = withdraw


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


CHANGES: dict[str, Callable[[], None]] = {
    change.__name__: change for change in (without_withdrawal, with_files_kept, with_a_bug)
}


def command(change: Callable[[], None]) -> tuple[str, ...]:
    """What starts namefs so changed; for `Mounted`."""
    return (sys.executable, "-m", "tests.lab.altered", change.__name__)


if __name__ == "__main__":
    CHANGES[sys.argv[1]]()
    sys.exit(cli.main(sys.argv[2:]))
