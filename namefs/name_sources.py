"""Which names a definition gives its guest, and which group: what people and stacks left in it.

In: a ``<domain>`` element as parsed. Out: a name for each configured source that has one, the group,
and what was asked for through namefs. Deliberately not here: which of the names is shown (``index``)
and what that becomes in the view (``naming``).

All of it is text that a tenant may have chosen, so nothing is believed of its length or characters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from namefs.model import Asked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from xml.etree.ElementTree import Element

    from namefs.model import Domain

NAMEFS = "namefs"
LIBVIRT = "libvirt"
XPATH = "xpath:"

ASKED_KEY = "namefs"
"""The prefix of namefs's own element in a definition."""
ASKED_URI = "urn:namefs:1"

NAME_MAX_CHARACTERS = 4096

NOVA = ("http://openstack.org/xmlns/libvirt/nova/1.1", "http://openstack.org/xmlns/libvirt/nova/1.0")
"""The namespaces of Nova's metadata, the newest first."""
_ONE = "http://opennebula.org/xmlns/libvirt/1.0"

WELL_KNOWN: Mapping[str, str] = MappingProxyType(
    {
        "boxes": "https://wiki.gnome.org/Apps/Boxes",
        "cockpit_machines": "https://github.com/cockpit-project/cockpit-machines",
        "kubevirt": "http://kubevirt.io",
        "libosinfo": "http://libosinfo.org/xmlns/libvirt/domain/1.0",
        "namefs": ASKED_URI,
        "nova": NOVA[0],
        "one": _ONE,
        "ovirt-vm": "http://ovirt.org/vm/1.0",
        "qemu": "http://libvirt.org/schemas/domain/qemu/1.0",
    }
)
"""Prefixes that an expression may use without declaring them, as the stacks themselves write them."""

_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # nova/virt/libvirt/config.py, LibvirtConfigGuestMetaNovaInstance; 1.0 in old deployments.
        "nova": tuple(f"metadata/{{{uri}}}instance/{{{uri}}}name" for uri in NOVA),
        "title": ("title",),
        "opennebula": (f"metadata/{{{_ONE}}}vm/{{{_ONE}}}name",),
    }
)
_GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "nova:project": tuple(f"metadata/{{{u}}}instance/{{{u}}}owner/{{{u}}}project" for u in NOVA),
        "nova:user": tuple(f"metadata/{{{u}}}instance/{{{u}}}owner/{{{u}}}user" for u in NOVA),
        "opennebula:group": (f"metadata/{{{_ONE}}}vm/{{{_ONE}}}gname",),
        "opennebula:user": (f"metadata/{{{_ONE}}}vm/{{{_ONE}}}uname",),
    }
)

_PREFIX = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_FINAL_ATTRIBUTE = re.compile(r"(?:(?P<path>.*)/)?@(?:(?P<prefix>[^\s:/@\]{}]+):)?(?P<local>[^\s:/@\]{}]+)")

# Fixed ranges rather than unicodedata, whose categories change from one Python to the next: a name must
# not come and go with them. Blanks, control characters, and what Unicode calls default ignorable; not
# bytes that are no UTF-8: they are text in another encoding, and shown as %XX.
_VISIBLE = re.compile(
    "[^.\\s\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f"
    "\u205f-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\U000e0000-\U000e0fff]"
)

_NANOSECONDS = re.compile("[0-9]{1,19}")
_NS_MAX = 2**63 - 1
_FOLLOWS = {"yes": True, "no": False}

# What XML cannot hold, or does not keep as it is.
_UNKEPT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_TO_ESCAPE = re.compile(f"%|{_UNKEPT.pattern}")
_ESCAPE = re.compile(b"%([0-9A-Fa-f]{2})")
_MARKUP = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


class NotASource(ValueError):
    """No source of names or groups, or one that could never yield anything. The message is one line."""


