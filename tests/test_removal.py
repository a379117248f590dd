"""A file goes only while nobody can write to it, and comes back where somebody was about to."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from namefs.removal import put_back, remove_unwritten
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "web.log").write_text("lines\n")
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_a_file_that_is_read_goes(directory: int, tmp_path: Path) -> None:
    with (tmp_path / "web.log").open() as reader:
        assert remove_unwritten(directory, [b"web.log"], lambda: True)
        assert reader.read() == "lines\n"
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_open_for_writing_stays_and_nobody_is_asked(directory: int, tmp_path: Path) -> None:
    with (tmp_path / "web.log").open("a") as writer:
        assert not remove_unwritten(directory, [b"web.log"], lambda: pytest.fail("asked"))
        writer.write("more\n")
    assert (tmp_path / "web.log").read_text() == "lines\nmore\n"


def test_all_stay_if_one_may_not_go(directory: int, tmp_path: Path) -> None:
    (tmp_path / "web.log.0").write_text("older\n")
    assert not remove_unwritten(directory, [b"web.log", b"web.log.0"], lambda: False)
    assert sorted(os.listdir(tmp_path)) == ["web.log", "web.log.0"]


def test_who_comes_meanwhile_to_write_finds_it_where_it_was(directory: int, tmp_path: Path) -> None:
    inode = (tmp_path / "web.log").stat().st_ino

    def write() -> None:
        # Waits in open(2) for the lease to end.
        with (tmp_path / "web.log").open("a") as writer:
            writer.write("of the next guest\n")

    def is_waited_for() -> bool:
        locks = Path("/proc/locks").read_text().splitlines()
        return any("BREAKING" in line and f":{inode} " in line for line in locks)

    def somebody_comes() -> bool:
        thread.start()
        return until(is_waited_for, 20, "somebody wants to write")

    thread = threading.Thread(target=write)
    assert not remove_unwritten(directory, [b"web.log"], somebody_comes)
    thread.join()
    assert (tmp_path / "web.log").read_text() == "lines\nof the next guest\n"
    assert os.listdir(tmp_path) == ["web.log"]


def test_what_a_kill_left_aside_is_put_back(directory: int, tmp_path: Path) -> None:
    (tmp_path / "web.log").rename(tmp_path / ".web.log.namefs-removes")
    put_back(directory)
    assert (tmp_path / "web.log").read_text() == "lines\n"
    assert os.listdir(tmp_path) == ["web.log"]
