"""The ``namefs`` command: its arguments, and how it ends.

Nothing that takes long to import is imported before it is known to be needed: ``namefs list`` is to
answer within 100 ms of being typed, and trio and libvirt alone take longer.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, NoReturn

from namefs import __version__, commands
from namefs.errors import ExitCode, NamefsError, sole_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_SIGINT_STATUS = 130
_SIGPIPE_STATUS = 141

_DESCRIPTION = """\
Shows every libvirt guest's files in one directory under the guest's name.

The daemon, `namefs mount`, usually runs as a service. The other commands ask it, for which one must be
root; `list`, `which`, `ps` and `history` also work, from the saved index, while it is down."""

_EXAMPLES = """\
examples:
  namefs list                          all guests
  namefs list 'web-*'                  those whose names match a pattern
  namefs list | cut -f1                the names only: in a pipe, columns are separated by one tab
  namefs which web                     where the guest "web" is in the view
  namefs which /var/lib/libvirt/images/disk7.qcow2
                                       whose file this is, and what the view calls it
  namefs which --pid 4711              whose QEMU this is
  namefs ps                            the guests that run, by their names
  namefs rename web web-old            rename a guest, also while it runs; so does `mv` in the view
  namefs adopt --disks web             move its files to where no name matters
  namefs history web                   the names that the guest has had
  namefs status --json | jq .guests    for programs
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, an `ExitCode` or 128 and the signal's number."""
    parsed = parser().parse_args(arguments)
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


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    codes = "\n".join(f"  {code.value:2}  {code.sentence}" for code in ExitCode)
    whole = _Parser(
        prog="namefs",
        description=_DESCRIPTION,
        epilog=f"{_EXAMPLES}\nexit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"namefs {__version__}")
    subparsers = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], int], summary: str, more: str, example: str
    ) -> argparse.ArgumentParser:
        subparser = subparsers.add_parser(
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
        commands.mount,
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
        action="append",
        help="the libvirt to show, more than once for several (default: $LIBVIRT_DEFAULT_URI, then the "
        "configuration file's, then qemu:///system)",
    )
    mount.add_argument(
        "-o", "--options", metavar="OPTIONS", action="append", help="mount options, separated by commas"
    )
    mount.add_argument("-v", "--verbose", action="store_true", help="log what happens in detail")

    listing = command(
        "list",
        commands.list_guests,
        "list the guests",
        """\
A name that cannot be printed as it is has what is in the way as %XX, like the view's directories.
Columns, with one tab between them when this is not a terminal: name (GROUP/NAME in a group), state,
UUID, libvirt's name if it is another, connection, former names with blanks between them, and what is
pending.""",
        """\
  namefs list
  namefs list 'web-*'
  namefs list --json | jq -r '.guests[] | select(.state == "running") | .path'""",
    )
    listing.add_argument(
        "pattern",
        nargs="?",
        metavar="PATTERN",
        help="only guests of which the name, GROUP/NAME or libvirt's name matches, with *, ? and [...]",
    )

    which = command(
        "which",
        commands.which,
        "tell whose a path is, or where a guest's files are",
        """\
Takes any path in the view or behind it, and says what the other one is. Of a guest, any of its names
will do: GROUP/NAME, the name that is shown, libvirt's, its title, one that it had before; its UUID or a
beginning of that. A word that no guest is called by is taken as a file in the current directory.
Columns, with one tab between them when this is not a terminal: name, UUID, path in the view, path,
libvirt's name and title if they are others, former names.""",
        """\
  namefs which web
  namefs which 5d2f1c8e-95b0-4b0a-8f0e-0c7f5f0b6a55
  namefs which /var/log/libvirt/qemu/web.log
  cd /var/lib/libvirt/by-name/web/disks && namefs which vda""",
    )
    asked_of = which.add_mutually_exclusive_group(required=True)
    asked_of.add_argument("what", nargs="?", metavar="NAME|UUID|PATH")
    asked_of.add_argument("--pid", type=int, metavar="PID", help="process ID of a guest's QEMU")

    ps = command(
        "ps",
        commands.processes,
        "list the guests that run, with their processes",
        """\
As ps(1), which shows libvirt's names only. Columns, with one tab between them when this is not a
terminal: process ID, processor time, memory, time since the start, name, libvirt's name if another.""",
        "  namefs ps\n  namefs ps --json | jq '.guests[] | {name, pid}'",
    )

    rename = command(
        "rename",
        commands.rename,
        "rename a guest",
        """\
One that is off is renamed by libvirt. One that runs gets its new name in the view at once; it is kept
in the guest's metadata, and libvirt's own name follows as soon as libvirt allows it: `namefs status`
says what is pending and why. `mv` on the guest's directory in the view does the same.""",
        "  namefs rename web web-old\n  namefs rename --swap blue green\n  namefs rename --cancel web-old",
    )
    how = rename.add_mutually_exclusive_group()
    how.add_argument("--swap", action="store_true", help="two guests change names, at once")
    how.add_argument("--cancel", action="store_true", help="take back what is pending for OLD")
    rename.add_argument("old", metavar="OLD", help="its name now, or its UUID")
    rename.add_argument("new", nargs="?", metavar="NEW")

    status = command(
        "status",
        commands.status,
        "tell how the daemon is",
        """\
Ends with 7 if it is down or does not answer. That libvirt is down does not change the exit code: the
view is served all the same; --json has the state of the connection.""",
        "  namefs status\n  namefs status --json | jq -r '.connections[].state'",
    )

    history = command(
        "history",
        commands.history,
        "list the names that a guest has had",
        """\
The names in the view; libvirt's too, where they were not the same.
Columns, with one tab between them when this is not a terminal: name, since, until (empty: now), and
which of the two it is, where there are both.""",
        "  namefs history web",
    )
    history.add_argument("what", metavar="NAME|UUID")

    logs = command(
        "logs",
        commands.logs,
        "print the log of a guest's whole life",
        """\
What QEMU and libvirt wrote of the guest under all names that it has had, also what libvirt has rotated or
dropped since. Works without the daemon. Of several guests, or with a pattern, each line has the name in
front. A guest that is gone is found by the name that it had last, or by its UUID. Times are those in
front of libvirt's and QEMU's own lines; what follows such a line counts as of the same time.""",
        """\
  namefs logs web
  namefs logs -f 'web-*'
  namefs logs -n 20 --since 2h web mail""",
    )
    logs.add_argument("names", nargs="+", metavar="NAME|UUID|PATTERN")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what is written, until Ctrl-C")
    logs.add_argument("-n", "--lines", type=_count, metavar="N", help="begin with the last N lines only")
    logs.add_argument(
        "--since", metavar="TIME", help="begin with what is not older: 45m, 2h, 3d, or an ISO date or time"
    )

    adopt = command(
        "adopt",
        commands.adopt,
        "move a guest's files to where no name matters",
        """\
What libvirt keeps under the guest's name or where its definition says goes into a directory of its own,
by its UUID: UEFI variables, serial and console logs, chosen sockets; with --disks the images that no
other guest, snapshot or image names. Definition and snapshots then name the new paths. The guest must
be off. Interrupted at any moment, it leaves a guest that starts; the next run finishes or undoes it.""",
        """\
  namefs adopt --dry-run web
  namefs adopt --disks web mail
  namefs adopt --recover""",
    )
    adopt.add_argument("--disks", action="store_true", help="disk images too")
    adopt.add_argument(
        "--recover",
        action="store_true",
        help="only finish or undo what was interrupted, of all guests or these",
    )
    release = command(
        "release",
        commands.release,
        "move a guest's files back to where they were adopted from",
        "The inverse of adopt. Refused if something else has taken a place meanwhile.",
        "  namefs release --dry-run web\n  namefs release web",
    )
    for subparser, count in ((adopt, "*"), (release, "+")):
        subparser.add_argument("names", nargs=count, metavar="NAME|UUID")
        subparser.add_argument("--dry-run", action="store_true", help="print each step instead of doing it")

    check = command(
        "check",
        commands.check,
        "compare libvirt, index, store, logs and view",
        """\
Names each difference, what it means and what to do. It looks twice, as what is in motion is none.
With --repair it mends what cannot lose anything, and says so. It needs no daemon.
Its exit codes are its own: 0 no differences, 1 differences, 2 it could not check.""",
        "  namefs check\n  namefs check --repair\n  namefs check --json | jq -r '.differences[].kind'",
    )
    check.add_argument("--repair", action="store_true", help="mend what cannot lose anything")

    migrate_xml = command(
        "migrate-xml",
        commands.migrate_xml,
        "print a guest's definition for the target of a local migration",
        """\
Of an adopted guest, source and target would write the same log and listen on the same socket in the
store. The definition that is printed has each such path moved to the other generation's; what belongs
to the guest (disks, UEFI variables) stays. Other guests' definitions are printed as they are.""",
        """\
  namefs migrate-xml web > live.xml; namefs migrate-xml --persistent web > kept.xml
  virsh migrate --live --persistent web URI --xml live.xml --persistent-xml kept.xml""",
    )
    migrate_xml.add_argument("name", metavar="NAME|UUID")
    migrate_xml.add_argument(
        "--persistent", action="store_true", help="the one that the guest is started by, for --persistent-xml"
    )

    links = command(
        "links",
        commands.links,
        "write the view as a tree of symlinks",
        """\
For hosts and tools without FUSE. Neither the mount nor the daemon is needed: libvirt is asked, or, where
it is down, the saved index. DIR must be empty or a tree that this command made. Every change is one
rename(2), so readers see the old or the new; nothing is removed that is not namefs's own.""",
        "  namefs links /srv/guests\n  namefs links --watch /srv/guests",
    )
    links.add_argument("directory", metavar="DIR")
    links.add_argument("--watch", action="store_true", help="keep it current, until SIGTERM")

    umount = command(
        "umount",
        commands.umount,
        "unmount the view; the daemon then ends",
        "A mount whose daemon has died is detached even if something still has it open.",
        "  namefs umount\n  namefs umount ~/guests",
    )
    umount.add_argument("mountpoint", nargs="?", metavar="MOUNTPOINT", help="where (default: as for mount)")

    for subparser in (listing, which, ps, rename, status, history, check):
        subparser.add_argument("--json", action="store_true", help="print JSON, for programs")
    return whole


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"not a number of lines: {text}")
    return int(text)
