"""Rules of entries: what is escaped and what is not, and that no two names share an entry."""

from __future__ import annotations

import itertools
import re
import time
from uuid import UUID

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from namefs.naming import ENTRY_MAX_BYTES, NotAnEntry, decode, disambiguated, display, encode

# A call takes microseconds; what a deadline would measure is how busy the machine is.
untimed = settings(deadline=None)

UUID_A = UUID("1b4e28ba-2fa1-11d2-883f-b9a761bde3fb")
UUID_B = UUID("1b4e28ba-9999-4999-8999-b9a761bde3fb")
HASH = "87b773e30fac4cb712c808a391a3f2c8"
SUFFIXES = ["~1b4e28ba", f"~{UUID_A}", f"~{HASH}"]

# Pieces that the forms are made of, so that put together at random they often look like one another.
FRAGMENTS = [
    *("", "a", "e", "5", "41", "7E", "2e", "25", "%", "~", ".", " ", "-", "/", "\0", "\n", "\x85", "u", "%u"),
    *("%25", "%7E", "%2E", "%2e", "%20", "%00", "%C2%85", "%C3%A9", "%FF", "%ED%A0%80", "%ED%B3%83"),
    *("D800", "DCC3", "%uD800", "%uDCC3", "%udcc3", "%u0041", "%empty", "empty"),
    *("\ud800", "\udbff", "\udc00", "\udcc3", "\udca9", "\udcff", "\udced", "\udca0", "\udcb3", "\udc80"),
    *("é", "e\u0301", "\u202e", "\u200d", "\U000e0041", "👩\u200d💻", "a" * 120, "é" * 100),
    *SUFFIXES,
    *(suffix.replace("~", "%7E") for suffix in SUFFIXES),
    *(suffix.upper() for suffix in SUFFIXES),
    *(suffix[:-1] for suffix in SUFFIXES),
]

built_names = st.lists(st.sampled_from(FRAGMENTS), max_size=6).map("".join)
libvirt_names = st.binary(max_size=300).map(lambda raw: raw.decode(errors="surrogateescape"))
any_names = st.one_of(built_names, libvirt_names, st.text(st.characters(), max_size=40))
uuids = st.one_of(st.sampled_from([UUID_A, UUID_B]), st.uuids())


def is_shortened(entry: bytes) -> bool:
    return re.search(rb"~[0-9a-f]{32}$", entry) is not None


