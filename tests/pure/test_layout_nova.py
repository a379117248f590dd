"""Nova's instance directory, joined with libvirt's places: each file shown once, and only its guest's."""

from __future__ import annotations

import posixpath
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from namefs.layout import joined
from namefs.layout.artefact import SUBDIRECTORIES, TOP, Kind, bytes_of, str_of
from namefs.layout.directories import Directories, for_uri
from namefs.model import Disk, Domain, Named

A = UUID("1b4e28ba-2fa1-11d2-883f-b9a761bde3fb")
INSTANCES = "/var/lib/nova/instances"
SERVER = Domain(
    A,
    "instance-000002ff",
    "system",
    disks=(
        Disk("vda", f"{INSTANCES}/{A}/disk", "qcow2", (f"{INSTANCES}/_base/da39a3ee",)),
        Disk("vdb", f"{INSTANCES}/{A}/disk.swap", "qcow2"),
        Disk("vdc", "/dev/disk/by-path/ip-10.0.0.1-lun-1", "raw"),
    ),
    logs=(Named("serial0", f"{INSTANCES}/{A}/console.log"),),
)
FROM_VOLUME = replace(SERVER, disks=SERVER.disks[2:])
WITHOUT_LOG = replace(SERVER, logs=())
ELSEWHERE = replace(SERVER, disks=(Disk("vda", "/srv/images/web.qcow2", "qcow2"),), logs=())
RESCUED = replace(
    SERVER,
    disks=(
        Disk("vda", f"{INSTANCES}/{A}/disk.rescue", "qcow2"),
        Disk("vdb", f"{INSTANCES}/{A}/disk", "qcow2"),
    ),
)

# A call takes microseconds; what a deadline would measure is how busy the machine is.
untimed = settings(deadline=None)


def places(root: str = "") -> Directories:
    found = for_uri("qemu:///system", root=root, home="/root", environ={}, uid=0)
    assert found is not None
    return found


def shown(path: str, domain: Domain = SERVER, where: Directories | None = None) -> list[tuple[str, Kind]]:
    """Where the domain's directory shows the file at a path, and how."""
    found: list[tuple[str, Kind]] = []
    for subdir in (TOP, *SUBDIRECTORIES):
        for artefact in joined.artefacts(domain, (), where or places(), subdir):
            if artefact.kind is Kind.DIRECTORY or not artefact.claims(path):
                continue
            groups = artefact.groups_of(bytes_of(posixpath.basename(path)))
            assert groups is not None
            name = artefact.shown_as(groups)
            assert artefact.may_show(name)
            assert artefact.subdir == subdir
            found.append((f"{subdir.decode()}/{name}" if subdir else name, artefact.kind))
    return found


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("disk", [("disks/vda", Kind.IMAGE)]),
        ("disk.swap", [("disks/vdb", Kind.IMAGE)]),
        ("disk.config", [("disks/disk.config", Kind.LINK)]),
        ("disk.config.rescue", [("disks/disk.config.rescue", Kind.LINK)]),
        ("disk.eph0", [("disks/disk.eph0", Kind.LINK)]),
        ("disk.local", [("disks/disk.local", Kind.LINK)]),
        ("disk.rescue", [("disks/disk.rescue", Kind.LINK)]),
        ("kernel", [("disks/kernel", Kind.LINK)]),
        ("ramdisk.rescue", [("disks/ramdisk.rescue", Kind.LINK)]),
        ("disk.info", [("disks/disk.info", Kind.FILE)]),
        ("console.log", [("log/serial0.log", Kind.FILE)]),
        ("console.log.1", [("log/serial0.log.1", Kind.FILE)]),
        ("unrescue.xml", [("unrescue.xml", Kind.FILE)]),
        (f"swtpm/{A}/tpm2/tpm2-00.permall", [("tpm/tpm2-00.permall", Kind.FILE)]),
        (f"swtpm/{A}/tpm2/.lock", []),
        ("swtpm/tpm2/tpm2-00.permall", []),
        ("libvirt.xml", []),
        ("diskette", []),
        ("kernel.old", []),
        ("console.log.bak", []),
        ("disk@resize", []),
        ("disk.eph0@resize", []),
    ],
)
def test_a_file_of_the_instance_directory_is_shown_once(file: str, expected: list[tuple[str, Kind]]) -> None:
    assert shown(f"{INSTANCES}/{A}/{file}") == expected


@pytest.mark.parametrize("what", ["resize", "del"])
@pytest.mark.parametrize(
    ("file", "entry"),
    [
        ("disk", "disks/disk@{}"),
        ("disk.config", "disks/disk.config@{}"),
        ("disk.info", "disks/disk.info@{}"),
        ("console.log", "log/console@{}.log"),
        ("console.log.0", "log/console@{}.log.0"),
        ("unrescue.xml", "unrescue@{}.xml"),
        (f"swtpm/{A}/tpm2/tpm2-00.permall", "tpm/tpm2-00.permall@{}"),
    ],
)
def test_what_a_resize_or_a_delete_leaves_says_so_in_its_name(what: str, file: str, entry: str) -> None:
    [(name, kind)] = shown(f"{INSTANCES}/{A}_{what}/{file}")
    assert name == entry.format(what)
    assert kind is (Kind.LINK if name.startswith("disks/") and "info" not in name else Kind.FILE)


