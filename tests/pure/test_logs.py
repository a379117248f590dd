"""Whose lines a log holds: against a model that says of each byte whose it is."""

from __future__ import annotations

import itertools
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from namefs.logs import Extent, Start, by_marks, head_owner, length, locate, owned, starts
from namefs.model import Former, Key, Mark

A = UUID("1b4e28ba-2fa1-11d2-883f-b9a761bde3fb")
B = UUID("6ac0e4f5-4b35-4d1c-9b0e-2d9a30bb7a54")
C = UUID("00000000-0000-4000-8000-00000000000c")
OWNERS = [A, B, C]
MARK_OF_ANOTHER_FILE = Mark(1, 99, 1)

# As long as a model byte by byte takes no time.
SIZE = 60

# A call takes microseconds; what a deadline would measure is how busy the machine is.
untimed = settings(deadline=None)


def run(uuid: UUID, name: str = "web", lines: str = "") -> bytes:
    """What libvirt 9.0.0 and QEMU write to a log from a start to the stop after it, shortened."""
    return (
        "2026-11-24 05:41:07.377+0000: starting up libvirt version: 9.0.0, package: 9.0.0-4+deb12u2 "
        "(Debian), qemu version: 7.2.17Debian 1:7.2+dfsg-7+deb12u13, kernel: 6.1.0-28, hostname: host\n"
        "LC_ALL=C \\\n"
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \\\n"
        f"HOME=/var/lib/libvirt/qemu/domain-1-{name[:20]} \\\n"
        "/usr/bin/qemu-system-x86_64 \\\n"
        f"-name guest={name},debug-threads=on \\\n"
        "-S \\\n"
        "-m 64 \\\n"
        f"-uuid {uuid} \\\n"
        "-no-user-config \\\n"
        "-msg timestamp=on\n"
        f"{lines}"
        "2026-11-24T05:42:00.123456Z qemu-system-x86_64: terminating on signal 15 from pid 7 (libvirtd)\n"
        "2026-11-24 05:42:00.330+0000: shutting down, reason=destroyed\n"
    ).encode()


def with_offsets(*runs: bytes) -> tuple[bytes, list[int]]:
    offsets = [sum(map(len, runs[:number])) for number in range(len(runs))]
    return b"".join(runs), offsets


def bytes_of(extents: tuple[Extent, ...], size: int = SIZE) -> list[int]:
    return [at for begin, end in extents for at in range(begin, size if end is None else end)]


def holder(uuid: UUID, *marks: Mark, until_ns: int = 0) -> tuple[Key, Former]:
    return Key(uuid), Former("web", 0, until_ns, marks)


@st.composite
def start_lists(draw: st.DrawFn) -> list[Start]:
    offsets = sorted(draw(st.sets(st.integers(0, SIZE - 1), max_size=8)))
    return [Start(offset, draw(st.sampled_from([*OWNERS, None]))) for offset in offsets]


@st.composite
def extent_lists(draw: st.DrawFn) -> list[Extent]:
    """In order, never overlapping; the last may go on to the end of the file, or beyond what is there."""
    cuts = sorted(draw(st.sets(st.integers(0, SIZE + 20), max_size=9)))
    pairs: list[Extent] = list(zip(cuts[::2], cuts[1::2], strict=False))
    return [*pairs, (cuts[-1], None)] if len(cuts) % 2 else pairs


def test_a_start_is_found_with_the_uuid_of_its_command_line() -> None:
    data, offsets = with_offsets(run(A), run(B), run(A))
    assert starts(data) == [Start(offsets[0], A), Start(offsets[1], B), Start(offsets[2], A)]


def test_lines_before_the_first_start_are_none() -> None:
    before = b"2026-11-24T05:40:00.000000Z qemu-system-x86_64: left over\n"
    assert starts(before + run(A)) == [Start(len(before), A)]
    assert starts(before) == []
    assert starts(b"") == []


def test_a_start_without_its_uuid_yet_is_one_of_nobody() -> None:
    data = run(A)
    assert starts(data[: data.index(b"-uuid")]) == [Start(0, None)]


