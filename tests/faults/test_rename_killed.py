"""namefs killed at any step of a rename or a swap: the old name or the new, and in the end all agree."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tests.lab import altered, guests
from tests.lab.lossy import lossy
from tests.lab.names import (
    SOON_S,
    all_agree,
    ask,
    asking,
    connected,
    in_journal,
    in_view,
    let_run,
    metadata_follows,
    swap,
)
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import libvirt

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

A = UUID("00000000-0000-4000-8000-00000000000a")
B = UUID("00000000-0000-4000-8000-00000000000b")

ASKED = [
    ("before save durably 1", False),
    ("before _write_one 1", False),
    ("after save durably 1", True),
    ("before withdraw 1", True),
    ("before set_asked 1", True),
    ("after set_asked 1", True),
]
"""Where it is killed while a name is asked for, and whether that counts from then on."""

FOLLOWED = [
    *("before rename 1", "after rename 1", "before rename 2", "after rename 2", "before rename 3"),
    *("after rename 3", "before set_asked 1", "after set_asked 1", "before set_asked 2", "after set_asked 2"),
]
"""Where it is killed while libvirt's names follow those of two guests that changed theirs: one steps aside,
the other gets its name, the first one the other's."""


@pytest.fixture
def connection(libvirt_host: Host) -> Iterator[libvirt.virConnect]:
    with closing(libvirt_host.connect()) as connection:
        yield connection


@pytest.fixture
def mounted(mount_namefs: Callable[..., Mounted]) -> Mounted:
    """namefs that can be killed at any step."""
    return mount_namefs(command=altered.command(altered.killed_at_a_step))


@pytest.fixture
def domains(connection: libvirt.virConnect, mounted: Mounted) -> dict[UUID, libvirt.virDomain]:
    """Two guests that are off: ``web`` and ``shop``."""
    domains = {A: connection.defineXML(guests.xml("web", A)), B: connection.defineXML(guests.xml("shop", B))}
    until(lambda: in_view(mounted) == {"web": A, "shop": B}, SOON_S, "both are shown")
    return domains


class Fatal:
    """While this is entered the daemon is killed at a step; at the end it has been, and runs again."""

    def __init__(self, mounted: Mounted, where: str) -> None:
        self._mounted = mounted
        self._where = where
        self._file = mounted.config.parent / altered.FATAL

    def __enter__(self) -> None:
        until(lambda: connected(self._mounted), SOON_S, "libvirt is connected")
        draft = self._file.with_suffix(".draft")
        draft.write_text(self._where)
        draft.rename(self._file)

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is None:
            assert self._mounted.ended() == -9, self._where
            self._file.unlink()
            self._mounted.start()


def test_a_rename_of_a_running_guest_happened_or_did_not(
    mounted: Mounted, connection: libvirt.virConnect, domains: dict[UUID, libvirt.virDomain]
) -> None:
    let_run(mounted, domains[A])
    old = "web"
    for number, (where, counts) in enumerate(ASKED):
        new = f"web{number}"
        with Fatal(mounted, where):
            asking(os.rename, mounted.path / old, mounted.path / new)
        now = new if counts else old
        assert in_view(mounted) == in_journal(mounted) == {now: A, "shop": B}, where
        metadata_follows(mounted, connection, {now: A, "shop": B})
        old = now
    domains[A].destroy()
    all_agree(mounted, connection, {old: A, "shop": B})


@pytest.mark.parametrize("running", [(A,), (A, B)], ids=["one-runs", "both-run"])
def test_a_swap_happened_or_did_not(
    mounted: Mounted,
    connection: libvirt.virConnect,
    domains: dict[UUID, libvirt.virDomain],
    running: tuple[UUID, ...],
) -> None:
    let_run(mounted, *(domains[uuid] for uuid in running))
    names = {"web": A, "shop": B}
    for where, counts in [*ASKED, ("before _write_one 2", False), ("before set_asked 2", True)]:
        with Fatal(mounted, where):
            asking(swap, mounted.path / "web", mounted.path / "shop")
        if counts:
            names = {"web": names["shop"], "shop": names["web"]}
        assert in_view(mounted) == in_journal(mounted) == names, where
        metadata_follows(mounted, connection, names)
    for uuid in running:
        domains[uuid].destroy()
    all_agree(mounted, connection, names)


