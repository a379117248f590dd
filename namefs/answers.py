"""What the commands are told, from an index and the files: by the daemon, or without it.

Requests and answers are what JSON can hold; names may have lone surrogates (PEP 383) for bytes that
are not UTF-8.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from namefs import naming
from namefs.backing import Backing
from namefs.errors import ExitCode, NamefsError
from namefs.guest import Guest, Shelf
from namefs.layout import libvirt as layout
from namefs.layout.directories import Directories
from namefs.model import Key, Record
from namefs.view import guest_in

if TYPE_CHECKING:
    from namefs.config import Config
    from namefs.index import Index

Answer = dict[str, Any]
Places = Callable[[str], Directories | None]


def offline(config: Config, request: dict[str, Any]) -> Answer:
    """The answer of the saved index, for when no daemon answers. Raises NamefsError."""
    from namefs import journal
    from namefs.places import places_of

    index = journal.read(config.journal)
    return answer(request, index, places_of(config), Shelf(Backing(config.mountpoint)), config.mountpoint)


def answer(request: dict[str, Any], index: Index, places: Places, shelf: Shelf, mountpoint: str) -> Answer:
    """The answer to ``list``, ``which`` and ``history``. Blocks. Raises NamefsError."""
    operation = request["op"]
    if operation == "list":
        return _list(index, None if request.get("pattern") is None else _word(request, "pattern"), mountpoint)
    if operation == "which":
        return _which(index, _word(request, "what"), places, shelf, mountpoint)
    if operation == "history":
        return _history(index, _word(request, "what"))
    raise NamefsError(ExitCode.USAGE, f"there is no request {operation!r}")


def find(index: Index, what: str) -> Record:
    """The guest of that shown name, libvirt name or UUID, or the one that last had that name.

    Raises NamefsError: NOT_FOUND, AMBIGUOUS.
    """
    found = list(dict.fromkeys(_called(index, what)))
    if not found:
        raise NamefsError(ExitCode.NOT_FOUND, f"there is no such guest: {naming.display(what)}")
    if len(found) > 1:
        uuids = ", ".join(str(key.uuid) for key in found)
        raise NamefsError(ExitCode.AMBIGUOUS, f"{naming.display(what)} is {uuids}: give the UUID")
    return index.records[found[0]]


def iso(time_ns: int) -> str:
    """A time since the epoch as ISO 8601, in UTC."""
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="milliseconds")


def _word(request: dict[str, Any], key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str):
        raise NamefsError(ExitCode.USAGE, f"{key!r} must be a string")
    return value


def _called(index: Index, what: str) -> Iterator[Key]:
    by_uuid = _uuid(what)
    if by_uuid is not None and Key(by_uuid) in index.records:
        yield Key(by_uuid)
        return
    by_entry = index.by_entry.get(layout.bytes_of(what)) if _encodable(what) else None
    if by_entry is not None:
        yield by_entry
        return
    yield from (key for key, record in index.records.items() if record.domain.name == what)


def _encodable(what: str) -> bool:
    try:
        layout.bytes_of(what)
    except UnicodeEncodeError:
        return False
    return True


def _uuid(what: str) -> UUID | None:
    try:
        return UUID(what)
    except ValueError:
        return None


def _list(index: Index, pattern: str | None, mountpoint: str) -> Answer:
    guests = []
    for entry in index.entries:
        key = index.by_entry[entry]
        domain = index.records[key].domain
        if pattern is not None and not fnmatch.fnmatchcase(domain.name, pattern):
            continue
        former = dict.fromkeys(f.name for f in index.former.get(key, ()) if f.name != domain.name)
        guests.append(
            {
                "name": domain.name,
                "uuid": str(key.uuid),
                "state": domain.state,
                "libvirt_name": domain.name,
                "connection": domain.connection,
                "former": list(former),
                "path": os.path.join(mountpoint, os.fsdecode(entry)),
            }
        )
    return {"guests": guests}


def _history(index: Index, what: str) -> Answer:
    by_uuid = _uuid(what)
    if by_uuid is not None and Key(by_uuid) in index.former and Key(by_uuid) not in index.records:
        key, record = Key(by_uuid), None
    else:
        try:
            record = find(index, what)
            key = record.key
        except NamefsError as error:
            # Nobody has the name now: then it is asked who had it last.
            if error.exit_code is not ExitCode.NOT_FOUND or what not in index.holders:
                raise
            key = index.holders[what][-1][0]
            record = index.records.get(key)
    names: list[Answer] = [
        {"name": f.name, "since": iso(f.since_ns), "until": iso(f.until_ns)}
        for f in index.former.get(key, ())
    ]
    if record is not None:
        names.append({"name": record.domain.name, "since": iso(record.since_ns), "until": None})
    return {"name": names[-1]["name"], "uuid": str(key.uuid), "names": names}


def _which(index: Index, what: str, places: Places, shelf: Shelf, mountpoint: str) -> Answer:
    if not what.startswith("/"):
        record = find(index, what)
        return {"matches": [_match(record, _view_path(mountpoint, record), None)]}
    path = os.path.normpath(what)
    # The command gives the directories' real names; the mount point may be configured by another.
    for top in (
        mountpoint,
        os.path.realpath(os.path.dirname(mountpoint)) + "/" + os.path.basename(mountpoint),
    ):
        if path == top or path.startswith(top + "/"):
            below = os.path.join(mountpoint, os.path.relpath(path, top))
            return {"matches": list(_in_view(index, os.path.normpath(below), places, shelf, mountpoint))}
    return {"matches": list(_behind(index, path, places, shelf, mountpoint))}


def _view_path(mountpoint: str, record: Record, *parts: bytes) -> str:
    return os.path.join(mountpoint, *map(os.fsdecode, (record.entry, *(part for part in parts if part))))


def _match(record: Record, view: str | None, path: str | None) -> Answer:
    return {"name": record.domain.name, "uuid": str(record.key.uuid), "view": view, "path": path}


def _in_view(index: Index, path: str, places: Places, shelf: Shelf, mountpoint: str) -> Iterator[Answer]:
    parts = [os.fsencode(part) for part in os.path.relpath(path, mountpoint).split("/")]
    key = index.by_entry.get(parts[0])
    guest = guest_in(index, key, places) if key is not None else None
    if guest is None:
        return
    if len(parts) == 1:
        yield _match(guest.record, path, None)
        return
    subdir = b"/".join(parts[1:-1])
    if len(parts) == 2 and parts[1] in layout.SUBDIRECTORIES:
        if shelf.items(guest, parts[1]):
            yield _match(guest.record, path, None)
        return
    item = shelf.item(guest, subdir, parts[-1])
    if item is not None:
        yield _match(guest.record, path, item.path)


def _behind(index: Index, path: str, places: Places, shelf: Shelf, mountpoint: str) -> Iterator[Answer]:
    for key in index.records:
        guest = guest_in(index, key, places)
        if guest is None:
            continue
        for subdir in (layout.TOP, *layout.SUBDIRECTORIES):
            if not _might_claim(guest, subdir, path):
                continue
            if _is_directory_of(guest, subdir, path):
                yield _match(guest.record, _view_path(mountpoint, guest.record, subdir), path)
                continue
            for item in shelf.items(guest, subdir):
                if path in (item.path, os.path.join(item.artefact.directory, os.fsdecode(item.file))):
                    view = _view_path(mountpoint, guest.record, subdir, item.entry)
                    yield _match(guest.record, view, item.path)


def _is_directory_of(guest: Guest, subdir: bytes, path: str) -> bool:
    """Whether the path is a directory of this guest alone, such as snapshot/NAME."""
    if guest.places is None:
        return False
    own = {layout.bytes_of(guest.record.domain.name), str(guest.record.key.uuid).encode()}
    found = layout.artefacts(guest.record.domain, (), guest.places, subdir)
    return any(artefact.directory == path and own & set(artefact.below) for artefact in found)


def _might_claim(guest: Guest, subdir: bytes, path: str) -> bool:
    """Whether it is worth looking: with thousands of guests, looking at every file takes seconds."""
    if guest.places is None:
        return False
    directory = os.path.dirname(path)
    for artefact in layout.artefacts(guest.record.domain, guest.former_names, guest.places, subdir):
        if (
            path == artefact.directory
            or artefact.claims(path)
            or os.path.realpath(artefact.directory) == directory
        ):
            return True
        if subdir == b"disks" or artefact.kind in (layout.Kind.PROCESS, layout.Kind.MONITOR):
            return True
    return False
