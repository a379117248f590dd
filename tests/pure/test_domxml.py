"""The definitions in ``xml/`` are libvirt 9.0.0's own, of one running guest (embedded daemon)."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from uuid import UUID
from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from namefs.domxml import NotADomain, parse, parse_status
from namefs.model import Asked, Disk, Domain, Named
from namefs.name_sources import NameSources

XML = Path(__file__).with_name("xml")
LIVE = (XML / "web-live.xml").read_bytes()
PERSISTENT = (XML / "web-persistent.xml").read_bytes()
STATUS = (XML / "web-status.xml").read_bytes()
WEB = UUID("7d1c6a2e-5b0f-4c7a-9e53-0f6a2d4c8b11")


def definition(devices: str = "", rest: str = "", name: str = "web", uuid: UUID = WEB) -> bytes:
    text = f"<domain><name>{name}</name><uuid>{uuid}</uuid>{rest}<devices>{devices}</devices></domain>"
    return text.encode("utf-8", "surrogateescape")


def of(live: bytes | None = None, persistent: bytes | None = None) -> Domain:
    return parse("here", live, persistent, state="running")


def test_a_running_guest_as_libvirt_describes_it() -> None:
    assert of(LIVE, PERSISTENT) == Domain(
        uuid=WEB,
        name="web",
        connection="here",
        state="running",
        persistent=True,
        title="Shop & front",
        disks=(Disk("vda", "/srv/demo/guest/web.qcow2", "qcow2", ("/srv/demo/guest/base.qcow2",)),),
        logs=(
            Named("serial0", "/srv/demo/guest/serial.log"),
            Named("serial2", "/srv/demo/guest/ttyS2.log"),
            Named("parallel0", "/srv/demo/guest/lpt.log"),
        ),
        sockets=(
            Named("serial0", "/dev/pts/0"),
            Named("serial1", "/srv/demo/guest/ttyS1.sock"),
            Named("console1", "/dev/pts/1"),
            Named(
                "org.qemu.guest_agent.0",
                "/srv/demo/lib/qemu/channel/target/domain-1-web/org.qemu.guest_agent.0",
            ),
            Named("vnc", "/srv/demo/lib/qemu/domain-1-web/vnc.sock"),
        ),
        nvram="/srv/demo/lib/qemu/nvram/web_VARS.fd",
        filesystems=("fs0",),
        names=(("namefs", ""), ("libvirt", "web")),
    )


def test_the_same_guest_when_it_is_off() -> None:
    domain = parse("here", None, PERSISTENT, state="shut off")
    assert domain.disks == (Disk("vda", "/srv/demo/guest/web.qcow2", "qcow2", None),)
    assert domain.logs == of(LIVE).logs
    assert domain.sockets == (Named("serial1", "/srv/demo/guest/ttyS1.sock"),)
    assert domain.nvram == "/srv/demo/lib/qemu/nvram/web_VARS.fd"
    assert domain.filesystems == ("fs0",)
    assert (domain.state, domain.persistent) == ("shut off", True)


def test_a_guest_without_a_persistent_definition_is_transient() -> None:
    assert not of(LIVE).persistent


def test_the_status_file_tells_pid_and_monitor() -> None:
    status = parse_status(STATUS)
    assert (status.uuid, status.name, status.pid) == (WEB, "web", 6729)
    assert status.monitor == "/srv/demo/lib/qemu/domain-1-web/monitor.sock"


@pytest.mark.parametrize("pid", ["0", "-1", "", "12x", "9" * 5000])
def test_a_pid_that_is_none_yet_is_none(pid: str) -> None:
    status = parse_status(f"<domstatus pid='{pid}'>".encode() + definition() + b"</domstatus>")
    assert (status.pid, status.monitor) == (None, None)


NOVA = "http://openstack.org/xmlns/libvirt/nova/1.1"


def server(name: str, project: str) -> str:
    return (
        f"<metadata><n:instance xmlns:n='{NOVA}'><n:name>{name}</n:name>"
        f"<n:owner><n:project>{project}</n:project></n:owner></n:instance></metadata>"
    )


def asked(name: str, asked_ns: int) -> str:
    return f"<metadata><name xmlns='urn:namefs:1' asked='{asked_ns}'>{name}</name></metadata>"


def names_of(live: str, persistent: str, *sources: str) -> Domain:
    return parse(
        "here",
        definition(rest=live),
        definition(rest=persistent),
        state="running",
        sources=NameSources(sources, "nova:project"),
    )


def test_names_and_group_are_those_of_the_running_definition_where_it_has_them() -> None:
    domain = names_of(server("shop", "sales"), "<title>Till</title>" + server("old", "it"), "title", "nova")
    assert domain.names == (("title", "Till"), ("nova", "shop"), ("libvirt", "web"))
    assert domain.group == "sales"


def test_a_name_of_the_running_definition_that_is_none_gives_way_to_the_persistent_one() -> None:
    domain = names_of(server(" ", "..."), server("shop", "sales"), "nova")
    assert (domain.names, domain.group) == ((("nova", "shop"), ("libvirt", "web")), "sales")


@pytest.mark.parametrize(("live", "persistent"), [(("a", 2), ("b", 1)), (("b", 1), ("a", 2))])
def test_what_was_asked_for_last_counts_wherever_it_is(
    live: tuple[str, int], persistent: tuple[str, int]
) -> None:
    assert names_of(asked(*live), asked(*persistent)).asked == Asked("a", 2)


def disk(target: str, path: str) -> str:
    return f"<disk type='file'><source file={quoteattr(path)}/><target dev={quoteattr(target)}/></disk>"


def test_a_disk_moved_by_a_snapshot_is_where_the_running_guest_has_it() -> None:
    domain = of(
        definition(disk("vda", "/i/snap")), definition(disk("vda", "/i/base") + disk("vdb", "/i/new"))
    )
    assert [(d.target, d.path) for d in domain.disks] == [("vda", "/i/snap"), ("vdb", "/i/new")]


def test_an_ejected_image_does_not_come_back_from_the_persistent_definition() -> None:
    empty = "<disk type='file' device='cdrom'><target dev='hda'/></disk>"
    assert of(definition(empty), definition(disk("hda", "/i/cd.iso"))).disks == ()


@pytest.mark.parametrize(
    ("kind", "source", "path"),
    [
        ("file", "file='/i/a'", "/i/a"),
        ("block", "dev='/dev/vg/a'", "/dev/vg/a"),
        ("dir", "dir='/i/floppy'", "/i/floppy"),
        ("volume", "pool='default' volume='a'", "/pools/default/a"),
        ("volume", "pool='default'", None),
        ("network", "protocol='rbd' name='pool/a'", None),
        ("nvme", "type='pci' managed='yes' namespace='1'", None),
        ("vhostuser", "type='unix' path='/run/v.sock'", None),
        ("file", "file='relative'", None),
        ("unheard-of", "file='/i/a'", None),
    ],
)
def test_a_disks_path_follows_from_its_type(kind: str, source: str, path: str | None) -> None:
    xml = definition(f"<disk type='{kind}'><source {source}/><target dev='vda'/></disk>")
    domain = parse("here", xml, None, state="running", volumes=lambda pool, name: f"/pools/{pool}/{name}")
    assert [d.path for d in domain.disks] == ([] if path is None else [path])
    assert [d.format for d in domain.disks] == ([] if path is None else ["raw"])


def test_a_disk_without_a_type_is_a_file() -> None:
    xml = "<disk><source file='/i/a'/><target dev='vda'/></disk>"
    assert [d.path for d in of(definition(xml)).disks] == ["/i/a"]


def test_a_volume_that_the_pool_does_not_know_is_left_out() -> None:
    xml = "<disk type='volume'><source pool='p' volume='v'/><target dev='vda'/></disk>"
    assert of(definition(xml)).disks == ()


@pytest.mark.parametrize(
    ("chain", "backing"),
    [
        ("", None),
        ("<backingStore/>", ()),
        ("<backingStore type='file'><source file='/i/1'/></backingStore>", None),
        ("<backingStore type='file'><source file='/i/1'/><backingStore/></backingStore>", ("/i/1",)),
        (
            "<backingStore type='network'><source protocol='nbd'/>"
            "<backingStore type='block'><source dev='/dev/2'/><backingStore/></backingStore></backingStore>",
            ("/dev/2",),
        ),
    ],
)
def test_a_backing_chain_is_known_only_when_told_to_its_end(
    chain: str, backing: tuple[str, ...] | None
) -> None:
    xml = f"<disk type='file'><source file='/i/top'/><target dev='vda'/>{chain}</disk>"
    assert [d.backing for d in of(definition(xml)).disks] == [backing]


def test_serial_ports_are_numbered_by_port_and_consoles_by_position() -> None:
    domain = of(
        definition(
            "<console type='pty'><source path='/dev/pts/3'/><target type='serial' port='0'/></console>"
            "<console type='pty'><source path='/dev/pts/4'/><target type='virtio' port='0'/></console>"
            "<serial type='pty'><source path='/dev/pts/3'/><target port='1'/></serial>"
            "<serial type='unix'><source path='/run/s'/></serial>"
        )
    )
    assert domain.sockets == (
        Named("serial1", "/dev/pts/3"),
        Named("serial1-1", "/run/s"),
        Named("console1", "/dev/pts/4"),
    )


def test_a_device_that_writes_a_file_and_a_log_has_both() -> None:
    serial = "<serial type='file'><source path='/l/out'/><log file='/l/log'/><target port='0'/></serial>"
    assert of(definition(serial)).logs == (Named("serial0", "/l/log"), Named("serial0-1", "/l/out"))


def test_the_host_device_behind_a_serial_port_is_neither_log_nor_socket() -> None:
    domain = of(definition("<serial type='dev'><source path='/dev/ttyS0'/><target port='0'/></serial>"))
    assert (domain.logs, domain.sockets) == ((), ())


def channel(name: str, path: str) -> str:
    return (
        f"<channel type='unix'><source mode='bind' path={quoteattr(path)}/>"
        f"<target type='virtio' name={quoteattr(name)}/></channel>"
    )


def test_names_of_a_view_are_unique() -> None:
    domain = of(
        definition(channel("a", "/1") + channel("a", "/2") + channel("a-1", "/3") + channel("", "/4")),
        definition(channel("a", "/5") + channel("b", "/1") + channel("b", "/6")),
    )
    assert domain.sockets == (
        Named("a", "/1"),
        Named("a-1", "/2"),
        Named("a-1-1", "/3"),
        Named("channel3", "/4"),
        Named("b", "/6"),
    )


def test_a_channel_called_vnc_does_not_hide_the_vnc_socket() -> None:
    graphics = "<graphics type='vnc'><listen type='socket' socket='/run/vnc.sock'/></graphics>"
    sockets = of(definition(graphics), definition(channel("vnc", "/run/mine"))).sockets
    assert Named("vnc", "/run/vnc.sock") in sockets


def test_graphics_without_a_socket_has_none() -> None:
    xml = "<graphics type='vnc' port='5900'><listen type='address' address='::1'/></graphics>"
    assert of(definition(xml)).sockets == ()


@pytest.mark.parametrize(
    ("nvram", "path"),
    [
        ("<nvram>/n/VARS.fd</nvram>", "/n/VARS.fd"),
        ("<nvram type='file'>\n<source file='/n/VARS.qcow2'/>\n</nvram>", "/n/VARS.qcow2"),
        ("<nvram type='block'><source dev='/dev/n'/></nvram>", "/dev/n"),
        ("<nvram type='network'><source protocol='iscsi' name='n'/></nvram>", None),
        ("<nvram template='/t'/>", None),
    ],
)
def test_nvram_is_text_or_a_source(nvram: str, path: str | None) -> None:
    assert of(definition(rest=f"<os>{nvram}</os>")).nvram == path


def test_filesystems_without_an_alias_are_counted_with_those_of_other_drivers() -> None:
    domain = of(
        None,
        definition(
            "<filesystem><driver type='path'/></filesystem>"
            "<filesystem><driver type='virtiofs'/></filesystem>"
            "<filesystem><driver type='virtiofs'/><source socket='/run/own.sock'/></filesystem>"
            "<filesystem><driver type='virtiofs'/><alias name='ua-home'/></filesystem>"
            "<filesystem/>"
        ),
    )
    assert domain.filesystems == ("fs1", "ua-home")


@pytest.mark.parametrize(
    "xml",
    [
        b"",
        b"<domain/>",
        b"<domain",
        b"<domain><uuid>7d1c6a2e-5b0f-4c7a-9e53-0f6a2d4c8b11</uuid></domain>",
        b"<domain><uuid>web</uuid><name>web</name></domain>",
        b"<domain><name>web</name></domain>",
        b"<network><name>default</name><uuid>7d1c6a2e-5b0f-4c7a-9e53-0f6a2d4c8b11</uuid></network>",
        b"<d xmlns='a&#10;b'/>",
        b"<domain xmlns='http://example.org/'><name>web</name></domain>",
        b"\xff\xfe<\x00d\x00",
        definition(name="\0"),
        STATUS,
    ],
)
def test_what_is_not_a_domain_is_refused_in_one_line(xml: bytes) -> None:
    with pytest.raises(NotADomain) as refusal:
        of(xml)
    assert "\n" not in str(refusal.value)


def test_a_domain_is_not_a_status() -> None:
    with pytest.raises(NotADomain):
        parse_status(LIVE)


def test_a_status_without_a_domain_is_refused() -> None:
    with pytest.raises(NotADomain):
        parse_status(b"<domstatus/>")


def test_no_definition_at_all_is_refused() -> None:
    with pytest.raises(NotADomain):
        of()


def test_definitions_of_two_domains_are_refused() -> None:
    with pytest.raises(NotADomain):
        of(definition(), definition(uuid=UUID(int=1)))


@pytest.mark.parametrize("doctype", ["<!DOCTYPE domain>", "<!DOCTYPE d [<!ENTITY t SYSTEM '/etc/shadow'>]>"])
def test_a_doctype_is_refused(doctype: str) -> None:
    with pytest.raises(NotADomain, match="DOCTYPE"):
        of(doctype.encode() + definition(rest="<title>web</title>"))


def test_a_doctype_in_a_tenants_text_is_text() -> None:
    rest = "<title>x</title><metadata><m xmlns='u'><![CDATA[<!DOCTYPE html>]]></m></metadata>"
    assert of(definition(rest=rest)).title == "x"


def test_a_declared_encoding_does_not_garble_names() -> None:
    xml = b"<?xml version='1.0' encoding='ISO-8859-1'?>" + definition(name="b\u00e4r")
    assert of(xml).name == "b\u00e4r"


def test_bytes_that_are_not_utf8_come_back_as_they_were() -> None:
    domain = of(
        definition(disk("vda", "/i/\udcff\udcfe"), name="w\udcffb\uffff\x1f\U000f0000&#xf0001;&#0983042;")
    )
    assert domain.name == "w\udcffb\uffff\x1f\U000f0000\U000f0001\U000f0002"
    assert domain.disks[0].path == "/i/\udcff\udcfe"


def test_a_deep_document_is_no_danger() -> None:
    depth = 20_000
    assert of(definition("<a>" * depth + "</a>" * depth)).name == "web"


@given(st.binary())
@example(LIVE[:500])
def test_arbitrary_bytes_raise_nothing_but_not_a_domain(xml: bytes) -> None:
    for read in (of, parse_status):
        with contextlib.suppress(NotADomain):
            read(xml)


@given(st.data())
def test_damaged_definitions_raise_nothing_but_not_a_domain(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from([LIVE, PERSISTENT, STATUS]))
    pieces = re.split(rb"(?=[<='/ ])", whole)
    start = data.draw(st.integers(0, len(pieces) - 1))
    stop = data.draw(st.integers(start, min(start + 5, len(pieces))))
    damaged = b"".join([*pieces[:start], data.draw(st.binary(max_size=6)), *pieces[stop:]])
    for read in (lambda: of(damaged), lambda: of(LIVE, damaged), lambda: parse_status(damaged)):
        with contextlib.suppress(NotADomain):
            read()


# What libvirt can hold and XML can tell apart: NUL ends a C string, and XML turns CR into LF.
ANY_BYTE = st.characters(exclude_categories=["Cs"], exclude_characters="\0\r") | st.sampled_from(
    [chr(0xDC00 + byte) for byte in range(0x80, 0x100)]
)


def reads_back(text: str) -> bool:
    """No run of stray bytes that together are UTF-8: decoding gives the character."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") == text


