"""What of a record of the hook is whole."""

from __future__ import annotations

import contextlib
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from namefs.sources.hook import HookCall, Incomplete, parse

WEB = UUID("4dea22b3-1d52-d8f3-2516-782e98ab3fa0")


def written(pid: int, name: bytes, operation: str = "start") -> bytes:
    return b"namefs 1 %d %d\n%b\nbegin\n-\n%b\n%b\n%d\n" % (
        pid,
        len(name),
        operation.encode(),
        str(WEB).encode(),
        name,
        pid,
    )


names = st.lists(st.integers(1, 255), min_size=1, max_size=247).map(bytes)
pids = st.integers(1, 1 << 22)


@given(pids, names, st.data())
def test_a_record_cut_anywhere_is_incomplete(pid: int, name: bytes, data: st.DataObject) -> None:
    record = written(pid, name)
    with pytest.raises(Incomplete):
        parse(record[: data.draw(st.integers(0, len(record) - 1))])


@given(pids, names, names, pids, st.data())
def test_one_record_partly_over_another_is_one_of_them_or_incomplete(
    pid: int, name: bytes, old_name: bytes, old_pid: int, data: st.DataObject
) -> None:
    if old_pid == pid:
        old_pid += 1
    old, new = written(old_pid, old_name), written(pid, name)
    cut = data.draw(st.integers(0, len(new)))
    with contextlib.suppress(Incomplete):
        assert parse(new[:cut] + old[cut:]) in (parse(old), parse(new))


@given(st.binary(max_size=400))
def test_garbage_is_incomplete(garbage: bytes) -> None:
    with pytest.raises(Incomplete):
        parse(garbage)


@pytest.mark.parametrize(
    ("what", "instead"),
    [
        (b"namefs 1", b"namefs 2"),
        (b" 3\n", b" 2\n"),
        (b" 3\n", b" 9999999999\n"),
        (b"start", b"Start"),
        (b"4dea22b3-", b"4dea22b3"),
        (b"\n7\n", b"\n8\n"),
    ],
)
def test_a_record_with_one_thing_wrong_is_incomplete(what: bytes, instead: bytes) -> None:
    record = written(7, b"web")
    assert parse(record) == HookCall("start", "begin", "-", WEB, "web")
    with pytest.raises(Incomplete):
        parse(record.replace(what, instead))
