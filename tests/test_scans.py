"""A log that grows is searched piece by piece, and what is found is what searching the whole finds."""

from __future__ import annotations

import os
import tempfile
import time
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from namefs import logs, scans
from namefs.scans import Scans

if TYPE_CHECKING:
    from pathlib import Path

START = b"2026-11-24 06:00:00.%03d+0000: starting up libvirt version: 9.0.0\n"
MARKED = b"-uuid 00000000-0000-4000-8000-%012x \\\n"
UUID_1 = UUID("00000000-0000-4000-8000-000000000001")
UUID_2 = UUID("00000000-0000-4000-8000-000000000002")

lines = st.one_of(
    st.integers(0, 999).map(lambda number: START % number),
    st.integers(0, 9).map(lambda number: MARKED % number),
    # The rest of a line, or one that has no end yet.
    st.just((START % 0)[:30]),
    st.integers(0, 600).map(lambda size: b"x" * size + b"\n"),
    st.integers(0, 600).map(lambda size: b"y" * size),
)


def found_in(found: Scans, fd: int) -> list[logs.Start]:
    # Opened anew: the search moves the position of its descriptor, at which the test goes on writing.
    with open(f"/proc/self/fd/{fd}", "rb", buffering=0) as log:
        return list(found.starts(log.fileno(), os.fstat(fd)))


@given(pieces=st.lists(st.lists(lines, max_size=6).map(b"".join), max_size=8))
def test_what_is_found_bit_by_bit_is_what_is_found_at_once(pieces: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryFile(buffering=0) as log:
        patch.setattr(scans, "_PIECE_BYTES", 2048)
        patch.setattr(scans, "_COMMAND_BYTES", 1024)
        found, whole = Scans(), b""
        for piece in pieces:
            log.write(piece)
            whole += piece
            ours, wanted = found_in(found, log.fileno()), logs.starts(whole)
            assert [start.offset for start in ours] == [start.offset for start in wanted]
            for our, start in zip(ours, wanted, strict=True):
                # A -uuid that comes later than a command line is long is none of libvirt's.
                late = whole.find(b"\n-uuid", start.offset) > start.offset + 1024 - len(MARKED)
                assert our == start or late


def test_a_log_that_was_cut_short_and_written_anew_beyond_its_size_is_searched_again() -> None:
    with tempfile.TemporaryFile(buffering=0) as log:
        found = Scans()
        log.write(START % 1 + MARKED % 1)
        assert [start.uuid for start in found_in(found, log.fileno())] == [UUID_1]
        log.seek(0)
        log.truncate()
        log.write(b"a line\n" + START % 2 + MARKED % 2 + b"more\n")
        assert found_in(found, log.fileno()) == [logs.Start(7, UUID_2)]


def test_a_log_without_a_start_that_was_written_anew_is_searched_again() -> None:
    with tempfile.TemporaryFile(buffering=0) as log:
        found = Scans()
        log.write(b"no start\n" * 3)
        assert found_in(found, log.fileno()) == []
        log.seek(0)
        log.truncate()
        log.write(START % 2 + MARKED % 2)
        assert found_in(found, log.fileno()) == [logs.Start(0, UUID_2)]


def test_a_hole_is_not_read() -> None:
    with tempfile.TemporaryFile(buffering=0) as log:
        hole_bytes = 1 << 36
        os.truncate(log.fileno(), hole_bytes)
        os.pwrite(log.fileno(), b"\n" + START % 1 + MARKED % 1, hole_bytes)
        began = time.monotonic()
        assert found_in(Scans(), log.fileno()) == [logs.Start(hole_bytes + 1, UUID_1)]
        assert time.monotonic() - began < 2


def test_a_file_that_has_been_searched_is_known_until_it_grows() -> None:
    with tempfile.TemporaryFile(buffering=0) as log:
        found = Scans()
        assert found.known(os.fstat(log.fileno())) is None
        log.write(START % 1)
        assert found_in(found, log.fileno()) == [logs.Start(0, None)]
        assert found.known(os.fstat(log.fileno())) == (logs.Start(0, None),)
        log.write(MARKED % 1)
        assert found.known(os.fstat(log.fileno())) is None
        assert found_in(found, log.fileno()) == [logs.Start(0, UUID_1)]


def test_a_new_file_with_the_inode_and_the_size_of_one_that_went_is_searched_anew(tmp_path: Path) -> None:
    found = Scans()
    path = tmp_path / "log"
    path.write_bytes(START % 0 + b"-uuid 1b4e28ba-2fa1-11d2-883f-b9a761bde3fb\n")
    with path.open("r+b") as log:
        before = found.starts(log.fileno(), os.fstat(log.fileno()))
        # Written over, as nobody can ask for a certain inode.
        log.write(
            (START % 0).replace(b"06:00:00", b"06:00:01") + b"-uuid 6ac0e4f5-4b35-4d1c-9b0e-2d9a30bb7a54\n"
        )
        log.flush()
        os.utime(log.fileno(), ns=(1, 1))
        info = os.fstat(log.fileno())
        assert found.known(info) is None
        after = found.starts(log.fileno(), info)
    assert len(before) == len(after) == 1
    assert before[0].uuid != after[0].uuid
