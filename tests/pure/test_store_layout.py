"""What lies in a guest's directory of the store: each file once, and nothing of namefs's own."""

from __future__ import annotations

import posixpath
from uuid import UUID

import pytest

from namefs.layout import joined
from namefs.layout.artefact import SUBDIRECTORIES, TOP, Kind, bytes_of
from namefs.layout.directories import Directories, for_uri
from namefs.model import Disk, Domain, Named

UUID_A = UUID("00000000-0000-4000-8000-00000000000a")
STORE = f"/var/lib/libvirt/by-uuid/{UUID_A}"
WEB = Domain(
    uuid=UUID_A,
    name="web",
    connection="local",
    disks=(Disk("vda", f"{STORE}/disks/vda.qcow2", "qcow2"),),
    logs=(Named("serial0", f"{STORE}/log/serial0.log"),),
    sockets=(Named("agent", f"{STORE}/sockets/agent"),),
    nvram=f"{STORE}/nvram/VARS.fd",
)


def places() -> Directories:
    found = for_uri("qemu:///system", home="/root", environ={}, uid=0)
    assert found is not None
    return found


def shown(path: str, subdir: bytes) -> list[tuple[str, Kind]]:
    """What the file at a path is shown as in a subdirectory; directories are not looked at."""
    found: list[tuple[str, Kind]] = []
    for artefact in joined.artefacts(WEB, (), places(), subdir):
        if artefact.kind is not Kind.DIRECTORY and artefact.claims(path):
            groups = artefact.groups_of(bytes_of(posixpath.basename(path)))
            assert groups is not None
            found.append((artefact.shown_as(groups), artefact.kind))
    return found


@pytest.mark.parametrize(
    ("file", "subdir", "expected"),
    [
        ("disks/vda.qcow2", b"disks", [("vda", Kind.IMAGE)]),
        ("disks/old.qcow2", b"disks", [("old.qcow2", Kind.LINK)]),
        ("log/serial0.log", b"log", [("serial0.log", Kind.FILE)]),
        ("log/serial0.log.3", b"log", [("serial0.log.3", Kind.FILE)]),
        ("log/install.log", b"log", [("install.log", Kind.FILE)]),
        ("nvram/VARS.fd", b"nvram", [("VARS.fd", Kind.FILE)]),
        ("sockets/agent", b"sockets", [("agent", Kind.LINK)]),
        ("save/by-hand.save", b"save", [("by-hand.save", Kind.FILE)]),
        ("notes.txt", TOP, [("notes.txt", Kind.FILE)]),
        ("adopted.json.txt", TOP, [("adopted.json.txt", Kind.FILE)]),
        ("adopted.json", TOP, []),
        ("adopted.json.draft", TOP, []),
        (".adopting", TOP, []),
        ("disks/.vda.qcow2.copying", b"disks", []),
    ],
)
def test_a_file_of_the_store_is_shown_once(
    file: str, subdir: bytes, expected: list[tuple[str, Kind]]
) -> None:
    assert shown(f"{STORE}/{file}", subdir) == expected


def test_a_directory_that_the_view_has_by_itself_is_not_shown_as_another() -> None:
    directories = [a for a in joined.artefacts(WEB, (), places(), TOP) if a.kind is Kind.DIRECTORY]
    claimed = [name for name in (*SUBDIRECTORIES, b"scripts") if any(a.groups_of(name) for a in directories)]
    assert claimed == [b"scripts"]


def test_another_guests_directory_is_not_looked_into() -> None:
    other = STORE.replace("00a", "00b")
    assert not [s for subdir in (TOP, *SUBDIRECTORIES) for s in shown(f"{other}/{subdir.decode()}/x", subdir)]
