"""What namefs is told: the configuration file, the environment and the command line, in one value.

Every key is documented in ``contrib/namefs.toml``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from itertools import chain, count
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, urlsplit

from namefs.errors import ExitCode, NamefsError
from namefs.name_sources import NameSources, NotASource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from namefs.toml_lines import Path

DEFAULT_FILE = "/etc/namefs/namefs.toml"
DEFAULT_URI = "qemu:///system"

DIRECTORIES = ("etc", "run", "lib", "log", "swtpm-log", "swtpm-state", "store", "store-log")
"""The directories of libvirt's, and namefs's store, that may be set one by one, as spelt in the file."""

EXTRA_DIRECTORIES = (".by-uuid", ".by-libvirt-name")
"""Directories that the view's root can have beside the guests."""

_DAYS_MOST = 36500
_MEBIBYTES_MOST = 1 << 20

CONNECTIONS_MOST = 8
"""As many libvirts as one view shows."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A libvirt to show the guests of.

    ``label`` names it in the index, which thereby outlives a change of ``uri``. ``root`` is put
    before libvirt's own directories; ``directories`` replaces some of them, by the words of
    `DIRECTORIES`, after that. ``names`` is where the guests' names and groups come from.
    """

    uri: str = DEFAULT_URI
    label: str = "local"
    root: str = ""
    directories: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    names: NameSources = field(default_factory=NameSources)


@dataclass(frozen=True, slots=True)
class Config:
    """All settings. Every path is absolute."""

    mountpoint: str = "/var/lib/libvirt/by-name"
    journal: str = "/var/lib/namefs/index.sqlite"
    runtime_directory: str = "/run/namefs"
    mount_options: tuple[str, ...] = ()
    extra_directories: tuple[str, ...] = ()
    """Of `EXTRA_DIRECTORIES`, those that the view has in its root."""
    former_days: int = 0
    """How long a former name leads to its guest in ``.former``; 0: there is none."""
    deleted_days: int = 30
    """How long a guest that is gone, and its logs, are kept in ``.deleted``; 0: not at all."""
    log_keep_mib: int = 16
    """How large a log of the store gets before it goes on in a new file; 0: however large."""
    connections: tuple[Connection, ...] = (Connection(),)

    def spool_of(self, connection: Connection) -> str:
        """Where a libvirt's hook leaves its calls: the /run of one that has a root is below that."""
        root = connection.root if self.runtime_directory.startswith("/run/") else ""
        return os.path.join(root + self.runtime_directory, "spool")

    @property
    def control_socket(self) -> str:
        """The unix socket that the commands ask the daemon through."""
        return os.path.join(self.runtime_directory, "control.sock")


