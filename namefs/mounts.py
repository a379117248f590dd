"""The kernel's mount table, and taking a mount of namefs's off again.

Of all this only `is_dead` waits for a daemon.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import subprocess
from dataclasses import dataclass

from namefs.errors import ExitCode, NamefsError

FSTYPE = "fuse.namefs"

_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of ``/proc/self/mountinfo``; proc(5) has the meaning of the fields."""

    mount_id: int
    device: str
    mountpoint: str
    fstype: str
    source: str

    @property
    def is_namefs(self) -> bool:
        """Whether it is a view, whichever daemon serves or served it."""
        return self.fstype == FSTYPE


def find(mountpoint: str) -> Mount | None:
    """What is mounted at the path, the uppermost if several are; None if nothing is.

    Symlinks on the way to the path are followed; one that the path itself is, only if nothing is
    mounted at that place: the last component may be a mount whose daemon hangs, so it is not touched
    while that can be avoided.
    """
    head, tail = os.path.split(os.path.abspath(mountpoint))
    here = _uppermost(os.path.join(os.path.realpath(head), tail))
    return here or _uppermost(os.path.realpath(mountpoint))


def read() -> list[Mount]:
    """All mounts that this process can see, in the kernel's order."""
    with open("/proc/self/mountinfo", "rb") as table:
        return [_parsed(line) for line in table]


def is_dead(mountpoint: str) -> bool:
    """Whether the daemon of the FUSE mount at the path has died and left it.

    statvfs(3), as the kernel asks the daemon each time; stat(2) may be answered from its cache for
    some time after the daemon is gone. Waits as long as a living daemon takes to answer.
    """
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        # ECONNABORTED is what the requests get that were under way when the daemon died.
        return error.errno in {errno.ENOTCONN, errno.ECONNABORTED}
    return False


def unmount(mountpoint: str) -> None:
    """Unmounts; the daemon then ends. Needs no answer from it.

    Raises NamefsError: MOUNT_FAILED, for one if files in the mount are open.
    """
    if os.geteuid() == 0:
        _umount2(mountpoint, 0)
    else:
        _fusermount([], mountpoint)


def detach(mountpoint: str) -> None:
    """Takes the mount out of the tree at once; what is still open in it lives until it is closed.

    Raises NamefsError: MOUNT_FAILED.
    """
    if os.geteuid() == 0:
        _umount2(mountpoint, _MNT_DETACH)
    else:
        _fusermount(["-z"], mountpoint)


def _uppermost(path: str) -> Mount | None:
    # Later lines lie over earlier ones.
    return next((mount for mount in reversed(read()) if mount.mountpoint == path), None)


def _umount2(mountpoint: str, flags: int) -> None:
    # The system call, not umount(8): that calls statfs(2) first and so hangs when the daemon does.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), flags | _UMOUNT_NOFOLLOW) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise NamefsError(ExitCode.MOUNT_FAILED, f"cannot unmount {mountpoint}: {reason}")


def _fusermount(options: list[str], mountpoint: str) -> None:
    # Set-uid root: it lets users unmount what they mounted.
    command = ["fusermount3", "-u", *options, "--", mountpoint]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise NamefsError(ExitCode.MOUNT_FAILED, f"cannot run fusermount3: {error.strerror}") from error
    if done.returncode != 0:
        reason = (os.fsdecode(done.stderr).strip() or f"it ended with {done.returncode}").splitlines()[0]
        raise NamefsError(ExitCode.MOUNT_FAILED, reason)


def _parsed(line: bytes) -> Mount:
    fields = line.rstrip(b"\n").split(b" ")
    # A varying number of optional fields ends in one that is a hyphen.
    after = fields.index(b"-", 6)
    return Mount(
        mount_id=int(fields[0]),
        device=fields[2].decode(),
        mountpoint=_unescaped(fields[4]),
        fstype=_unescaped(fields[after + 1]),
        source=_unescaped(fields[after + 2]),
    )


def _unescaped(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))
