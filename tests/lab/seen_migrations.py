"""What a test of a migration looks at: both hosts, one view of them, and who looks at it meanwhile."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tests.lab.histories import Stage, contradiction, saw
from tests.lab.migrating import Hold, Migration, start_guest, status_file
from tests.lab.readers import CONNECTION, Readers
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted
    from tests.lab.two_hosts import TwoHosts

FOO = UUID("00000000-0000-4000-8000-000000000f00")
SOON_S = 30.0

HERE: Stage = {"foo": "a"}
COPYING: Stage = {"foo": "a", "foo-incoming": "b"}
SWAPPED: Stage = {"foo": "b", "foo-outgoing": "a"}
THERE: Stage = {"foo": "b"}

MIGRATED = [HERE, COPYING, SWAPPED, THERE]
FAILED = [HERE, COPYING, HERE]


class Lab:
    """Both hosts, and a view of them. ``foo`` is started on A, the connection ``a``."""

    def __init__(self, hosts: TwoHosts, mounted: Mounted) -> None:
        self.hosts, self.a, self.b = hosts, hosts.a, hosts.b
        self.mounted = mounted
        self._held: list[Hold] = []

    def whose(self, name: str) -> str | None:
        """The connection of what a name leads to; None if to nothing."""
        try:
            return os.getxattr(self.mounted.path / name, CONNECTION).decode()
        except FileNotFoundError:
            return None

    def inode(self, name: str) -> int:
        """The inode number of a guest's directory."""
        return (self.mounted.path / name).stat().st_ino

    def shows(self, stage: Stage) -> None:
        """Return once the view is at that stage."""
        until(
            lambda: {name: self.whose(name) for name in self.mounted.names()} == stage,
            SOON_S,
            f"the view shows {dict(stage)}",
        )

    def is_in_state(self, name: str, state: bytes) -> None:
        """Return once the view says that a guest is in that state."""
        path = self.mounted.path / name
        until(lambda: os.getxattr(path, "user.namefs.state") == state, SOON_S, f"{name} is {state!r}")

    def start_foo(
        self,
        besides: Stage | None = None,
        *,
        transient: bool = False,
        **options: Any,  # noqa: ANN401 - guests.xml's
    ) -> None:
        """Run foo on A, and wait for it to be shown ``besides`` those that are."""
        start_guest(self.hosts, "foo", FOO, transient=transient, **options)
        self.shows({**HERE, **(besides or {})})

    def migration(self, flags: int = 0, *, to: str = "b", **options: Any) -> Migration:  # noqa: ANN401
        """One of foo, to that connection; ``options`` are `Migration`'s."""
        source, target = (self.a, self.b) if to == "b" else (self.b, self.a)
        return Migration(source, target, self.hosts.sockets, "foo", flags, held=self._held, **options)

    def hold(self, host: Host, operation: str) -> Hold:
        """Have a hook hold up this operation on foo, at most until the next migration is to end."""
        self._held.append(Hold(host, "foo", operation, self.hosts.shared))
        return self._held[-1]

    def readers(self, *names: str, to: str | None = "b", target_name: str = "foo") -> Readers:
        """Readers of foo's names and of these, while it goes ``to`` that connection; None: to none."""
        watched = ("foo", "foo-incoming", "foo-outgoing", *names)
        target: tuple[str, ...] = ()
        if to is not None:
            host = self.b if to == "b" else self.a
            target = (os.fspath(status_file(host, target_name)), target_name, to)
        kinds = {"names": ("names", CONNECTION, *watched), "listing": ("listing", *target)}
        return Readers(self.mounted.path, kinds)


def possible(readers: Readers, stages: Sequence[Stage], must_see: Iterable[str] = ("foo",)) -> None:
    """What the readers saw is what one view can have shown that went through these stages.

    Whatever was long enough for it, ``must_see`` names, was seen by somebody.
    """
    for name in must_see:
        assert saw(readers.looks, name), f"nobody saw {name}"
    refused = contradiction(readers.looks, stages)
    assert refused is None, refused
