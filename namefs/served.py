"""One libvirt that is shown: its reader, its files, and how it is."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from namefs.answers import iso
from namefs.sources.files import Files
from namefs.sources.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import trio

    from namefs.config import Connection
    from namefs.layout.directories import Directories
    from namefs.statuses import Statuses
    from namefs.view import View

log = logging.getLogger(__name__)


class Served:
    """Follows one connection. Each comes and goes by itself."""

    def __init__(
        self,
        connection: Connection,
        places: Directories | None,
        spool: str,
        view: View,
        apply: Callable[..., Awaitable[None]],
        statuses: Statuses,
        connected: Callable[[str], None],
    ) -> None:
        self.label = connection.label
        self._places = places
        self._spool = spool
        self._view = view
        self._connected = connected
        self.reader = Reader(
            connection.uri,
            connection.label,
            apply,
            lambda: view.index,
            self._on_connected,
            connection.names,
        )
        self._files = Files(
            places,
            spool,
            connection.label,
            lambda: view.index,
            self.reader.hint,
            apply,
            self._hint_all,
            statuses,
        )

    async def start(self, nursery: trio.Nursery) -> None:
        """Watch files and spool, and return once they are watched; connect when libvirt is there."""
        await nursery.start(self._files.run)
        nursery.start_soon(self.reader.run)

    def status(self) -> dict[str, Any]:
        """How the connection is, as ``namefs status`` tells it."""
        state, called_s = self.reader.state, self._files.last_call_s
        return {
            "label": self.label,
            "uri": self.reader.uri,
            "state": "connected" if state.connected else "waiting",
            "since": iso(int(state.since_s * 1e9)),
            "error": state.error,
            "guests": self._guests(),
            "hook": {
                "spool": self._spool,
                "last_call": None if called_s is None else iso(int(called_s * 1e9)),
                "installed": self._hook_installed(),
            },
        }

    def _guests(self) -> int:
        return sum(1 for _uuid, connection in self._view.index.domains if connection == self.label)

    def _on_connected(self) -> None:
        self._files.watch()
        self._connected(self.label)
        log.info("connected to %s: %d guests", self.reader.uri, self._guests())

    def _hint_all(self) -> None:
        for uuid, connection in self._view.index.domains:
            if connection == self.label:
                self.reader.hint(uuid)

    def _hook_installed(self) -> bool:
        if self._places is None:
            return False
        hooks = os.path.join(os.path.dirname(self._places.etc), "hooks", "qemu.d")
        try:
            return any("namefs" in entry for entry in os.listdir(hooks))
        except OSError:
            return False
