"""What a plan depends on: what is at the paths, who names them, what the images' headers name. Blocks."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from namefs import images
from namefs.adoption import definition, files, plan, spans
from namefs.errors import ExitCode, NamefsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from namefs.adoption.plan import Facts, Guest, Present, Store
    from namefs.layout.directories import Directories
    from namefs.sources.definitions import Definitions, GuestDefinition

_PIECE = re.compile(r"\.\d{1,4}(?:\.(?:gz|xz|bz2|zst))?")
"""virtlogd's ``.0``, and logrotate's ``.1.gz``."""

_NOT_IN_XML = re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")

Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Site:
    """Where things are: as libvirt sees them, and as seen from here."""

    places: Directories

    def here(self, path: str) -> str:
        """A path of libvirt's as seen from here."""
        return self.places.translate(path)

    def directory(self, uuid: str) -> str:
        """The guest's directory of the store, as seen from here."""
        return os.path.join(self.places.store, uuid)

    def store(self, uuid: str, name: str) -> Store:
        """The guest's part of the store, as libvirt sees it. Raises NamefsError (CONFIGURATION)."""
        directory = self._inside(self.directory(uuid))
        return plan.Store(directory, os.path.join(self._inside(self.places.lib), "nvram", f"{name}_VARS.fd"))

    def _inside(self, path: str) -> str:
        inside = path.removeprefix(self.places.root)
        if self.here(inside) != path:
            raise NamefsError(
                ExitCode.CONFIGURATION,
                f"libvirt, whose files are below {self.places.root}, would not find {path}",
            )
        return inside


def guest_of(found: GuestDefinition) -> Guest:
    """The guest as a plan takes it."""
    return plan.Guest(found.uuid, found.name, found.persistent(), found.moments())


def facts_of(site: Site, guest: Guest, libvirt: Definitions, *, disks: bool) -> Facts:
    """The facts for a plan about a guest: every definition that libvirt has is read for them.

    With ``disks``, the headers of all images too: those that are named, and those that lie beside the
    guest's own or in a storage pool. Raises NamefsError, and OSError if a path can't be looked at.
    """
    users = _Users(site)
    for xml in (guest.xml, *(moment.xml for moment in guest.moments)):
        users.add("another part of this guest's definitions", definition.names_besides(xml))
        users.add_raw(definition.raw_images(xml))
    for name, text in libvirt.other_documents(guest.uuid):
        # libvirt writes characters that are not XML; what has them is no path of this guest's.
        xml = _NOT_IN_XML.sub("\ufffd", text)
        users.add(f"guest {name}", _names(name, xml))
        users.add_raw(definition.raw_images(xml))
    if disks:
        own = [place.path for place in definition.places(guest.xml) if place.kind is definition.Kind.DISK]
        users.add_backing(own, [*_pools(libvirt), *(os.path.dirname(path) for path in own if path)])

    def links(source: str, target: str) -> bool:
        directories = (os.path.dirname(site.here(path)) for path in (source, target))
        return len({files.mount_of(directory) for directory in directories}) == 1

    return plan.Facts(
        look=lambda path: files.look(site.here(path)),
        named_by=users.of,
        tied=lambda path: _tied(site.here(path)),
        pieces=lambda path: _pieces(site, path),
        links=links,
    )


def _names(name: str, xml: str) -> frozenset[str]:
    try:
        return definition.names(xml)
    except spans.NotXml as error:
        # What it names can't be known: then nothing can be said to be named by nobody.
        raise NamefsError(
            ExitCode.LIBVIRT_REFUSED,
            f"a definition of guest {name} can't be read, and may name anything: {error}",
        ) from error


@dataclass(slots=True)
class _Users:
    """Who names which file, by path and by the file itself: one file may have many paths."""

    site: Site
    by_path: dict[str, str] = field(default_factory=dict)
    by_file: dict[Identity, str] = field(default_factory=dict)
    raw: set[str] = field(default_factory=set)

    def add(self, who: str, paths: Iterable[str]) -> None:
        for path in paths:
            self.by_path.setdefault(path, who)
            try:
                info = os.stat(self.site.here(path))
            except (OSError, ValueError):
                # Not there, or no path at all.
                continue
            self.by_file.setdefault((info.st_dev, info.st_ino), who)

    def add_raw(self, paths: Iterable[str]) -> None:
        self.raw |= {self.site.here(path) for path in paths}

    def of(self, path: str, file: Present | None) -> str:
        found = self.by_path.get(path, "")
        return found if found or file is None else self.by_file.get((file.dev, file.ino), "")

    def add_backing(self, own: Iterable[str | None], directories: Iterable[str]) -> None:
        """Add the backing images of all images that are named or lie in the directories."""
        heads = {self.site.here(path) for path in (*self.by_path, *own) if path is not None}
        for directory in {self.site.here(directory) for directory in directories}:
            heads |= set(_regular_files(directory))
        # A guest can write any header into an image that is raw.
        heads -= self.raw
        seen = set(self.raw)
        while heads:
            path = heads.pop()
            seen.add(path)
            for below in _backing(self.site, path):
                self._add_here(f"image {path}", below)
                if below not in seen:
                    heads.add(below)

    def _add_here(self, who: str, path: str) -> None:
        try:
            info = os.stat(path)
        except OSError:
            return
        self.by_file.setdefault((info.st_dev, info.st_ino), who)


def _regular_files(directory: str) -> Iterator[str]:
    try:
        with os.scandir(directory) as entries:
            yield from (entry.path for entry in entries if entry.is_file(follow_symlinks=False))
    except OSError:
        # What can't be listed has no files for libvirt either, or is named by a definition anyhow.
        return


def _pools(libvirt: Definitions) -> Iterator[str]:
    for xml in libvirt.pool_documents():
        pool = spans.parse(xml)
        if pool.attributes.get("type") in ("dir", "fs", "netfs"):
            yield from (path.text for path in pool.all("target/path"))


def _backing(site: Site, path: str) -> list[str]:
    """The files, as seen from here, that an image's header names as the image below it."""
    header = _header(path)
    if header is None or header.backing is None:
        return []
    named = os.fsdecode(header.backing)
    if named.startswith("json:"):
        try:
            found = list(_strings(json.loads(named.removeprefix("json:"))))
        except (ValueError, RecursionError):
            return []
    else:
        found = [named.removeprefix("file:")]
    directory = os.path.dirname(path)
    return [
        os.path.normpath(site.here(below) if below.startswith("/") else os.path.join(directory, below))
        for below in found
        if below and "\0" not in below
    ]


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for held in value.values():
            yield from _strings(held)


def _tied(path: str) -> str:
    """Why an image can't be elsewhere: its header names others relative to where it lies."""
    header = _header(path)
    if header is None:
        return ""
    if header.external_data:
        return "has its data in another file"
    if header.backing is not None and not header.backing.startswith(b"/"):
        return "names its backing image relative to where it lies"
    return ""


def _header(path: str) -> images.Header | None:
    # A guest may have written the header that led here: of a device not even the opening is harmless.
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        return images.header(fd)
    finally:
        os.close(fd)


def _pieces(site: Site, path: str) -> list[str]:
    directory, entry = os.path.split(path)
    try:
        listed = os.listdir(site.here(directory))
    except OSError:
        return []
    return sorted(
        os.path.join(directory, found)
        for found in listed
        if found.startswith(entry) and _PIECE.fullmatch(found, len(entry))
    )
