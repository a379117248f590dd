"""Two guests change names, and one gets another, before readers that never stop looking.

Each name is one guest's at every moment, in whatever way it is asked whose, and a listing holds each guest
once: through the mount, by command and by libvirt, and however long the kernel takes to forget a name.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tests.lab import altered, guests, readers
from tests.lab.histories import contradiction_between, saw
from tests.lab.mounted import NAMEFS, PROJECT
from tests.lab.names import in_libvirt
from tests.lab.names import swap as swap_names
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    import libvirt

    from tests.lab.histories import Stage
    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

A = UUID("00000000-0000-4000-8000-00000000000a")
B = UUID("00000000-0000-4000-8000-00000000000b")
SOON_S = 30.0
NOT_STUCK_S = 1.5

SLOWLY = altered.command(altered.with_slow_forgetting)

SWAPS: list[Stage] = [{"web": str(A), "shop": str(B)}, {"web": str(B), "shop": str(A)}]
RENAMES: list[Stage] = [{"web": str(A)}, {"shop": str(A)}]


@pytest.fixture
def connection(libvirt_host: Host) -> Iterator[libvirt.virConnect]:
    with closing(libvirt_host.connect()) as connection:
        yield connection


class Watched:
    """A view, the readers that look at it, and at which stage it is known to have been at which moments."""

    def __init__(self, mounted: Mounted, connection: libvirt.virConnect, stages: Sequence[Stage]) -> None:
        self.mounted, self.connection = mounted, connection
        self.stages = stages
        self.domains: dict[UUID, libvirt.virDomain] = {}
        self.took_s: list[float] = []
        """How long each change took."""
        self._known: list[tuple[int, Stage]] = []
        self._readers: readers.Readers | None = None

    def start_guests(self, running: Collection[UUID] = ()) -> None:
        """Have those of the first stage, and wait until the view shows them as they are."""
        for name, who in self.stages[0].items():
            uuid = UUID(who)
            self.domains[uuid] = self.connection.defineXML(guests.xml(name, uuid))
            if uuid in running:
                self.domains[uuid].create()
            state = b"running" if uuid in running else b"shut off"
            until(lambda name=name, state=state: self._state(name) == state, SOON_S, f"{name} is shown")  # type: ignore[misc]

    def _state(self, name: str) -> bytes | None:
        try:
            return os.getxattr(self.mounted.path / name, "user.namefs.state")
        except FileNotFoundError:
            return None

    def spinning(self, *files: str, listing: bool = True) -> readers.Readers:
        """The readers; ``files`` are those that tell whose a directory is.

        Without a ``listing``, from which the kernel learns of new names, it knows only what it is told.
        """
        stage = self.stages[0]
        inodes = {str((self.mounted.path / name).stat().st_ino): who for name, who in stage.items()}
        names = sorted({name for stage in self.stages for name in stage})
        kinds = {
            "names": ("names", readers.UUID, *names),
            "inodes": ("inodes", *names),
            "files": ("files", ",".join(files), *names),
        }
        if listing:
            kinds["whole"] = ("whole",)
        self._known = [(time.monotonic_ns(), stage)]
        self._readers = readers.Readers(self.mounted.path, kinds, inodes)
        return self._readers

    def goes_to_and_fro(self, change: Callable[[Watched, Stage, Stage], None], times: int) -> None:
        """Have ``change`` lead from each stage to the next, and note when it has."""
        assert self._readers is not None
        for number in range(times):
            before, after = self.stages[number % 2], self.stages[1 - number % 2]
            start_s = time.monotonic()
            change(self, before, after)
            self.took_s.append(time.monotonic() - start_s)
            self._known.append((time.monotonic_ns(), after))
            self._readers.look_again()
            self._known.append((time.monotonic_ns(), after))
            if number % 5 == 0:
                self.libvirt_follows(after)
                self._known.append((time.monotonic_ns(), after))

    def libvirt_follows(self, stage: Stage) -> None:
        """Return once libvirt's own names of guests that are off are those of the stage: of two that change
        names, one has a third meanwhile."""
        off = {uuid for uuid, domain in self.domains.items() if not domain.isActive()}

        def done() -> bool:
            names = in_libvirt(self.connection)
            return len(off) < len(stage) or all(names.get(name) == UUID(who) for name, who in stage.items())

        until(done, SOON_S, f"libvirt has {stage}")

    def contradiction(self) -> str | None:
        """What no view can have shown that was at those stages then."""
        assert self._readers is not None
        looks = self._readers.looks
        for name in {*self.stages[0], *self.stages[1]}:
            assert saw(looks, name), f"nobody saw {name}"
        return contradiction_between(looks, self._known)


def exchange(watched: Watched, before: Stage, _after: Stage) -> None:
    """renameat2(2) with RENAME_EXCHANGE, on the mount."""
    one, other = before
    swap_names(watched.mounted.path / one, watched.mounted.path / other)


def command(watched: Watched, before: Stage, after: Stage) -> None:
    """``namefs rename``, with ``--swap`` of two."""
    words = ["--swap", *before] if len(before) == 2 else [*before, *after]
    subprocess.run(
        [sys.executable, "-m", "namefs", "rename", "--config", os.fspath(watched.mounted.config), *words],
        cwd="/",
        env={**os.environ, "PYTHONPATH": os.fspath(PROJECT)},
        check=True,
    )


def move(watched: Watched, before: Stage, after: Stage) -> None:
    """rename(2), on the mount."""
    (old,), (new,) = before, after
    os.rename(watched.mounted.path / old, watched.mounted.path / new)


def by_libvirt(watched: Watched, _before: Stage, after: Stage) -> None:
    """``virsh domrename``: the view follows."""
    ((new, who),) = after.items()
    watched.domains[UUID(who)].rename(new)
    until(lambda: watched.mounted.names() == [new], SOON_S, f"the view has {new}")


@pytest.mark.parametrize("running", [(), (A,), (A, B)], ids=["both off", "one runs", "both run"])
@pytest.mark.parametrize(("swap", "times"), [(exchange, 40), (command, 10)], ids=["exchange", "command"])
def test_each_name_is_one_guests_at_every_moment_of_a_swap(
    mounted: Mounted,
    connection: libvirt.virConnect,
    swap: Callable[[Watched, Stage, Stage], None],
    times: int,
    running: tuple[UUID, ...],
) -> None:
    watched = Watched(mounted, connection, SWAPS)
    watched.start_guests(running)
    logs = ("log/qemu.log",) if len(running) == 2 else ()
    with watched.spinning("config.xml", *logs):
        watched.goes_to_and_fro(swap, times)
    refused = watched.contradiction()
    assert refused is None, refused
    # Of those through the mount each took 1.8 s, while namefs waited for a kernel that waited for it.
    assert statistics.median(watched.took_s) < NOT_STUCK_S


@pytest.mark.parametrize("swap", [exchange, command])
def test_a_swap_is_seen_at_once_however_long_the_kernel_takes_to_forget(
    mount_namefs: Callable[..., Mounted],
    connection: libvirt.virConnect,
    swap: Callable[[Watched, Stage, Stage], None],
) -> None:
    watched = Watched(mount_namefs(command=SLOWLY), connection, SWAPS)
    watched.start_guests()
    with watched.spinning("config.xml", listing=False):
        watched.goes_to_and_fro(swap, 6)
    refused = watched.contradiction()
    assert refused is None, refused


@pytest.mark.parametrize(
    "change", [altered.without_withdrawal, altered.answered_before_forgotten, altered.in_two_transactions]
)
def test_readers_notice_a_swap_that_is_not_one_change(
    mount_namefs: Callable[..., Mounted], connection: libvirt.virConnect, change: Callable[[], None]
) -> None:
    watched = Watched(mount_namefs(command=altered.command(change)), connection, SWAPS)
    watched.start_guests((A, B))
    with watched.spinning("config.xml", listing=False):
        watched.goes_to_and_fro(command, 3)
    assert watched.contradiction() is not None


@pytest.mark.parametrize("namefs", [NAMEFS, SLOWLY], ids=["", "slow to forget"])
@pytest.mark.parametrize(
    ("rename", "times", "running"),
    [(move, 20, ()), (move, 20, (A,)), (command, 6, ()), (command, 6, (A,)), (by_libvirt, 20, ())],
    ids=["mv, off", "mv, running", "command, off", "command, running", "domrename"],
)
def test_a_guest_has_one_of_two_names_at_every_moment_of_a_rename(
    mount_namefs: Callable[..., Mounted],
    connection: libvirt.virConnect,
    namefs: tuple[str, ...],
    rename: Callable[[Watched, Stage, Stage], None],
    times: int,
    running: tuple[UUID, ...],
) -> None:
    watched = Watched(mount_namefs(command=namefs), connection, RENAMES)
    watched.start_guests(running)
    with watched.spinning("config.xml"):
        watched.goes_to_and_fro(rename, times)
    refused = watched.contradiction()
    assert refused is None, refused


def test_readers_notice_a_rename_that_is_not_one_change(
    mount_namefs: Callable[..., Mounted], connection: libvirt.virConnect
) -> None:
    watched = Watched(mount_namefs(command=altered.command(altered.lost_before_found)), connection, RENAMES)
    watched.start_guests()
    with watched.spinning("config.xml"):
        watched.goes_to_and_fro(by_libvirt, 6)
    assert watched.contradiction() is not None