def test_a_uuid_belongs_to_the_start_before_it_and_not_to_an_earlier_one() -> None:
    failed = run(A)[: run(A).index(b"LC_ALL")]
    data, offsets = with_offsets(failed, run(B))
    assert starts(data) == [Start(offsets[0], None), Start(offsets[1], B)]


@pytest.mark.parametrize(
    "lines",
    [
        "x2026-11-24 05:41:07.377+0000: starting up libvirt version: 9.0.0\n",
        "guest says: 2026-11-24 05:41:07.377+0000: starting up libvirt version: 9.0.0\n",
        "2026-11-24 05:41:07.377+0000: starting up, says the guest\n",
    ],
)
def test_what_only_looks_like_a_start_is_none(lines: str) -> None:
    assert starts(run(A, lines=lines)) == [Start(0, A)]


@pytest.mark.parametrize(
    "name",
    [
        f"-uuid {B}",
        f"x\n-uuid {B}",  # libvirt lets a rename put a newline into a name, and quotes it in the log
        "2026-11-24 05:41:07.377+0000: starting up libvirt version: ",
        "æøå",
    ],
)
def test_a_guest_named_like_a_line_of_the_log_has_its_own_uuid(name: str) -> None:
    assert starts(run(A, name)) == [Start(0, A)]


def test_a_uuid_in_the_middle_of_a_line_is_no_argument() -> None:
    assert starts(run(A).replace(b"LC_ALL=C", f"NOTE=-uuid {B}".encode())) == [Start(0, A)]


def test_the_uuid_may_end_the_command_line() -> None:
    data = run(A).replace(b" \\\n-no-user-config \\\n-msg timestamp=on", b"")
    assert starts(data) == [Start(0, A)]


log_pieces = st.lists(
    st.one_of(
        st.sampled_from([run(A), run(B), run(C, "db"), run(A)[:100], run(B)[:-60], b"\n", b"\xff\0\r\n"]),
        st.binary(max_size=20),
    ),
    max_size=6,
)


@untimed
@given(log_pieces.map(b"".join), st.data())
def test_scanning_on_from_the_last_known_start_equals_scanning_all(log: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(log)))
    known = starts(log[:cut])
    base = known[-1].offset if known else 0
    assert known[:-1] + starts(log[base:], base) == starts(log)


@untimed
@given(log_pieces.map(b"".join))
def test_starts_come_in_order_and_begin_lines(log: bytes) -> None:
    offsets = [start.offset for start in starts(log)]
    assert offsets == sorted(set(offsets))
    assert all(at == 0 or log[at - 1 : at] == b"\n" for at in offsets)


@untimed
@given(start_lists(), st.sampled_from([*OWNERS, None]))
def test_each_byte_is_owned_by_whose_start_is_the_last_before_it(
    found: list[Start], head: UUID | None
) -> None:
    whose: list[UUID | None] = [head] * SIZE
    for start in found:
        whose[start.offset :] = [start.uuid] * (SIZE - start.offset)
    for uuid in OWNERS:
        extents = owned(found, uuid, head)
        assert bytes_of(extents) == [at for at in range(SIZE) if whose[at] == uuid]
        assert all(one[1] != other[0] for one, other in itertools.pairwise(extents)), "merged"
        assert all(end is not None for _begin, end in extents[:-1])


def test_a_file_that_one_domain_has_alone_is_one_extent_without_an_end() -> None:
    assert owned(starts(run(A) + run(A)), A, None) == ((0, None),)
    assert owned([Start(30, A)], A, A) == ((0, None),)
    assert owned([], A, A) == ((0, None),)
    assert owned([], A, B) == ()


def test_lines_after_a_start_that_is_not_told_whose_are_nobodys() -> None:
    assert owned([Start(0, A), Start(20, None)], A, A) == ((0, 20),)
    assert owned([Start(0, None), Start(20, A)], A, A) == ((20, None),)


