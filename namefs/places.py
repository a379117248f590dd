"""Where each connection's files lie, as the configuration and the connection's URI say."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from namefs.errors import ExitCode, NamefsError
from namefs.layout.directories import Directories, for_uri

if TYPE_CHECKING:
    from collections.abc import Callable

    from namefs.config import Config


def places_of(config: Config) -> Callable[[str], Directories | None]:
    """Connection label to directories; None where no file is on this machine.

    Raises NamefsError (CONFIGURATION) for a URI of a driver whose files namefs does not know.
    """
    found: dict[str, Directories | None] = {}
    for connection in config.connections:
        try:
            places = for_uri(
                connection.uri,
                root=connection.root,
                home=str(Path.home()),
                environ=os.environ,
                uid=os.geteuid(),
            )
        except ValueError as error:
            raise NamefsError(ExitCode.CONFIGURATION, str(error)) from error
        if places is not None and connection.directories:
            overrides = {key.replace("-", "_"): path for key, path in connection.directories.items()}
            places = replace(places, **overrides)
        found[connection.label] = places
    return _with_one_log(config, found).get


def _with_one_log(config: Config, found: dict[str, Directories | None]) -> dict[str, Directories | None]:
    """Have all connections' guests keep their logs in one place: a guest may go from one to another."""
    first = next((places for places in found.values() if places is not None), None)
    own = {one.label for one in config.connections if "store-log" in one.directories}
    return {
        label: places
        if places is None or first is None or label in own
        else replace(places, store_log=first.store_log)
        for label, places in found.items()
    }