@st.composite
def near_names(draw: st.DrawFn) -> tuple[str, str]:
    """A name, and another that an entry of the first might be mistaken for."""
    name = draw(any_names)
    entries = [encode(name), disambiguated(name, UUID_A), disambiguated(name, UUID_A, full=True)]
    other = draw(
        st.one_of(
            any_names,
            st.sampled_from([entry.decode() for entry in entries]),
            st.sampled_from(
                [display(name), display(display(name)), display(name).lower(), f"{name} ", f".{name}"]
            ),
            st.sampled_from([f"{name}{suffix}" for suffix in SUFFIXES]),
            st.sampled_from(FRAGMENTS).map(lambda fragment: name.replace(name[-1:], fragment, 1)),
            st.just(name.encode(errors="surrogatepass").decode(errors="surrogateescape")),
        )
    )
    return name, other


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("web", "web"),
        ("", "%empty"),
        ("%empty", "%25empty"),
        ("%empty ", "%empty%20"),
        ("a%empty", "a%empty"),
        (".", "%2E"),
        ("..", "%2E."),
        ("...", "%2E.."),
        (".hidden", "%2Ehidden"),
        ("a.b.", "a.b."),
        (" ", "%20"),
        ("  ", "%20%20"),
        (" a  b  ", "%20a  b%20%20"),
        ("-x", "-x"),
        ("a\\b", "a\\b"),
        ("a/b", "a%2Fb"),
        ("\0", "%00"),
        ("a\tb\n", "a%09b%0A"),
        ("\x1b[31m", "%1B[31m"),
        ("\x7f\x9b", "%7F%C2%9B"),
        ("gpj\u202e.exe", "gpj%E2%80%AE.exe"),
        ("\ufeffweb", "%EF%BB%BFweb"),
        ("\U000e0041", "%F3%A0%81%81"),
        ("\udcff\udcfe", "%FF%FE"),
        ("caf\udce9", "caf%E9"),
        ("\udcc3é", "%C3é"),
        ("\udced\udca0\udc80", "%ED%A0%80"),
        ("\ud800", "%uD800"),
        ("\udcc3\udca9", "%uDCC3%uDCA9"),
        ("%uD800", "%25uD800"),
        ("%ud800 %u0041 %uD7FF", "%ud800 %u0041 %uD7FF"),
        ("100%", "100%"),
        ("100%x", "100%x"),
        ("100% a", "100% a"),
        ("%4", "%4"),
        ("%41", "%2541"),
        ("%e9", "%25e9"),
        ("%%41", "%%2541"),
        ("%\0", "%%00"),
        ("%4\0", "%4%00"),
        ("%2Ehidden", "%252Ehidden"),
        ("a~b", "a~b"),
        ("backup~", "backup~"),
        ("web~1b4e28ba", "web%7E1b4e28ba"),
        ("web~1B4E28BA", "web~1B4E28BA"),
        ("web~1b4e28b", "web~1b4e28b"),
        ("web~1b4e28bab", "web~1b4e28bab"),
        ("web~1b4e28ba ", "web~1b4e28ba%20"),
        ("web~1b4e28ba\n", "web~1b4e28ba%0A"),
        ("~1b4e28ba~1b4e28ba", "~1b4e28ba%7E1b4e28ba"),
        ("web%7E1b4e28ba", "web%257E1b4e28ba"),
        (f"web~{UUID_A}", f"web%7E{UUID_A}"),
        (f"web~{UUID_A}x", f"web~{UUID_A}x"),
        (f"web~{HASH}", f"web%7E{HASH}"),
        (str(UUID_A), str(UUID_A)),
        ("👩\u200d💻", "👩\u200d💻"),
        ("نمی\u200cشود", "نمی\u200cشود"),
        ("é", "é"),
        ("e\u0301", "e\u0301"),
        ("二号机", "二号机"),
    ],
)
def test_a_name_has_its_one_entry_and_is_read_back_from_it(name: str, entry: str) -> None:
    assert encode(name) == entry.encode()
    assert display(name) == entry
    assert decode(entry.encode()) == name


@pytest.mark.parametrize(
    ("first", "last"),
    [
        *((0x00, 0x1F), (0x2F, 0x2F), (0x7F, 0x9F), (0x61C, 0x61C), (0x180E, 0x180E), (0x200B, 0x200B)),
        *((0x200E, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F), (0xFEFF, 0xFEFF), (0xFFF9, 0xFFFB)),
        (0xE0000, 0xE0FFF),
    ],
)
def test_a_range_of_unshowable_characters_is_escaped_to_its_ends_and_not_beyond(
    first: int, last: int
) -> None:
    for code in (first, last):
        escaped = "".join(f"%{byte:02X}" for byte in chr(code).encode())
        assert encode(f"a{chr(code)}b") == f"a{escaped}b".encode()
    for code in {first - 1, last + 1} - {-1}:
        assert encode(f"a{chr(code)}b") == f"a{chr(code)}b".encode()


@untimed
@given(any_names)
@example("a" * 300)
@example("é" * 300)
@example("\udcff" * 300)
@example("\u202e" * 300)
@example("." * 300)
@example(" " * 300)
@example("x" * 300 + "~1b4e28ba")
def test_any_name_has_an_entry_that_a_directory_and_a_terminal_can_hold(name: str) -> None:
    for entry in (encode(name), disambiguated(name, UUID_A), disambiguated(name, UUID_A, full=True)):
        assert 0 < len(entry) <= ENTRY_MAX_BYTES
        assert not re.search(r"[\x00-\x1f/\x7f-\x9f\u202a-\u202e]|^[ .]| $", entry.decode())


