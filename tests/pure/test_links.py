"""How the directories of a tree of symlinks come to their new places."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from namefs.links.wanted import Exchange, Move, moves, parents, possible

UUIDS = [str(UUID(int=number)) for number in range(5)]
PATHS = [b"web", b"db", b"shop/web", b"shop/db", b"x", b"y"]
places = st.permutations(PATHS).flatmap(
    lambda paths: st.lists(st.sampled_from(UUIDS), unique=True).map(
        lambda u: dict(zip(u, paths, strict=False))
    )
)


@given(places, places)
def test_every_directory_comes_to_its_place_and_none_is_ever_in_anothers_way(
    made: dict[str, bytes], wanted: dict[str, bytes]
) -> None:
    both = made.keys() & wanted.keys()
    at = {made[uuid]: uuid for uuid in both}
    for step in moves(made, wanted):
        if isinstance(step, Move):
            assert step.new not in at
            at[step.new] = at.pop(step.old)
        else:
            assert isinstance(step, Exchange)
            at[step.one], at[step.other] = at[step.other], at[step.one]
    assert at == {wanted[uuid]: uuid for uuid in both}


@given(places, places, st.sets(st.sampled_from(PATHS)))
def test_what_is_somebodys_is_never_taken_and_all_who_can_come_to_their_places(
    made: dict[str, bytes], wanted: dict[str, bytes], others: set[bytes]
) -> None:
    made = {uuid: path for uuid, path in made.items() if uuid in wanted and path not in others}
    found = possible(made, wanted, others.__contains__)
    assert len(set(found.values())) == len(found)
    assert not others & set(found.values())
    assert made.keys() <= found.keys(), "none that is there goes"
    for uuid, path in found.items():
        assert path in (wanted[uuid], made.get(uuid))
    for uuid in wanted.keys() - found.keys() | {uuid for uuid in found if found[uuid] != wanted[uuid]}:
        held = {path for other, path in found.items() if other != uuid}
        assert wanted[uuid] in others | held, "only what is in the way keeps one from its place"


def test_two_that_change_names_are_one_exchange() -> None:
    made = {UUIDS[0]: b"web", UUIDS[1]: b"db"}
    assert moves(made, {UUIDS[0]: b"db", UUIDS[1]: b"web"}) == [Exchange(b"web", b"db")]


def test_parents_come_before_what_is_in_them() -> None:
    assert parents([b"a/b/c", b"d", b"a/x"]) == [b"a", b"a/b"]
