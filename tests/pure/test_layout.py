"""Where stock libvirt keeps a domain's files, as its sources and a running one say, and whose each is."""

from __future__ import annotations

import re
from uuid import UUID

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from namefs.layout.artefact import SUBDIRECTORIES, TOP, Artefact, Kind, bytes_of
from namefs.layout.directories import Directories, for_uri
from namefs.layout.libvirt import artefacts
from namefs.model import Disk, Domain, Named

A = UUID("1b4e28ba-2fa1-11d2-883f-b9a761bde3fb")

# A call takes microseconds; what a deadline would measure is how busy the machine is.
untimed = settings(deadline=None)


def directories(uri: str, root: str = "") -> Directories:
    found = for_uri(uri, root=root, home="/home/me", environ={}, uid=1000 if "session" in uri else 0)
    assert found is not None
    return found


SYSTEM = directories("qemu:///system")
SESSION = directories("qemu:///session")

WEB = Domain(
    A,
    "web",
    "system",
    disks=(Disk("vda", "/var/lib/libvirt/images/web.qcow2", "qcow2", ("/srv/base.img",)),),
    logs=(Named("serial0", "/var/log/libvirt/qemu/web-serial0.log"),),
    sockets=(Named("org.qemu.guest_agent.0", "/run/libvirt/qemu/channel/1-web/org.qemu.guest_agent.0"),),
    filesystems=("ua-share",),
)


def all_of(
    domain: Domain, former: tuple[str, ...] = (), places: Directories = SYSTEM
) -> list[tuple[bytes, Artefact]]:
    return [
        (subdir, artefact)
        for subdir in (TOP, *SUBDIRECTORIES)
        for artefact in artefacts(domain, former, places, subdir)
    ]


def shown(
    path: str, domain: Domain = WEB, former: tuple[str, ...] = (), places: Directories = SYSTEM
) -> list[str]:
    """Where the view of the domain shows the file at ``path``."""
    found = []
    for subdir, artefact in all_of(domain, former, places):
        groups = artefact.groups_of(bytes_of(path.rpartition("/")[2]))
        if artefact.claims(path):
            assert groups is not None
            name = artefact.shown_as(groups)
            assert "\0" not in name
            assert artefact.may_show(name)
            assert artefact.subdir == subdir
            found.append(f"{subdir.decode()}/{name}" if subdir else name)
    return found


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/etc/libvirt/qemu/web.xml", ["config.xml"]),
        ("/etc/libvirt/qemu/autostart/web.xml", ["autostart.xml"]),
        ("/run/libvirt/qemu/web.xml", ["status.xml", "sockets/monitor"]),
        ("/run/libvirt/qemu/web.pid", ["run/pid", "run/process"]),
        ("/var/log/libvirt/qemu/web.log", ["log/qemu.log"]),
        ("/var/log/libvirt/qemu/web-fs0-virtiofsd.log", ["log/virtiofsd-fs0.log"]),
        ("/var/log/libvirt/qemu/web-ua-share-virtiofsd.log", ["log/virtiofsd-ua-share.log"]),
        ("/var/log/swtpm/libvirt/qemu/web-swtpm.log", ["log/swtpm.log"]),
        ("/var/log/libvirt/qemu/web-serial0.log", ["log/serial0.log"]),
        ("/var/lib/libvirt/images/web.qcow2", ["disks/vda"]),
        ("/var/lib/libvirt/qemu/save/web.save", ["save/managed.save"]),
        ("/var/lib/libvirt/qemu/snapshot/web/before.xml", ["snapshots/before.xml"]),
        ("/var/lib/libvirt/qemu/checkpoint/web/first.xml", ["checkpoints/first.xml"]),
        ("/var/lib/libvirt/qemu/nvram/web_VARS.fd", ["nvram/VARS.fd"]),
        (f"/var/lib/libvirt/swtpm/{A}/tpm2/tpm2-00.permall", ["tpm/tpm2-00.permall"]),
        (f"/var/lib/libvirt/swtpm/{A}/tpm1.2/tpm-00.permall", ["tpm/tpm-00.permall"]),
        (
            "/run/libvirt/qemu/channel/1-web/org.qemu.guest_agent.0",
            ["sockets/org.qemu.guest_agent.0"],
        ),
        # What lies beside them and is not to be shown.
        ("/etc/libvirt/qemu/web.xml.new", []),
        ("/etc/libvirt/qemu/networks/web.xml", []),
        ("/var/lib/libvirt/qemu/snapshot/web/before.xml.new", []),
        ("/var/lib/libvirt/qemu/snapshot/web/.xml", []),
        ("/var/lib/libvirt/qemu/snapshot/web-db/before.xml", []),
        ("/var/lib/libvirt/qemu/snapshot/before.xml", []),
        (f"/var/lib/libvirt/swtpm/{A}/tpm2/.lock", []),
        ("/var/lib/libvirt/swtpm/web/tpm2/tpm2-00.permall", []),
        ("/var/log/libvirt/qemu/web-swtpm.log", []),
        ("/var/log/libvirt/qemu/web-db-virtiofsd.log", []),
        ("/var/log/libvirt/qemu/web", []),
        ("/srv/base.img", []),
        ("web.xml", []),
    ],
)
def test_each_file_is_shown_where_it_belongs(path: str, expected: list[str]) -> None:
    assert shown(path) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/me/.config/libvirt/qemu/web.xml", ["config.xml"]),
        ("/home/me/.config/libvirt/qemu/autostart/web.xml", ["autostart.xml"]),
        ("/home/me/.config/libvirt/qemu/save/web.save", ["save/managed.save"]),
        ("/home/me/.config/libvirt/qemu/nvram/web_VARS.fd", ["nvram/VARS.fd"]),
        ("/home/me/.cache/libvirt/qemu/log/web.log", ["log/qemu.log"]),
        ("/home/me/.cache/libvirt/qemu/log/web-swtpm.log", ["log/swtpm.log"]),
        (f"/home/me/.config/libvirt/qemu/swtpm/{A}/tpm2/tpm2-00.permall", ["tpm/tpm2-00.permall"]),
        ("/etc/libvirt/qemu/web.xml", []),
    ],
)
def test_a_users_session_has_its_own_directories(path: str, expected: list[str]) -> None:
    assert shown(path, places=SESSION) == expected


