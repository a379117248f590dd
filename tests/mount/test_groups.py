"""Groups through a mount: directories of which the kernel keeps entries too, and which come and go.

As with names (`test_invalidation`), what is withdrawn has its control: without the withdrawal the stale
answer is met.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import closing
from typing import TYPE_CHECKING
from uuid import UUID

import libvirt
import pytest

from tests.lab import altered, guests, readers
from tests.lab.histories import contradiction_between, saw
from tests.lab.nova import NAMESPACE
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.lab.histories import Stage
    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

A = UUID("00000000-0000-4000-8000-00000000000a")
B = UUID("00000000-0000-4000-8000-00000000000b")
SOON_S = 20.0

BY_PROJECT = 'group = "nova:project"'
BY_TEAM = """
group = "xpath:metadata/a:vm/@team"
[connection.namespaces]
a = "urn:a"
"""

TWICE = 2


@pytest.fixture
def connection(libvirt_host: Host) -> Iterator[libvirt.virConnect]:
    with closing(libvirt_host.connect()) as connection:
        yield connection


@pytest.fixture
def view(mount_namefs: Callable[..., Mounted]) -> Path:
    return mount_namefs(of_connection=BY_PROJECT).path


def instance(name: str, project: str) -> str:
    """What Nova writes into a definition, as far as it is read."""
    owner = f"<owner><project>{project}</project></owner>"
    return f"<instance xmlns='{NAMESPACE}'><name>{name}</name>{owner}</instance>"


def define(connection: libvirt.virConnect, uuid: UUID, name: str, project: str) -> libvirt.virDomain:
    """A server in a project."""
    return connection.defineXML(
        guests.xml(f"instance-{uuid.hex[-1]}", uuid, metadata=instance(name, project))
    )


def change(domain: libvirt.virDomain, name: str, project: str) -> None:
    """Nova writes another name, or another project."""
    element, config = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_CONFIG
    domain.setMetadata(element, instance(name, project), "nova", NAMESPACE, config)


def shown(path: Path) -> int | None:
    """The inode number that the view has at ``path``; None when it says ENOENT."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def kept(path: Path) -> int:
    """Have the kernel keep an entry, and those on the way to it; its inode number."""
    until(lambda: shown(path), SOON_S, f"{path.name} is in the view")
    return path.stat().st_ino


def rename_error(old: Path, new: Path) -> int | None:
    """The errno of rename(2); None for success."""
    try:
        old.rename(new)
    except OSError as error:
        return error.errno
    return None


def names(directory: Path) -> list[str]:
    return sorted(entry for entry in os.listdir(directory) if not entry.startswith("."))


def test_a_guest_that_changes_project_moves(view: Path, connection: libvirt.virConnect) -> None:
    domain = define(connection, A, "till", "sales")
    define(connection, B, "mail", "it")
    inode, other = kept(view / "sales/till"), kept(view / "it/mail")
    before = os.getcwd()
    os.chdir(view / "sales/till")
    try:
        change(domain, "till", "it")
        until(lambda: shown(view / "it/till") == inode, SOON_S, "it is in the other project")
        assert shown(view / "sales/till") is None
        assert os.stat(".").st_ino == inode, "who is in its directory stays in it"
        assert os.getcwd() == os.fspath(view / "it/till")
    finally:
        os.chdir(before)
    assert (names(view), names(view / "it")) == (["it"], ["mail", "till"])
    assert shown(view / "it/mail") == other


def test_without_withdrawal_a_guest_that_changes_project_stays(
    mount_namefs: Callable[..., Mounted], connection: libvirt.virConnect
) -> None:
    mounted = mount_namefs(of_connection=BY_PROJECT, command=altered.command(altered.without_withdrawal))
    domain = define(connection, A, "till", "sales")
    inode, group = kept(mounted.path / "sales/till"), kept(mounted.path / "sales")
    change(domain, "till", "it")
    for entry in ("till", "sales"):
        until(
            lambda entry=entry: f"{altered.NOT_WITHDRAWN}{entry}" in mounted.log,  # type: ignore[misc]
            SOON_S,
            f"{entry} would be withdrawn",
        )
    until(lambda: names(mounted.path) == ["it"], SOON_S, "the view has changed")
    assert shown(mounted.path / "sales") == group
    assert shown(mounted.path / "sales/till") == inode


def test_a_group_is_gone_with_its_last_guest_and_there_again_with_the_next(
    view: Path, connection: libvirt.virConnect
) -> None:
    first, second = define(connection, A, "till", "sales"), define(connection, B, "mail", "sales")
    group = kept(view / "sales")
    kept(view / "sales/till")
    kept(view / "sales/mail")
    first.undefine()
    until(lambda: shown(view / "sales/till") is None, SOON_S, "the first is gone")
    assert shown(view / "sales") == group
    with os.scandir(view / "sales") as listing:
        second.undefine()
        until(lambda: shown(view / "sales") is None, SOON_S, "the group is gone")
        assert [entry.name for entry in listing] == [], "who has it open finds nothing in it"
    assert names(view) == []

    define(connection, A, "till", "sales")
    until(lambda: shown(view / "sales/till"), SOON_S, "it is there again")
    assert shown(view / "sales") == group


