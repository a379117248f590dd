"""A plan carried out step by step, or taken back, so that the guest can be started after any of them.

The order is what makes it safe: the plan is on the disk before anything is done; every file is at its new
path, whole, before a definition names it there; and it leaves its old path when no definition names
that any more. Whoever finds the journal of an interrupted run asks libvirt which paths the definition
names, and goes on or back accordingly; every step does nothing where it was done already.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from namefs.adoption import definition, files, records
from namefs.adoption.definition import Kind
from namefs.adoption.placing import Placing, remove_if_empty, remove_socket
from namefs.adoption.plan import ADOPT, CHECKPOINT, RELEASE, SNAPSHOT, Refused
from namefs.errors import ExitCode, NamefsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from namefs.adoption.files import Progress
    from namefs.adoption.plan import Item, Moment, Move, Plan
    from namefs.adoption.survey import Site
    from namefs.sources.definitions import GuestDefinition

JOURNAL = ".adopting"
RECORD = "adopted.json"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do; ``line`` says what, for people. Doing it again does nothing."""

    line: str
    do: Callable[[], None]


def perform(step: Step) -> None:
    """Do one step. All steps go through here, one at a time: between two of them is where a run may end."""
    step.do()


class Work:
    """Carries out one plan. ``found`` is the guest in libvirt, None if it is there no more.

    ``told`` is called with each step's line when it is done, ``copied`` as
    `files.copy` says.
    """

    def __init__(
        self,
        plan: Plan,
        site: Site,
        found: GuestDefinition | None,
        told: Callable[[str], None] = lambda _line: None,
        copied: Progress = lambda _what, _done, _size: None,
    ) -> None:
        self._plan = plan
        self._site = site
        self._found = found
        self._told = told
        self._placing = Placing(site, copied)
        self._placing.orphaned = found is None
        self._directory = site.directory(plan.guest.uuid)
        self._journal = os.path.join(self._directory, JOURNAL)
        self._locks = ExitStack()

    def lines(self) -> list[str]:
        """What `carry_out` would do, a line a step."""
        return [step.line for step in (*self._before(), *self._after())]

    def carry_out(self) -> None:
        """Do everything; on an error before the last definition is rewritten, nothing.

        Raises NamefsError, UNFINISHED where the journal stays for the next run to finish by, and OSError.
        """
        with self._locks:
            try:
                self._placing.lock(self._with_file(), self._locks)
                self._run(self._before())
            except BaseException as error:
                self._locks.close()
                self._take_back_after(error)
                raise
        self._finish()

    def recover(self) -> str:
        """Finish or undo an interrupted run; returns ``finished`` or ``undone``.

        Raises NamefsError: NOT_NOW while the guest is not off, UNFINISHED if neither can be done.
        """
        self._placing.again = True
        try:
            if self._found is not None:
                self._check_off(self._found)
                if self._plan.is_switched(self._found.persistent()):
                    self._run([*self._before(), *self._after()])
                    return "finished"
            self._run(self._backwards())
        except (OSError, Refused) as error:
            raise self._unfinished(error) from error
        return "undone"

    def _finish(self) -> None:
        try:
            self._run(self._after())
        except OSError as error:
            raise self._unfinished(error) from error

    def _take_back_after(self, error: BaseException) -> None:
        self._placing.again = True
        try:
            if self._runs_from_new_places():
                raise self._unfinished(error)
            self._run(self._backwards())
        except (OSError, Refused, NamefsError) as second:
            if isinstance(second, NamefsError) and second.exit_code is ExitCode.UNFINISHED:
                raise
            raise self._unfinished(second) from error

    def _unfinished(self, error: BaseException) -> NamefsError:
        return NamefsError(
            ExitCode.UNFINISHED,
            f"{reason(error)}; what was begun is noted in {self._journal}: "
            "`namefs adopt --recover` finishes or undoes it",
        )

    def _run(self, steps: list[Step]) -> None:
        for step in steps:
            perform(step)
            self._told(step.line)

    # ---- the steps, in order

    def _before(self) -> list[Step]:
        """Up to where there is no way back but the inverse."""
        plan = self._plan
        steps = self._makings([os.path.dirname(self._directory), self._directory])
        steps.append(Step(f"write down all steps in {self._journal}", self._note))
        if plan.operation == ADOPT:
            steps += self._makings(self._subdirectories())
        steps += [Step(self._verb(move), partial(self._placing.place, move)) for move in self._with_file()]
        devices = ", ".join(dict.fromkeys(move.device for move in plan.named))
        steps.append(Step(f"define {plan.guest.name} with other paths for {devices}", self._define))
        if self._checkpoints_in_the_way():
            steps.append(Step("lay the descriptions of its checkpoints aside", self._lay_aside))
        for moment in self._moments():
            line = f"describe {moment.kind} {moment.name} with these paths"
            steps.append(Step(line, partial(self._describe, moment, plan.forward)))
        record = os.path.join(self._directory, RECORD)
        line = f"write {record}" if plan.items else f"remove {record}"
        return [*steps, Step(line, partial(self._record, plan.items))]

    def _after(self) -> list[Step]:
        here = self._site.here
        steps = [Step("have libvirt's definitions on the disk", self._sync_definitions)]
        steps += [
            Step(f"remove {here(move.source)}", partial(self._placing.leave, move))
            for move in self._with_file()
        ]
        if self._plan.operation == RELEASE:
            sockets = [here(move.source) for move in self._plan.moves if move.kind is Kind.SOCKET]
            steps += [Step(f"remove {path} if it is there", partial(remove_socket, path)) for path in sockets]
            steps += self._removals()
        return [*steps, Step(f"remove {self._journal}", self._close)]

    def _backwards(self) -> list[Step]:
        plan, found = self._plan, self._found
        steps = []
        if found is not None and plan.is_switched(found.persistent()):
            steps.append(Step(f"define {plan.guest.name} as it was", self._define_back))
        if found is not None:
            for moment in self._moments():
                line = f"describe {moment.kind} {moment.name} as it was"
                steps.append(Step(line, partial(self._describe, moment, plan.backward)))
        steps.append(Step("write what was adopted before", partial(self._record, plan.items_before)))
        steps += [
            Step(f"remove {self._site.here(move.target)}", partial(self._placing.unplace, move))
            for move in self._with_file()
        ]
        if plan.operation == ADOPT:
            steps += self._removals()
        return [*steps, Step(f"remove {self._journal}", self._close)]

    def _makings(self, paths: list[str]) -> list[Step]:
        missing = [path for path in paths if not os.path.isdir(path)]
        return [Step(f"make {path}", partial(self._placing.make, path)) for path in missing]

    def _removals(self) -> list[Step]:
        return [
            Step(f"remove {path} if it is empty", partial(remove_if_empty, path))
            for path in self._subdirectories()
        ]

    # ---- what they are about

    def _with_file(self) -> list[Move]:
        return [move for move in self._plan.moves if move.file is not None]

    def _subdirectories(self) -> list[str]:
        kinds = dict.fromkeys(move.kind for move in self._plan.moves)
        return [os.path.join(self._directory, kind.value) for kind in kinds]

    def _verb(self, move: Move) -> str:
        assert move.file is not None
        source, target = self._site.here(move.source), self._site.here(move.target)
        if move.copied:
            return f"copy {source} to {target} ({move.file.size_bytes} bytes) and compare"
        return f"link {source} to {target}"

    def _checkpoints_in_the_way(self) -> bool:
        """libvirt describes no snapshot anew while it has checkpoints (9.0.0)."""
        moments = self._plan.guest.moments
        has_checkpoints = any(moment.kind == CHECKPOINT for moment in moments)
        return has_checkpoints and any(
            moment.kind == SNAPSHOT and self._plan.forward(moment.xml) != moment.xml for moment in moments
        )

    def _moments(self) -> list[Moment]:
        """Those that are to be described anew: all checkpoints, if they have to be laid aside."""
        aside = self._checkpoints_in_the_way()
        return [
            moment
            for moment in self._plan.guest.moments
            if (aside and moment.kind == CHECKPOINT) or self._plan.forward(moment.xml) != moment.xml
        ]

    def _guest(self) -> GuestDefinition:
        if self._found is None:
            raise NamefsError(ExitCode.NOT_FOUND, "the guest was undefined meanwhile")
        return self._found

    def _check_off(self, found: GuestDefinition) -> None:
        if why := found.why_not_off():
            raise NamefsError(ExitCode.NOT_NOW, why)

    def _runs_from_new_places(self) -> bool:
        try:
            live = None if self._found is None else self._found.live()
        except NamefsError as error:
            if error.exit_code is not ExitCode.NOT_FOUND:
                raise
            self._found = None
            self._placing.orphaned = True
            return False
        return live is not None and self._plan.is_switched(live)

    # ---- what they do

    def _note(self) -> None:
        if not self._placing.again:
            files.write(self._journal, records.plan_to_json(self._plan))

    def _define(self) -> None:
        found, plan = self._guest(), self._plan
        if self._placing.again:
            return
        self._check_off(found)
        if found.persistent() != plan.guest.xml or found.moments() != plan.guest.moments:
            raise NamefsError(ExitCode.NOT_NOW, "its definition or a snapshot changed meanwhile: try again")
        found.define(plan.forward(plan.guest.xml))
        kept = {place.path for place in definition.places(found.persistent())}
        for move in plan.named:
            implied = move.implied and plan.operation == RELEASE
            if move.source in kept or not (implied or move.target in kept):
                raise NamefsError(ExitCode.LIBVIRT_REFUSED, f"libvirt does not keep {move.target} as a path")
        live = found.live()
        if live is not None and not plan.is_switched(live):
            raise NamefsError(ExitCode.NOT_NOW, "it was started meanwhile")
        self._locks.close()

    def _define_back(self) -> None:
        found = self._guest()
        found.define(self._plan.backward(found.persistent()))

    def _lay_aside(self) -> None:
        self._guest().forget_checkpoints()

    def _describe(self, moment: Moment, rewritten: Callable[[str], str]) -> None:
        # As it is now: between two runs it may have been changed or deleted.
        found = self._guest()
        now = found.moment(moment.kind, moment.name)
        if now is None and moment.kind == SNAPSHOT:
            return
        before = moment if now is None else now
        after = replace(before, xml=rewritten(before.xml))
        if after != now:
            if moment.kind == SNAPSHOT and found.has_checkpoints():
                self._lay_aside()
            found.describe(after)

    def _record(self, items: tuple[Item, ...]) -> None:
        path = os.path.join(self._directory, RECORD)
        text = records.items_to_json(items)
        if not items:
            files.remove(path)
        elif files.read(path) != text:
            files.write(path, text)

    def _sync_definitions(self) -> None:
        """libvirt syncs the files that it writes, not the directories in which it renames them: after a
        power failure a definition could name again what `_leave` has removed."""
        places, name = self._site.places, self._plan.guest.name
        moments = [os.path.join(places.lib, kind, name) for kind in (SNAPSHOT, CHECKPOINT)]
        for directory in (places.etc, *moments):
            if os.path.isdir(directory):
                files.sync_directory(os.path.join(directory, "any"))

    def _close(self) -> None:
        files.remove(self._journal)
        remove_if_empty(self._directory)


def reason(error: BaseException) -> str:
    """What went wrong, as part of a sentence."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
