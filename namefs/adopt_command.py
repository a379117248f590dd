"""``namefs adopt`` and ``namefs release``: which guests, in what order, and what is printed.

Both run in the command's own process and ask libvirt themselves. The daemon, if it runs, learns of
what changes by libvirt's events; it is asked only whose a shown name is.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

from namefs import table
from namefs.adoption import files, plan, records, spans, survey
from namefs.adoption.definition import Kind
from namefs.adoption.plan import ADOPT, RELEASE
from namefs.adoption.steps import JOURNAL, RECORD, Work, reason
from namefs.control import ask
from namefs.errors import ExitCode, NamefsError
from namefs.naming import display
from namefs.places import places_of
from namefs.sources.definitions import Definitions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from namefs.adoption.plan import Plan
    from namefs.adoption.survey import Site
    from namefs.config import Config
    from namefs.sources.definitions import GuestDefinition

_LOCK = ".lock"
_CLEAR = "\033[K"
"""What a terminal clears the rest of the line by."""


def adopt(config: Config, names: list[str], *, disks: bool, dry_run: bool) -> int:
    """``namefs adopt``: the exit code of the first guest that could not be adopted."""

    def planned(run: _Run, found: GuestDefinition) -> Plan:
        guest, store, facts = run.surveyed(found, disks=disks)
        return plan.adoption(guest, store, facts, run.items(found.uuid), disks=disks)

    return _for_each(config, names, planned, dry_run)


def release(config: Config, names: list[str], *, dry_run: bool) -> int:
    """``namefs release``: the exit code of the first guest that could not be released."""

    def planned(run: _Run, found: GuestDefinition) -> Plan:
        items = run.items(found.uuid)
        disks = any(item.kind is Kind.DISK for item in items)
        guest, store, facts = run.surveyed(found, disks=disks)
        return plan.release(guest, store, facts, items)

    return _for_each(config, names, planned, dry_run)


def recover(config: Config, names: list[str]) -> int:
    """``namefs adopt --recover``: of the guests named, or of all."""
    with _runs(config) as runs:
        if names:
            return _each(names, lambda name: _having(runs, name, gone=True).recovered_by_name(name))
        interrupted = {uuid: run for run in runs for uuid in run.interrupted()}
        return _each(list(interrupted), lambda uuid: interrupted[uuid].recovered(uuid))


def _for_each(
    config: Config, names: list[str], planned: Callable[[_Run, GuestDefinition], Plan], dry_run: bool
) -> int:
    with _runs(config, locks=not dry_run) as runs:

        def one(name: str) -> None:
            run = _having(runs, name)
            found = run.found(name)
            if not dry_run:
                run.recovered(found.uuid)
            elif files.read(run.journal(found.uuid)) is not None:
                raise NamefsError(
                    ExitCode.UNFINISHED, "an earlier run was interrupted: `namefs adopt --recover` first"
                )
            if why := found.why_not_off():
                raise NamefsError(ExitCode.NOT_NOW, why)
            run.carried_out(planned(run, found), found, dry_run)

        return _each(names, one)


def _having(runs: list[_Run], name: str, *, gone: bool = False) -> _Run:
    """The one connection that has the guest. Raises NamefsError.

    What is off for one libvirt may run under another, after a migration: nobody moves its files then.
    """
    having = [run for run in runs if run.has(name) or (gone and name.lower() in run.interrupted())]
    if len(having) > 1:
        raise NamefsError(ExitCode.NOT_NOW, "two libvirts have it: undefine it where it is not to run")
    # None has it: the first one says so.
    return (having or runs)[0]


def _each(names: list[str], do: Callable[[str], None]) -> int:
    first: int = ExitCode.OK
    for name in names:
        try:
            do(name)
        except BrokenPipeError:
            raise
        except Exception as error:
            refusal = _refusal(error)
            if refusal is None:
                raise
            print(f"namefs: {display(name)}: {table.safe(str(refusal))}", file=sys.stderr)
            first = first or refusal.exit_code
    return first


def _refusal(error: Exception) -> NamefsError | None:
    match error:
        case NamefsError():
            return error
        case plan.Refused():
            return NamefsError(ExitCode.NOT_NOW, str(error))
        case spans.NotXml():
            return NamefsError(ExitCode.LIBVIRT_REFUSED, f"libvirt's definition can't be read: {error}")
        case files.InUse() | files.Changed():
            return NamefsError(ExitCode.NOT_NOW, reason(error))
        case PermissionError():
            return NamefsError(ExitCode.PERMISSION, reason(error))
        case OSError():
            return NamefsError(ExitCode.FILE_FAILED, reason(error))
    return None


@contextmanager
def _runs(config: Config, *, locks: bool = True) -> Iterator[list[_Run]]:
    """One for each libvirt whose files are on this host."""
    places = places_of(config)
    with ExitStack() as opened:
        runs = []
        for connection in config.connections:
            here = places(connection.label)
            if here is not None:
                libvirt = opened.enter_context(closing(Definitions(connection.uri)))
                runs.append(_Run(config, survey.Site(here), libvirt))
        if not runs:
            uris = ", ".join(connection.uri for connection in config.connections)
            raise NamefsError(ExitCode.CONFIGURATION, f"the files of {uris} are not on this machine")
        if locks:
            for store in sorted({run.store for run in runs}):
                opened.enter_context(_locked(store))
        yield runs


@contextmanager
def _locked(store: str) -> Iterator[None]:
    """Nobody else adopts or releases: what one guest alone uses is not to change under the other's hands."""
    try:
        os.makedirs(os.path.dirname(store), exist_ok=True)
        if not os.path.isdir(store):
            os.mkdir(store, 0o711)
            os.chmod(store, 0o711)
        fd = os.open(os.path.join(store, _LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        refusal = _refusal(error)
        assert refusal is not None
        raise refusal from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NamefsError(
                ExitCode.NOT_NOW, "another `namefs adopt` or `release` is at work: wait until it is done"
            ) from error
        yield
    finally:
        os.close(fd)


class _Run:
    """What one call of a command works with."""

    def __init__(self, config: Config, site: Site, libvirt: Definitions) -> None:
        self._config = config
        self._site = site
        self._libvirt = libvirt

    @property
    def store(self) -> str:
        """The directory of the store."""
        return self._site.places.store

    def has(self, name: str) -> bool:
        """Whether libvirt has the guest. Raises NamefsError."""
        return self._libvirt.guest(self._shown(name) or name) is not None

    def recovered_by_name(self, name: str) -> None:
        """`recovered`, of a name or UUID."""
        self.recovered(self.uuid_of(name))

    def found(self, name: str) -> GuestDefinition:
        """The guest of that name, shown or libvirt's, or UUID. Raises NamefsError."""
        found = self._libvirt.guest(self._shown(name) or name)
        if found is None:
            raise NamefsError(ExitCode.NOT_FOUND, "there is no such guest")
        return found

    def uuid_of(self, name: str) -> str:
        """The UUID of the guest, and of one that libvirt has no more if it is its UUID that is given."""
        interrupted = name.lower()
        return interrupted if interrupted in self.interrupted() else self.found(name).uuid

    def _shown(self, name: str) -> str | None:
        try:
            matches = ask(self._config.control_socket, {"op": "which", "what": name})["matches"]
        except NamefsError as error:
            # The daemon may be behind libvirt, which is asked then.
            if error.exit_code not in (ExitCode.DAEMON_UNREACHABLE, ExitCode.NOT_FOUND):
                raise
            return None
        uuids = sorted({str(match["uuid"]) for match in matches})
        if len(uuids) > 1:
            raise NamefsError(ExitCode.AMBIGUOUS, f"it fits more than one guest: {', '.join(uuids)}")
        return uuids[0] if uuids else None

    def surveyed(self, found: GuestDefinition, *, disks: bool) -> tuple[plan.Guest, plan.Store, plan.Facts]:
        """All that a plan is made from."""
        guest = survey.guest_of(found)
        _tell(f"look who else names files of {guest.name}")
        facts = survey.facts_of(self._site, guest, self._libvirt, disks=disks)
        return guest, self._site.store(guest.uuid, guest.name), facts

    def items(self, uuid: str) -> tuple[plan.Item, ...]:
        """What is adopted of the guest."""
        path = os.path.join(self._site.directory(uuid), RECORD)
        text = files.read(path)
        try:
            return () if text is None else records.items_from_json(text)
        except records.Damaged as error:
            raise NamefsError(ExitCode.FILE_FAILED, f"{path}: {error}") from error

    def journal(self, uuid: str) -> str:
        """Where an interrupted run has its steps written down."""
        return os.path.join(self._site.directory(uuid), JOURNAL)

    def interrupted(self) -> list[str]:
        """The UUIDs of the guests that have such a journal."""
        return [uuid for uuid in sorted(os.listdir(self.store)) if os.path.exists(self.journal(uuid))]

    def recovered(self, uuid: str) -> None:
        """Finish or undo what an interrupted run began, if one did."""
        path = self.journal(uuid)
        text = files.read(path)
        if text is None:
            return
        try:
            interrupted = records.plan_from_json(text)
        except records.Damaged as error:
            raise NamefsError(ExitCode.UNFINISHED, f"{path}: {error}") from error
        done = Work(interrupted, self._site, self._libvirt.guest(uuid), _tell).recover()
        name = display(interrupted.guest.name)
        print(f"{name}: an interrupted {interrupted.operation} was {done}")

    def carried_out(self, planned: Plan, found: GuestDefinition, dry_run: bool) -> None:
        """Print or do what is planned."""
        name = display(planned.guest.name)
        for kept in planned.kept:
            print(f"{name}: {table.safe(f'{kept.device} stays, {kept.path} {kept.why}')}")
        work = Work(planned, self._site, found, _tell, _progress())
        if not planned.moves:
            print(f"{name}: nothing to {planned.operation}")
        elif dry_run:
            for line in work.lines():
                print(f"{name}: {table.safe(line)}")
        else:
            try:
                work.carry_out()
            except OSError as error:
                refusal = _refusal(error)
                assert refusal is not None
                raise NamefsError(refusal.exit_code, f"{refusal}; all is as it was") from error
            devices = ", ".join(dict.fromkeys(move.device for move in planned.moves))
            print(f"{name}: {_DONE[planned.operation]} {table.safe(devices)}")


_DONE = {ADOPT: "adopted", RELEASE: "released"}


def _tell(line: str) -> None:
    if table.on_terminal():
        print(f"\r  {table.safe(line)}{_CLEAR}", flush=True)


def _progress() -> Callable[[str, int, int], None]:
    """Shows how far a copy is, on a terminal, whenever a further percent is done."""
    shown = ""

    def show(what: str, done: int, size: int) -> None:
        nonlocal shown
        line = f"{what} {done * 100 // max(size, 1)}%"
        if line != shown and table.on_terminal():
            shown = line
            # A line that is wider than the terminal could not be overwritten.
            width = shutil.get_terminal_size().columns - 3
            print(f"\r  {table.safe(line)[-width:]}{_CLEAR}", end="", flush=True)

    return show
