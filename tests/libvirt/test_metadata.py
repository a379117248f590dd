"""What was asked for, in the definitions of real domains; and names in them that others change."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from typing import TYPE_CHECKING
from uuid import UUID

import libvirt
import pytest

from namefs.model import Asked, Domain
from namefs.name_sources import ASKED_URI, NameSources
from namefs.sources.libvirt import Connection, Refused, Unreachable, start_events
from tests.lab import guests
from tests.lab.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.lab.host import Host
    from tests.lab.mounted import Mounted

WEB = UUID("00000000-0000-4000-8000-00000000000c")
SOON_S = 20.0
SHOP = Asked("shop", 1_700_000_000_000_000_000)
NOVA_URI = "http://openstack.org/xmlns/libvirt/nova/1.1"
SOURCES = NameSources(("nova", "title", "libvirt"), "nova:project")

LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
CONFIG = libvirt.VIR_DOMAIN_AFFECT_CONFIG
ELEMENT = libvirt.VIR_DOMAIN_METADATA_ELEMENT
TITLE = libvirt.VIR_DOMAIN_METADATA_TITLE


def says(domain: libvirt.virDomain, flag: int) -> str | None:
    """namefs's element in one definition, as ``virsh metadata`` shows it."""
    try:
        return str(domain.metadata(ELEMENT, ASKED_URI, flag))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return None
        raise


class Followed:
    """A connection of namefs's, and the hints that came."""

    def __init__(self, uri: str, sources: NameSources = SOURCES) -> None:
        start_events()
        self.hints: list[UUID] = []
        self.connection = Connection(uri, "here", self.hints.append, lambda _reason: None, sources)

    def close(self) -> None:
        self.connection.close()

    def web(self) -> Domain:
        domain = self.connection.by_uuid(WEB)
        assert domain is not None
        return domain

    def noticed(self, what: str) -> Domain:
        """The domain as it is once a hint has come, all of which are then forgotten."""
        until(lambda: WEB in self.hints, SOON_S, what)
        self.hints.clear()
        return self.web()


@pytest.fixture
def followed() -> Iterator[Followed]:
    """namefs's connection to libvirt's test driver, whose domains all connections of a process share."""
    with closing(Followed("test:///default")) as followed:
        yield followed


@pytest.fixture
def web(followed: Followed) -> Iterator[libvirt.virDomain]:
    """A persistent domain that is off."""
    with closing(libvirt.open("test:///default")) as connection:
        web = connection.defineXML(guests.xml("web", WEB, type="test"))
        followed.noticed("web was defined")
        yield web
        if web.isActive():
            web.destroy()
        web.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)


def test_what_is_asked_for_is_kept_in_all_definitions_and_taken_out_of_all(
    followed: Followed, web: libvirt.virDomain
) -> None:
    web.create()
    followed.connection.set_asked(WEB, SHOP)
    shown = '<name asked="1700000000000000000" follows="yes">shop</name>'
    assert (says(web, LIVE), says(web, CONFIG)) == (shown, shown)
    assert followed.web().asked == SHOP

    followed.connection.set_asked(WEB, None)
    assert (says(web, LIVE), says(web, CONFIG)) == (None, None)
    assert followed.web().asked is None


def test_what_no_longer_counts_is_not_kept(followed: Followed, web: libvirt.virDomain) -> None:
    followed.connection.set_asked(WEB, SHOP)
    followed.connection.set_asked(WEB, Asked(None, SHOP.asked_ns + 1))
    assert says(web, CONFIG) is None


def test_what_is_asked_for_goes_with_the_definition(followed: Followed, web: libvirt.virDomain) -> None:
    followed.connection.set_asked(WEB, SHOP)
    dumped = web.XMLDesc()
    web.undefine()
    with closing(libvirt.open("test:///default")) as connection:
        connection.defineXML(dumped)
    assert followed.web().asked == SHOP


@pytest.mark.parametrize(
    "name",
    ["a & b <c> ]]>", "100%41", "\u00fc\U0001f980", "a\r\n\tb\x85", "\udcff\x01", " %20 ", "'\"", "x" * 4096],
)
def test_any_name_is_kept_and_what_is_there_already_is_not_written_again(
    followed: Followed, web: libvirt.virDomain, name: str
) -> None:
    asked = Asked(name, 1, follows=False)
    followed.connection.set_asked(WEB, asked)
    assert followed.noticed("the metadata changed").asked == asked

    followed.connection.set_asked(WEB, asked)
    with closing(libvirt.open("test:///default")) as connection:
        other = connection.lookupByName("test")
        other.setMetadata(TITLE, "afterwards", None, None, CONFIG)
        until(lambda: followed.hints, SOON_S, "something changed")
        assert followed.hints == [UUID(other.UUIDString())]


def test_it_is_written_where_one_definition_lacks_it(followed: Followed, web: libvirt.virDomain) -> None:
    followed.connection.set_asked(WEB, SHOP)
    web.create()
    web.setMetadata(ELEMENT, None, None, ASKED_URI, LIVE)
    followed.connection.set_asked(WEB, SHOP)
    assert says(web, LIVE) == says(web, CONFIG) is not None


def test_a_malformed_element_is_no_wish_and_is_taken_out_too(
    followed: Followed, web: libvirt.virDomain
) -> None:
    web.setMetadata(ELEMENT, "<name asked='soon'>shop</name>", "namefs", ASKED_URI, CONFIG)
    assert followed.web().asked is None
    followed.connection.set_asked(WEB, None)
    assert says(web, CONFIG) is None


