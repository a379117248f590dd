"""Gathering the facts. Blocks: libvirt is asked and files are looked at; nothing is changed."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING
from uuid import UUID

from namefs import journal, mounts
from namefs.checking.facts import Connected, Facts, Hook
from namefs.control import ask
from namefs.errors import ExitCode, NamefsError
from namefs.index import Index
from namefs.model import Key
from namefs.places import places_of
from namefs.sources.libvirt import Unreachable
from namefs.sources.once import listed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from namefs.config import Config, Connection
    from namefs.layout.directories import Directories
    from namefs.model import Domain

_LOG = re.compile(r"(?s)(?P<name>.+)\.log(?:\.\d+)?(?:\.(?:gz|xz|bz2|zst))?")
_HELPERS = re.compile(r"(?s)(?P<name>.+)-[^-]+-virtiofsd")
_CHECKPOINT = b"<domaincheckpoint>"


def gather(config: Config) -> Facts:
    """All facts of this moment. Raises NamefsError if the index can't be read."""
    try:
        index = journal.read(config.journal)
    except NamefsError as error:
        if error.exit_code is not ExitCode.NOT_FOUND:
            raise
        index = Index()
    places = places_of(config)
    return Facts(
        index,
        tuple(_connected(one, places(one.label), index, config) for one in config.connections),
        _view(config.mountpoint),
        config.mountpoint,
        _daemon_answers(config),
    )


def _daemon_answers(config: Config) -> bool:
    try:
        ask(config.control_socket, {"op": "status"})
    except NamefsError as error:
        if error.exit_code is not ExitCode.DAEMON_UNREACHABLE:
            raise
        return False
    return True


def _view(mountpoint: str) -> str:
    mount = mounts.find(mountpoint)
    if mount is None or not mount.is_namefs:
        return "none"
    return "dead" if mounts.is_dead(mountpoint) else "serving"


def _connected(connection: Connection, places: Directories | None, index: Index, config: Config) -> Connected:
    try:
        domains, error = listed(connection), None
    except Unreachable as unreachable:
        domains, error = None, str(unreachable)
    if places is None:
        return Connected(connection.label, domains, error)
    by_uuid = {domain.uuid: domain for domain in domains or ()}
    return Connected(
        connection.label,
        domains,
        error,
        missing={uuid: found for uuid, d in by_uuid.items() if (found := tuple(_missing(d, places)))},
        store=_by_uuid(places.store),
        logs=_by_uuid(places.store_log),
        log_names=dict(_log_names(places.log, _own_logs(domains or (), places))),
        unfinished=frozenset(u for u, path in _by_uuid(places.store).items() if _is_unfinished(path)),
        left_nvram={
            uuid: found
            for uuid, domain in by_uuid.items()
            if (found := tuple(_left_nvram(domain, index, places)))
        },
        lost_checkpoints={
            uuid: found for uuid, d in by_uuid.items() if (found := tuple(_lost_checkpoints(d, places)))
        },
        hook=_hook(places, config.spool_of(connection)),
    )


def _missing(domain: Domain, places: Directories) -> Iterator[str]:
    paths = [disk.path for disk in domain.disks]
    # UEFI variables come into being with the first start.
    for path in paths:
        if not os.path.lexists(places.translate(path)):
            yield path


def _by_uuid(directory: str) -> dict[UUID, str]:
    found = {}
    for entry in _entries(directory):
        try:
            uuid = UUID(entry)
        except ValueError:
            continue
        if str(uuid) == entry:
            found[uuid] = os.path.join(directory, entry)
    return found


def _is_unfinished(directory: str) -> bool:
    return os.path.lexists(os.path.join(directory, ".adopting"))


def _own_logs(domains: Iterable[Domain], places: Directories) -> frozenset[str]:
    """Those that definitions name, as they do a serial port's: no name says whose they are."""
    return frozenset(places.translate(log.path) for domain in domains for log in domain.logs)


def _log_names(directory: str, own: Collection[str]) -> Iterator[tuple[str, str]]:
    for entry in _entries(directory):
        match, path = _LOG.fullmatch(entry), os.path.join(directory, entry)
        if match is not None and os.path.join(directory, f"{match['name']}.log") not in own:
            helper = _HELPERS.fullmatch(match["name"])
            yield (helper or match)["name"], path


def _left_nvram(domain: Domain, index: Index, places: Directories) -> Iterator[str]:
    if domain.nvram is not None and os.path.dirname(domain.nvram) != os.path.join(places.lib, "nvram"):
        return
    for former in index.former.get(Key(domain.uuid), ()):
        path = os.path.join(places.lib, "nvram", f"{former.name}_VARS.fd")
        taken = (domain.connection, former.name) in index.by_name
        if not taken and path != domain.nvram and os.path.lexists(path):
            yield path


def _lost_checkpoints(domain: Domain, places: Directories) -> Iterator[str]:
    directory = os.path.join(places.lib, "snapshot", domain.name)
    for entry in _entries(directory):
        try:
            with open(os.path.join(directory, entry), "rb") as file:
                if _CHECKPOINT in file.read(4096):
                    yield os.path.join(directory, entry)
        except OSError:
            # It went meanwhile: the second look will not find it.
            continue


def _hook(places: Directories, spool: str) -> Hook:
    directory = os.path.join(os.path.dirname(places.etc), "hooks", "qemu.d")
    entry = next((entry for entry in sorted(_entries(directory)) if "namefs" in entry), None)
    if entry is None:
        return Hook(os.path.join(directory, "50-namefs"), installed=False)
    path = os.path.join(directory, entry)
    return Hook(path, True, os.access(path, os.X_OK), _is_seen(path, places, spool))


def _is_seen(hook: str, places: Directories, spool: str) -> bool | None:
    """Whether libvirt calls the hook: it has, or has not though a guest was started since it is there.

    libvirt looks for hooks once, at its start (virhook.c), so one that came later is passed over.
    """
    try:
        since = os.stat(hook).st_ctime
        called = [os.stat(os.path.join(spool, entry)).st_mtime for entry in _entries(spool)]
        pids = [e for e in _entries(places.run) if e.endswith(".pid") and e != "driver.pid"]
        started = [os.stat(os.path.join(places.run, entry)).st_mtime for entry in pids]
    except OSError:
        return None
    if any(at >= since for at in called):
        return True
    return False if any(at > since for at in started) else None


def _entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
