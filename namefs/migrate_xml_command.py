"""``namefs migrate-xml NAME``: the definition for the target of a local migration."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from namefs import generations, journal
from namefs.adoption import spans, survey
from namefs.errors import ExitCode, NamefsError
from namefs.finding import find
from namefs.places import places_of
from namefs.sources.definitions import Definitions

if TYPE_CHECKING:
    from namefs.config import Config


def migrate_xml(config: Config, name: str, *, persistent: bool) -> int:
    """Print it, and make the directories that it names. Raises NamefsError."""
    record = find(journal.read(config.journal), name)
    label = record.domain.connection
    places = places_of(config)(label)
    if places is None:
        raise NamefsError(ExitCode.CONFIGURATION, f"the files of {label} are not on this machine")
    site, uuid = survey.Site(places), str(record.key.uuid)
    uri = next(one.uri for one in config.connections if one.label == label)
    with closing(Definitions(uri)) as libvirt:
        guest = libvirt.guest(uuid)
        if guest is None:
            raise NamefsError(ExitCode.NOT_FOUND, f"{label} has no such guest any more")
        xml = guest.persistent() if persistent else guest.for_migration()
    if xml is None:
        raise NamefsError(ExitCode.NOT_NOW, "the guest is off: --persistent prints what starts it")
    store = site.store(uuid, record.domain.name).directory
    try:
        moves = generations.moves(xml, store)
        for path in moves.values():
            _make(site, store, os.path.dirname(path))
        sys.stdout.write(generations.moved(xml, store))
    except (generations.TooLong, spans.NotXml) as error:
        raise NamefsError(ExitCode.NOT_NOW, str(error)) from error
    except OSError as error:
        raise NamefsError(ExitCode.FILE_FAILED, f"{error.filename}: {error.strerror}") from error
    return ExitCode.OK


def _make(site: survey.Site, store: str, directory: str) -> None:
    """Make a directory below the guest's own, each one with the mode of the one that it stands beside."""
    made = site.here(store)
    mode = os.stat(made).st_mode & 0o777
    for part in os.path.relpath(directory, store).split("/"):
        made = os.path.join(made, part)
        if not os.path.isdir(made):
            os.mkdir(made)
            twin = os.path.join(site.here(store), part)
            info = os.stat(twin) if os.path.isdir(twin) and twin != made else None
            os.chmod(made, mode if info is None else info.st_mode & 0o777)
            if info is not None:
                os.chown(made, info.st_uid, info.st_gid)