def test_a_guest_that_is_gone_is_asked_nothing(followed: Followed) -> None:
    nobody = UUID(int=1)
    with pytest.raises(Refused) as refusal:
        followed.connection.set_asked(nobody, SHOP)
    assert refusal.value.errno == errno.ENOENT
    assert not followed.connection.has_managed_save(nobody)


def test_a_managed_save_image_is_known_of(followed: Followed, web: libvirt.virDomain) -> None:
    web.create()
    assert not followed.connection.has_managed_save(WEB)
    web.managedSave()
    assert followed.connection.has_managed_save(WEB)


def nova(name: str) -> str:
    return f"<instance><name>{name}</name><owner><project>sales</project></owner></instance>"


@pytest.mark.parametrize("flag", [LIVE, CONFIG])
def test_names_that_others_change_in_one_definition_are_noticed(
    followed: Followed, web: libvirt.virDomain, flag: int
) -> None:
    web.create()
    followed.noticed("it was started")

    web.setMetadata(TITLE, "Till", None, None, flag)
    assert followed.noticed("the title changed").names == (("title", "Till"), ("libvirt", "web"))

    web.setMetadata(ELEMENT, nova("till-1"), "nova", NOVA_URI, flag)
    after = followed.noticed("Nova's name changed")
    assert after.names == (("nova", "till-1"), ("title", "Till"), ("libvirt", "web"))
    assert after.group == "sales"


def test_a_running_guest_of_qemu_keeps_what_is_asked_for(libvirt_host: Host) -> None:
    host = libvirt_host
    definition = host.root / "definition.xml"
    definition.write_text(guests.xml("web", WEB, metadata="<other xmlns='urn:other'>mine</other>"))
    host.virsh("define", str(definition))
    host.virsh("start", "web")
    with closing(Followed(host.uri, NameSources(("title",)))) as followed:
        followed.connection.set_asked(WEB, SHOP)
        for where in ("--live", "--config"):
            shown = host.virsh("metadata", "web", ASKED_URI, where)
            assert shown.strip() == '<name asked="1700000000000000000" follows="yes">shop</name>'
        assert followed.noticed("what is asked for").asked == SHOP
        host.virsh("desc", "web", "--title", "--config", "Till")
        assert followed.noticed("the persistent title").names == (("title", "Till"), ("libvirt", "web"))
        host.virsh("desc", "web", "--title", "--live", "Shop")
        assert followed.noticed("the running guest's title").names == (("title", "Shop"), ("libvirt", "web"))

        dumped = host.virsh("dumpxml", "web", "--inactive")
        host.virsh("destroy", "web")
        host.virsh("undefine", "web")
        definition.write_text(dumped)
        host.virsh("define", str(definition))
        assert followed.web().asked == SHOP

        followed.connection.set_asked(WEB, None)
        assert "mine" in host.virsh("dumpxml", "web")
        assert ASKED_URI not in host.virsh("dumpxml", "web")


def test_who_may_only_read_is_refused_and_a_libvirt_that_is_gone_is_said_to_be(libvirt_host: Host) -> None:
    host = libvirt_host
    definition = host.root / "definition.xml"
    definition.write_text(guests.xml("web", WEB))
    host.virsh("define", str(definition))
    with closing(Followed(host.uri.replace("libvirt-sock", "libvirt-sock-ro"))) as reading:
        with pytest.raises(Refused) as refusal:
            reading.connection.set_asked(WEB, SHOP)
        assert refusal.value.errno == errno.EACCES
    with closing(Followed(host.uri)) as followed:
        host.kill_libvirtd()
        with pytest.raises(Unreachable):
            followed.connection.set_asked(WEB, SHOP)
        with pytest.raises(Unreachable):
            followed.connection.has_managed_save(WEB)


CONFIGURED = """
names = ["namefs", "title"]
group = "xpath:metadata/a:vm/@team"
[connection.namespaces]
a = "urn:a"
"""


def test_the_view_follows_names_and_groups_that_others_change(
    libvirt_host: Host, mount_namefs: Callable[..., Mounted]
) -> None:
    host, view = libvirt_host, mount_namefs(of_connection=CONFIGURED).path
    definition = host.root / "definition.xml"
    team = "<a:vm xmlns:a='urn:a' team='sales'/>"
    definition.write_text(guests.xml("instance-1", WEB, title="Shop  front", metadata=team))
    host.virsh("define", str(definition))
    until((view / "sales" / "Shop front").exists, SOON_S, "it is shown")
    host.virsh("start", "instance-1")

    host.virsh("desc", "instance-1", "--title", "--live", "Till")
    until(lambda: os.listdir(view / "sales") == ["Till"], SOON_S, "another title")
    host.virsh("metadata", "instance-1", "urn:a", "--key", "a", "--live", "--set", "<vm team='it'/>")
    until((view / "it" / "Till").exists, SOON_S, "another group")
    until(lambda: not (view / "sales").exists(), SOON_S, "the kernel has forgotten the one that it was in")
    host.virsh("metadata", "instance-1", "urn:a", "--live", "--remove")
    host.virsh("metadata", "instance-1", "urn:a", "--config", "--remove")
    until((view / "Till").exists, SOON_S, "no group")
