"""Names that people and stacks left in definitions. ``xml/nova.xml`` follows what Nova writes
(nova/virt/libvirt/config.py), the others what OpenNebula and GNOME Boxes do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree.ElementTree import XML, Element, SubElement, tostring

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from namefs import name_sources
from namefs.domxml import parse
from namefs.model import Asked
from namefs.name_sources import ASKED_URI, NameSources, NotASource, asked_in, asked_of, cleaned, renamed

if TYPE_CHECKING:
    from collections.abc import Sequence

NOVA = (Path(__file__).with_name("xml") / "nova.xml").read_text()
OPENNEBULA = """<domain type='kvm'>
  <name>one-42</name>
  <uuid>8e1c7d0a-3f0b-4a9c-b1a5-0d6a4f2b9c11</uuid>
  <title>web</title>
  <metadata>
    <one:vm xmlns:one="http://opennebula.org/xmlns/libvirt/1.0">
      <one:system_datastore><![CDATA[/var/lib/one//datastores/0/42]]></one:system_datastore>
      <one:name><![CDATA[Q&A <staging>]]></one:name>
      <one:uname><![CDATA[oneadmin]]></one:uname>
      <one:uid>0</one:uid>
      <one:gname><![CDATA[qa]]></one:gname>
      <one:gid>0</one:gid>
    </one:vm>
  </metadata>
</domain>"""
BOXES = """<domain type='kvm'>
  <name>fedora39-2</name>
  <uuid>2b0f9c55-1d0b-4c53-9a6e-7f0f3f1b6d21</uuid>
  <title>Anna's Fedora</title>
  <metadata>
    <boxes:gnome-boxes xmlns:boxes="https://wiki.gnome.org/Apps/Boxes">
      <os-state>installed</os-state>
    </boxes:gnome-boxes>
  </metadata>
</domain>"""


def read(xml: str, *names: str, group: str | None = None, **namespaces: str) -> dict[str, str]:
    """The names by source, and the group as the source ``group``."""
    found, of_group = NameSources(names, group, tuple(namespaces.items())).read(XML(xml))
    return dict(found) if of_group is None else {**dict(found), "group": of_group}


def test_by_default_it_is_the_name_asked_for_then_novas_then_libvirts() -> None:
    assert NameSources().read(XML(NOVA)) == (
        (("namefs", ""), ("nova", "shop-frontend-1"), ("libvirt", "instance-000002ff")),
        None,
    )


def test_the_order_is_the_configured_one_and_libvirt_is_the_last_resort() -> None:
    names, _group = NameSources(("title", "opennebula", "nova", "namefs")).read(XML(OPENNEBULA))
    assert names == (("title", "web"), ("opennebula", "Q&A <staging>"), ("namefs", ""), ("libvirt", "one-42"))


def test_novas_first_namespace_is_known_too() -> None:
    assert read(NOVA.replace("nova/1.1", "nova/1.0"), "nova", group="nova:project") == {
        "nova": "shop-frontend-1",
        "libvirt": "instance-000002ff",
        "group": "webshop",
    }


def test_a_guest_of_boxes_has_the_name_of_its_title() -> None:
    assert read(BOXES, "nova", "title") == {"title": "Anna's Fedora", "libvirt": "fedora39-2"}


@pytest.mark.parametrize(
    ("xml", "group", "expected"),
    [
        (NOVA, "nova:project", "webshop"),
        (NOVA, "nova:user", "alice"),
        (
            NOVA,
            "xpath:metadata/nova:instance/nova:owner/nova:project/@uuid",
            "6f70656e737461636b20342065766572",
        ),
        (OPENNEBULA, "opennebula:group", "qa"),
        (OPENNEBULA, "opennebula:user", "oneadmin"),
        (OPENNEBULA, "nova:project", None),
        (BOXES, "opennebula:group", None),
    ],
)
def test_a_group_is_who_the_guest_belongs_to(xml: str, group: str, expected: str | None) -> None:
    assert read(xml, group=group).get("group") == expected


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("metadata/nova:instance/nova:name", "shop-frontend-1"),
        (".//nova:flavor/@name", "m1.small"),
        ("metadata/nova:instance/nova:flavor[@name='m1.small']/nova:memory", "2048"),
        ("sysinfo/system/entry[@name='serial']", "1c39b9a5-7d2c-4a52-8d9e-2f1f0c6f7b0e"),
        ("devices/disk/target/@dev", "vda"),
        ("@type", "kvm"),
        ("./@type", "kvm"),
        ("devices/*/@device", "disk"),
        ("metadata/nova:instance/nova:project", None),
        ("devices/disk/@nova:x", None),
        ("os/boot", None),
        ("metadata", None),
    ],
)
def test_an_expression_yields_the_text_or_the_attribute_of_its_first_match(
    expression: str, value: str | None
) -> None:
    assert read(NOVA, f"xpath:{expression}").get(f"xpath:{expression}") == value


def test_prefixes_are_declared_for_elements_and_for_attributes() -> None:
    xml = "<domain><metadata><a:vm xmlns:a='urn:a' a:id='7'><a:name>x</a:name></a:vm></metadata></domain>"
    sources = ("xpath:metadata/b:vm/b:name", "xpath:metadata/b:vm/@b:id")
    assert read(xml, *sources, b="urn:a") == {sources[0]: "x", sources[1]: "7", "libvirt": ""}


def test_a_declared_prefix_comes_before_a_well_known_one() -> None:
    source = "xpath:metadata/nova:instance/nova:name"
    assert source in read(NOVA, source)
    assert source not in read(NOVA, source, nova="urn:other")


PIECES = [
    "metadata",
    "nova:name",
    "x:y",
    "*",
    ".",
    "..",
    "/",
    "//",
    "@",
    "@a",
    "[",
    "]",
    "=",
    "!=",
    "'a'",
    "1",
]
PIECES += ["last()", "-", "(", ")", "{u}", "{*}", ":", " ", "text()", "]/@a", "position()", "|", "\n"]


@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join) | st.text(max_size=8))
@example("metadata/x:vm")
@example("devices/*[0]")
def test_an_expression_that_was_accepted_can_be_applied_and_the_others_are_refused_in_one_line(
    expression: str,
) -> None:
    refusal = ""
    try:
        sources = NameSources((f"xpath:{expression}",))
    except NotASource as error:
        refusal = str(error)
    assert "\n" not in refusal
    if not refusal:
        for xml in (NOVA, OPENNEBULA, BOXES):
            assert sources.read(XML(xml))[0][-1][0] == "libvirt"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\t",
        ".",
        "..",
        ". . .",
        "\u200b\u2060",
        "\x01\x7f",
        "\ufeff.",
        "x" * 4097,
        "\u3164",
    ],
)
def test_nonsense_falls_through(text: str) -> None:
    root = Element("domain")
    SubElement(root, "name").text = "web"
    SubElement(root, "title").text = text
    assert NameSources(("title",), "xpath:title").read(root) == ((("libvirt", "web"),), None)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("  web  1 ", "web 1"),
        ("web\r\n\tshop", "web shop"),
        ("web\u00a0\u2003\u3000shop", "web shop"),
        ("\U0001f980", "\U0001f980"),
        ("...a", "...a"),
        ("a/b", "a/b"),
        ("\udce9", "\udce9"),
        ("-", "-"),
        ("x" * 4096, "x" * 4096),
        (" " * 5_000_000 + "web" + "\n" * 5_000_000, "web"),
    ],
)
def test_a_name_is_one_line_without_needless_blanks(text: str, name: str) -> None:
    assert cleaned(text) == name


@given(st.text(max_size=50))
def test_a_name_that_is_clean_stays_as_it_is(text: str) -> None:
    name = cleaned(text)
    if name is not None:
        assert cleaned(name) == name
        assert name == name.strip()
        assert "\n" not in name
        assert set(name) <= {*text, " "}


HOSTILE = st.text(st.characters(), max_size=50)


@given(HOSTILE, HOSTILE)
@example("]]>" * 100_000, "x" * 1_000_000)
def test_a_tenants_text_is_taken_or_left_and_does_no_harm(title: str, project: str) -> None:
    root = XML(NOVA)
    SubElement(root, "title").text = title
    found = root.find(".//{*}project")
    assert found is not None
    found.text = project
    names, group = NameSources(("title",), "nova:project").read(root)
    assert dict(names).get("title") == cleaned(title)
    assert group == cleaned(project)


def test_deep_metadata_is_no_danger() -> None:
    depth = 20_000
    deep = f"<metadata>{'<a>' * depth}<name>x</name>{'</a>' * depth}"
    domain = parse(
        "here",
        NOVA.replace("<metadata>", deep).encode(),
        None,
        state="running",
        sources=NameSources(("nova", "xpath:.//a/name")),
    )
    assert domain.names[:2] == (("nova", "shop-frontend-1"), ("xpath:.//a/name", "x"))


def test_a_new_libvirt_name_leaves_the_other_names_alone() -> None:
    domain = parse("here", NOVA.encode(), None, state="running")
    after = renamed(domain, "instance-00000300")
    assert after.name == "instance-00000300"
    assert after.names == (("namefs", ""), ("nova", "shop-frontend-1"), ("libvirt", "instance-00000300"))


def with_asked(*elements: str) -> Element:
    """A definition with the elements, each in namefs's namespace as libvirt puts it there."""
    root = Element("domain")
    metadata = SubElement(root, "metadata")
    for text in elements:
        one = XML(text)
        one.tag = f"{{{ASKED_URI}}}{one.tag}"
        metadata.append(one)
    return XML(tostring(root))


@given(st.text(), st.integers(0, 2**63 - 1), st.booleans())
@example("100%41", 0, True)
@example("\ud83e\udd80 \udcc3\udca9 %ED%A0%80", 1, True)
@example("a\r\n\0b & <c> ]]> \ufffe\x85", 2, False)
def test_whatever_is_asked_for_is_read_back_as_it_was(name: str, asked_ns: int, follows: bool) -> None:
    assume(cleaned(name) is not None)
    asked = Asked(name, asked_ns, follows)
    assert asked_in(with_asked(name_sources.element(asked))) == asked


def test_names_of_plain_text_are_readable_in_the_definition() -> None:
    element = name_sources.element(Asked("Bücher & 100%", 17, follows=False))
    assert element == '<name asked="17" follows="no">Bücher &amp; 100%</name>'


def test_there_is_no_element_for_nothing() -> None:
    with pytest.raises(ValueError, match="no longer counts"):
        name_sources.element(Asked(None, 1))


@pytest.mark.parametrize(
    "element",
    [
        "<name>shop</name>",
        "<name asked=''>shop</name>",
        "<name asked='-1'>shop</name>",
        "<name asked='+1'>shop</name>",
        "<name asked='1.5'>shop</name>",
        "<name asked='\u0661'>shop</name>",
        "<name asked='9223372036854775808'>shop</name>",
        f"<name asked='{'9' * 5000}'>shop</name>",
        "<name asked='1' follows='maybe'>shop</name>",
        "<name asked='1'/>",
        "<name asked='1'> \n</name>",
        "<name asked='1'>..</name>",
        f"<name asked='1'>{'x' * 4097}</name>",
        "<name asked='1' escaped='yes'>%00</name>",
        "<name asked='1' escaped='yes'>a%FF</name>",
        "<name asked='1'><b>shop</b></name>",
        "<other asked='1'>shop</other>",
    ],
)
def test_a_malformed_element_counts_as_absent(element: str) -> None:
    assert asked_in(with_asked(element)) is None
    assert asked_in(with_asked(element, "<name asked='1'>web</name>")) == Asked("web", 1)


@given(st.lists(st.integers(0, 3), max_size=4), st.lists(st.integers(0, 3), max_size=4))
def test_the_latest_wish_counts_and_of_equal_ones_the_first(
    live: Sequence[int], persistent: Sequence[int]
) -> None:
    roots = [
        with_asked(*(f"<name asked='{ns}'>{where}{n}</name>" for n, ns in enumerate(times)))
        for where, times in (("live", live), ("persistent", persistent))
    ]
    every = [(ns, f"live{n}") for n, ns in enumerate(live)]
    every += [(ns, f"persistent{n}") for n, ns in enumerate(persistent)]
    if not every:
        assert asked_in(*roots) is None
        return
    latest = max(ns for ns, _name in every)
    assert asked_in(*roots) == Asked(next(name for ns, name in every if ns == latest), latest)


@given(
    st.text(st.sampled_from("0189-+. \u0661")) | st.just("1"),
    st.sampled_from(["yes", "no", "", "YES"]),
    st.sampled_from(["yes", "no", "\udcff"]),
    st.text(st.sampled_from("%FfAa09x\udcff"), max_size=8),
)
def test_any_element_is_absent_or_a_name(asked: str, follows: str, escaped: str, text: str) -> None:
    element = Element("name", {"asked": asked, "follows": follows, "escaped": escaped})
    element.text = text
    found = asked_of(element)
    if found is not None:
        assert found.name is not None
        assert cleaned(found.name) is not None
        assert found.follows == (follows == "yes")
