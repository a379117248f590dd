"""What adopting moves and what it leaves, and definitions rewritten without touching anything else."""

from __future__ import annotations

import difflib
import posixpath
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from namefs.adoption import definition, plan, records, spans
from namefs.adoption.definition import Kind

UUID = "00000000-0000-4000-8000-00000000000a"
STORE = plan.Store(f"/var/lib/libvirt/by-uuid/{UUID}", "/var/lib/libvirt/qemu/nvram/web_VARS.fd")
IMAGE = "/images/web.qcow2"

# Everything that libvirt never writes and that stands for what may come: quotes of both kinds, blanks, a
# prefix declared twice, CDATA, a comment with a device in it, what looks like a tag in an attribute.
DEFINITION = f"""\
<domain type='qemu' xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
  <name>web</name>
  <uuid>{UUID}</uuid>
  <title>a &gt; b</title>
  <metadata>
    <m:a xmlns:m = "urn:m"  m:b='1 > 0' ><m:c xmlns:m="urn:n">&#x41;<![CDATA[<source file='{IMAGE}'/>]]></m:c></m:a>
  </metadata>
  <os firmware='efi'>
    <type arch='x86_64' machine='q35'>hvm</type>
    <boot dev='hd'/>
  </os>
  <!-- <disk type='file'><source file='{IMAGE}'/></disk> -->
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file = "{IMAGE}" index='1'><seclabel model='dac' relabel='no'/></source>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'><source file='/images/dvd.iso'/><target dev='sda'/><readonly/></disk>
    <disk type='file' device='disk'><source file='/images/all.img'/><target dev='vdb'/><shareable/></disk>
    <disk type='block' device='disk'><source dev='/dev/vg/web'/><target dev='vdc'/></disk>
    <disk type='network' device='disk'><source protocol='rbd' name='pool/web'/><target dev='vdd'/></disk>
    <disk type='file' device='disk'><driver type='vmdk'/><source file='/images/w.vmdk'/><target dev='vde'/></disk>
    <serial type='pty'><source path='/dev/pts/3'/><log file='/logs/serial.log' append='on'/><target port='0'/></serial>
    <console type='pty'><log file='/logs/serial.log'/><target type='serial' port='0'/></console>
    <parallel type='file'><source path='/logs/print'/><target port='0'/></parallel>
    <channel type='unix'><source mode='bind' path='/s/a&amp;b.sock'/><target type='virtio' name='org.x/y'/></channel>
    <channel type='unix'><source mode='connect' path='/s/theirs.sock'/><target type='virtio' name='z'/></channel>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <graphics type='vnc' socket='/s/vnc.sock'><listen type='socket' socket='/s/vnc.sock'/></graphics>
  </devices>
</domain>
"""  # noqa: E501 - as libvirt would have it, one device a line

FILE = plan.Present(dev=1, ino=7, size_bytes=100, mtime_ns=5)


class World:
    """Facts for a plan: which files there are, and who names them."""

    def __init__(self) -> None:
        paths = (IMAGE, "/images/dvd.iso", "/images/all.img", "/images/w.vmdk", "/logs/serial.log")
        self.files = {path: replace(FILE, ino=number) for number, path in enumerate(paths, start=10)}
        self.files["/logs/serial.log.0"] = replace(FILE, ino=30)
        self.files[STORE.own_nvram] = replace(FILE, ino=31)
        self.named: dict[str, str] = {}
        self.tied: dict[str, str] = {}
        self.other_filesystem = ""

    @property
    def facts(self) -> plan.Facts:
        directories = {posixpath.dirname(path) for path in [*World().files, "/s/any"]}
        return plan.Facts(
            look=lambda path: self.files.get(path) or (FILE if path in directories else None),
            named_by=lambda path, _file: self.named.get(path, ""),
            tied=lambda path: self.tied.get(path, ""),
            pieces=lambda path: [p for p in sorted(self.files) if p.startswith(path + ".")],
            links=lambda source, _target: source != self.other_filesystem,
        )

    def moved(self, planned: plan.Plan) -> World:
        """The world after the plan."""
        after = World()
        after.files = {**self.files}
        for move in planned.moves:
            if move.file is not None:
                after.files[move.target] = after.files.pop(move.source)
        return after


def guest(xml: str = DEFINITION, *moments: plan.Moment) -> plan.Guest:
    return plan.Guest(UUID, "web", xml, moments)


