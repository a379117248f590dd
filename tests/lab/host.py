"""A libvirt host for tests: libvirtd, virtlogd and QEMU as they are, in a root directory of their own.

Mounts and host name are the host's own; processes and network are the machine's, so that a pid means the same
outside. The machine's own libvirt, its guests and its logs are neither seen nor touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from contextlib import closing, suppress
from pathlib import Path

import libvirt

from tests.lab import anchor
from tests.lab.needs import find
from tests.lab.notify import ReadySocket
from tests.lab.process import has_ended, wait_ended

START_TIMEOUT_S = 30.0
VIRSH_TIMEOUT_S = 120.0

PLACEHOLDER_HOOK = "#!/bin/sh\nexec cat >/dev/null\n"

LIBVIRTD_CONF = """\
host_uuid = "{host_uuid}"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""

QEMU_CONF = """\
security_driver = "none"
cgroup_controllers = [ ]
"""

STOCK_DIRECTORIES = {
    "etc/libvirt/hooks/qemu.d": (0o755, "root"),
    "run/lock": (0o755, "root"),
    "var/cache/libvirt/qemu": (0o711, "root"),
    "var/lib/libvirt/images": (0o711, "root"),
    "var/lib/libvirt/qemu": (0o750, "libvirt-qemu"),
    "var/lib/libvirt/qemu/channel": (0o750, "libvirt-qemu"),
    "var/lib/libvirt/qemu/channel/target": (0o750, "libvirt-qemu"),
    "var/lib/swtpm-localca": (0o750, "tss"),
    "var/log/libvirt/qemu": (0o755, "root"),
}
"""What Debian's packages bring, with mode and owner: libvirt makes some of these itself, but differently."""

UNDEFINE_FLAGS = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)

EMPTIED = (
    "etc/libvirt/hooks/qemu.d",
    "var/lib/libvirt/by-uuid",
    "var/lib/libvirt/images",
    "var/lib/libvirt/qemu/checkpoint",
    "var/lib/libvirt/qemu/nvram",
    "var/lib/libvirt/qemu/save",
    "var/lib/libvirt/qemu/snapshot",
    "var/lib/libvirt/swtpm",
    "var/log/libvirt/by-uuid",
    "var/log/libvirt/qemu",
    "var/log/swtpm/libvirt/qemu",
)
"""Directories in which something of a guest may stay when it is gone, as after libvirt renamed it."""


