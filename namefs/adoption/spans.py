"""An XML document as elements that know where in the text they stand, so that little of it need change.

Whoever parses and writes a document anew changes prefixes, quotes and blanks in parts that are none of
his business, such as other programs' metadata. Here a change touches the bytes that it is about. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from xml.parsers import expat
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_ATTRIBUTE = re.compile(rb"""\s+([^\s=/>"']+)\s*=\s*("[^"]*"|'[^']*')""")
_IN_QUOTES = {'"': "&quot;", "'": "&apos;", "\n": "&#10;", "\t": "&#9;", "\r": "&#13;"}
_IN_TEXT = {"\r": "&#13;"}


class NotXml(ValueError):
    """The text is not well-formed XML, or holds what has no business there. The message is one line."""


@dataclass(slots=True)
class Element:
    """One element. Offsets are into the document's UTF-8; ``start`` to ``end`` is all of it.

    ``inside`` is where its content begins and ``close`` where that ends; the same for ``<a/>``, which
    is ``empty`` then.
    """

    tag: str
    attributes: dict[str, str]
    start: int
    inside: int = 0
    close: int = 0
    end: int = 0
    empty: bool = False
    text: str = ""
    """What it holds of text, without that of its children."""
    children: list[Element] = field(default_factory=list)
    values: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Where the value of each attribute stands, without its quotes."""
    blanks: str = ""
    """The white space before it."""

    def child(self, tag: str) -> Element | None:
        """The first child of that name."""
        return next(self.all(tag), None)

    def all(self, path: str) -> Iterator[Element]:
        """The elements at ``path``, names with slashes between, from here."""
        tag, _slash, rest = path.partition("/")
        for child in self.children:
            if child.tag == tag:
                yield from child.all(rest) if rest else (child,)

    def below(self) -> Iterator[Element]:
        """This element and all that it holds."""
        yield self
        for child in self.children:
            yield from child.below()


@dataclass(frozen=True, slots=True)
class Edit:
    """What stands from ``start`` to ``end`` is to become ``text``, which is XML."""

    start: int
    end: int
    text: str


def parse(xml: str) -> Element:
    """The root element. Raises NotXml."""
    try:
        document = xml.encode()
    except UnicodeEncodeError:
        raise NotXml("it holds bytes that are not UTF-8") from None
    return _Parser(document).root()


def edited(xml: str, edits: Iterable[Edit]) -> str:
    """The document with the edits made, none of which may overlap another."""
    document = xml.encode()
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        document = document[: edit.start] + edit.text.encode() + document[edit.end :]
    return document.decode()


def value(element: Element, attribute: str, new: str) -> Edit:
    """The edit that gives an attribute, which is there, another value."""
    return Edit(*element.values[attribute], escape(new, _IN_QUOTES))


def content(element: Element, text: str) -> Edit:
    """The edit that makes ``text`` all that an element without children holds."""
    xml = escape(text, _IN_TEXT)
    if not element.empty:
        return Edit(element.inside, element.close, xml)
    # <a/> ends two bytes after its last attribute.
    return Edit(element.end - 2, element.end, f">{xml}</{element.tag}>" if xml else "/>")


def element(tag: str, text: str) -> str:
    """An element that holds text, as XML."""
    return f"<{tag}>{escape(text, _IN_TEXT)}</{tag}>"


class _Parser:
    def __init__(self, document: bytes) -> None:
        self._document = document
        self._open: list[Element] = []
        self._root: Element | None = None
        self._parser = expat.ParserCreate("utf-8")
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.StartDoctypeDeclHandler = self._doctype

    def root(self) -> Element:
        try:
            self._parser.Parse(self._document, True)
        except expat.ExpatError as error:
            raise NotXml(f"not well-formed XML: {error}") from None
        assert self._root is not None
        return self._root

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        start = self._parser.CurrentByteIndex
        at = start + 1 + len(tag.encode())
        values = {}
        while (match := _ATTRIBUTE.match(self._document, at)) is not None:
            values[match[1].decode()] = (match.start(2) + 1, match.end(2) - 1)
            at = match.end()
        end = self._document.index(b">", at) + 1
        element = Element(tag, attributes, start, inside=end, values=values)
        element.empty = self._document[end - 2 : end - 1] == b"/"
        at = start
        while at and self._document[at - 1] in b" \t\r\n":
            at -= 1
        element.blanks = self._document[at:start].decode()
        if self._open:
            self._open[-1].children.append(element)
        else:
            self._root = element
        self._open.append(element)

    def _end(self, _tag: str) -> None:
        element = self._open.pop()
        if element.empty:
            element.close = element.end = element.inside
        else:
            element.close = self._parser.CurrentByteIndex
            element.end = self._document.index(b">", element.close) + 1

    def _text(self, text: str) -> None:
        self._open[-1].text += text

    def _doctype(self, *_declaration: object) -> None:
        # libvirt writes none, and what it could declare would make one text stand for another.
        raise NotXml("a document with a DOCTYPE")
