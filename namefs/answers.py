"""What the commands are told, from an index and the files: by the daemon, or without it.

Requests and answers are what JSON can hold; names may have lone surrogates (PEP 383) for bytes that
are not UTF-8.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from namefs import migration, naming, processes
from namefs.backing import Backing
from namefs.errors import ExitCode, NamefsError
from namefs.finding import find, find_any
from namefs.guest import Guest, Shelf
from namefs.layout import artefact as layout
from namefs.layout import joined
from namefs.layout.directories import Directories
from namefs.model import Place, Record
from namefs.view import guest_in

if TYPE_CHECKING:
    from uuid import UUID

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
    """The answer to ``list``, ``which``, ``ps`` and ``history``. Blocks. Raises NamefsError."""
    operation = request["op"]
    if operation == "list":
        return _list(index, None if request.get("pattern") is None else _word(request, "pattern"), mountpoint)
    if operation == "ps":
        return _ps(index, places, shelf, mountpoint)
    if operation == "which" and isinstance(pid := request.get("pid"), int):
        return _which_process(index, pid, places, shelf, mountpoint)
    if operation == "which":
        return _which(index, _word(request, "what"), places, shelf, mountpoint)
    if operation == "history":
        return _history(index, _word(request, "what"))
    raise NamefsError(ExitCode.USAGE, f"there is no request {operation!r}")


def iso(time_ns: int) -> str:
    """A time since the epoch as ISO 8601, in UTC."""
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="milliseconds")


def _word(request: dict[str, Any], key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str):
        raise NamefsError(ExitCode.USAGE, f"{key!r} must be a string")
    return value


def _list(index: Index, pattern: str | None, mountpoint: str) -> Answer:
    guests = []
    for _place, key in sorted(index.by_place.items()):
        record = index.records[key]
        names = (record.name, f"{record.group}/{record.name}", record.domain.name)
        if pattern is None or any(fnmatch.fnmatchcase(name, pattern) for name in names):
            guests.append(_guest(index, record, mountpoint))
    return {"guests": guests}


def _guest(index: Index, record: Record, mountpoint: str) -> Answer:
    domain, asked = record.domain, index.asked.get(record.key.guest)
    held = (*index.was_shown.get(record.key.guest, ()), *index.former.get(record.key.guest, ()))
    return {
        "name": record.name,
        "group": record.group,
        "uuid": str(record.key.uuid),
        "state": domain.state,
        "libvirt_name": domain.name,
        "title": domain.title,
        "source": record.source,
        "connection": domain.connection,
        "former": list(dict.fromkeys(f.name for f in held if f.name not in (record.name, domain.name))),
        "pending": bool(asked and asked.name not in (None, domain.name) and asked.follows),
        "migration": migration_of(index, record),
        "path": _view_path(mountpoint, record),
    }


def migration_of(index: Index, record: Record) -> str | None:
    """Where the guest's migration stands, in a few words; None if there is none."""
    records = (index.records[key] for key in index.keys_of.get(record.key.uuid, ()))
    return migration.phase({one.domain.connection: one for one in records})


def _history(index: Index, what: str) -> Answer:
    key = find_any(index, what).guest
    record = index.owner(key.uuid)
    shown = [_held("shown", f.name, f.since_ns, f.until_ns) for f in index.was_shown.get(key, ())]
    of_libvirt = [_held("libvirt", f.name, f.since_ns, f.until_ns) for f in index.former.get(key, ())]
    if record is not None:
        shown.append(_held("shown", record.name, record.shown_since_ns, None))
        of_libvirt.append(_held("libvirt", record.domain.name, record.since_ns, None))
    name = (shown or of_libvirt)[-1]["name"]
    if [held["name"] for held in of_libvirt] == [held["name"] for held in shown]:
        of_libvirt = []
    names = sorted((*shown, *of_libvirt), key=lambda held: str(held["since"]))
    moves = [
        {"source": move.source, "target": move.target, "at": iso(move.at_ns)}
        for move in index.moves.get(key, ())
    ]
    return {"name": name, "uuid": str(key.uuid), "names": names, "moves": moves}


def _held(kind: str, name: str, since_ns: int, until_ns: int | None) -> Answer:
    return {
        "kind": kind,
        "name": name,
        "since": iso(since_ns),
        "until": None if until_ns is None else iso(until_ns),
    }


def _ps(index: Index, places: Places, shelf: Shelf, mountpoint: str) -> Answer:
    running = []
    for _place, key in sorted(index.by_place.items()):
        guest = guest_in(index, key, places)
        pid = None if guest is None else _pid(guest, shelf)
        process = None if pid is None else processes.look(pid)
        if process is not None:
            running.append(_guest(index, index.records[key], mountpoint) | asdict(process))
    return {"guests": running}


