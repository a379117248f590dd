"""What is a difference, and what is none."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from namefs.applying import apply
from namefs.checking.facts import Connected, Facts, Hook
from namefs.checking.rules import differences
from namefs.index import Index
from namefs.model import Asked, Domain, Key, Listed, Observed, Wished

A, B, C = UUID(int=0xA << 96), UUID(int=0xB << 96), UUID(int=0xC << 96)


def off(uuid: UUID, name: str) -> Domain:
    return Domain(uuid, name, "local", state="shut off")


WEB, DB = off(A, "web"), off(B, "db")
INDEX = apply(Index(), [Listed("local", (WEB, DB))], 1).index
SOUND = Connected(
    "local",
    (WEB, DB),
    store={A: "/store/a"},
    logs={A: "/log/a"},
    log_names={"web": "/l/web.log", "web-fs0": "/l/web-fs0.log"},
    hook=Hook("/h/50-namefs", installed=True, seen=True),
)
CLEAN = Facts(INDEX, (SOUND,), "serving", "/view", daemon=True)


def kinds(facts: Facts) -> list[tuple[str, str]]:
    found = differences(facts)
    for one in found:
        assert one.what
        assert one.do
    return [(one.kind, one.about) for one in found]


def with_one(**changes: object) -> Facts:
    return replace(CLEAN, connections=(replace(SOUND, **changes),))  # type: ignore[arg-type]


def test_what_agrees_is_no_difference() -> None:
    assert kinds(CLEAN) == []
    assert kinds(replace(CLEAN, view="none", daemon=False)) == [], "nobody has to run the daemon"


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (with_one(domains=(WEB, DB, off(C, "new"))), ("index-misses", "new")),
        (with_one(domains=(WEB,)), ("index-keeps", "db")),
        (with_one(domains=(WEB, off(B, "data"))), ("index-differs", "db")),
        (with_one(store={C: "/store/c"}), ("store-orphan", "/store/c")),
        (with_one(logs={C: "/log/c"}), ("log-orphan", "/log/c")),
        (with_one(unfinished=frozenset({A})), ("adoption-unfinished", "/store/a")),
        (with_one(missing={B: ("/images/db.qcow2",)}), ("file-missing", "db")),
        (with_one(left_nvram={B: ("/nvram/old_VARS.fd",)}), ("nvram-left", "db")),
        (with_one(lost_checkpoints={B: ("/snapshot/db/c.xml",)}), ("checkpoint-lost", "db")),
        (with_one(log_names={"old": "/l/old.log"}), ("log-of-nobody", "/l/old.log")),
        (with_one(hook=Hook("/h", installed=False)), ("hook-missing", "/h")),
        (with_one(hook=Hook("/h", True, executable=False)), ("hook-not-executable", "/h")),
        (with_one(hook=Hook("/h", True, seen=False)), ("hook-unseen", "/h")),
        (replace(CLEAN, view="dead"), ("view-dead", "/view")),
        (replace(CLEAN, view="none"), ("view-gone", "/view")),
    ],
)
def test_each_difference_is_named_by_what_it_is_about(facts: Facts, expected: tuple[str, str]) -> None:
    assert kinds(facts) == [expected]


def test_a_libvirt_that_cannot_be_reached_tells_of_no_difference() -> None:
    assert kinds(with_one(domains=None, error="it is down", store={C: "/c"}, log_names={"x": "/x"})) == []


def test_logs_of_a_guest_that_is_gone_are_no_orphans_while_they_are_kept() -> None:
    gone = apply(INDEX, [Observed(Key(B), "local", None)], 2).index
    facts = replace(with_one(domains=(WEB,), logs={B: "/log/b"}), index=gone)
    assert kinds(facts) == []


def test_guests_that_share_a_name_and_names_that_can_never_follow_are_told() -> None:
    asked = apply(INDEX, [Wished(Key(A), Asked("db", 5))], 2).index
    assert kinds(replace(CLEAN, index=asked)) == [
        ("name-shared", "db~0000000a"),
        ("rename-stuck", "db~0000000a"),
    ]
    running = replace(WEB, state="running")
    waits = apply(Index(), [Listed("local", (running, DB)), Wished(Key(A), Asked("shop", 5))], 2).index
    assert kinds(replace(with_one(domains=(running, DB)), index=waits)) == [], (
        "it follows when the guest is off"
    )
