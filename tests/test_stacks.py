"""The pages for management stacks: what they quote is accepted, and does what they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from namefs import cli, domxml, shown
from namefs.config import load

if TYPE_CHECKING:
    from namefs.config import Config
    from namefs.model import Domain

STACKS = Path(__file__).parent.parent / "contrib" / "stacks"
PAGES = sorted(page for page in STACKS.glob("*.md") if page.name != "README.md")
CONFIGURATIONS = sorted(STACKS.glob("*.toml"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)\)")
COMMAND = re.compile(r"^[#$] (namefs [^&|\n]*)", re.MULTILINE)

DEFINITION = """\
<domain type="kvm">
  <name>{name}</name>
  <uuid>5d2f1c8e-95b0-4b0a-8f0e-0c7f5f0b6a55</uuid>
  {title}
  <metadata>{metadata}</metadata>
</domain>"""

NOVA = """\
<nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
  <nova:name>shop</nova:name>
  <nova:owner>
    <nova:user uuid="e8d1bd9adc4f4f7b9d2e2a5a4a1f5b37">alice</nova:user>
    <nova:project uuid="0b9a6ff1bd9e4f6a8cb2a9b6b2bbd5d4">acme</nova:project>
  </nova:owner>
</nova:instance>"""
ONE = """\
<one:vm xmlns:one="http://opennebula.org/xmlns/libvirt/1.0">
  <one:system_datastore>/var/lib/one/datastores/0/41</one:system_datastore>
  <one:name>shop</one:name>
  <one:uname>alice</one:uname>
  <one:uid>2</one:uid>
  <one:gname>web-team</one:gname>
  <one:gid>100</one:gid>
</one:vm>"""
OVIRT = """\
<ovirt-vm:vm xmlns:ovirt-vm="http://ovirt.org/vm/1.0">
  <ovirt-vm:clusterVersion>4.7</ovirt-vm:clusterVersion>
</ovirt-vm:vm>"""
BOXES = """\
<boxes:gnome-boxes xmlns:boxes="https://wiki.gnome.org/Apps/Boxes">
  <os-state>installed</os-state>
</boxes:gnome-boxes>"""
COCKPIT = """\
<cockpit_machines:data xmlns:cockpit_machines="https://github.com/cockpit-project/cockpit-machines">
  <cockpit_machines:has_install_phase>false</cockpit_machines:has_install_phase>
</cockpit_machines:data>"""
TEAM = '<team:of xmlns:team="urn:example:team">sales</team:of>'


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text()) if found == language]


def stack(configuration: Path) -> Config:
    return load(str(configuration), environ={})


def domain(config: Config, name: str, title: str = "", metadata: str = "") -> Domain:
    text = DEFINITION.format(name=name, title=title and f"<title>{title}</title>", metadata=metadata)
    sources = config.connections[0].names
    return domxml.parse("local", None, text.encode(), state="shut off", sources=sources)


def place(guest: Domain) -> str:
    name, _source = shown.name_of(guest, None)
    return name if guest.group is None else f"{guest.group}/{name}"


def commands() -> list[tuple[str, str]]:
    texts = [(page.name, text) for page in PAGES for text in blocks(page, "console")]
    return [(name, command.strip()) for name, text in texts for command in COMMAND.findall(text)]


def test_every_stack_has_a_page_and_every_configuration_one_that_quotes_it() -> None:
    assert [page.stem for page in PAGES] == [
        "cockpit",
        "gnome-boxes",
        "opennebula",
        "openstack-nova",
        "ovirt",
        "plain-libvirt",
        "vagrant-libvirt",
        "virt-manager",
    ]
    assert {file.stem for file in CONFIGURATIONS} <= {page.stem for page in PAGES}
    for configuration in CONFIGURATIONS:
        lines = configuration.read_text().splitlines(keepends=True)
        settings = "".join(line for line in lines if not line.startswith("#"))
        assert settings in blocks(configuration.with_suffix(".md"), "toml"), configuration.name


@pytest.mark.parametrize(
    ("name", "guest", "expected", "is_ours"),
    [
        ("openstack-nova", ("instance-000002ff", "", NOVA), "acme/shop", False),
        ("openstack-nova", ("instance-000002ff", "", NOVA.replace("1.1", "1.0")), "acme/shop", False),
        ("openstack-nova", ("guestfs-x7", "", ""), "guestfs-x7", False),
        ("opennebula", ("one-41", "", ONE), "web-team/shop", False),
        ("ovirt", ("shop", "", OVIRT), "shop", False),
        ("gnome-boxes", ("fedora40", "Fedora 40", BOXES), "Fedora 40", True),
        ("virt-manager", ("debian12", "Shop (staging)", ""), "Shop (staging)", True),
        ("virt-manager", ("mail", "", ""), "mail", True),
        ("vagrant-libvirt", ("shop_default", "", ""), "shop_default", False),
        ("vagrant-libvirt", ("shop_db", "shop database", ""), "shop database", False),
    ],
)
def test_a_guest_is_shown_as_the_stacks_page_says(
    name: str, guest: tuple[str, str, str], expected: str, is_ours: bool
) -> None:
    """``is_ours``: whether ``mv`` may give it another name in the view."""
    found = domain(stack(STACKS / f"{name}.toml"), *guest)
    assert place(found) == expected
    assert shown.can_ask(found) is is_ours


@pytest.mark.parametrize("metadata", [COCKPIT, ""])
def test_without_a_configuration_a_guest_is_shown_by_libvirts_name(metadata: str, tmp_path: Path) -> None:
    empty = tmp_path / "namefs.toml"
    empty.touch()
    assert place(domain(stack(empty), "shop", "Shop (staging)", metadata)) == "shop"


def test_groups_of_ones_own_are_made_as_the_page_for_libvirt_alone_says(tmp_path: Path) -> None:
    (settings,) = blocks(STACKS / "plain-libvirt.md", "toml")
    file = tmp_path / "namefs.toml"
    file.write_text(settings)
    assert place(domain(stack(file), "shop", metadata=TEAM)) == "sales/shop"


def test_a_session_is_what_gnome_boxes_has_and_the_system_what_the_others_have() -> None:
    uris = {file.stem: stack(file).connections[0].uri for file in CONFIGURATIONS}
    assert uris.pop("gnome-boxes") == "qemu:///session"
    assert set(uris.values()) == {"qemu:///system"}


@pytest.mark.parametrize(("page", "command"), commands())
def test_a_command_on_a_page_can_be_given(page: str, command: str) -> None:
    words = shlex.split(re.sub(r"\$\([^)]*\)", str(UUID(int=0)), command), comments=True)
    cli.parser().parse_args(words[1:])


@pytest.mark.parametrize("page", [*PAGES, STACKS / "README.md"], ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    links = LINK.findall(page.read_text())
    assert [link for link in links if not (STACKS / link).exists()] == []


def test_the_overview_names_every_page_and_configuration() -> None:
    links = LINK.findall((STACKS / "README.md").read_text())
    assert {file.name for file in (*PAGES, *CONFIGURATIONS)} <= set(links)
