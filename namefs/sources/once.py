"""What a libvirt has, asked once: for commands that do without the daemon."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from namefs.sources.libvirt import Connection, start_events

if TYPE_CHECKING:
    from namefs import config
    from namefs.model import Domain


def listed(connection: config.Connection) -> tuple[Domain, ...]:
    """All domains. Blocks. Raises Unreachable."""
    start_events()
    with closing(
        Connection(connection.uri, connection.label, lambda _uuid: None, lambda _why: None, connection.names)
    ) as libvirt:
        return libvirt.listed()