@untimed
@given(any_names)
@example(".")
@example("%2Ehidden~1b4e28ba")
@example("\udcc3\udca9")
@example("\udcc3\udcc3\udca9\ud800\udca9")
@example("\udcc3\x85")
def test_a_name_is_read_back_from_its_entry_unless_it_was_shortened(name: str) -> None:
    entry = encode(name)
    if is_shortened(entry):
        assert len(display(name).encode()) > ENTRY_MAX_BYTES
        with pytest.raises(NotAnEntry):
            decode(entry)
    else:
        assert decode(entry) == name


@untimed
@given(near_names())
@example(("é", "\udcc3\udca9"))
@example(("\ud800", "\udced\udca0\udc80"))
@example(("\x85", "\udcc2\udc85"))
@example(("é", "e\u0301"))
@example(("a" * 300, "a" * 299 + "b"))
@example(("", "%empty"))
@example(("", "\0"))
def test_two_names_never_share_an_entry(names: tuple[str, str]) -> None:
    one, other = names
    assume(one != other)
    assert encode(one) != encode(other)
    assert display(one) != display(other)
    for full in (False, True):
        assert disambiguated(one, UUID_A, full) != disambiguated(other, UUID_A, full)


def test_no_two_of_all_short_combinations_share_an_entry() -> None:
    short = [fragment for fragment in FRAGMENTS if len(fragment) < 4]
    names = {
        "".join(parts)
        for parts in itertools.chain(
            itertools.product(FRAGMENTS, repeat=2), itertools.product(short, repeat=3)
        )
    }
    assert len(names) > 20_000
    assert len({encode(name) for name in names}) == len(names)


@untimed
@given(near_names(), uuids)
@example(("web", "web~1b4e28ba"), UUID_A)
@example(("web", f"web~{UUID_A}"), UUID_A)
@example(("a" * 300, "a" * 300), UUID_A)
@example(("a" * 250, "a" * 250), UUID_A)
def test_a_disambiguated_entry_is_no_other_names_own(names: tuple[str, str], uuid: UUID) -> None:
    one, other = names
    entries = [encode(other), disambiguated(one, uuid), disambiguated(one, uuid, full=True)]
    assert len(set(entries)) == len(entries)


@untimed
@given(any_names, uuids)
def test_a_disambiguated_entry_ends_in_the_uuid_and_stands_for_no_name(name: str, uuid: UUID) -> None:
    assert disambiguated(name, uuid).endswith(f"~{str(uuid)[:8]}".encode())
    assert disambiguated(name, uuid, full=True).endswith(f"~{uuid}".encode())
    for full in (False, True):
        with pytest.raises(NotAnEntry):
            decode(disambiguated(name, uuid, full))


def test_domains_that_share_a_name_and_8_digits_are_told_apart_by_the_whole_uuid() -> None:
    assert disambiguated("web", UUID_A) == disambiguated("web", UUID_B) == b"web~1b4e28ba"
    assert disambiguated("web", UUID_A, full=True) == b"web~1b4e28ba-2fa1-11d2-883f-b9a761bde3fb"
    assert disambiguated("web", UUID_B, full=True) == b"web~1b4e28ba-9999-4999-8999-b9a761bde3fb"


@pytest.mark.parametrize("character", ["a", "é", "二", "💻", "\udcff", "\u202e"])
def test_a_name_of_any_length_is_whole_up_to_255_bytes_and_then_cut_between_characters(
    character: str,
) -> None:
    escaped = display(character).encode()
    for length in range(1, 401):
        name = character * length
        for entry, tag in [
            (encode(name), b""),
            (disambiguated(name, UUID_A), b"~1b4e28ba"),
            (disambiguated(name, UUID_A, full=True), b"~1b4e28ba-2fa1-11d2-883f-b9a761bde3fb"),
        ]:
            if len(escaped) * length + len(tag) <= 255:
                assert entry == escaped * length + tag
            else:
                fitting = (255 - len(tag) - 33) // len(escaped)
                assert re.fullmatch(escaped * fitting + rb"~[0-9a-f]{32}" + tag, entry)