def adoption(world: World, of: plan.Guest | None = None, *, disks: bool = True) -> plan.Plan:
    return plan.adoption(of or guest(), STORE, world.facts, (), disks=disks)


def moved(planned: plan.Plan) -> dict[str, str]:
    return {move.source: move.target.removeprefix(STORE.directory + "/") for move in planned.moves}


def changes(before: str, after: str) -> list[str]:
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line.startswith(("+ ", "- "))]


def test_what_libvirt_lets_one_place_is_moved_and_nothing_else() -> None:
    planned = adoption(World())
    assert moved(planned) == {
        IMAGE: "disks/vda.qcow2",
        STORE.own_nvram: "nvram/VARS.fd",
        "/logs/serial.log": "log/serial0.log",
        "/logs/serial.log.0": "log/serial0.log.0",
        "/logs/print": "log/parallel0.log",
        "/s/a&b.sock": "sockets/org.x_y",
        "/s/vnc.sock": "sockets/vnc",
    }
    assert {kept.path: kept.why for kept in planned.kept} == {
        "/images/dvd.iso": "is for a cdrom",
        "/images/all.img": "is shared with other guests",
        "/images/w.vmdk": "is in the format vmdk, which may name other files",
        "/s/theirs.sock": "is a socket of another program, which the guest connects to",
    }


@pytest.mark.parametrize(
    ("element", "stack"),
    [
        ('<nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1"/>', "OpenStack Nova"),
        ("<x:instance xmlns:x='http://openstack.org/xmlns/libvirt/nova/1.0'></x:instance>", "OpenStack Nova"),
        ('<vm xmlns="http://opennebula.org/xmlns/libvirt/1.0"><name>web</name></vm>', "OpenNebula"),
        ('<ovirt-vm:vm xmlns:ovirt-vm="http://ovirt.org/vm/1.0"/>', "oVirt"),
    ],
)
def test_a_guest_whose_definition_somebody_writes_anew_is_not_adopted(element: str, stack: str) -> None:
    its = DEFINITION.replace("<metadata>", f"<metadata>{element}")
    with pytest.raises(plan.Refused, match=f"{stack} writes its definition"):
        adoption(World(), guest(its))


def test_a_namespace_that_is_only_declared_belongs_to_nobody() -> None:
    its = DEFINITION.replace("<m:a ", '<m:a xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1" ')
    assert moved(adoption(World(), guest(its))) == moved(adoption(World()))


def test_images_stay_unless_asked_for() -> None:
    planned = adoption(World(), disks=False)
    assert not [move for move in planned.moves if move.kind is Kind.DISK]
    assert len(planned.moves) == 6


def test_only_what_names_a_moved_path_changes() -> None:
    planned = adoption(World())
    after = planned.forward(DEFINITION)
    # Six lines are others, one is new.
    assert len(changes(DEFINITION, after)) == 2 * 6 + 1
    assert f"<nvram>{STORE.directory}/nvram/VARS.fd</nvram>" in after
    assert f"<![CDATA[<source file='{IMAGE}'/>]]>" in after
    assert f"<!-- <disk type='file'><source file='{IMAGE}'/></disk> -->" in after
    assert f"""<source file = "{STORE.directory}/disks/vda.qcow2" index='1'>""" in after
    assert planned.backward(after) == DEFINITION
    assert planned.is_switched(after)
    assert not planned.is_switched(DEFINITION)


@pytest.mark.parametrize(
    ("path", "file", "why"),
    [
        (IMAGE, replace(FILE, what="a symlink"), "is a symlink"),
        (IMAGE, replace(FILE, links=2), "has 2 names (hard links)"),
        (IMAGE, None, "is not there"),
        ("/logs/serial.log", replace(FILE, what="a FIFO"), "is a FIFO"),
        (STORE.own_nvram, replace(FILE, what="a symlink"), "is a symlink"),
    ],
)
def test_what_is_no_file_of_its_own_stays(path: str, file: plan.Present | None, why: str) -> None:
    world = World()
    if file is None:
        del world.files[path]
    else:
        world.files[path] = file
    planned = adoption(world)
    assert why in {kept.why for kept in planned.kept if kept.path == path}
    assert path not in moved(planned)
    assert path in definition.names(planned.forward(DEFINITION)) | {STORE.own_nvram}


@pytest.mark.parametrize("path", [IMAGE, "/logs/serial.log", "/s/vnc.sock", STORE.own_nvram])
def test_what_anything_else_names_stays(path: str) -> None:
    world = World()
    world.named[path] = "guest mail"
    planned = adoption(world)
    assert "is named by guest mail too" in {kept.why for kept in planned.kept if kept.path == path}
    assert path not in moved(planned)