TEXT = st.text(ANY_BYTE, min_size=1, max_size=30).filter(reads_back)
# quoteattr leaves bare what an attribute's value would have normalised, as libvirt does.
PATH = TEXT.filter(lambda text: not set(text) & set("\n\t")).map(lambda text: "/" + text)


@given(name=TEXT, title=TEXT, nvram=PATH, disks=st.lists(PATH, unique=True), logs=st.lists(PATH, unique=True))
def test_names_and_paths_round_trip(
    name: str, title: str, nvram: str, disks: list[str], logs: list[str]
) -> None:
    devices = [disk(f"vd{i}", path) for i, path in enumerate(disks)]
    devices += [f"<serial type='pty'><log file={quoteattr(path)}/></serial>" for path in logs]
    rest = f"<title>{escape(title)}</title><os><nvram>{escape(nvram)}</nvram></os>"
    domain = of(None, definition("".join(devices), rest, escape(name)))
    assert (domain.name, domain.title, domain.nvram) == (name, title, nvram)
    assert [d.path for d in domain.disks] == disks
    assert [(log.name, log.path) for log in domain.logs] == [(f"serial{i}", p) for i, p in enumerate(logs)]


NAMED = st.lists(st.tuples(st.sampled_from(["a", "a-1", "b", ""]), st.sampled_from(["/1", "/2", "/3", "x"])))


@given(live=NAMED, persistent=NAMED)
def test_whatever_devices_there_are_names_and_paths_are_unique_and_live_ones_are_kept(
    live: list[tuple[str, str]], persistent: list[tuple[str, str]]
) -> None:
    first, second = (
        definition("".join(channel(*pair) + disk(*pair) for pair in pairs)) for pairs in (live, persistent)
    )
    merged, alone = of(first, second), of(first)
    names = [socket.name for socket in merged.sockets]
    paths = [socket.path for socket in merged.sockets]
    targets = [d.target for d in merged.disks]
    assert len(set(names)) == len(names)
    assert len(set(paths)) == len(paths)
    assert len(set(targets)) == len(targets)
    assert merged.sockets[: len(alone.sockets)] == alone.sockets
    assert merged.disks[: len(alone.disks)] == alone.disks