def test_a_cut_between_characters_of_different_lengths_leaves_no_room_for_another() -> None:
    for length in range(401):
        name = "a" * length + "二\u202e\udcff%41\ud800" * 40
        head, _, digest = encode(name).rpartition(b"~")
        assert len(digest) == 32
        cut = decode(head)
        assert name.startswith(cut)
        following = "%25" if name[len(cut)] == "%" else display(name[len(cut)])
        assert len(head) + len(following.encode()) + 33 > 255


def test_the_hash_of_a_long_name_never_changes() -> None:
    assert encode("é" * 300) == ("é" * 111 + f"~{HASH}").encode()
    assert disambiguated("é" * 300, UUID_A) == ("é" * 106 + f"~{HASH}~1b4e28ba").encode()
    assert disambiguated("é" * 300, UUID_A, full=True) == ("é" * 92 + f"~{HASH}~{UUID_A}").encode()


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        (b" x", " x"),
        (b"x ", "x "),
        (b".x", ".x"),
        (b"%41", "A"),
        (b"%c3%a9", "é"),
        (b"\xc3%A9", "é"),
        (b"%2E%2e", ".."),
        (b"a%2Fb", "a/b"),
        (b"a\nb", "a\nb"),
        (b"\xff", "\udcff"),
        (b"a" * 255, "a" * 255),
        (b"%FF", "\udcff"),
        (b"%ED%A0%80", "\udced\udca0\udc80"),
        ("\u202e".encode(), "\u202e"),
        (b"100%", "100%"),
        (b"%4x", "%4x"),
        (b"%ud800", "%ud800"),
        (b"web%7e1b4e28ba", "web~1b4e28ba"),
        (b"web%7E1b4e28ba", "web~1b4e28ba"),
        (b"web~1b4e28ba\n", "web~1b4e28ba\n"),
        (b"web~1B4E28BA", "web~1B4E28BA"),
    ],
)
def test_an_entry_typed_by_hand_is_read_with_or_without_escapes(typed: bytes, name: str) -> None:
    assert decode(typed) == name


@untimed
@given(
    st.one_of(
        st.binary(min_size=1, max_size=ENTRY_MAX_BYTES), any_names.map(lambda name: display(name).encode())
    )
)
def test_what_was_typed_is_shown_afterwards_under_the_entry_of_the_name_it_was_read_as(typed: bytes) -> None:
    try:
        name = decode(typed)
    except NotAnEntry:
        assume(False)
    shown = encode(name)
    assert is_shortened(shown) or decode(shown) == name


@pytest.mark.parametrize(
    "entry",
    [
        *(b"", b".", b"..", b"a/b", b"a\0b", b"\n/", "/\u202e".encode(), b"\xff~1b4e28ba", b"a" * 256),
        *(f"web{suffix}".encode() for suffix in SUFFIXES),
        *(suffix.encode() for suffix in SUFFIXES),
    ],
)
def test_an_entry_that_stands_for_no_name_is_refused_with_one_printable_line(entry: bytes) -> None:
    with pytest.raises(NotAnEntry) as refusal:
        decode(entry)
    assert isinstance(refusal.value, ValueError)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) > 20


def test_a_long_name_is_displayed_whole() -> None:
    assert display("a" * 300) == "a" * 300


def test_the_time_for_a_title_full_of_blanks_grows_no_faster_than_its_length() -> None:
    start_s = time.process_time()
    encode(f"a{' ' * 60_000}b")
    assert time.process_time() - start_s < 2