@dataclass(frozen=True, slots=True)
class NameSources:
    """Where a connection's guests have their names and their group from.

    ``names`` are tried in order: ``namefs``, ``nova``, ``title``, ``opennebula``, ``xpath:EXPRESSION`` and
    ``libvirt``, which is added if it is not there. ``group`` is ``nova:project``, ``nova:user``,
    ``opennebula:group``, ``opennebula:user``, ``xpath:EXPRESSION``, or None. An expression is what
    xml.etree.ElementTree supports of XPath, applied to ``<domain>``, and may end in ``/@ATTRIBUTE``;
    ``namespaces`` are pairs of prefix and URI for it, beside those of `WELL_KNOWN`.

    Raises NotASource.
    """

    names: tuple[str, ...] = (NAMEFS, "nova", LIBVIRT)
    group: str | None = None
    namespaces: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for prefix, _uri in self.namespaces:
            if not _PREFIX.fullmatch(prefix):
                raise NotASource(f"{prefix!r} can't be a prefix")
        if LIBVIRT not in self.names:
            object.__setattr__(self, "names", (*self.names, LIBVIRT))
        for position, source in enumerate(self.names):
            if source in self.names[:position]:
                raise NotASource(f"{source!r} is there twice")
            if source not in {NAMEFS, LIBVIRT}:
                _check(source, _NAMES, (NAMEFS, *_NAMES, LIBVIRT), self.namespaces)
        if self.names[-1] != LIBVIRT:
            raise NotASource("every guest has a libvirt name: what stands after 'libvirt' is never used")
        if self.group is not None:
            _check(self.group, _GROUPS, tuple(_GROUPS), self.namespaces)

    def read(self, *roots: Element) -> tuple[tuple[tuple[str, str], ...], str | None]:
        """The names, as (source, name) in the order of the sources, and the group, of ``<domain>`` elements.

        Where several definitions of one domain are given, the first one that has a value counts. A source
        that has none, or none that `cleaned` takes, is left out. ``namefs`` is always there with an
        empty name, and ``libvirt`` with the ``<name>`` as it is.
        """
        names: list[tuple[str, str]] = []
        for source in self.names:
            if source == NAMEFS:
                names.append((source, ""))
            elif source == LIBVIRT:
                names.append((source, roots[0].findtext("name") or ""))
            elif (name := self._value(source, _NAMES, roots)) is not None:
                names.append((source, name))
        return tuple(names), None if self.group is None else self._value(self.group, _GROUPS, roots)

    def _value(
        self, source: str, known: Mapping[str, tuple[str, ...]], roots: tuple[Element, ...]
    ) -> str | None:
        if source in known:
            texts = (root.findtext(path) for root in roots for path in known[source])
        else:
            expression = _compiled(source, self.namespaces)
            texts = (expression.text(root) for root in roots)
        return next((name for text in texts if (name := cleaned(text)) is not None), None)


def cleaned(text: str | None) -> str | None:
    """The text as a name on one line; None if it can't be one.

    Runs of blanks, line breaks among them, become one blank, and none is left at the ends. What has no
    visible character, is made of dots, or is longer than `NAME_MAX_CHARACTERS`, is no name.
    """
    name = " ".join((text or "").split())
    return name if len(name) <= NAME_MAX_CHARACTERS and _VISIBLE.search(name) else None


def renamed(domain: Domain, name: str) -> Domain:
    """The domain with another libvirt name, there and among its names."""
    names = tuple((source, name if source == LIBVIRT else value) for source, value in domain.names)
    return replace(domain, name=name, names=names)


@dataclass(frozen=True, slots=True)
class _Expression:
    """An XPath expression: the elements' path, and the attribute of theirs that is meant, if one is."""

    path: str
    attribute: str | None
    namespaces: Mapping[str, str]

    def text(self, root: Element) -> str | None:
        """The text of the first match, or the attribute of the first match that has it."""
        if self.attribute is None:
            return root.findtext(self.path, namespaces=dict(self.namespaces))
        found = (element.get(self.attribute) for element in self.elements(root))
        return next((value for value in found if value is not None), None)

    def elements(self, root: Element) -> Iterator[Element]:
        """The elements that the path leads to."""
        return root.iterfind(self.path, dict(self.namespaces))