class Host:
    """One libvirt host. ``root`` is its prefix: its /etc/libvirt lies at ``root/etc/libvirt``, and so on."""

    def __init__(self) -> None:
        # In /tmp, whatever TMPDIR says: a socket's address holds 107 bytes, and libvirt's are long.
        self.root = Path(tempfile.mkdtemp(dir="/tmp", prefix="nf"))
        self.uri = f"qemu+unix:///system?socket={self.root}/run/libvirt/libvirt-sock"
        self.images = self.root / "var/lib/libvirt/images"
        self._anchor: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._pids: dict[str, int] = {}

    @property
    def libvirtd_pid(self) -> int:
        """Process id of the libvirtd that was started last."""
        return self._pids["libvirtd"]

    @property
    def anchor_pid(self) -> int:
        """Process id of what holds the namespaces open."""
        assert self._anchor is not None
        return self._anchor.pid

    def outside(self, path: str | os.PathLike[str]) -> Path:
        """Where a file is that libvirt calls ``path``."""
        return self.root / os.fspath(path).lstrip("/")

    def inside(self, path: str | os.PathLike[str]) -> str:
        """What libvirt calls the file that is ``path`` here. ValueError if it is not below ``root``."""
        return f"/{Path(path).relative_to(self.root)}"

    def start(self) -> None:
        """Make the namespaces and start virtlogd and libvirtd; return when both are ready.

        Raises RuntimeError with what they printed when one can't be started.
        """
        self._furnish()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(START_TIMEOUT_S)
        with theirs, (self.root / "lab.log").open("ab") as log:
            self._anchor = subprocess.Popen(
                [sys.executable, "-I", "-S", anchor.__file__, str(self.root)],
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
                cwd="/",
            )
        self._control = ours
        if ours.recv(4096) != b"ready":
            raise RuntimeError(f"no namespaces:\n{self._printed()}")
        self._start("virtlogd")
        self.start_libvirtd()

    def stop(self) -> None:
        """End every process of the host and remove its files; its mounts end with its last process.

        Guests are killed, not asked: a test may have left libvirtd stopped, frozen or dead.
        """
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._anchor is not None:
            self._anchor.wait(START_TIMEOUT_S)
            self._anchor = None
        shutil.rmtree(self.root)

    def start_libvirtd(self) -> None:
        """Start libvirtd, and return when it answers and is connected to all running guests again."""
        self._start("libvirtd")
        # It says that it is ready while it still reconnects. A destroy then ends the guest, yet fails: the
        # reconnecting thread was first to see the end. Any query that takes the guest's job waits for it.
        connection = self.connect()
        try:
            for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                # Of a migration's target it is the end: then it is done with that one too.
                with suppress(libvirt.libvirtError):
                    domain.memoryStats()
        finally:
            connection.close()

    def stop_libvirtd(self) -> None:
        """Ask libvirtd to end, and return when it has; guests run on."""
        os.kill(self.libvirtd_pid, signal.SIGTERM)
        wait_ended(self.libvirtd_pid, START_TIMEOUT_S)

    def kill_libvirtd(self) -> None:
        """End libvirtd at once, as a crash would; guests run on."""
        os.kill(self.libvirtd_pid, signal.SIGKILL)
        wait_ended(self.libvirtd_pid, START_TIMEOUT_S)

    def restart_libvirtd(self) -> None:
        """Stop libvirtd and start another one."""
        self.stop_libvirtd()
        self.start_libvirtd()

    def freeze_libvirtd(self) -> None:
        """Make libvirtd hang: its socket accepts, nobody answers."""
        os.kill(self.libvirtd_pid, signal.SIGSTOP)

    def thaw_libvirtd(self) -> None:
        """Let a frozen libvirtd go on."""
        os.kill(self.libvirtd_pid, signal.SIGCONT)

    def virsh(self, *args: str, check: bool = True) -> str:
        """Run virsh on this host and return what it printed, errors too.

        Raises RuntimeError with that text when virsh fails, unless ``check`` is false.
        """
        done = subprocess.run(
            ["virsh", "--quiet", "--connect", self.uri, *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            timeout=VIRSH_TIMEOUT_S,
            check=False,
        )
        printed = done.stdout.decode(errors="surrogateescape")
        if check and done.returncode != 0:
            raise RuntimeError(f"virsh {' '.join(args)}: {printed}")
        return printed

    def connect(self) -> libvirt.virConnect:
        """Open a connection to this host, which the caller closes."""
        return libvirt.open(self.uri)

    def install_hook(self, script: str, name: str = "test") -> Path:
        """Put a hook script in place whole, so that libvirt never runs the half of one; return where it is.

        It counts at once: libvirt looks for hooks only when it starts, but found the placeholder then.
        """
        place = self.root / "etc/libvirt/hooks/qemu.d" / name
        draft = self.root / "etc/libvirt/hooks" / f".{name}.draft"
        draft.write_text(script)
        draft.chmod(0o755)
        draft.rename(place)
        return place

    def reset(self) -> None:
        """Bring back the host as it was started: libvirtd running, no guests, nothing of theirs left."""
        if has_ended(self.libvirtd_pid):
            self.start_libvirtd()
        else:
            self.thaw_libvirtd()
        try:
            self._remove_guests()
        except libvirt.libvirtError:
            # A libvirtd whose migration went wrong may hold a guest's lock for ever. That fails one test, and
            # is not to fail all that come after.
            self._kill_guests()
            self._remove_guests()
        for directory in EMPTIED:
            _empty(self.root / directory)
        self.install_hook(PLACEHOLDER_HOOK, "placeholder")

    def _remove_guests(self) -> None:
        with closing(self.connect()) as connection:
            for domain in connection.listAllDomains():
                _remove(domain)

    def _kill_guests(self) -> None:
        """End libvirtd and all QEMUs, and start another libvirtd, for which the guests are off."""
        self.kill_libvirtd()
        for file in (self.root / "run/libvirt/qemu").glob("*.pid"):
            with suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)
        self.start_libvirtd()

    def _furnish(self) -> None:
        # mkdtemp's 0700 would keep QEMU, and tests as an ordinary user, from everything below.
        self.root.chmod(0o755)
        for below in (*anchor.PRIVATE, "dev"):
            (self.root / below).mkdir(parents=True)
        for below, (mode, owner) in STOCK_DIRECTORIES.items():
            directory = self.root / below
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(mode)
            shutil.chown(directory, owner, owner)
        etc = self.root / "etc/libvirt"
        (etc / "libvirtd.conf").write_text(LIBVIRTD_CONF.format(host_uuid=uuid.uuid4()))
        (etc / "qemu.conf").write_text(QEMU_CONF)
        self.install_hook(PLACEHOLDER_HOOK, "placeholder")

    def _start(self, name: str) -> None:
        command = find(name)
        assert command is not None
        assert self._control is not None
        with ReadySocket(self.root / "run" / f"{name}.ready") as ready:
            self._control.send(f"start {command} --pid-file /run/{name}.pid".encode())
            answer = self._control.recv(4096).decode()
            if not answer.isdecimal():
                raise RuntimeError(answer or self._printed())
            self._pids[name] = int(answer)
            try:
                ready.wait(self._pids[name], START_TIMEOUT_S)
            except (ChildProcessError, TimeoutError, ProcessLookupError) as error:
                raise RuntimeError(f"{name}: {error}\n{self._printed()}") from error

    def _printed(self) -> str:
        return (self.root / "lab.log").read_text(errors="replace")


def _remove(domain: libvirt.virDomain) -> None:
    if domain.isActive():
        domain.destroy()
    try:
        domain.undefineFlags(UNDEFINE_FLAGS)
    except libvirt.libvirtError as error:
        # A transient guest ended with destroy().
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise


def _empty(directory: Path) -> None:
    if not directory.exists():
        return
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