def test_libvirts_names_follow_a_swap_whatever_was_done_of_it(
    mounted: Mounted, connection: libvirt.virConnect, domains: dict[UUID, libvirt.virDomain]
) -> None:
    names = {"web": A, "shop": B}
    for where in FOLLOWED:
        with Fatal(mounted, where):
            asking(swap, mounted.path / "web", mounted.path / "shop")
        names = {"web": names["shop"], "shop": names["web"]}
        assert in_view(mounted) == names, where
        all_agree(mounted, connection, names)


@pytest.mark.parametrize("where", ["before rename 1", "after rename 1", "after set_asked 1"])
def test_libvirts_name_follows_a_guest_that_stopped_whatever_was_done_of_it(
    mounted: Mounted, connection: libvirt.virConnect, domains: dict[UUID, libvirt.virDomain], where: str
) -> None:
    let_run(mounted, domains[A])
    os.rename(mounted.path / "web", mounted.path / "till")
    metadata_follows(mounted, connection, {"till": A, "shop": B})
    with Fatal(mounted, where):
        domains[A].destroy()
    assert in_view(mounted) == {"till": A, "shop": B}
    all_agree(mounted, connection, {"till": A, "shop": B})


@pytest.fixture
def disk(mounted: Mounted, tmp_path: Path) -> Iterator[Path]:
    """What is on the disk of the index, which is moved to a directory where that is known."""
    mounted.terminate()
    with lossy(tmp_path) as (directory, on_disk):
        moved = directory / mounted.journal.name
        text = mounted.config.read_text()
        assert text.count(os.fspath(mounted.journal)) == 1
        mounted.config.write_text(text.replace(os.fspath(mounted.journal), os.fspath(moved)))
        mounted.journal = moved
        mounted.start()
        yield on_disk
        mounted.terminate()


def test_what_was_acknowledged_is_there_after_a_power_cut(
    mounted: Mounted,
    disk: Path,
    libvirt_host: Host,
    connection: libvirt.virConnect,
    domains: dict[UUID, libvirt.virDomain],
    tmp_path: Path,
) -> None:
    let_run(mounted, domains[A])
    ask(mounted, op="refresh")
    # Frozen, so that no metadata and nothing that comes with it saves the index once more.
    libvirt_host.freeze_libvirtd()
    for number, swapped in enumerate((False, True)):
        if swapped:
            swap(mounted.path / "till", mounted.path / "shop")
            names = {"till": B, "shop": A}
        else:
            os.rename(mounted.path / "web", mounted.path / "till")
            names = {"till": A, "shop": B}
        kept = shutil.copytree(disk, tmp_path / f"kept{number}")
        assert in_journal(mounted, kept / mounted.journal.name) == names
    mounted.kill()
    for file in disk.parent.joinpath("written").iterdir():
        file.unlink()
    for file in (file for file in kept.iterdir() if file.suffix != ".sqlite-shm"):
        shutil.copyfile(file, mounted.journal.parent / file.name)
    mounted.start()
    assert in_view(mounted) == names
    libvirt_host.thaw_libvirtd()
    until(lambda: connected(mounted), SOON_S, "libvirt is connected")
    domains[A].destroy()
    all_agree(mounted, connection, names)


def test_a_power_cut_takes_back_what_is_only_libvirts_until_libvirt_is_asked_again(
    mounted: Mounted, disk: Path, domains: dict[UUID, libvirt.virDomain]
) -> None:
    os.rename(mounted.path / "web", mounted.path / "till")
    domains[A].rename("shed")
    until(lambda: in_view(mounted) == {"shed": A, "shop": B}, SOON_S, "the view shows libvirt's name")
    assert in_journal(mounted) == {"shed": A, "shop": B}
    # Nobody saved it durably, and so this disk loses it: one that lost nothing would prove nothing above.
    assert "shed" not in in_journal(mounted, disk / mounted.journal.name)