@pytest.mark.parametrize(
    ("suffix", "is_rotation"),
    [
        *(
            (suffix, True)
            for suffix in ("", ".0", ".2", ".10", ".1.gz", ".4.xz", "-20261124", "-20261124.gz")
        ),
        *((suffix, True) for suffix in ("-20261124-1793858400.gz", ".gz", ".1.zst", ".1.bz2")),
        *(
            (suffix, False)
            for suffix in (".old", "~", ".0.1", "-2026", ".12345", ".1.zip", "0", ".", ".0\n", "\n")
        ),
    ],
)
@pytest.mark.parametrize(
    ("log", "name"),
    [
        ("/var/log/libvirt/qemu/web.log", "qemu.log"),
        ("/var/log/swtpm/libvirt/qemu/web-swtpm.log", "swtpm.log"),
        ("/var/log/libvirt/qemu/web-fs0-virtiofsd.log", "virtiofsd-fs0.log"),
        ("/var/log/libvirt/qemu/web-serial0.log", "serial0.log"),
    ],
)
def test_the_rotations_of_virtlogd_and_logrotate_are_shown(
    log: str, name: str, suffix: str, is_rotation: bool
) -> None:
    assert shown(log + suffix) == ([f"log/{name}{suffix}"] if is_rotation else [])


def test_logs_of_former_names_are_shown_after_the_present_ones_the_latest_first() -> None:
    found = list(artefacts(WEB, ("one", "two"), SYSTEM, b"log"))
    assert [artefact.name for artefact in found if artefact.kind is Kind.QEMU_LOG] == ["web", "two", "one"]
    for path, expected in (
        ("/var/log/libvirt/qemu/one.log.0", "log/qemu@one.log.0"),
        ("/var/log/libvirt/qemu/two-fs1-virtiofsd.log", "log/virtiofsd-fs1@two.log"),
        ("/var/log/swtpm/libvirt/qemu/two-swtpm.log", "log/swtpm@two.log"),
    ):
        assert shown(path, former=("one", "two")) == [expected]
        assert shown(path) == []


