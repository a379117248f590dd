"""Where copying stands is what the log and its origins say, wherever it was interrupted."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from namefs import lifelog
from namefs.lifelog import Copy, Origins, Run, Segment, Source

NUMBERS = st.integers(0, 1 << 40)
RUNS = st.builds(Run, NUMBERS, NUMBERS, NUMBERS, st.integers(0, 1024), st.binary().map(lifelog.digest))
ORIGINS = st.builds(Origins, st.lists(st.tuples(NUMBERS, NUMBERS)).map(tuple), st.lists(RUNS).map(tuple))


@given(ORIGINS)
def test_what_is_written_is_read(origins: Origins) -> None:
    assert lifelog.parse(origins.text()) == origins


@given(st.lists(RUNS, min_size=1), st.data())
def test_a_line_that_was_cut_off_says_nothing(runs: list[Run], data: st.DataObject) -> None:
    text = Origins((), tuple(runs)).text()
    last = len(lifelog.line_of_run(runs[-1]))
    cut = data.draw(st.integers(1, last))
    assert lifelog.parse(text[:-cut]).runs == tuple(runs[:-1])


def test_a_part_is_known_by_its_inode_and_one_that_was_restored_is_the_last() -> None:
    origins = Origins(((0, 5), (100, 6), (200, 5)))
    assert (origins.base(6), origins.base(5), origins.base(7)) == (100, 200, 200)
    assert Origins().base(5) == 0


@dataclass
class Life:
    """A life log in memory, which is killed now and then."""

    data: bytes = b""
    origins: Origins = field(default_factory=Origins)

    def kept(self, begin: int, end: int) -> bytes:
        return self.data[begin:end]

    def copy(self, sources: list[Source], most_bytes: int = 1 << 30) -> None:
        """Copy what is new; the process is gone after so many bytes."""
        while copies := lifelog.plan(sources, self.origins, len(self.data), self.kept):
            copy, source = copies[0], sources[copies[0].source]
            if not lifelog.goes_on(self.origins, len(self.data), source, copy.begin):
                run = lifelog.run_of(source, copy.begin, len(self.data))
                self.origins = lifelog.parse(Origins((), (*self.origins.runs, run)).text())
            data = source.read(copy.begin, copy.end - copy.begin)[:most_bytes]
            self.data += data
            most_bytes -= len(data)
            if not most_bytes:
                return


def source(
    data: bytes,
    ino: int,
    *,
    live: bool = True,
    name: str = "web",
    segments: tuple[Segment, ...] | None = None,
) -> Source:
    own = (Segment(0, len(data)),) if segments is None else segments
    return Source(name, ino, len(data), live, own, lambda offset, count: data[offset : offset + count])


@given(
    st.lists(st.tuples(st.sampled_from(["write", "rename", "truncate", "copy", "kill"]), st.integers(0, 300)))
)
def test_each_byte_is_there_once_and_in_order_whatever_happens_to_the_files(
    steps: list[tuple[str, int]],
) -> None:
    life, whole, ino = Life(), b"", 1
    pieces: list[tuple[int, bytes]] = [(1, b"")]

    def sources() -> list[Source]:
        last = len(pieces) - 1
        return [source(data, ino, live=at == last) for at, (ino, data) in enumerate(pieces)]

    for number, (step, count) in enumerate(steps):
        if step == "write":
            line = b"%d:" % number + b"x" * count + b"\n"
            whole += line
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + line)
        elif step == "rename":
            ino += 1
            pieces.append((ino, b""))
        elif step == "truncate":
            # logrotate makes a copy, with an inode of its own, and the log is empty.
            ino += 1
            pieces[-1:] = [(ino, pieces[-1][1]), (pieces[-1][0], b"")]
        else:
            life.copy(sources(), count if step == "kill" and count else 1 << 30)
            assert whole.startswith(life.data)
    life.copy(sources())
    assert life.data == whole


def test_a_power_cut_takes_back_what_was_noted_for_bytes_that_it_took() -> None:
    life = Life()
    life.copy([source(b"first\n", 1, live=False), source(b"second\n", 2)])
    life.data = life.data[:3]
    life.origins = life.origins.until(3)
    life.copy([source(b"first\n", 1, live=False), source(b"second\n", 2)])
    assert life.data == b"first\nsecond\n"


def test_a_new_file_with_the_inode_of_one_that_went_is_copied_whole() -> None:
    life = Life()
    life.copy([source(b"first\n", 1)])
    life.copy([source(b"second and longer\n", 1)])
    assert life.data == b"first\nsecond and longer\n"


def test_a_copy_that_is_being_made_is_not_taken_for_lines_of_its_own() -> None:
    life, whole = Life(), b"a line\nand another\n"
    life.copy([source(whole[:9], 2, live=False), source(whole, 1)])
    life.copy([source(whole, 2, live=False), source(whole, 1)])
    life.copy([source(whole, 2, live=False), source(b"", 1)])
    life.copy([source(whole, 3, live=False), source(b"", 1)])
    assert life.data == whole


def test_bytes_of_others_between_the_guests_own_are_left_out() -> None:
    life = Life()
    life.copy([source(b"mine theirs mine\n", 1, segments=(Segment(0, 5), Segment(12, 17)))])
    assert life.data == b"mine mine\n"


def test_across_names_the_starts_tell_the_order_and_within_one_the_files_do() -> None:
    web = source(b"13", 1, segments=(Segment(0, 1, b"2026-01-01"), Segment(1, 2, b"2026-01-03")))
    shop = source(
        b"24", 2, name="shop", segments=(Segment(0, 1, b"2026-01-02"), Segment(1, 2, b"2025-12-31"))
    )
    copies = lifelog.plan([web, shop], Origins(), 0, lambda _begin, _end: b"")
    assert copies == [Copy(0, 0, 1), Copy(1, 0, 1), Copy(1, 1, 2), Copy(0, 1, 2)]
