"""What the tests of a real host need of the machine. Imports nothing that may be missing."""

from __future__ import annotations

import importlib.util
import os
import shutil

COMMANDS = {
    "libvirtd": "libvirt-daemon-system",
    "virtlogd": "libvirt-daemon-system",
    "virsh": "libvirt-clients",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "swtpm": "swtpm",
    "swtpm_setup": "swtpm-tools",
}
"""Each command, and the Debian package that it is in."""


def find(command: str) -> str | None:
    """The path of ``command``, None if nowhere. Looks also where daemons lie, which a user's PATH lacks."""
    return shutil.which(command, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def missing_for_a_host() -> list[str]:
    """What this machine lacks for a libvirt host in namespaces, a phrase each; empty when nothing."""
    missing = [] if os.geteuid() == 0 else ["to be root"]
    missing += [
        f"{command} (package {package})" for command, package in COMMANDS.items() if not find(command)
    ]
    if not importlib.util.find_spec("libvirt"):
        missing.append("the Python module libvirt (package python3-libvirt)")
    return missing


def missing_for_a_mount() -> list[str]:
    """What this machine lacks for a FUSE mount, a phrase each; empty when it lacks nothing."""
    missing = [] if os.access("/dev/fuse", os.R_OK | os.W_OK) else ["/dev/fuse, readable and writable"]
    if not importlib.util.find_spec("pyfuse3"):
        missing.append("the Python module pyfuse3 (package python3-pyfuse3)")
    return missing