def test_only_logs_and_uefi_variables_are_looked_for_under_a_former_name() -> None:
    left = {b"log", b"nvram"}
    others = [artefact for subdir, artefact in all_of(WEB, ("old",)) if subdir not in left]
    assert others == [artefact for subdir, artefact in all_of(WEB) if subdir not in left]
    assert shown("/var/lib/libvirt/qemu/nvram/old_VARS.fd", former=("old",)) == ["nvram/VARS@old.fd"]


def test_what_is_told_by_the_name_that_it_is_called_by_says_which_that_is() -> None:
    for subdir, artefact in all_of(WEB, ("old",)):
        by_name = artefact.kind in (Kind.QEMU_LOG, Kind.NAMED_LOG) or artefact.entry == "VARS@old.fd"
        assert bool(artefact.name) == by_name
        assert subdir in (b"log", b"nvram") or not by_name


def test_a_definitions_own_nvram_is_shown_instead_of_the_derived_one() -> None:
    domain = Domain(A, "web", "system", nvram="/srv/vars/web.qcow2")
    assert shown("/srv/vars/web.qcow2", domain) == ["nvram/VARS.qcow2"]
    assert shown("/var/lib/libvirt/qemu/nvram/web_VARS.fd", domain) == []
    assert shown("/srv/vars", Domain(A, "web", "system", nvram="/srv/vars")) == ["nvram/VARS.fd"]


def test_a_disk_carries_its_format_and_what_libvirt_told_of_its_chain() -> None:
    told, untold = Disk("vda", "/a", "qcow2", ("/b", "/c")), Disk("sdb", "/d", "raw")
    found = list(artefacts(Domain(A, "web", "system", disks=(told, untold)), (), SYSTEM, b"disks"))
    assert [(a.entry, a.kind, a.image_format, a.backing) for a in found] == [
        ("vda", Kind.IMAGE, "qcow2", ("/b", "/c")),
        ("sdb", Kind.IMAGE, "raw", None),
    ]


def test_paths_of_a_second_daemon_are_where_its_directories_lie_from_here() -> None:
    places = directories("qemu:///system", root="/second")
    disks = (
        Disk("vda", "/var/lib/libvirt/images/a", "qcow2", ("/var/lib/libvirt/images/b", "/srv/c")),
        Disk("vdb", "/srv/d", "raw"),
    )
    domain = Domain(
        A,
        "web",
        "second",
        disks=disks,
        nvram="/var/lib/libvirt/qemu/nvram/x.fd",
        logs=(Named("serial0", "/var/log/libvirt/qemu/s.log"),),
        sockets=(Named("vnc", "/var/run/libvirt/qemu/vnc"),),
    )
    for path, expected in (
        ("/second/etc/libvirt/qemu/web.xml", ["config.xml"]),
        ("/second/var/lib/libvirt/images/a", ["disks/vda"]),
        ("/srv/d", ["disks/vdb"]),
        ("/second/var/lib/libvirt/qemu/nvram/x.fd", ["nvram/VARS.fd"]),
        ("/second/var/log/libvirt/qemu/s.log", ["log/serial0.log"]),
        ("/second/run/libvirt/qemu/vnc", ["sockets/vnc"]),
    ):
        assert shown(path, domain, places=places) == expected
    image = next(iter(artefacts(domain, (), places, b"disks")))
    assert image.backing == ("/second/var/lib/libvirt/images/b", "/srv/c")


def test_there_is_nothing_in_a_subdirectory_that_does_not_exist() -> None:
    assert list(artefacts(WEB, (), SYSTEM, b"none")) == []


# Names that patterns, format strings and paths could trip over.
PIECES = [
    *(
        "web",
        "db",
        "-",
        ".",
        "..",
        ".log",
        ".0",
        ".xml",
        "-swtpm",
        "_VARS.fd",
        "fs0",
        "-fs1",
        "{",
        "}",
        "{0}",
    ),
    *("%", "*", "?", ".*", "[a]", "(", ")", "|", "\\", "\\d+", "^", "$", "\n", " ", "+", "æ", "\udcff", "@"),
    *("\0alias\0", "rotation", "\\g<rotation>", "~"),
]
names = (
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=4)
    .map(lambda pieces: "".join(pieces).replace("\0", ""))
    .filter(bool)
)


