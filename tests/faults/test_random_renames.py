"""Ten thousand renames, swaps, kills and restarts at random: in the end all agree on each guest's name.

What is expected is a dictionary. A failing run is repeated, as far as the machine's own timing lets it
be, with the seed that it printed: ``NAMEFS_SEED=... NAMEFS_OPERATIONS=...``.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from namefs import journal
from namefs.errors import NamefsError
from namefs.model import Key
from namefs.shown import on_the_way
from tests.lab import guests
from tests.lab.names import (
    SOON_S,
    all_agree,
    ask,
    attribute,
    connected,
    in_journal,
    in_libvirt,
    in_view,
    metadata_follows,
    swap,
)
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Mapping

    import libvirt

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

OPERATIONS = int(os.environ.get("NAMEFS_OPERATIONS", "10000"))
COMPARED_EACH = 500
GUESTS = [UUID(int=number) for number in range(1, 9)]
POOL = [f"guest{number}" for number in range(14)]
RUN_MOST = 2

SHARES: Mapping[str, float] = {
    "rename": 52,
    "swap": 30,
    "rename_by_libvirt": 8,
    "rename_to_a_taken_name": 8,
    "start": 0.5,
    "stop": 0.5,
    "save": 0.1,
    "cancel": 0.5,
    "kill": 0.6,
    "restart": 0.1,
    "restart_libvirtd": 0.05,
}


class Expected:
    """What happens to eight guests, and what their names must be after it."""

    def __init__(self, host: Host, mounted: Mounted, seed: int) -> None:
        self.host, self.mounted = host, mounted
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.names = dict(zip(POOL, GUESTS, strict=False))
        self.running: set[UUID] = set()
        self.saved: set[UUID] = set()
        self.connection = host.connect()
        for name, uuid in self.names.items():
            self.connection.defineXML(guests.xml(name, uuid))
        self.is_shown()

    def close(self) -> None:
        self.connection.close()

    def is_shown(self) -> None:
        until(lambda: in_view(self.mounted) == self.names, SOON_S, f"the view has {self.names}")

    def domain(self, name: str) -> libvirt.virDomain:
        return self.connection.lookupByUUIDString(str(self.names[name]))

    def any_name(self) -> str:
        return self.random.choice(sorted(self.names))

    def free_name(self) -> str:
        return self.random.choice(sorted(set(POOL) - self.names.keys()))

    def any_of(self, uuids: set[UUID]) -> str | None:
        names = sorted(name for name, uuid in self.names.items() if uuid in uuids)
        return self.random.choice(names) if names else None

    def move(self, old: str, new: str) -> None:
        self.names[new] = self.names.pop(old)

    def step(self) -> None:
        (what,) = self.random.choices(list(SHARES), weights=list(SHARES.values()))
        if getattr(self, what)() is not False:
            self.done[what] += 1
            assert sorted(self.mounted.names()) == sorted(self.names), what

    def rename(self) -> bool:
        old, new = self.any_name(), self.free_name()
        try:
            os.rename(self.mounted.path / old, self.mounted.path / new)
        except FileExistsError:
            # Shown by nobody, but libvirt's of one whose own is yet to follow.
            return False
        self.move(old, new)
        return True

    def swap(self) -> None:
        one, other = self.random.sample(sorted(self.names), 2)
        swap(self.mounted.path / one, self.mounted.path / other)
        self.names[one], self.names[other] = self.names[other], self.names[one]

    def rename_to_a_taken_name(self) -> None:
        one, other = self.random.sample(sorted(self.names), 2)
        with pytest.raises(FileExistsError):
            os.rename(self.mounted.path / one, self.mounted.path / other)

    def rename_by_libvirt(self) -> bool:
        """Of one that is off and for which nothing is asked for: else it is open who comes last."""
        old, new = self.any_name(), self.free_name()
        if self.names[old] in self.running | self.saved or new in in_libvirt(self.connection):
            return False
        domain = self.domain(old)
        if domain.name() != old or self.is_asked_for(self.names[old]):
            return False
        domain.rename(new)
        self.move(old, new)
        until(lambda: sorted(self.mounted.names()) == sorted(self.names), SOON_S, f"{old} is {new}")
        return True

    def is_asked_for(self, uuid: UUID) -> bool:
        """Whether namefs has anything left to do for the guest's name, even if only to note the end."""
        asked = journal.read(os.fspath(self.mounted.journal)).asked.get(Key(uuid))
        return asked is not None and asked.name is not None

    def start(self) -> bool:
        name = self.any_of(set(GUESTS) - self.running)
        if name is None or len(self.running) >= RUN_MOST:
            return False
        uuid, domain = self.names[name], self.domain(name)
        domain.create()
        self.running.add(uuid)
        self.saved.discard(uuid)
        until(lambda: attribute(self.mounted, name, "state") == "running", SOON_S, f"{name} is shown running")
        return True

    def stop(self) -> bool:
        name = self.any_of(self.running)
        if name is None:
            return False
        self.running.remove(self.names[name])
        self.domain(name).destroy()
        return True

    def save(self) -> bool:
        name = self.any_of(self.running)
        if name is None:
            return False
        uuid = self.names[name]
        self.domain(name).managedSave()
        self.running.remove(uuid)
        self.saved.add(uuid)
        until(lambda: attribute(self.mounted, name, "state") == "shut off", SOON_S, f"{name} is shown off")
        return True

    def cancel(self) -> bool:
        name = self.any_of(self.running)
        if name is None:
            return False
        own = self.domain(name).name()
        # One that was started while it stood aside has no name to go back to.
        if own in (name, on_the_way(self.names[name])) or own in self.names:
            return False
        ask(self.mounted, op="rename", old=str(self.names[name]), cancel=True)
        self.move(name, own)
        return True

    def kill(self) -> None:
        """SIGKILL when a name was given and nothing else is done of it. Within it: `test_rename_killed`."""
        if self.random.random() < 0.5:
            self.swap()
        else:
            self.rename()
        self.mounted.kill()
        self.mounted.start()
        # What libvirt alone knows comes when it is asked again.
        until(lambda: connected(self.mounted), SOON_S, "libvirt is connected")
        self.is_shown()

    def restart(self) -> None:
        self.mounted.terminate()
        self.mounted.start()
        assert in_view(self.mounted) == self.names
        until(lambda: connected(self.mounted), SOON_S, "libvirt is connected")

    def restart_libvirtd(self) -> None:
        self.connection.close()
        self.host.restart_libvirtd()
        self.connection = self.host.connect()
        until(lambda: not self.is_away(), SOON_S, "libvirt is connected")

    def is_away(self) -> bool:
        try:
            ask(self.mounted, op="refresh")
        except NamefsError:
            return True
        return False

    def compare(self) -> None:
        """While guests run, libvirt's names can't all follow: the metadata says what is asked for."""
        self.is_shown()
        until(lambda: in_journal(self.mounted) == self.names, SOON_S, "the index has it")
        resting = {name: uuid for name, uuid in self.names.items() if uuid in self.running | self.saved}
        metadata_follows(self.mounted, self.connection, resting)


@pytest.mark.timeout(600)
def test_after_ten_thousand_of_them_all_agree(libvirt_host: Host, mounted: Mounted) -> None:
    seed = int(os.environ.get("NAMEFS_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"NAMEFS_SEED={seed}")
    with closing(Expected(libvirt_host, mounted, seed)) as expected:
        for number in range(OPERATIONS):
            expected.step()
            if number % COMPARED_EACH == 0:
                expected.compare()
        expected.compare()
        for name, uuid in expected.names.items():
            if uuid in expected.running:
                expected.domain(name).destroy()
            elif uuid in expected.saved:
                expected.domain(name).managedSaveRemove()
        all_agree(mounted, expected.connection, expected.names)
    print(dict(expected.done))