def load(
    path: str | None = None,
    *,
    mountpoint: str | None = None,
    connect: Sequence[str] | None = None,
    mount_options: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The settings from the file at ``path``, or `DEFAULT_FILE` if that exists, and what overrides them.

    ``mountpoint``, ``connect`` (libvirt URIs) and ``mount_options`` (comma-separated, added to the
    file's) come from the command line; ``$LIBVIRT_DEFAULT_URI`` comes between ``connect`` and the file.

    Raises NamefsError: CONFIGURATION, with file and line where there is one, PERMISSION if the file
    may not be read, USAGE for what the command line says.
    """
    config = _read(path)
    if mountpoint is not None:
        if not mountpoint:
            raise NamefsError(ExitCode.USAGE, "the mount point is an empty string")
        config = replace(config, mountpoint=_normal(os.path.abspath(mountpoint)))
    if mount_options is not None:
        given = tuple(option for option in mount_options.split(",") if option)
        config = replace(config, mount_options=config.mount_options + given)
    uris = connect or [uri for uri in (environ.get("LIBVIRT_DEFAULT_URI"),) if uri]
    if len(set(uris)) < len(uris) or len(uris) > CONNECTIONS_MOST:
        what = f"-c takes up to {CONNECTIONS_MOST} URIs, each of another libvirt"
        raise NamefsError(ExitCode.USAGE, what)
    if uris:
        config = replace(config, connections=_given(uris, config.connections))
    return config if os.geteuid() == 0 else _for_a_user(config, environ)


def _given(uris: Sequence[str], in_file: Sequence[Connection]) -> tuple[Connection, ...]:
    """The connections of the command line; the file's own tables where it has them.

    The file's directories are those of the libvirt that the file names, not of another.
    """
    known = {connection.uri: connection for connection in in_file}
    labels = {known[uri].label for uri in uris if uri in known}
    first = in_file[0]
    all_labels = chain([first.label], (f"{first.label}-{number}" for number in count(2)))
    free = (label for label in all_labels if label not in labels)
    return tuple(
        known.get(uri) or Connection(uri, next(free), _root_of(uri), names=first.names) for uri in uris
    )


def _root_of(uri: str) -> str:
    """Where a second libvirt's directories lie, by its socket: what is before its /run/libvirt."""
    parts = urlsplit(uri)
    if parts.scheme not in ("qemu", "qemu+unix") or parts.path != "/system":
        return ""
    socket = "".join(parse_qs(parts.query).get("socket", []))
    root, found, _ = socket.partition("/run/libvirt/")
    return _normal(root) if found and root.startswith("/") else ""


def _for_a_user(config: Config, environ: Mapping[str, str]) -> Config:
    """With the user's own libvirt, the user's own directories, where the file does not say otherwise."""
    if config.connections[0].uri.partition("?")[0] != "qemu:///session":
        return config
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    state = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    if config.runtime_directory == Config().runtime_directory:
        config = replace(config, runtime_directory=_normal(os.path.join(runtime, "namefs")))
    if config.journal == Config().journal:
        config = replace(config, journal=_normal(os.path.join(state, "namefs", "index.sqlite")))
    return config


def check_overlap(mountpoint: str, served: Iterable[str]) -> None:
    """Refuses a mount point that is, holds or lies in one of the directories that the view serves.

    namefs would read its own files through its own mount, and wait for itself for ever. Symlinks are
    resolved first. Raises NamefsError (MOUNT_FAILED).
    """
    mount = os.path.realpath(mountpoint)
    for directory in served:
        real = os.path.realpath(directory)
        if os.path.commonpath((mount, real)) not in {mount, real}:
            continue
        if mount == real:
            relation = "is a directory that the view serves"
        elif os.path.commonpath((mount, real)) == real:
            relation = f"lies in {directory}, which the view serves"
        else:
            relation = f"would hide {directory}, which the view serves"
        raise NamefsError(ExitCode.MOUNT_FAILED, f"the mount point {mountpoint} {relation}: choose another")


def _read(path: str | None) -> Config:
    file = DEFAULT_FILE if path is None else path
    if path is None and not os.path.lexists(file):
        return Config()
    import tomllib

    try:
        with open(file, "rb") as stream:
            text = stream.read().decode()
        table = tomllib.loads(text)
    except PermissionError as error:
        raise NamefsError(ExitCode.PERMISSION, f"{file}: {error.strerror}") from error
    except OSError as error:
        raise NamefsError(ExitCode.CONFIGURATION, f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise NamefsError(ExitCode.CONFIGURATION, f"{file}:{line}: not UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise NamefsError(ExitCode.CONFIGURATION, f"{file}: not TOML: {error}") from error
    return _File(file, text).config(table)


# Values as tomllib returns them: str, int, float, bool, datetimes, list, dict.
_Table = dict[str, object]


class _File:
    """One configuration file, checked key by key; every refusal names the line."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text

    def config(self, table: _Table) -> Config:
        values = self._checked(
            table,
            (),
            {
                "mountpoint": self._path,
                "journal": self._path,
                "runtime-directory": self._path,
                "mount-options": self._options,
                "extra-directories": self._extra_directories,
                "former-days": self._days,
                "deleted-days": self._days,
                "log-keep-mib": self._mebibytes,
                "connection": self._connections,
            },
        )
        connections = values.pop("connection", None)
        if connections is not None:
            values["connections"] = connections
        return replace(Config(), **{key.replace("-", "_"): value for key, value in values.items()})

    def _checked(
        self, table: _Table, at: Path, checks: Mapping[str, Callable[[object, Path], object]]
    ) -> dict[str, Any]:
        for key in table:
            if key not in checks:
                header = ".".join(part for part in at if isinstance(part, str))
                where = f" in [{header}]" if header else ""
                known = ", ".join(checks)
                raise self._refusal((*at, key), f"unknown key {key!r}{where}; known are {known}")
        return {key: checks[key](value, (*at, key)) for key, value in table.items()}

    def _connections(self, value: object, at: Path) -> tuple[Connection, ...]:
        if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
            raise self._refusal(at, "write [[connection]], with double brackets, to describe a connection")
        if not 1 <= len(value) <= CONNECTIONS_MOST:
            what = f"{len(value)} [[connection]] tables; the view can show 1 to {CONNECTIONS_MOST} libvirts"
            raise self._refusal((*at, len(value) - 1) if value else at, what)
        found = tuple(self._connection(table, (*at, number)) for number, table in enumerate(value))
        for number, one in enumerate(found):
            for what, given in (("label", one.label), ("uri", one.uri)):
                if given in [getattr(other, what) for other in found[:number]]:
                    raise self._refusal((*at, number), f"two connections have the {what} {given!r}")
        return found

    def _connection(self, table: _Table, at: Path) -> Connection:
        checks = {
            "uri": self._string,
            "label": self._string,
            "root": self._path,
            "directories": self._directories,
            "names": self._strings,
            "group": self._string,
            "namespaces": self._namespaces,
        }
        values = self._checked(table, at, checks)
        sources: _Table = {key: values.pop(key) for key in ("namespaces", "names", "group") if key in values}
        return replace(Connection(), names=self._sources(sources, at), **values)

    def _sources(self, values: _Table, at: Path) -> NameSources:
        """The sources, one key after the other, so that a refusal names the line of the key at fault."""
        sources = NameSources()
        for key, value in values.items():
            sources = self._source((*at, key), sources, {key: value})
        return sources

    def _source(self, at: Path, sources: NameSources, change: dict[str, Any]) -> NameSources:
        try:
            return replace(sources, **change)
        except NotASource as error:
            key = at[len(("connection", 0))]
            raise self._refusal(at, f"{key}: {error}") from error

    def _namespaces(self, value: object, at: Path) -> tuple[tuple[str, str], ...]:
        if not isinstance(value, dict):
            raise self._refusal(at, f"{at[-1]} must be a table, [connection.namespaces]")
        pairs = tuple((prefix, self._string(uri, (*at, prefix))) for prefix, uri in value.items())
        for pair in pairs:
            self._source((*at, pair[0]), NameSources(), {"namespaces": (pair,)})
        return pairs

    def _directories(self, value: object, at: Path) -> Mapping[str, str]:
        if not isinstance(value, dict):
            raise self._refusal(at, f"{at[-1]} must be a table, [connection.directories]")
        directories = self._checked(value, at, dict.fromkeys(DIRECTORIES, self._path))
        return MappingProxyType(cast("dict[str, str]", directories))

    def _strings(self, value: object, at: Path) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise self._refusal(at, f"{at[-1]} must be a list of strings")
        return tuple(self._string(item, at) for item in value)

    def _options(self, value: object, at: Path) -> tuple[str, ...]:
        options = self._strings(value, at)
        for option in options:
            if "," in option:
                raise self._refusal(at, f"{option!r} in {at[-1]}: write one string for each option")
        return options

    def _extra_directories(self, value: object, at: Path) -> tuple[str, ...]:
        wanted = self._strings(value, at)
        for one in wanted:
            if one not in EXTRA_DIRECTORIES:
                raise self._refusal(at, f"{one!r} in {at[-1]}: there are {', '.join(EXTRA_DIRECTORIES)}")
        return wanted

    def _days(self, value: object, at: Path) -> int:
        return self._number(value, at, _DAYS_MOST)

    def _mebibytes(self, value: object, at: Path) -> int:
        return self._number(value, at, _MEBIBYTES_MOST)

    def _number(self, value: object, at: Path, most: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise self._refusal(at, f"{at[-1]} must be a whole number from 0 to {most}")
        return value

    def _path(self, value: object, at: Path) -> str:
        path = self._string(value, at)
        if not path.startswith("/"):
            raise self._refusal(at, f"{at[-1]} must be an absolute path, and {path!r} is not")
        return _normal(path)

    def _string(self, value: object, at: Path) -> str:
        if not isinstance(value, str):
            raise self._refusal(at, f"{at[-1]} must be a string")
        if not value or not value.isprintable():
            what = "holds characters that cannot be shown" if value else "is empty"
            raise self._refusal(at, f"{at[-1]} {what}")
        return value

    def _refusal(self, at: Path, message: str) -> NamefsError:
        # Imported here, like tomllib above, as every command waits for its imports: 20 ms together.
        from namefs.toml_lines import key_lines, line_of

        line = line_of(key_lines(self._text), at)
        return NamefsError(ExitCode.CONFIGURATION, f"{self._name}:{line}: {message}")


def _normal(path: str) -> str:
    # normpath leaves exactly two leading slashes alone, as POSIX lets them mean something; to Linux
    # they mean nothing, and the kernel's mount table has one.
    return "/" + os.path.normpath(path).lstrip("/")