def _pid(guest: Guest, shelf: Shelf) -> int | None:
    """The process that the guest's pid file names, if it is there."""
    item = shelf.item(guest, b"run", b"process")
    return None if item is None else int(item.path.removeprefix("/proc/"))


def _guest_of_process(
    index: Index, found: tuple[UUID, int] | None, places: Places, shelf: Shelf
) -> Guest | None:
    """The domain whose pid file names the process. Anybody can give a process such a command line."""
    if found is None:
        return None
    uuid, pid = found
    guests = (guest_in(index, key, places) for key in index.keys_of.get(uuid, ()))
    return next((guest for guest in guests if guest is not None and _pid(guest, shelf) == pid), None)


def _which_process(index: Index, pid: int, places: Places, shelf: Shelf, mountpoint: str) -> Answer:
    found = processes.guest_of(pid)
    guest = _guest_of_process(index, found, places, shelf)
    if guest is None:
        raise NamefsError(ExitCode.NOT_FOUND, f"process {pid} is no guest's")
    return {"matches": [_match(index, guest.record, _view_path(mountpoint, guest.record), None)]}


def _which(index: Index, what: str, places: Places, shelf: Shelf, mountpoint: str) -> Answer:
    if not what.startswith("/"):
        record = find(index, what)
        return {"matches": [_match(index, record, _view_path(mountpoint, record), None)]}
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
    return os.path.join(mountpoint, *(os.fsdecode(part) for part in (*record.place, *parts) if part))


def _match(index: Index, record: Record, view: str | None, path: str | None) -> Answer:
    guest = _guest(index, record, "")
    kept = ("name", "group", "uuid", "libvirt_name", "title", "former")
    return {key: guest[key] for key in kept} | {"view": view, "path": path}


def _in_view(index: Index, path: str, places: Places, shelf: Shelf, mountpoint: str) -> Iterator[Answer]:
    parts = [os.fsencode(part) for part in os.path.relpath(path, mountpoint).split("/")]
    group = parts.pop(0) if parts[0] in index.groups and len(parts) > 1 else b""
    key = index.by_place.get(Place(group, parts[0]))
    guest = guest_in(index, key, places) if key is not None else None
    if guest is None:
        return
    if len(parts) == 1:
        yield _match(index, guest.record, path, None)
        return
    subdir = b"/".join(parts[1:-1])
    if len(parts) == 2 and parts[1] in layout.SUBDIRECTORIES:
        if shelf.items(guest, parts[1]):
            yield _match(index, guest.record, path, None)
        return
    item = shelf.item(guest, subdir, parts[-1])
    if item is not None:
        yield _match(index, guest.record, path, item.path)


def _behind(index: Index, path: str, places: Places, shelf: Shelf, mountpoint: str) -> Iterator[Answer]:
    for key in index.records:
        guest = guest_in(index, key, places)
        if guest is None:
            continue
        for subdir in (layout.TOP, *layout.SUBDIRECTORIES):
            if not _might_claim(guest, subdir, path):
                continue
            if _is_directory_of(guest, subdir, path):
                yield _match(index, guest.record, _view_path(mountpoint, guest.record, subdir), path)
                continue
            items = shelf.items(guest, subdir)
            for item in items:
                if path in (item.path, os.path.join(item.artefact.directory, os.fsdecode(item.file))):
                    view = _view_path(mountpoint, guest.record, subdir, item.entry)
                    yield _match(index, guest.record, view, item.path)
            if subdir == b"log" and path not in [item.path for item in items]:
                # A piece of a log that is shown in one.
                for piece in shelf.pieces.of(guest, (*guest.former_names, guest.record.domain.name)):
                    if piece.path == path:
                        view = _view_path(mountpoint, guest.record, subdir, naming.encode(piece.log))
                        yield _match(index, guest.record, view, path)


def _is_directory_of(guest: Guest, subdir: bytes, path: str) -> bool:
    """Whether the path is a directory of this guest alone, such as snapshot/NAME."""
    if guest.places is None:
        return False
    own = {layout.bytes_of(guest.record.domain.name), str(guest.record.key.uuid).encode()}
    found = joined.artefacts(guest.record.domain, (), guest.places, subdir)
    return any(artefact.directory == path and own & set(artefact.below) for artefact in found)


def _might_claim(guest: Guest, subdir: bytes, path: str) -> bool:
    """Whether it is worth looking: with thousands of guests, looking at every file takes seconds."""
    if guest.places is None:
        return False
    directory = os.path.dirname(path)
    for artefact in joined.artefacts(guest.record.domain, guest.former_names, guest.places, subdir):
        if (
            path == artefact.directory
            or artefact.claims(path)
            or os.path.realpath(artefact.directory) == directory
        ):
            return True
        if subdir == b"disks" or artefact.kind in (layout.Kind.PROCESS, layout.Kind.MONITOR):
            return True
    return False