@lru_cache(maxsize=64)
def _compiled(source: str, namespaces: tuple[tuple[str, str], ...]) -> _Expression:
    """Raises NotASource for an expression that is none, or has a prefix that is not declared."""
    text = source.removeprefix(XPATH)
    if text.startswith("/"):
        raise NotASource(f"{source!r} starts with /: write the path from <domain> on, such as metadata/...")
    declared = MappingProxyType({**WELL_KNOWN, **dict(namespaces)})
    match = _FINAL_ATTRIBUTE.fullmatch(text)
    if match is None:
        expression = _Expression(text, None, declared)
    else:
        prefix, local = match["prefix"], match["local"]
        if prefix is not None and prefix not in declared:
            raise NotASource(f"{source!r}: the prefix {prefix!r} is not declared in [connection.namespaces]")
        attribute = local if prefix is None else f"{{{declared[prefix]}}}{local}"
        expression = _Expression(match["path"] or ".", attribute, declared)
    _try(source, expression)
    return expression


def _try(source: str, expression: _Expression) -> None:
    """Raises NotASource if ElementTree does not take the expression."""
    # Here, for the few who have an expression: every command reads the configuration.
    from xml.etree.ElementTree import Element

    if not expression.path or expression.path.endswith("/"):
        raise NotASource(f"{source!r} names no element")
    try:
        list(expression.elements(Element("domain")))
    except Exception as error:
        # It has no error of its own: a SyntaxError mostly, a KeyError or TypeError for the tokens that
        # it did not expect.
        prefix = re.match("prefix '(.+)' not found", str(error))
        if prefix is not None:
            raise NotASource(
                f"{source!r}: the prefix {prefix[1]!r} is not declared in [connection.namespaces]"
            ) from None
        raise NotASource(f"{source!r} is not among the XPath that Python's ElementTree supports") from None


def _check(
    source: str,
    known: Mapping[str, tuple[str, ...]],
    words: Iterable[str],
    namespaces: tuple[tuple[str, str], ...],
) -> None:
    if source.startswith(XPATH):
        _compiled(source, namespaces)
    elif source not in known:
        raise NotASource(f"{source!r} is no source; known are {', '.join(words)}, {XPATH}EXPRESSION")


def asked_in(*roots: Element) -> Asked | None:
    """What the definitions of one domain say was asked for; the latest, if they differ."""
    elements = (element for root in roots for element in root.iterfind(f"metadata/{{{ASKED_URI}}}name"))
    found = [asked for element in elements if (asked := asked_of(element)) is not None]
    return max(found, key=lambda asked: asked.asked_ns, default=None)


def asked_of(element: Element) -> Asked | None:
    """What namefs's own element says, whatever its tag; None if it is malformed or the name can't be one."""
    asked_ns, follows = element.get("asked", ""), _FOLLOWS.get(element.get("follows", "yes"))
    if follows is None or not _NANOSECONDS.fullmatch(asked_ns) or int(asked_ns) > _NS_MAX:
        return None
    name = element.text or ""
    if element.get("escaped") == "yes":
        try:
            name = _unescaped(name)
        except UnicodeDecodeError:
            return None
    return None if cleaned(name) is None else Asked(name, int(asked_ns), follows)


def element(asked: Asked) -> str:
    """What was asked for as the XML element that virDomainSetMetadata takes: without its namespace.

    libvirt declares `ASKED_URI` itself, with the prefix `ASKED_KEY`, and refuses an element that has it
    already (virXMLInjectNamespace). A name that `cleaned` does not take is not read back. ValueError
    if the name is None.
    """
    if asked.name is None:
        raise ValueError("there is no element for what no longer counts")
    attributes = f'asked="{asked.asked_ns}" follows="{"yes" if asked.follows else "no"}"'
    name = asked.name
    if _UNKEPT.search(name):
        attributes += ' escaped="yes"'
        name = _escaped(name)
    return f"<name {attributes}>{name.translate(_MARKUP)}</name>"


def _escaped(name: str) -> str:
    # surrogatepass, not surrogateescape: it is reversible for every str.
    return _TO_ESCAPE.sub(
        lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass")), name
    )


def _unescaped(text: str) -> str:
    plain = _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), text.encode("utf-8", "surrogatepass"))
    return plain.decode("utf-8", "surrogatepass")


DEFAULT = NameSources()
"""Down here, as it takes all of the above to make one."""
