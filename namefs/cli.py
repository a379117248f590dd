"""The ``namefs`` command: its arguments, and how it ends.

Nothing that takes long to import is imported before it is known to be needed: ``namefs list`` is to
answer within 100 ms of being typed, and trio and libvirt alone take longer.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from namefs import __version__
from namefs.errors import ExitCode, NamefsError, sole_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_SIGINT_STATUS = 130
_SIGPIPE_STATUS = 141

_DESCRIPTION = """\
Shows every libvirt guest's files in one directory under the guest's name.

The daemon, `namefs mount`, usually runs as a service. The other commands ask it, for which one must be
root; `list`, `which` and `history` also work, from the saved index, while it is down."""

_EXAMPLES = """\
examples:
  namefs list                          all guests
  namefs list 'web-*'                  those whose names match a pattern
  namefs list | cut -f1                the names only: in a pipe, columns are separated by one tab
  namefs which web                     where the guest "web" is in the view
  namefs which /var/lib/libvirt/images/disk7.qcow2
                                       whose file this is, and what the view calls it
  namefs rename web web-old            rename a guest that is off; so does `mv` in the view
  namefs history web                   the names that the guest has had
  namefs status --json | jq .guests    for programs
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, an `ExitCode` or 128 and the signal's number."""
    parsed = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = parsed.run
    try:
        return run(parsed)
    except KeyboardInterrupt:
        return _SIGINT_STATUS
    except BrokenPipeError:
        # As in `namefs list | head -1`; others die of the signal, which Python ignores.
        return _SIGPIPE_STATUS
    except Exception as error:
        cause = sole_error(error)
        if not isinstance(cause, NamefsError):
            import traceback

            traceback.print_exc()
            return ExitCode.UNEXPECTED
        from namefs.table import safe

        print(f"namefs: {safe(str(cause))}", file=sys.stderr)
        return cause.exit_code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(ExitCode.USAGE, f"namefs: {message} (see: {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    codes = "\n".join(f"  {code.value:2}  {code.sentence}" for code in ExitCode)
    parser = _Parser(
        prog="namefs",
        description=_DESCRIPTION,
        epilog=f"{_EXAMPLES}\nexit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"namefs {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], int], summary: str, more: str, example: str
    ) -> argparse.ArgumentParser:
        subparser = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.\n\n{more}",
            epilog=f"examples:\n{example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        subparser.set_defaults(run=run)
        subparser.add_argument(
            "--config", metavar="FILE", help="read this instead of /etc/namefs/namefs.toml"
        )
        return subparser

    mount = command(
        "mount",
        _mount,
        "mount the view and serve it",
        """\
Runs in the foreground until SIGTERM, SIGINT or `namefs umount`; SIGUSR1 makes it write the stacks of
its threads to standard error. libvirt may be down: the view is served from the index until it is back.""",
        """\
  namefs mount
  namefs mount -c qemu:///session ~/guests
  namefs mount -o noatime --config /tmp/other.toml""",
    )
    mount.add_argument(
        "mountpoint",
        nargs="?",
        metavar="MOUNTPOINT",
        help="where (default: the configuration file's, then /var/lib/libvirt/by-name)",
    )
    mount.add_argument(
        "-c",
        "--connect",
        metavar="URI",
        help="the libvirt to show (default: $LIBVIRT_DEFAULT_URI, then the configuration file's, "
        "then qemu:///system)",
    )
    mount.add_argument(
        "-o", "--options", metavar="OPTIONS", action="append", help="mount options, separated by commas"
    )
    mount.add_argument("-v", "--verbose", action="store_true", help="log what happens in detail")

    listing = command(
        "list",
        _list,
        "list the guests",
        """\
A name that cannot be printed as it is has what is in the way as %XX, like the view's directories.
Columns, with one tab between them when this is not a terminal: name, state, UUID, libvirt's name if
it is another, connection, and former names with blanks between them.""",
        """\
  namefs list
  namefs list 'web-*'
  namefs list --json | jq -r '.guests[] | select(.state == "running") | .path'""",
    )
    listing.add_argument(
        "pattern", nargs="?", metavar="PATTERN", help="only names that match, with *, ? and [...]"
    )

    which = command(
        "which",
        _which,
        "tell whose a path is, or where a guest's files are",
        """\
Takes any path in the view or behind it, and says what the other one is. A word without a slash is
taken as a name, and as a file in the current directory if no guest has it.
Columns, with one tab between them when this is not a terminal: name, UUID, path in the view, path.""",
        """\
  namefs which web
  namefs which 5d2f1c8e-95b0-4b0a-8f0e-0c7f5f0b6a55
  namefs which /var/log/libvirt/qemu/web.log
  cd /var/lib/libvirt/by-name/web/disks && namefs which vda""",
    )
    which.add_argument("what", metavar="NAME|UUID|PATH")

    rename = command(
        "rename",
        _rename,
        "rename a guest that is off",
        """\
libvirt does it, and refuses it for a guest that runs, is transient or has a managed save image.
`mv` on the guest's directory in the view is the same.""",
        "  namefs rename web web-old",
    )
    rename.add_argument("old", metavar="OLD", help="its name now, or its UUID")
    rename.add_argument("new", metavar="NEW")

    status = command(
        "status",
        _status,
        "tell how the daemon is",
        """\
Ends with 7 if it is down or does not answer. That libvirt is down does not change the exit code: the
view is served all the same; --json has the state of the connection.""",
        "  namefs status\n  namefs status --json | jq -r '.connections[].state'",
    )

    history = command(
        "history",
        _history,
        "list the names that a guest has had",
        """\
Columns, with one tab between them when this is not a terminal: name, since, until (empty: now).""",
        "  namefs history web",
    )
    history.add_argument("what", metavar="NAME|UUID")

    umount = command(
        "umount",
        _umount,
        "unmount the view; the daemon then ends",
        "A mount whose daemon has died is detached even if something still has it open.",
        "  namefs umount\n  namefs umount ~/guests",
    )
    umount.add_argument("mountpoint", nargs="?", metavar="MOUNTPOINT", help="where (default: as for mount)")

    for subparser in (listing, which, rename, status, history):
        subparser.add_argument("--json", action="store_true", help="print JSON, for programs")
    return parser