def test_a_group_that_was_looked_for_in_vain_resolves_once_there_is_one(
    view: Path, connection: libvirt.virConnect
) -> None:
    for _ in range(TWICE):
        assert shown(view / "sales") is None
        assert shown(view / "sales/till") is None
    domain = define(connection, A, "till", "sales")
    until(lambda: shown(view / "sales/till"), SOON_S, "it is in its project")
    assert shown(view / "it/till") is None
    change(domain, "till", "it")
    until(lambda: shown(view / "it/till"), SOON_S, "it is in the other one")


def test_a_guest_that_had_a_name_first_keeps_it_from_a_group(
    view: Path, connection: libvirt.virConnect
) -> None:
    guest = connection.defineXML(guests.xml("sales", B))
    inode = kept(view / "sales")
    define(connection, A, "till", "sales")
    until(lambda: shown(view / "sales~00000000/till"), SOON_S, "the group is beside it")
    assert shown(view / "sales") == inode
    assert names(view) == ["sales", "sales~00000000"]
    assert names(view / "sales~00000000") == ["till"]
    guest.undefine()
    until(lambda: shown(view / "sales") is None, SOON_S, "the guest is gone, and nothing takes its place")
    assert shown(view / "sales~00000000/till")


def test_a_group_that_had_a_name_first_keeps_it_from_a_guest(
    view: Path, connection: libvirt.virConnect
) -> None:
    domain = define(connection, A, "till", "sales")
    group = kept(view / "sales")
    connection.defineXML(guests.xml("sales", B))
    until(lambda: shown(view / "sales~00000000"), SOON_S, "the guest is beside it")
    assert shown(view / "sales") == group
    assert os.getxattr(view / "sales~00000000", readers.UUID).decode() == str(B)
    assert names(view / "sales") == ["till"]

    change(domain, "till", "it")
    until(lambda: shown(view / "sales") is None, SOON_S, "the group is gone, and nothing takes its place")
    assert os.getxattr(view / "sales~00000000", readers.UUID).decode() == str(B)


def test_a_name_that_was_a_groups_leads_to_the_guest_that_gets_it(
    view: Path, connection: libvirt.virConnect
) -> None:
    """And to no directory of a group's that the kernel has kept."""
    domain = define(connection, A, "till", "sales")
    kept(view / "sales/till")
    change(domain, "till", "it")
    until(lambda: shown(view / "sales") is None, SOON_S, "the group is gone")
    connection.defineXML(guests.xml("sales", B))
    until(lambda: shown(view / "sales"), SOON_S, "the guest is there")
    assert os.getxattr(view / "sales", readers.UUID).decode() == str(B)


def test_a_group_is_no_guests_and_is_not_renamed(
    mount_namefs: Callable[..., Mounted], connection: libvirt.virConnect
) -> None:
    view = mount_namefs(of_connection=BY_TEAM).path
    team = "<a:vm xmlns:a='urn:a' team='{}'/>"
    connection.defineXML(guests.xml("till", A, metadata=team.format("sales")))
    connection.defineXML(guests.xml("mail", B, metadata=team.format("it")))
    inode = kept(view / "sales/till")
    kept(view / "it/mail")
    for old, new, code in [
        ("sales", "shop", errno.EPERM),
        ("sales/till", "it/till", errno.EXDEV),
        ("sales/till", "till", errno.EXDEV),
    ]:
        assert rename_error(view / old, view / new) == code, (old, new)
    os.rename(view / "sales/till", view / "sales/desk")
    assert (names(view), names(view / "sales"), names(view / "it")) == (["it", "sales"], ["desk"], ["mail"])
    assert shown(view / "sales/desk") == inode
    assert shown(view / "sales/till") is None


@pytest.mark.parametrize(
    ("namefs", "is_one_change"),
    [(altered.with_slow_forgetting, True), (altered.lost_before_found, False)],
    ids=["slow to forget", "lost before it is found"],
)
def test_a_guest_is_in_one_of_two_groups_at_every_moment_of_its_move(
    mount_namefs: Callable[..., Mounted],
    connection: libvirt.virConnect,
    namefs: Callable[[], None],
    is_one_change: bool,
) -> None:
    view = mount_namefs(of_connection=BY_PROJECT, command=altered.command(namefs)).path
    domain = define(connection, A, "till", "sales")
    stages: list[Stage] = [{"sales/till": str(A)}, {"it/till": str(A)}]
    inode = kept(view / "sales/till")
    names = ("sales/till", "it/till")
    kinds = {"names": ("names", readers.UUID, *names), "inodes": ("inodes", *names)}
    known = [(time.monotonic_ns(), stages[0])]
    with readers.Readers(view, kinds, {str(inode): str(A)}) as looking:
        for number, project in enumerate(["it", "sales", "it", "sales"], start=1):
            change(domain, "till", project)
            until(lambda project=project: shown(view / project / "till"), SOON_S, f"it is in {project}")  # type: ignore[misc]
            known.append((time.monotonic_ns(), stages[number % 2]))
            looking.look_again()
            known.append((time.monotonic_ns(), stages[number % 2]))
    assert all(saw(looking.looks, name) for name in names)
    refused = contradiction_between(looking.looks, known)
    assert (refused is None) == is_one_change, refused