def test_an_image_that_names_others_relative_to_itself_stays() -> None:
    world = World()
    world.tied[IMAGE] = "names its backing image relative to where it lies"
    assert IMAGE not in moved(adoption(world))


def test_images_stay_where_a_snapshot_has_saved_memory_which_names_them() -> None:
    xml = (
        f"<domainsnapshot><name>s</name><memory snapshot='external' file='/m'/>{DEFINITION}</domainsnapshot>"
    )
    planned = adoption(World(), guest(DEFINITION, plan.Moment(plan.SNAPSHOT, "s", xml)))
    assert "is named by the saved memory of snapshot s" in {kept.why for kept in planned.kept}
    assert IMAGE not in moved(planned)


def test_what_is_not_there_yet_only_gets_its_path() -> None:
    world = World()
    del world.files[STORE.own_nvram]
    planned = adoption(world)
    assert [move.file for move in planned.moves if move.kind is Kind.NVRAM] == [None]


def test_a_socket_whose_path_would_be_too_long_for_one_stays() -> None:
    directory = f"/srv/{'x' * 60}/{UUID}"
    planned = plan.adoption(guest(), replace(STORE, directory=directory), World().facts, (), disks=False)
    assert {kept.why for kept in planned.kept if kept.device == "org.x/y"} == {
        "would have a path of more than 107 bytes"
    }


def test_what_lies_in_the_store_already_is_never_overwritten() -> None:
    world = World()
    world.files[f"{STORE.directory}/disks/vda.qcow2"] = FILE
    with pytest.raises(plan.Refused, match=r"vda\.qcow2 is in the way"):
        adoption(world)


def test_release_is_the_inverse() -> None:
    world = World()
    adopted = adoption(world)
    xml = adopted.forward(DEFINITION)
    released = plan.release(guest(xml), STORE, world.moved(adopted).facts, adopted.items)
    assert released.forward(xml) == DEFINITION
    assert released.backward(DEFINITION) == xml
    assert {(m.source, m.target, m.file) for m in released.moves} == {
        (m.target, m.source, m.file) for m in adopted.moves
    }
    assert released.items == ()
    assert not released.kept


def test_release_after_a_rename_puts_the_variables_where_libvirt_now_looks_for_them() -> None:
    world = World()
    adopted = adoption(world)
    xml = adopted.forward(DEFINITION).replace("<name>web<", "<name>shop<")
    store = replace(STORE, own_nvram="/var/lib/libvirt/qemu/nvram/shop_VARS.fd")
    released = plan.release(guest(xml), store, world.moved(adopted).facts, adopted.items)
    assert store.own_nvram in {move.target for move in released.moves}
    assert released.forward(xml) == DEFINITION.replace("<name>web<", "<name>shop<")


@pytest.mark.parametrize("path", [IMAGE, "/logs/serial.log", "/logs/serial.log.0", STORE.own_nvram])
def test_release_takes_no_place_that_something_else_has_taken(path: str) -> None:
    world = World()
    adopted = adoption(world)
    after = world.moved(adopted)
    after.files[path] = FILE
    with pytest.raises(plan.Refused, match=r"move that away first|is in the way"):
        plan.release(guest(adopted.forward(DEFINITION)), STORE, after.facts, adopted.items)


def test_release_leaves_what_the_definition_names_no_more() -> None:
    world = World()
    adopted = adoption(world)
    xml = adopted.forward(DEFINITION).replace(f"{STORE.directory}/disks/vda.qcow2", "/images/other.qcow2")
    released = plan.release(guest(xml), STORE, world.moved(adopted).facts, adopted.items)
    assert [item.device for item in released.items] == ["vda"]
    assert [kept.device for kept in released.kept] == ["vda"]


def test_a_definition_that_names_old_and_new_paths_is_not_guessed_at() -> None:
    planned = adoption(World())
    mixed = planned.forward(DEFINITION).replace(f"{STORE.directory}/disks/vda.qcow2", IMAGE)
    with pytest.raises(plan.Refused, match="was changed meanwhile"):
        planned.is_switched(mixed)