@untimed
@given(
    st.lists(st.tuples(st.sampled_from(OWNERS), st.one_of(st.none(), st.integers(0, SIZE - 1))), max_size=6),
    st.sampled_from([*OWNERS, None]),
)
def test_each_byte_is_the_first_holders_whose_mark_lies_beyond_it(
    held: list[tuple[UUID, int | None]], current: UUID | None
) -> None:
    holders = [
        holder(uuid, MARK_OF_ANOTHER_FILE, *([Mark(1, 7, size)] if size is not None else []))
        for uuid, size in held
    ]
    last = current or (held[-1][0] if held else None)
    reached = 0
    whose: list[UUID | None] = []
    for uuid, size in held:
        whose += [uuid] * ((size or 0) - reached)
        reached = max(reached, size or 0)
    whose += [last] * (SIZE - len(whose))
    for uuid in OWNERS:
        extents = by_marks(Mark(1, 7, SIZE), holders, None if current is None else Key(current), uuid)
        assert bytes_of(extents) == [at for at in range(SIZE) if whose[at] == uuid]


def test_a_mark_is_of_one_file_on_one_device() -> None:
    holders = [holder(A, Mark(2, 7, 10), Mark(1, 8, 10))]
    assert by_marks(Mark(1, 7, SIZE), holders, Key(B), A) == ()
    assert by_marks(Mark(1, 7, SIZE), holders, Key(B), B) == ((0, None),)
    assert by_marks(Mark(2, 7, SIZE), holders, Key(B), A) == ((0, 10),)


def test_a_part_that_would_be_empty_is_none_unless_the_file_is_empty() -> None:
    holders = [holder(A, Mark(1, 7, 10))]
    assert by_marks(Mark(1, 7, 10), holders, Key(B), B) == ()
    assert by_marks(Mark(1, 7, 11), holders, Key(B), B) == ((10, None),)
    assert by_marks(Mark(1, 7, 0), [], Key(B), B) == ((0, None),)


def test_a_mark_beyond_the_files_end_is_of_what_was_cut_off() -> None:
    holders = [holder(A, Mark(1, 7, 10))]
    assert by_marks(Mark(1, 7, 9), holders, Key(B), A) == ()
    assert by_marks(Mark(1, 7, 9), holders, Key(B), B) == ((0, None),)
    assert head_owner(Mark(1, 7, 9), holders, Key(B)) == B


def test_a_log_of_a_name_that_nobody_ever_had_is_nobodys() -> None:
    assert by_marks(Mark(1, 7, SIZE), [], None, A) == ()
    assert head_owner(Mark(1, 7, SIZE), [], None) is None


def test_lines_before_the_first_start_are_of_who_had_the_name_when_they_were_written() -> None:
    holders = [
        holder(A, Mark(1, 6, 40)),
        holder(B, Mark(1, 6, 50), Mark(1, 7, 0)),
        holder(C, Mark(1, 7, 30)),
    ]
    assert head_owner(Mark(1, 6, SIZE), holders, Key(B)) == A
    assert head_owner(Mark(1, 7, SIZE), holders, Key(B)) == C, "B's mark says that the file was empty"
    assert head_owner(Mark(1, 8, SIZE), holders, Key(B)) == B, "the file is newer than all marks"
    assert head_owner(Mark(1, 8, SIZE), holders, None) == C


@untimed
@given(extent_lists(), st.binary(max_size=SIZE), st.integers(0, SIZE + 20), st.integers(0, SIZE + 20))
def test_reading_through_extents_equals_slicing_what_they_cut_out(
    extents: list[Extent], file: bytes, offset: int, count: int
) -> None:
    shown = b"".join(file[begin:end] for begin, end in extents)
    pieces = locate(extents, offset, count)
    assert b"".join(file[at : at + size] for at, size in pieces) == shown[offset : offset + count]
    assert length(extents, len(file)) == len(shown)
    assert all(size > 0 for _at, size in pieces)
    assert sum(size for _at, size in pieces) <= count


def test_a_read_across_a_gap_is_two_pieces() -> None:
    extents: list[Extent] = [(10, 20), (50, None)]
    assert locate(extents, 5, 10) == [(15, 5), (50, 5)]
    assert locate(extents, 12, 10) == [(52, 10)]
    assert locate(extents, 0, 0) == []
