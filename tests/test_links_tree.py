"""The tree of symlinks as files: what is namefs's comes and goes, what is somebody's stays."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from namefs.errors import ExitCode, NamefsError
from namefs.links import owned, tree
from namefs.links.tree import Writer
from namefs.links.wanted import Tree

if TYPE_CHECKING:
    from pathlib import Path

LOG = {b"log/qemu.log": b"/logs/a"}
A, B = "a", "b"


def write(directory: Path, **guests: tuple[bytes, dict[bytes, bytes]]) -> int:
    return Writer(os.fspath(directory)).write({guest: Tree(*wanted) for guest, wanted in guests.items()})


def shown(directory: Path) -> dict[str, str | None]:
    """Each path and, of a symlink, its target; without namefs's marks."""
    return {
        os.fspath(path.relative_to(directory)): os.readlink(path) if path.is_symlink() else None
        for path in directory.rglob("*")
        if path.name != owned.MARKER.decode()
    }


def test_the_tree_becomes_what_is_wanted_and_a_second_time_nothing_changes(tmp_path: Path) -> None:
    links = {b"config.xml": b"/etc/a.xml", **LOG}
    assert write(tmp_path, a=(b"web", links)) > 0
    assert shown(tmp_path) == {
        "web": None,
        "web/config.xml": "/etc/a.xml",
        "web/log": None,
        "web/log/qemu.log": "/logs/a",
    }
    assert write(tmp_path, a=(b"web", links)) == 0
    assert write(tmp_path, a=(b"web", {b"config.xml": b"/etc/b.xml"})) > 0
    assert shown(tmp_path) == {"web": None, "web/config.xml": "/etc/b.xml"}
    write(tmp_path)
    assert shown(tmp_path) == {}


def test_a_guest_that_is_renamed_or_swapped_takes_its_directory_and_what_was_put_there_along(
    tmp_path: Path,
) -> None:
    write(tmp_path, a=(b"web", LOG), b=(b"db", {}))
    (tmp_path / "web/notes").write_text("mine")
    inodes = {name: (tmp_path / name).stat().st_ino for name in ("web", "db")}
    write(tmp_path, a=(b"db", LOG), b=(b"web", {}))
    assert {name: (tmp_path / name).stat().st_ino for name in ("db", "web")} == {
        "db": inodes["web"],
        "web": inodes["db"],
    }
    assert (tmp_path / "db/notes").read_text() == "mine"
    assert write(tmp_path, a=(b"shop/db", LOG), b=(b"web", {})) > 0
    assert (tmp_path / "shop/db").stat().st_ino == inodes["web"]


def test_where_the_file_system_has_no_exchange_a_swap_takes_three_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, a=(b"web", LOG), b=(b"db", {}))
    monkeypatch.setattr(tree, "_RENAME_EXCHANGE", 1 << 30)  # the kernel: EINVAL
    write(tmp_path, a=(b"db", LOG), b=(b"web", {}))
    assert shown(tmp_path) == {"web": None, "db": None, "db/log": None, "db/log/qemu.log": "/logs/a"}


@pytest.mark.parametrize("others", ["file", "link", "directory"])
def test_what_somebody_put_into_a_guests_directory_stays_when_the_guest_goes(
    tmp_path: Path, others: str
) -> None:
    write(tmp_path, a=(b"web", LOG), b=(b"db", LOG))
    mine = tmp_path / "web/log/mine"
    match others:
        case "file":
            mine.write_text("mine")
        case "link":
            mine.symlink_to("/logs/mine")
        case _:
            mine.mkdir()
    write(tmp_path, a=(b"web", LOG), b=(b"db", LOG))
    assert os.path.lexists(mine)
    write(tmp_path, b=(b"db", LOG))
    assert os.path.lexists(mine)
    assert not os.path.lexists(tmp_path / "web/log/qemu.log"), "what is namefs's goes"
    assert write(tmp_path, b=(b"db", LOG)) == 0


@pytest.mark.parametrize("at", ["web", "web/log", "web/log/qemu.log", "shop"])
@pytest.mark.parametrize("others", ["file", "link"])
def test_what_is_in_the_way_is_told_and_left_alone_while_all_else_is_made(
    tmp_path: Path, at: str, others: str
) -> None:
    root, elsewhere = tmp_path / "tree", tmp_path / "elsewhere"
    elsewhere.mkdir()
    write(root, **({A: (b"web", {b"x": b"/x"})} if at != "web" else {}))
    mine = root / at
    mine.parent.mkdir(exist_ok=True)
    if others == "file":
        mine.write_text("mine")
    else:
        mine.symlink_to(elsewhere)
    with pytest.raises(NamefsError, match=f"{at}.*in the way") as failed:
        write(root, a=(b"web", LOG), b=(b"shop/db", LOG), c=(b"cache", LOG))
    assert failed.value.exit_code is ExitCode.FILE_FAILED
    assert os.readlink(root / "cache/log/qemu.log") == "/logs/a"
    assert mine.read_text() == "mine" if others == "file" else os.readlink(mine) == os.fspath(elsewhere)
    assert not list(elsewhere.iterdir()), "nothing is written through somebody's link"


def test_groups_come_and_go_with_their_guests_and_with_a_guest_of_the_groups_name(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    root = tmp_path / "t"
    write(root, a=(b"shop", LOG))
    write(root, a=(b"shop/web", LOG), b=(b"shop/db", {}))
    assert set(shown(root)) == {"shop", "shop/web", "shop/web/log", "shop/web/log/qemu.log", "shop/db"}
    write(root, a=(b"shop", LOG))
    assert set(shown(root)) == {"shop", "shop/log", "shop/log/qemu.log"}
    (root / "empty").mkdir()
    write(root)
    assert set(shown(root)) == {"empty"}, "a directory of somebody's is no group of namefs's"


def test_a_copy_that_somebody_made_of_a_directory_is_theirs(tmp_path: Path) -> None:
    write(tmp_path, a=(b"web", LOG))
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / owned.MARKER.decode()).write_bytes((tmp_path / "web" / owned.MARKER.decode()).read_bytes())
    assert write(tmp_path, a=(b"web", LOG)) == 0
    assert copy.is_dir()


class Killed(Exception):
    """In place of SIGKILL."""


def test_killed_before_any_step_the_next_run_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"a": (b"web", LOG), "b": (b"db", {b"x": b"/x"}), "c": (b"old/c", LOG)}
    after = {"a": (b"db", {b"y": b"/y"}), "b": (b"web", {b"x": b"/z"}), "d": (b"new/d", LOG)}
    write(tmp_path / "whole", **after)
    expected = shown(tmp_path / "whole")
    left = 0

    def counted(call: object) -> object:
        def counting(*arguments: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return call(*arguments)  # type: ignore[operator]

        return counting

    step = 0
    while True:
        root = tmp_path / str(step)
        write(root, **before)
        with monkeypatch.context() as patched:
            left = step
            for name in ("rename", "mkdir", "rmdir", "symlink", "unlink"):
                patched.setattr(os, name, counted(getattr(os, name)))
            try:
                write(root, **after)
                break
            except Killed:
                pass
        write(root, **after)
        assert shown(root) == expected, f"killed before step {step}"
        step += 1
    assert step > 10
