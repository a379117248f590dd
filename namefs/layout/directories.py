"""Where a libvirt daemon keeps its files: from its URI to its directories.

The rules are those of libvirt's ``virQEMUDriverConfigNew``, seen on 9.0.0's system, session and
embedded daemons; the fallbacks of unset XDG variables are GLib's documented ones. Later versions moved
the channels' sockets to the run directory; those are found through the live XML and never derived.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

_OWN = (
    "/etc/libvirt",
    "/run/libvirt",
    "/var/lib/libvirt",
    "/var/log/libvirt",
    "/var/log/swtpm",
    "/var/cache/libvirt",
)
"""What differs between two system daemons on one host; images elsewhere are shared by both."""


@dataclass(frozen=True, slots=True)
class Directories:
    """Absolute paths, as seen from here."""

    etc: str
    """NAME.xml, autostart/NAME.xml"""
    run: str
    """NAME.xml (the status), NAME.pid"""
    lib: str
    """snapshot/NAME/, checkpoint/NAME/, save/NAME.save, nvram/, dump/. Session: the same as etc"""
    log: str
    """NAME.log with its rotations, NAME-ALIAS-virtiofsd.log"""
    swtpm_log: str
    """NAME-swtpm.log. Session: the same as log, so that a domain NAME-swtpm logs to the same file"""
    swtpm_state: str
    """UUID/tpm2/, UUID/tpm1.2/"""
    store: str
    """namefs's own, keyed by UUID: UUID/disks/, UUID/nvram/, UUID/log/, UUID/sockets/"""
    store_log: str
    """UUID/qemu.log and the like, beside libvirt's own logs"""
    root: str = ""
    """Under which a second system daemon's /etc, /run and /var lie as seen from here; or ''."""

    def translate(self, path: str) -> str:
        """A path as that daemon sees it -> as seen from here."""
        if not self.root:
            return path
        plain = _collapse(path)
        if plain.startswith("/var/run/"):
            plain = plain.removeprefix("/var")  # in the daemon's own root a symlink to /run
        own = any(plain == directory or plain.startswith(directory + "/") for directory in _OWN)
        return self.root + plain if own else path


def for_uri(
    uri: str, *, root: str = "", home: str, environ: Mapping[str, str], uid: int
) -> Directories | None:
    """The directories of the daemon behind a libvirt URI; None where it has no files on this host.

    ``root`` is for a second system daemon. ``home``, ``environ`` and ``uid`` are those of the user whose
    session is meant. Raises ValueError, with a one-line message, for what is not a URI of the qemu or
    test driver, and for a ``root`` that cannot apply.
    """
    parts = urlsplit(uri)
    driver, _plus, transport = parts.scheme.partition("+")
    if driver not in ("qemu", "test"):
        raise ValueError(f"not a URI of libvirt's qemu or test driver: {uri!r}")
    if root and not root.startswith("/"):
        raise ValueError(f"the root of {uri!r} is not an absolute path: {root!r}")
    # Without a transport, a host name means TLS. (libvirt: docs/uri.rst)
    if driver == "test" or transport not in ("", "unix") or parts.netloc:
        return None
    root = _collapse(root).rstrip("/") if root else ""
    # libvirt serves root's qemu:///session from the system daemon.
    if parts.path == "/system" or (parts.path == "/session" and uid == 0):
        return _system(root)
    if root:
        raise ValueError(f"a root is for qemu:///system only, not for {uri!r}")
    if parts.path == "/session":
        return _session(home, environ)
    if parts.path == "/embed":
        return _embed(uri, parts.query)
    raise ValueError(f"not a URI of a qemu daemon (/system, /session or /embed): {uri!r}")


def _system(root: str) -> Directories:
    return Directories(
        etc=f"{root}/etc/libvirt/qemu",
        run=f"{root}/run/libvirt/qemu",
        lib=f"{root}/var/lib/libvirt/qemu",
        log=f"{root}/var/log/libvirt/qemu",
        swtpm_log=f"{root}/var/log/swtpm/libvirt/qemu",
        swtpm_state=f"{root}/var/lib/libvirt/swtpm",
        store=f"{root}/var/lib/libvirt/by-uuid",
        store_log=f"{root}/var/log/libvirt/by-uuid",
        root=root,
    )


def _session(home: str, environ: Mapping[str, str]) -> Directories:
    config = _xdg(environ, "XDG_CONFIG_HOME", f"{home}/.config")
    cache = _xdg(environ, "XDG_CACHE_HOME", f"{home}/.cache")
    runtime = _xdg(environ, "XDG_RUNTIME_DIR", cache)
    data = _xdg(environ, "XDG_DATA_HOME", f"{home}/.local/share")
    return Directories(
        etc=f"{config}/libvirt/qemu",
        run=f"{runtime}/libvirt/qemu/run",
        lib=f"{config}/libvirt/qemu",
        log=f"{cache}/libvirt/qemu/log",
        swtpm_log=f"{cache}/libvirt/qemu/log",
        swtpm_state=f"{config}/libvirt/qemu/swtpm",
        store=f"{data}/libvirt/by-uuid",
        store_log=f"{cache}/libvirt/by-uuid",
    )


def _xdg(environ: Mapping[str, str], variable: str, default: str) -> str:
    # As GLib has it, which libvirt asks: empty counts as unset.
    path = environ.get(variable) or default
    if not path.startswith("/"):
        raise ValueError(f"{variable} is not an absolute path: {path!r}")
    return path.rstrip("/")


def _embed(uri: str, query: str) -> Directories:
    # Not parse_qs, for which + is a blank; to libvirt it is a plus.
    fields = (field.partition("=") for field in re.split("[&;]", query))
    values = [unquote(value, errors="surrogateescape") for name, _equals, value in fields if name == "root"]
    if not values or not values[0].startswith("/"):
        raise ValueError(f"no absolute path in root= of {uri!r}")
    directory = values[0].rstrip("/")
    return Directories(
        etc=f"{directory}/etc/qemu",
        run=f"{directory}/run/qemu",
        lib=f"{directory}/lib/qemu",
        log=f"{directory}/log/qemu",
        swtpm_log=f"{directory}/log/swtpm",
        swtpm_state=f"{directory}/lib/swtpm",
        store=f"{directory}/lib/by-uuid",
        store_log=f"{directory}/log/by-uuid",
    )


def _collapse(path: str) -> str:
    """Without empty, ``.`` and ``..`` components. libvirt has no symlinks in what this is asked of."""
    kept: list[str] = []
    for component in path.split("/"):
        if component == "..":
            del kept[-1:]
        elif component not in ("", "."):
            kept.append(component)
    return "/" + "/".join(kept)
