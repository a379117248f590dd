"""What each command does with its arguments: one function for each, which returns the exit status.

Nothing that takes long to import is imported before it is known to be needed: see `cli`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from namefs.errors import ExitCode, NamefsError

if TYPE_CHECKING:
    import argparse


def mount(arguments: argparse.Namespace) -> int:
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


def list_guests(arguments: argparse.Namespace) -> int:
    from namefs import config, queries

    return queries.list_guests(config.load(arguments.config), arguments.pattern, arguments.json)


def which(arguments: argparse.Namespace) -> int:
    from namefs import config, queries

    return queries.which(config.load(arguments.config), arguments.what, arguments.pid, arguments.json)


def processes(arguments: argparse.Namespace) -> int:
    from namefs import config, queries

    return queries.processes(config.load(arguments.config), arguments.json)


def rename(arguments: argparse.Namespace) -> int:
    from namefs import config, queries

    if (arguments.new is None) != arguments.cancel:
        what = "--cancel takes one name" if arguments.cancel else "a rename takes an old and a new name"
        raise NamefsError(ExitCode.USAGE, f"{what} (see: namefs rename --help)")
    settings = config.load(arguments.config)
    if arguments.cancel:
        return queries.cancel_rename(settings, arguments.old, arguments.json)
    return queries.rename(settings, arguments.old, arguments.new, arguments.swap, arguments.json)


def status(arguments: argparse.Namespace) -> int:
    from namefs import config, queries

    return queries.status(config.load(arguments.config), arguments.json)


def history(arguments: argparse.Namespace) -> int:
    from namefs import config, queries

    return queries.history(config.load(arguments.config), arguments.what, arguments.json)


def logs(arguments: argparse.Namespace) -> int:
    from namefs import config, log_command

    return log_command.logs(
        config.load(arguments.config),
        arguments.names,
        follow=arguments.follow,
        last=arguments.lines,
        since=arguments.since,
    )


def adopt(arguments: argparse.Namespace) -> int:
    from namefs import config

    if not (arguments.names or arguments.recover):
        raise NamefsError(ExitCode.USAGE, "which guest? (see: namefs adopt --help)")
    if arguments.recover and (arguments.disks or arguments.dry_run):
        raise NamefsError(
            ExitCode.USAGE, "--recover finishes what was begun: it takes no --disks and no --dry-run"
        )
    settings = config.load(arguments.config)
    from namefs import adopt_command

    if arguments.recover:
        return adopt_command.recover(settings, arguments.names)
    return adopt_command.adopt(settings, arguments.names, disks=arguments.disks, dry_run=arguments.dry_run)


def release(arguments: argparse.Namespace) -> int:
    from namefs import adopt_command, config

    return adopt_command.release(config.load(arguments.config), arguments.names, dry_run=arguments.dry_run)


def check(arguments: argparse.Namespace) -> int:
    from namefs import check_command, config

    settings = config.load(arguments.config)
    return check_command.check(settings, repair=arguments.repair, as_json=arguments.json)


def migrate_xml(arguments: argparse.Namespace) -> int:
    from namefs import config, migrate_xml_command

    settings = config.load(arguments.config)
    return migrate_xml_command.migrate_xml(settings, arguments.name, persistent=arguments.persistent)


def links(arguments: argparse.Namespace) -> int:
    from namefs import config, links_command

    return links_command.links(config.load(arguments.config), arguments.directory, watch=arguments.watch)


def umount(arguments: argparse.Namespace) -> int:
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