def test_snapshots_follow_also_where_they_name_the_variables_that_libvirt_chose() -> None:
    loader = "<loader type='pflash'>/f.fd</loader><nvram template='/t.fd'>{}</nvram>"
    live = DEFINITION.replace(" firmware='efi'", "").replace("hvm</type>", "hvm</type>" + loader)
    live = live.format(STORE.own_nvram)
    inactive = DEFINITION.replace("<domain ", "<inactiveDomain ").replace("</domain>", "</inactiveDomain>")
    xml = f"<domainsnapshot><disks><disk name='vda'/></disks>{live}{inactive}</domainsnapshot>"
    planned = adoption(World())
    after = planned.forward(xml)
    assert after.count(f"{STORE.directory}/nvram/VARS.fd") == 2
    assert after.count(f"{STORE.directory}/disks/vda.qcow2") == 2
    assert planned.backward(after) == xml


def test_the_file_of_an_external_snapshot_is_named_by_what_does_not_follow() -> None:
    disks = f"<disks><disk name='vda' snapshot='external'><source file='{IMAGE}'/></disk></disks>"
    assert IMAGE in definition.names_besides(f"<domainsnapshot>{disks}{DEFINITION}</domainsnapshot>")
    assert IMAGE not in definition.names_besides(f"<domainsnapshot>{DEFINITION}</domainsnapshot>")


@pytest.mark.parametrize("place", ["<mirror file='{}'/>", "<backingStore><source file='{}'/></backingStore>"])
def test_an_image_that_its_own_definition_names_once_more_is_named_by_something(place: str) -> None:
    other = DEFINITION.replace("<target dev='vdb'/>", f"<target dev='vdb'/>{place.format(IMAGE)}")
    assert IMAGE in definition.names_besides(other)
    assert "/usr/bin/qemu-system-x86_64" in definition.names_besides(DEFINITION)
    assert not {IMAGE, "/logs/serial.log", "/s/vnc.sock"} & definition.names_besides(DEFINITION)


def test_a_plan_outlives_its_process() -> None:
    moment = plan.Moment(
        plan.SNAPSHOT, "first", f"<domainsnapshot>{DEFINITION}</domainsnapshot>", current=True
    )
    planned = adoption(World(), guest(DEFINITION, moment))
    assert records.plan_from_json(records.plan_to_json(planned)) == planned
    assert records.items_from_json(records.items_to_json(planned.items)) == planned.items


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 2}', '{"version": 1, "plan": {"moves": 3}}'])
def test_a_record_that_is_damaged_says_so(text: str) -> None:
    with pytest.raises(records.Damaged):
        records.plan_from_json(text)
    with pytest.raises(records.Damaged):
        records.items_from_json(text)


@pytest.mark.parametrize("xml", ["", "<domain>", "<a/><b/>", "<!DOCTYPE a><a/>", "<a>\ud800</a>", "<a b=1/>"])
def test_what_is_no_document_is_refused(xml: str) -> None:
    with pytest.raises(spans.NotXml):
        definition.places(xml)


TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"),
    max_size=12,
)
PATHS = TEXT.map(lambda text: f"/p/{text}x")


@given(PATHS, PATHS, TEXT, st.sampled_from(["'", '"']), st.sampled_from(["", " ", "\n\t"]))
def test_any_path_comes_and_goes_whatever_stands_around_it(
    old: str, new: str, title: str, quote: str, blank: str
) -> None:
    def attribute(path: str) -> str:
        element = ET.Element("source", {"file": path})
        value = ET.tostring(element, encoding="unicode").split('"')[1].replace("'", "&apos;")
        return f"<source{blank or ' '}file{blank}={blank}{quote}{value}{quote}{blank}/>"

    head = ET.Element("title")
    head.text = title
    top = ET.tostring(head, encoding="unicode")
    xml = (
        f"<domain>{top}<os firmware='efi'>{blank}<type>hvm</type></os><devices>"
        f"<disk>{attribute(old)}<target dev='vda'/></disk></devices>{top}</domain>"
    )
    after = definition.rewritten(xml, {old: new}, chosen=new)
    assert [place.path for place in definition.places(after)] == [new, new]
    tree = ET.fromstring(after)
    assert tree.findtext("title") == (title or "")
    assert tree.find("devices/disk/source").get("file") == new  # type: ignore[union-attr]
    back = definition.rewritten(after, {new: old}, left=new)
    assert back == xml


@given(st.text(max_size=40))
def test_the_parser_finds_what_another_finds_or_refuses_too(text: str) -> None:
    try:
        expected = ET.fromstring(text.encode(errors="surrogatepass").decode(errors="strict"))
    except (ET.ParseError, UnicodeDecodeError):
        return
    assert spans.parse(text).tag == expected.tag