def files_of(name: str) -> list[tuple[str, str]]:
    """The files that libvirt calls by a domain's name, and where the view shows them."""
    return [
        (f"/etc/libvirt/qemu/{name}.xml", "config.xml"),
        (f"/etc/libvirt/qemu/autostart/{name}.xml", "autostart.xml"),
        (f"/run/libvirt/qemu/{name}.xml", "status.xml"),
        (f"/run/libvirt/qemu/{name}.pid", "run/pid"),
        (f"/var/log/libvirt/qemu/{name}.log", "log/qemu.log"),
        (f"/var/log/libvirt/qemu/{name}.log.0", "log/qemu.log.0"),
        (f"/var/log/libvirt/qemu/{name}.log-20261124.gz", "log/qemu.log-20261124.gz"),
        (f"/var/log/libvirt/qemu/{name}-fs0-virtiofsd.log.1", "log/virtiofsd-fs0.log.1"),
        (f"/var/log/swtpm/libvirt/qemu/{name}-swtpm.log", "log/swtpm.log"),
        (f"/var/lib/libvirt/qemu/save/{name}.save", "save/managed.save"),
        (f"/var/lib/libvirt/qemu/nvram/{name}_VARS.fd", "nvram/VARS.fd"),
        (f"/var/lib/libvirt/qemu/snapshot/{name}/s.xml", "snapshots/s.xml"),
        (f"/var/lib/libvirt/qemu/checkpoint/{name}/c.xml", "checkpoints/c.xml"),
    ]


@untimed
@given(names)
def test_the_files_of_a_domain_of_any_name_are_found(name: str) -> None:
    for path, expected in files_of(name):
        assert shown(path, Domain(A, name, "system"))[:1] == [expected]


@untimed
@given(names, names, st.lists(names, max_size=1).map(tuple))
def test_no_domain_claims_a_file_that_is_anothers(name: str, other: str, aliases: tuple[str, ...]) -> None:
    assume(name != other)
    # libvirt itself gives a virtiofsd's log and this domain's one path, and then starts only one of them.
    assume(not re.fullmatch(r"-(fs\d+|.*)-virtiofsd", other.removeprefix(name), re.DOTALL))
    # An alias that the definition names is looked for, whosever log that is.
    assume(all(f"{name}-{alias}" != f"{other}-fs0" for alias in aliases))
    domain = Domain(A, name, "system", filesystems=aliases)
    for path, _expected in files_of(other):
        assert shown(path, domain) == [], path


@untimed
@given(names, names)
def test_an_alias_of_any_characters_is_taken_literally(name: str, alias: str) -> None:
    domain = Domain(A, name, "system", filesystems=(alias,))
    path = f"/var/log/libvirt/qemu/{name}-{alias}-virtiofsd.log"
    assert shown(path, domain) == [f"log/virtiofsd-{alias}.log"]


@untimed
@given(names, names)
def test_former_names_of_any_characters_are_told_apart(name: str, old: str) -> None:
    assume(name != old)
    domain = Domain(A, name, "system")
    assert shown(f"/var/log/libvirt/qemu/{old}.log.0", domain, (old,)) == [f"log/qemu@{old}.log.0"]
    assert shown(f"/var/log/libvirt/qemu/{name}.log.0", domain, (old,)) == ["log/qemu.log.0"]


@untimed
@given(names, st.sampled_from([b"", b".0", b"x.xml", b"fs0"]))
def test_what_an_artefact_is_called_it_may_be_called(name: str, value: bytes) -> None:
    for _subdir, artefact in all_of(Domain(A, name, "system", disks=WEB.disks), (name + "2",)):
        groups = dict.fromkeys(re.findall("\0(.*?)\0", artefact.entry), value)
        assert artefact.may_show(artefact.shown_as(groups))


def test_what_an_artefact_cannot_be_called_need_not_be_looked_for() -> None:
    assert [a.entry for _subdir, a in all_of(WEB) if a.may_show("config.xml") and "\0" not in a.entry] == [
        "config.xml"
    ]
    assert {a.kind for _subdir, a in all_of(WEB) if a.may_show("vda.backing1")} == {Kind.IMAGE, Kind.FILE}
    assert [a.kind for _subdir, a in all_of(WEB) if a.subdir == b"log" and a.may_show("qemu.log.0")] == [
        Kind.QEMU_LOG
    ]
