"""Two libvirt hosts on this machine that guests can be migrated between."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.lab.host import Host

BOOT_TIME = "run/utmp"

AS_ROOT = 'user = "root"\ngroup = "root"\nclear_emulator_capabilities = 0\n'
"""Post-copy needs userfaultfd(2), which a kernel may keep from all but root."""


class TwoHosts:
    """``a`` and ``b``, whose UUIDs and host names differ, and a directory that both see by the same path.

    Migrations go over unix sockets in it: no name has to be resolved, no port to be free.
    """

    def __init__(self, a: Host, b: Host) -> None:
        self.a, self.b = a, b
        self.shared = Path(tempfile.mkdtemp(dir="/tmp", prefix="nfs"))
        self.shared.chmod(0o755)
        # QEMU binds them, as its own user.
        self.sockets = self.shared / "migrate"
        self.sockets.mkdir()
        self.sockets.chmod(0o1777)
        self._agree_on_boot_time()

    def close(self) -> None:
        """Remove what both see."""
        shutil.rmtree(self.shared)

    def reset(self) -> None:
        """Bring back both hosts as they were started, without guests, and empty what both see."""
        for host in (self.a, self.b):
            host.reset()
        for path in self.shared.iterdir():
            if path.is_dir() and path != self.sockets:
                shutil.rmtree(path)
            elif path != self.sockets:
                path.unlink()
        for path in self.sockets.iterdir():
            path.unlink()

    def _agree_on_boot_time(self) -> None:
        """Have both say the same of when the machine was started.

        libvirt keeps it with what it knows of an image's owner. Were they a second apart, the source would
        take the target's note for an old one, and take the image from the target that runs on it.
        """
        ours, theirs = (host.root / BOOT_TIME for host in (self.a, self.b))
        if ours.read_bytes() != theirs.read_bytes():
            theirs.write_bytes(ours.read_bytes())
            # It reads that once.
            self.b.restart_libvirtd()
