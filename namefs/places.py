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
    return found.get