def _mount(arguments: argparse.Namespace) -> int:
    from namefs import config, log

    settings = config.load(
        arguments.config,
        mountpoint=arguments.mountpoint,
        connect=arguments.connect,
        mount_options=",".join(arguments.options or []),
    )
    log.setup(arguments.verbose)
    from namefs import daemon

    return daemon.run(settings)


def _list(arguments: argparse.Namespace) -> int:
    from namefs import config, queries

    return queries.list_guests(config.load(arguments.config), arguments.pattern, arguments.json)


def _which(arguments: argparse.Namespace) -> int:
    from namefs import config, queries

    return queries.which(config.load(arguments.config), arguments.what, arguments.json)


def _rename(arguments: argparse.Namespace) -> int:
    from namefs import config, queries

    return queries.rename(config.load(arguments.config), arguments.old, arguments.new, arguments.json)


def _status(arguments: argparse.Namespace) -> int:
    from namefs import config, queries

    return queries.status(config.load(arguments.config), arguments.json)


def _history(arguments: argparse.Namespace) -> int:
    from namefs import config, queries

    return queries.history(config.load(arguments.config), arguments.what, arguments.json)


def _umount(arguments: argparse.Namespace) -> int:
    from namefs import config, mounts

    # Not through the configuration if the mount point is given: a damaged file must not be in the way.
    mountpoint = (
        os.path.abspath(arguments.mountpoint)
        if arguments.mountpoint
        else config.load(arguments.config).mountpoint
    )
    mount = mounts.find(mountpoint)
    if mount is None:
        raise NamefsError(ExitCode.MOUNT_FAILED, f"nothing is mounted at {mountpoint}")
    if not mount.is_namefs:
        raise NamefsError(
            ExitCode.MOUNT_FAILED, f"what is mounted at {mountpoint} is {mount.fstype}, not namefs"
        )
    try:
        mounts.unmount(mount.mountpoint)
    except NamefsError:
        if not mounts.is_dead(mount.mountpoint):
            raise
        mounts.detach(mount.mountpoint)
    return ExitCode.OK
