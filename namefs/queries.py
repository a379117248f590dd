"""The commands that ask the daemon, and how they print its answers."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from namefs import table
from namefs.control import ask
from namefs.errors import ExitCode, NamefsError
from namefs.naming import display

if TYPE_CHECKING:
    from namefs.config import Config

# Answers are what JSON makes of what `namefs.answers` says; their form is described there.
_Answer = dict[str, Any]


def list_guests(config: Config, pattern: str | None, as_json: bool) -> int:
    """``namefs list``."""
    answer = _ask_or_read(config, {"op": "list", "pattern": pattern})
    if as_json:
        return _print_json(answer)
    rows = [
        (
            display(guest["name"]),
            guest["state"],
            guest["uuid"],
            display(guest["libvirt_name"]) if guest["libvirt_name"] != guest["name"] else "",
            table.safe(guest["connection"]),
            " ".join(display(name) for name in guest["former"]),
        )
        for guest in answer["guests"]
    ]
    if table.on_terminal():
        if not rows:
            print("no guests" if pattern is None else "no guest's name matches", file=sys.stderr)
        if len({row[4] for row in rows}) == 1:
            rows = [(*row[:4], "", row[5]) for row in rows]
    return _print(table.rendered(("NAME", "STATE", "UUID", "LIBVIRT NAME", "CONNECTION", "FORMERLY"), rows))


def which(config: Config, what: str, as_json: bool) -> int:
    """``namefs which``."""
    if "/" in what:
        answer = _matching(config, _absolute(what))
    else:
        try:
            answer = _matching(config, what)
        except NamefsError as error:
            if error.exit_code is not ExitCode.NOT_FOUND or not os.path.lexists(what):
                raise
            answer = _matching(config, _absolute(what))
    if as_json:
        return _print_json(answer)
    matches = [
        (display(match["name"]), match["uuid"], *(table.safe(match[key] or "") for key in ("view", "path")))
        for match in answer["matches"]
    ]
    if not table.on_terminal():
        return _print(table.rendered(("NAME", "UUID", "VIEW", "PATH"), matches))
    lines = []
    for name, uuid, view, path in matches:
        lines.append(f"{table.bold(name)}  {uuid}")
        lines += [f"  in the view  {view}"] * bool(view)
        lines += [f"  on disk      {path}"] * bool(path)
    return _print("".join(f"{line}\n" for line in lines))


def rename(config: Config, old: str, new: str, as_json: bool) -> int:
    """``namefs rename``."""
    answer = ask(config.control_socket, {"op": "rename", "old": old, "new": new})
    return _print_json(answer) if as_json else ExitCode.OK


def history(config: Config, what: str, as_json: bool) -> int:
    """``namefs history``."""
    answer = _ask_or_read(config, {"op": "history", "what": what})
    if as_json:
        return _print_json(answer)
    rows = [
        (display(held["name"]), _time(held["since"]), _time(held["until"]) if held["until"] else "")
        for held in answer["names"]
    ]
    if table.on_terminal():
        rows = [(name, since, until or "now") for name, since, until in rows]
    return _print(table.rendered(("NAME", "SINCE", "UNTIL"), rows))


def status(config: Config, as_json: bool) -> int:
    """``namefs status``: DAEMON_UNREACHABLE, and an answer all the same, if the daemon is down."""
    try:
        answer = ask(config.control_socket, {"op": "status"})
    except NamefsError as error:
        if error.exit_code is not ExitCode.DAEMON_UNREACHABLE:
            raise
        if as_json:
            _print_json({"reachable": False, "error": str(error)})
        else:
            _print(f"{table.bold('down')}: {table.safe(str(error))}\n")
        return error.exit_code
    if as_json:
        return _print_json({"reachable": True, **answer})
    hook = answer["hook"]
    called = f"last called {_time(hook['last_call'])}" if hook["last_call"] else "not called yet"
    rows = [
        ("view", table.safe(answer["mountpoint"])),
        ("daemon", f"namefs {answer['version']}, process {answer['pid']}, since {_time(answer['since'])}"),
        ("guests", str(answer["guests"])),
        *(("libvirt", _connection(connection)) for connection in answer["connections"]),
        ("hook", called if hook["installed"] else f"not installed, {called}"),
        ("spool", table.safe(hook["spool"])),
        ("index", table.safe(answer["journal"])),
        *(("warning", table.safe(warning)) for warning in answer["warnings"]),
    ]
    return _print("".join(f"{line}\n" for line in table.aligned(rows)))


def _connection(connection: _Answer) -> str:
    error = f": {connection['error']}" if connection["error"] else ""
    state = "waiting for it" if connection["state"] == "waiting" else connection["state"]
    text = f"{connection['label']}, {connection['uri']}, {state} since {_time(connection['since'])}{error}"
    return table.safe(text)


def _matching(config: Config, what: str) -> _Answer:
    answer = _ask_or_read(config, {"op": "which", "what": what})
    if not answer["matches"]:
        kind = "path of a guest's" if "/" in what else "guest"
        raise NamefsError(ExitCode.NOT_FOUND, f"there is no such {kind}: {what}")
    return answer


def _absolute(path: str) -> str:
    """The path from the root, by the directories' real names.

    The last component is left as it is: a symlink there, such as a disk in the view, is what is asked
    about, not what it points to.
    """
    head, tail = os.path.split(path)
    if tail in {"", ".", ".."}:
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(head or "."), tail)


def _ask_or_read(config: Config, request: dict[str, Any]) -> _Answer:
    try:
        return ask(config.control_socket, request)
    except NamefsError as error:
        if error.exit_code is not ExitCode.DAEMON_UNREACHABLE:
            raise
    from namefs import answers

    answer: _Answer = answers.offline(config, request)
    print("namefs: the daemon does not answer; this is the index as it last was", file=sys.stderr)
    return answer


def _time(moment: str) -> str:
    """An ISO 8601 time as it is, for programs; in local time, to the second, on a terminal."""
    if not table.on_terminal():
        return moment
    from datetime import datetime

    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _print_json(answer: _Answer) -> int:
    return _print(json.dumps(answer, indent=2, ensure_ascii=True) + "\n")


def _print(text: str) -> int:
    if sys.stdout is None:
        raise NamefsError(ExitCode.FILE_FAILED, "standard output is closed")
    try:
        # What the locale's encoding lacks must not end the command: it is printed as \u2603 then.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # Python would write what is left once more as it ends, and complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            raise
        raise NamefsError(ExitCode.FILE_FAILED, f"standard output: {error.strerror}") from error
    return ExitCode.OK