@pytest.mark.parametrize(
    ("file", "server", "entry"),
    [
        ("console.log", WITHOUT_LOG, "log/console.log"),
        ("console.log.3", WITHOUT_LOG, "log/console.log.3"),
        ("console.log", FROM_VOLUME, "log/serial0.log"),
        ("disk.config", FROM_VOLUME, "disks/disk.config"),
        ("disk", RESCUED, "disks/vdb"),
        ("disk.rescue", RESCUED, "disks/vda"),
        ("disk.swap", RESCUED, "disks/disk.swap"),
    ],
)
def test_a_file_has_the_devices_name_where_a_definition_names_it_and_novas_where_none_does(
    file: str, server: Domain, entry: str
) -> None:
    assert [name for name, _kind in shown(f"{INSTANCES}/{A}/{file}", server)] == [entry]


@pytest.mark.parametrize("directory", [f"/srv/nova/{A}", f"/mnt/nfs/0123abcd/{A}"])
def test_the_instance_directory_is_found_wherever_the_definition_says(directory: str) -> None:
    moved = replace(SERVER, disks=(Disk("vda", f"{directory}/disk", "qcow2"),), logs=())
    assert shown(f"{directory}/disk.eph0", moved) == [("disks/disk.eph0", Kind.LINK)]
    assert shown(f"{directory}_resize/disk", moved) == [("disks/disk@resize", Kind.LINK)]
    assert shown(f"{INSTANCES}/{A}/disk.eph0", moved) == []


def test_a_server_without_an_instance_directory_is_shown_none_of_it() -> None:
    assert shown(f"{INSTANCES}/{A}/disk.eph0", ELSEWHERE) == []
    assert shown("/srv/images/disk.info", ELSEWHERE) == []


def test_under_another_root_it_lies_where_the_definition_says_but_for_libvirts_own_directories() -> None:
    there = places("/srv/second")
    assert shown(f"{INSTANCES}/{A}/disk.eph0", where=there) == [("disks/disk.eph0", Kind.LINK)]
    own = f"/var/lib/libvirt/images/{A}"
    moved = replace(SERVER, disks=(Disk("vda", f"{own}/disk", "qcow2"),), logs=())
    assert shown(f"/srv/second{own}/disk.eph0", moved, there) == [("disks/disk.eph0", Kind.LINK)]
    assert shown(f"{own}/disk.eph0", moved, there) == []


def test_namefss_own_store_is_no_instance_directory() -> None:
    """It is keyed by UUID as well, but shows whatever lies there under its own name."""
    store = f"{places().store}/{A}"
    adopted = replace(SERVER, disks=(Disk("vda", f"{store}/vda.qcow2", "qcow2"),), logs=())
    assert shown(f"{store}/disk.info", adopted) == [("disk.info", Kind.FILE)]


def test_nothing_below_the_instances_directory_is_reached_through_a_symlink() -> None:
    """That directory is Nova's, not root's: what is planted there must lead nowhere."""
    for subdir in (TOP, *SUBDIRECTORIES):
        for artefact in joined.artefacts(WITHOUT_LOG, (), places(), subdir):
            if artefact.kind is not Kind.IMAGE and artefact.directory.startswith(INSTANCES):
                assert artefact.base == INSTANCES
                assert artefact.below[0].startswith(str(A).encode())


_FILES = st.sampled_from(
    [
        "disk",
        "disk.info",
        "disk.eph0",
        "disk.eph0@resize",
        "console.log",
        "console.log.2.gz",
        "unrescue.xml",
        "kernel",
    ]
) | st.binary(min_size=1, max_size=20).map(lambda entry: str_of(entry.translate(None, b"/\0"))).filter(bool)
_VARIANTS = st.sampled_from(["", "_resize", "_del"])
_SERVERS = st.sampled_from([SERVER, FROM_VOLUME, WITHOUT_LOG, RESCUED])


@untimed
@given(_FILES, _VARIANTS, _SERVERS)
def test_no_file_is_shown_twice(file: str, variant: str, server: Domain) -> None:
    assert len(shown(f"{INSTANCES}/{A}{variant}/{file}", server)) <= 1


@untimed
@given(st.lists(st.tuples(_FILES, _VARIANTS), unique=True, max_size=8), _SERVERS)
def test_no_two_files_of_nova_share_an_entry(files: list[tuple[str, str]], server: Domain) -> None:
    entries = [
        name for file, variant in files for name, _kind in shown(f"{INSTANCES}/{A}{variant}/{file}", server)
    ]
    assert len(set(entries)) == len(entries)


@untimed
@given(st.uuids(), _FILES, st.sampled_from(["", "_resize", "_del", "_resize_del", "_base"]), _SERVERS)
def test_no_other_directory_is_taken_for_the_guests(
    other: UUID, file: str, variant: str, server: Domain
) -> None:
    if other != A:
        assert shown(f"{INSTANCES}/{other}{variant}/{file}", server) == []
    if variant in ("_resize_del", "_base"):
        assert shown(f"{INSTANCES}/{A}{variant}/{file}", server) == []
