"""What namefs is told: the configuration file, the environment and the command line, in one value.

Every key is documented in ``contrib/namefs.toml``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from namefs.errors import ExitCode, NamefsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from namefs.toml_lines import Path

DEFAULT_FILE = "/etc/namefs/namefs.toml"
DEFAULT_URI = "qemu:///system"

DIRECTORIES = ("etc", "run", "lib", "log", "swtpm-log", "swtpm-state")
"""The directories of libvirt's that may be set one by one, as spelt in the file."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A libvirt to show the guests of.

    ``label`` names it in the index, which thereby outlives a change of ``uri``. ``root`` is put
    before libvirt's own directories; ``directories`` replaces some of them, by the words of
    `DIRECTORIES`, after that.
    """

    uri: str = DEFAULT_URI
    label: str = "local"
    root: str = ""
    directories: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Config:
    """All settings. Every path is absolute; of ``connections`` there is exactly one for now."""

    mountpoint: str = "/var/lib/libvirt/by-name"
    journal: str = "/var/lib/namefs/index.sqlite"
    runtime_directory: str = "/run/namefs"
    mount_options: tuple[str, ...] = ()
    connections: tuple[Connection, ...] = (Connection(),)

    @property
    def spool(self) -> str:
        """The directory that libvirt's hook leaves its calls in."""
        return os.path.join(self.runtime_directory, "spool")

    @property
    def control_socket(self) -> str:
        """The unix socket that the commands ask the daemon through."""
        return os.path.join(self.runtime_directory, "control.sock")


def load(
    path: str | None = None,
    *,
    mountpoint: str | None = None,
    connect: str | None = None,
    mount_options: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The settings from the file at ``path``, or `DEFAULT_FILE` if that exists, and what overrides them.

    ``mountpoint``, ``connect`` (a libvirt URI) and ``mount_options`` (comma-separated, added to the
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
    uri = connect or environ.get("LIBVIRT_DEFAULT_URI")
    if uri and uri != config.connections[0].uri:
        # The file's directories are those of the libvirt that the file names, not of this one.
        other = Connection(uri=uri, label=config.connections[0].label)
        config = replace(config, connections=(other,))
    return config if os.geteuid() == 0 else _for_a_user(config, environ)


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
        if len(value) != 1:
            # The daemon has a list of connections from the start, for hosts with two libvirt
            # daemons; what the view shows when one UUID is on both is still to be built.
            raise self._refusal(
                (*at, 1), f"{len(value)} [[connection]] tables; this version takes exactly one"
            )
        return tuple(self._connection(table, (*at, number)) for number, table in enumerate(value))

    def _connection(self, table: _Table, at: Path) -> Connection:
        checks = {
            "uri": self._string,
            "label": self._string,
            "root": self._path,
            "directories": self._directories,
        }
        return replace(Connection(), **self._checked(table, at, checks))

    def _directories(self, value: object, at: Path) -> Mapping[str, str]:
        if not isinstance(value, dict):
            raise self._refusal(at, f"{at[-1]} must be a table, [connection.directories]")
        directories = self._checked(value, at, dict.fromkeys(DIRECTORIES, self._path))
        return MappingProxyType(cast("dict[str, str]", directories))

    def _options(self, value: object, at: Path) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise self._refusal(at, f"{at[-1]} must be a list of strings")
        options = tuple(self._string(option, at) for option in value)
        for option in options:
            if "," in option:
                raise self._refusal(at, f"{option!r} in {at[-1]}: write one string for each option")
        return options

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
