"""Finding one item of a guest, which looks only where it can be, and listing all of them agree."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from namefs import naming
from namefs.backing import Backing
from namefs.guest import Guest, Shelf
from namefs.index import Index
from namefs.layout.artefact import SUBDIRECTORIES, TOP
from namefs.layout.directories import for_uri
from namefs.layout.libvirt import artefacts
from namefs.model import Disk, Domain, Former, Key, Named, Place, Record

if TYPE_CHECKING:
    from pathlib import Path

WEB = UUID("4dea22b3-1d52-48f3-a516-782e98ab3fa0")
LONG = "a" * 300
DOMAIN = Domain(
    WEB,
    "web",
    "local",
    disks=(
        Disk("vda", "/var/lib/libvirt/images/web", "raw", ("/var/lib/libvirt/images/base",)),
        Disk("vda.backing1", "/var/lib/libvirt/images/web2", "raw", ()),
        Disk("v%41", "/var/lib/libvirt/images/web", "raw", ()),
    ),
    logs=(Named("serial0", "/var/log/libvirt/qemu/web-serial0.log"), Named(LONG, "/var/log/libvirt/qemu/l")),
    sockets=(Named("agent~0123abcd", "/var/lib/libvirt/qemu/agent"),),
    filesystems=("ua-x.y",),
)
FILES = (
    "etc/libvirt/qemu/web.xml",
    "etc/libvirt/qemu/autostart/web.xml",
    "var/lib/libvirt/images/web",
    "var/lib/libvirt/images/base",
    "var/lib/libvirt/images/web2",
    "var/lib/libvirt/qemu/agent",
    "var/lib/libvirt/qemu/nvram/web_VARS.fd",
    "var/lib/libvirt/qemu/save/web.save",
    "var/lib/libvirt/qemu/snapshot/web/before.xml",
    "var/lib/libvirt/qemu/snapshot/web/%41.xml",
    "var/lib/libvirt/qemu/snapshot/web/two\nlines.xml",
    "var/lib/libvirt/swtpm/4dea22b3-1d52-48f3-a516-782e98ab3fa0/tpm2/tpm2-00.permall",
    "var/log/libvirt/qemu/web.log",
    "var/log/libvirt/qemu/web.log.0",
    "var/log/libvirt/qemu/web-serial0.log",
    "var/log/libvirt/qemu/web-serial0.log-20261124.gz",
    "var/log/libvirt/qemu/l.3",
    "var/log/libvirt/qemu/web-fs0-virtiofsd.log",
    "var/log/libvirt/qemu/web-ua-x.y-virtiofsd.log.1",
    "var/log/libvirt/qemu/web-db-virtiofsd.log",
    "var/log/libvirt/qemu/web-fs0-virtiofsd.log.old",
    "var/log/libvirt/qemu/was.log",
    "var/log/libvirt/qemu/was.log.0",
    "var/log/swtpm/libvirt/qemu/web-swtpm.log",
)
EXPECTED = {
    TOP: {b"autostart.xml", b"config.xml"},
    b"disks": {b"vda", b"vda.backing1", b"v%2541"},
    b"log": {
        b"qemu.log",
        b"qemu.log.0",
        b"serial0.log",
        b"serial0.log-20261124.gz",
        naming.encode(LONG + ".log.3"),
        b"swtpm.log",
        b"virtiofsd-fs0.log",
        b"virtiofsd-ua-x.y.log.1",
    },
    b"nvram": {b"VARS.fd"},
    b"save": {b"managed.save"},
    b"snapshots": {b"before.xml", b"%2541.xml", b"two%0Alines.xml"},
    b"sockets": {b"agent%7E0123abcd"},
    b"tpm": {b"tpm2-00.permall"},
}


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    for file in FILES:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("some lines\n")
    return Shelf(Backing(os.fspath(tmp_path / "by-name")))


def guest(root: Path, name: str = "web", former_names: tuple[str, ...] = ()) -> Guest:
    key = Key(WEB)
    former = tuple(Former(name, 0, 1) for name in former_names)
    place = Place(b"", b"web")
    record = Record(key, replace(DOMAIN, name=name), name, "libvirt", place, 1, 1)
    index = Index({key: record}, {place: key}, {key: former})
    places = for_uri("qemu:///system", root=os.fspath(root), home="/", environ={}, uid=0)
    return Guest(record, places, former, index)


def test_every_kind_of_file_is_listed(shelf: Shelf, tmp_path: Path) -> None:
    web = guest(tmp_path)
    found = {subdir: {i.entry for i in shelf.items(web, subdir)} for subdir in (TOP, *SUBDIRECTORIES)}
    assert {subdir: entries for subdir, entries in found.items() if entries} == EXPECTED


@pytest.mark.parametrize(("name", "former_names"), [("web", ()), ("web", ("was",)), ("new", ("was", "web"))])
def test_what_is_listed_is_found_by_its_entry(
    shelf: Shelf, tmp_path: Path, name: str, former_names: tuple[str, ...]
) -> None:
    web = guest(tmp_path, name, former_names)
    assert b"qemu.log" in {item.entry for item in shelf.items(web, b"log")}
    for subdir in (TOP, *SUBDIRECTORIES):
        for item in shelf.items(web, subdir):
            assert shelf.item(web, subdir, item.entry) == item


@pytest.mark.parametrize(
    ("subdir", "entry"),
    [(subdir, b"nothing") for subdir in (TOP, *SUBDIRECTORIES)]
    + [
        # One escape more than the listing has, and one less.
        (TOP, b"c%6Fnfig.xml"),
        (b"snapshots", b"%41.xml"),
        (b"disks", b"v%41"),
        (b"log", b"qemu"),
        (b"log", b"virtiofsd-db.log"),
        (b"log", b"virtiofsd-fs0.log.old"),
    ],
)
def test_what_is_not_listed_is_not_found(shelf: Shelf, tmp_path: Path, subdir: bytes, entry: bytes) -> None:
    assert shelf.item(guest(tmp_path), subdir, entry) is None


def test_a_subdirectory_is_there_while_something_is_in_it(shelf: Shelf, tmp_path: Path) -> None:
    web = guest(tmp_path)
    assert set(shelf.subdirectories(web)) == set(EXPECTED) - {TOP}
    (tmp_path / "var/lib/libvirt/qemu/save/web.save").unlink()
    assert b"save" not in shelf.subdirectories(web)


@pytest.mark.parametrize(
    ("file", "claimed"),
    [
        ("web.log", True),
        ("web.log.2.gz", True),
        ("web-fs0-virtiofsd.log", True),
        ("wob.log", False),
        ("wob-fs0-virtiofsd.log", False),
        ("web.log.old", False),
        ("web", False),
    ],
)
def test_only_the_files_of_the_guest_are_claimed(tmp_path: Path, file: str, claimed: bool) -> None:
    web = guest(tmp_path)
    assert web.places is not None
    path = f"{web.places.log}/{file}"
    assert any(one.claims(path) for one in artefacts(DOMAIN, (), web.places, b"log")) is claimed
