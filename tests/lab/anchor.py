"""The process that a lab host lives and dies with: it makes the namespaces and is its daemons' parent.

Run as ``python anchor.py ROOT`` with a SOCK_SEQPACKET socket as standard input, on which it says ``ready``,
then answers ``start COMMAND``: with the daemon's process id, or with ``error: ...``. At the end of that
socket, which comes also when the tests are killed, it kills all that runs in its namespaces, and exits.

A child subreaper, because QEMU makes itself a daemon: whoever inherits it must reap it at once. libvirt waits
until kill(pid, 0) fails, so under an init that is slow to reap, each stop of a guest takes seconds.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 2
PR_SET_CHILD_SUBREAPER = 36

BOOT_TIME = 2
UTMP = struct.Struct("@hi32s4s32s256shhiii4i20x")
"""struct utmp of glibc, as in utmp(5): the same on all Linux ABIs where time_t's half is 32 bits in it."""

PRIVATE = {
    "etc/libvirt": "/etc/libvirt",
    "var/lib/libvirt": "/var/lib/libvirt",
    "var/lib/swtpm-localca": "/var/lib/swtpm-localca",
    # The whole of these two: /var/log/swtpm need not exist on the machine, and is not to be made there.
    "var/log": "/var/log",
    "var/cache": "/var/cache",
    # The whole of /run: D-Bus (machined, firewalld, polkit) and the machine's own libvirt are out of reach.
    "run": "/run",
}
"""What the host has for itself: the directory below ROOT, and where its daemons see it."""

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, options)]
    _check(_libc.mount(*words[:3], ctypes.c_ulong(flags), words[3]), f"mount {target}")


def _mounts() -> list[tuple[str, str]]:
    """(mount point, file system type) of all mounts here, in the order in which they were made."""
    lines = Path("/proc/self/mounts").read_bytes().splitlines()
    fields = [line.split(b" ") for line in lines]
    return [(os.fsdecode(f[1].decode("unicode_escape").encode("latin-1")), f[2].decode()) for f in fields]


def _detach(mount_point: str) -> None:
    """Unmount if possible. It is not below a dead FUSE mount, where libvirt can't reach the mount either."""
    _libc.umount2(os.fsencode(mount_point), MNT_DETACH)


def _give_kvm_its_group(root: Path) -> None:
    """Let the group kvm, as which QEMU runs, open /dev/kvm, in here only.

    Without udev /dev/kvm is root's alone. The QEMU that libvirt asks for its capabilities can open it (it
    keeps CAP_DAC_OVERRIDE) while libvirt's own check for QEMU's user fails: the answer never counts as valid,
    and is asked for again in every call. Each define took 6.5 s to 44 s that way; it takes 3 ms this way.
    """
    kvm = Path("/dev/kvm")
    if not kvm.exists():
        return
    dev = root / "dev"
    _mount("lab", str(dev), "tmpfs", 0, "mode=0755,size=64k")
    node = dev / "kvm"
    os.mknod(node, stat.S_IFCHR, kvm.stat().st_rdev)
    group = subprocess.run(["getent", "group", "kvm"], check=True, capture_output=True, text=True)
    os.chown(node, 0, int(group.stdout.split(":")[2]))
    node.chmod(0o660)
    _mount(str(node), str(kvm), None, MS_BIND)


def _write_boot_time() -> None:
    """Tell libvirt when the machine was started, which it else works out from the uptime, to a second or so.

    It is part of how libvirt remembers the owner of an image (an extended attribute); with another boot time
    the memory is void, and the image's owner is not put back when the guest stops.
    """
    lines = Path("/proc/stat").read_text().splitlines()
    boot_s = next(int(line.split()[1]) for line in lines if line.startswith("btime "))
    record = UTMP.pack(BOOT_TIME, 0, b"~", b"~~", b"reboot", b"", 0, 0, 0, boot_s, 0, 0, 0, 0, 0)
    Path("/run/utmp").write_bytes(record)


def enter(root: Path) -> None:
    """Move this process into mount and UTS namespaces of its own, furnished from ``root``."""
    _check(_libc.unshare(CLONE_NEWNS | CLONE_NEWUTS), "unshare")
    # Private, not slave: a copy in here must not keep a namefs alive that is mounted outside later.
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    # A dot in the name keeps libvirt from asking DNS for it; each host's is its own, as migration demands.
    socket.sethostname(f"{root.name.replace('_', '-')}.lab.test")
    # Reverse order: what is mounted last lies on top. FUSE mounts of others are not to be pinned either.
    # libvirt uses cgroups when it sees some mounted: guests of two hosts would meet in one group.
    for mount_point, kind in reversed(_mounts()):
        if kind.startswith("cgroup") or (kind.startswith("fuse") and kind != "fusectl"):
            _detach(mount_point)
    _give_kvm_its_group(root)
    for below, inside in PRIVATE.items():
        _mount(str(root / below), inside, None, MS_BIND)
    _write_boot_time()


def _start(command: list[str]) -> int:
    name = Path(command[0]).name
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "HOME": "/root",
        "NOTIFY_SOCKET": f"/run/{name}.ready",
    }
    return os.posix_spawn(
        command[0],
        command,
        environment,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)],
        setsid=True,
        setsigdef=[signal.SIGPIPE],
    )


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _ours() -> list[int]:
    """All other processes of this host. By UTS namespace: libvirt gives QEMU a mount namespace of its own."""
    mine = os.readlink("/proc/self/ns/uts")
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "ns/uts") == mine and int(process.name) != os.getpid():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def _kill_all() -> None:
    """Kill until none is left: one that was forking meanwhile has a child that the list does not hold."""
    while processes := _ours():
        for process in processes:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _reap()


def _serve(control: socket.socket) -> None:
    ended, ended_in = socket.socketpair()
    for end in (ended, ended_in):
        end.setblocking(False)
    signal.set_wakeup_fd(ended_in.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    control.send(b"ready")
    while True:
        readable, _, _ = select.select([control, ended], [], [])
        if ended in readable:
            ended.recv(4096)
        _reap()
        if control not in readable:
            continue
        request = control.recv(4096).decode()
        if not request:
            return
        try:
            answer = str(_start(request.split()[1:]))
        except OSError as error:
            answer = f"error: {request}: {error}"
        control.send(answer.encode())


def main() -> None:
    """Make the namespaces, serve until the control socket ends, and leave nothing running."""
    control = socket.socket(fileno=os.dup(0))
    os.setsid()
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")
    enter(Path(sys.argv[1]))
    try:
        _serve(control)
    finally:
        _kill_all()


if __name__ == "__main__":
    main()
