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
    from collections.abc import Iterator

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
            _shown(guest),
            guest["state"],
            guest["uuid"],
            _other(guest["libvirt_name"], guest["name"]),
            table.safe(guest["connection"]),
            " ".join(display(name) for name in guest["former"]),
            guest["migration"] or ("libvirt's name" if guest["pending"] else ""),
        )
        for guest in answer["guests"]
    ]
    if table.on_terminal():
        if not rows:
            print("no guests" if pattern is None else "no guest's name matches", file=sys.stderr)
        if len({row[4] for row in rows}) == 1:
            rows = [(*row[:4], "", *row[5:]) for row in rows]
    header = ("NAME", "STATE", "UUID", "LIBVIRT NAME", "CONNECTION", "FORMERLY", "PENDING")
    return _print(table.rendered(header, rows))


def processes(config: Config, as_json: bool) -> int:
    """``namefs ps``."""
    answer = _ask_or_read(config, {"op": "ps"})
    if as_json:
        return _print_json(answer)
    rows = [
        (
            str(guest["pid"]),
            _clock(guest["cpu_s"]),
            f"{guest['rss_bytes'] / (1 << 20):.0f}M",
            _clock(guest["elapsed_s"]),
            _shown(guest),
            _other(guest["libvirt_name"], guest["name"]),
        )
        for guest in answer["guests"]
    ]
    return _print(table.rendered(("PID", "TIME", "RSS", "ELAPSED", "NAME", "LIBVIRT NAME"), rows))


def _shown(guest: _Answer) -> str:
    name = display(guest["name"])
    return name if guest["group"] is None else f"{display(guest['group'])}/{name}"


def _other(name: str | None, than: str) -> str:
    return "" if name is None or name == than else display(name)


def _clock(seconds: float) -> str:
    """As ps(1) has it: [DD-]HH:MM:SS."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}-" * bool(days) + f"{hour:02}:{minute:02}:{second:02}"


def which(config: Config, what: str | None, pid: int | None, as_json: bool) -> int:
    """``namefs which``."""
    if pid is not None:
        answer = _ask_or_read(config, {"op": "which", "pid": pid})
    else:
        answer = _by_word(config, what or "")
    if as_json:
        return _print_json(answer)
    matches = answer["matches"]
    if not table.on_terminal():
        rows = [
            (
                _shown(match),
                match["uuid"],
                *(table.safe(match[key] or "") for key in ("view", "path")),
                _other(match["libvirt_name"], match["name"]),
                _other(match["title"], match["name"]),
                " ".join(display(name) for name in match["former"]),
            )
            for match in matches
        ]
        header = ("NAME", "UUID", "VIEW", "PATH", "LIBVIRT NAME", "TITLE", "FORMERLY")
        return _print(table.rendered(header, rows))
    return _print("".join(f"{line}\n" for match in matches for line in _described(match)))


def _by_word(config: Config, what: str) -> _Answer:
    is_path = what.startswith(("/", "./", "../")) or ("/" in what and os.path.lexists(what))
    if not is_path:
        try:
            return _matching(config, what)
        except NamefsError as error:
            is_path = "/" in what or os.path.lexists(what)
            if error.exit_code is not ExitCode.NOT_FOUND or not is_path:
                raise
    return _matching(config, _absolute(what))


def _described(match: _Answer) -> Iterator[str]:
    yield f"{table.bold(_shown(match))}  {match['uuid']}"
    more = (
        ("in the view", table.safe(match["view"] or "")),
        ("on disk", table.safe(match["path"] or "")),
        ("for libvirt", _other(match["libvirt_name"], match["name"])),
        ("title", _other(match["title"], match["name"])),
        ("formerly", ", ".join(display(name) for name in match["former"])),
    )
    yield from (f"  {what:<11}  {text}" for what, text in more if text)


def rename(config: Config, old: str, new: str, swap: bool, as_json: bool) -> int:
    """``namefs rename OLD NEW`` and ``namefs rename --swap A B``."""
    answer = ask(config.control_socket, {"op": "rename", "old": old, "new": new, "swap": swap})
    if as_json:
        return _print_json(answer)
    if answer["libvirt_name"] != answer["name"] and table.on_terminal():
        names = display(answer["name"]), display(answer["libvirt_name"])
        print("{} is shown at once; libvirt calls it {} until it can be renamed there".format(*names))
    return ExitCode.OK


def cancel_rename(config: Config, name: str, as_json: bool) -> int:
    """``namefs rename --cancel NAME``."""
    answer = ask(config.control_socket, {"op": "rename", "old": name, "cancel": True})
    return _print_json(answer) if as_json else ExitCode.OK


def history(config: Config, what: str, as_json: bool) -> int:
    """``namefs history``."""
    answer = _ask_or_read(config, {"op": "history", "what": what})
    if as_json:
        return _print_json(answer)
    now = "now" if table.on_terminal() else ""
    kinds = {held["kind"] for held in answer["names"]} | {"migrated" for _move in answer["moves"]}
    rows = [
        (
            display(held["name"]),
            _time(held["since"]),
            _time(held["until"]) if held["until"] else now,
            held["kind"] if len(kinds) > 1 else "",
        )
        for held in answer["names"]
    ]
    rows += [
        (table.safe(f"{move['source']} -> {move['target']}"), _time(move["at"]), "", "migrated")
        for move in answer["moves"]
    ]
    return _print(table.rendered(("NAME", "SINCE", "UNTIL", "KIND"), rows))


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
    rows = [
        ("view", table.safe(answer["mountpoint"])),
        ("daemon", f"namefs {answer['version']}, process {answer['pid']}, since {_time(answer['since'])}"),
        ("guests", f"{answer['guests']}" + f", and {answer['deleted']} deleted" * bool(answer["deleted"])),
        *(("libvirt", _connection(connection)) for connection in answer["connections"]),
        *(("hook", _hook(connection, answer["connections"])) for connection in answer["connections"]),
        *(("spool", table.safe(connection["hook"]["spool"])) for connection in answer["connections"]),
        ("index", table.safe(answer["journal"])),
        *(("pending", _pending(one)) for one in answer["pending"]),
        *(("moving", f"{display(one['name'])}: {one['phase']}") for one in answer["migrations"]),
        *(("warning", table.safe(warning)) for warning in answer["warnings"]),
    ]
    return _print("".join(f"{line}\n" for line in table.aligned(rows)))


def _hook(connection: _Answer, connections: list[_Answer]) -> str:
    hook = connection["hook"]
    called = f"last called {_time(hook['last_call'])}" if hook["last_call"] else "not called yet"
    label = f"{table.safe(connection['label'])}, " * (len(connections) > 1)
    return label + (called if hook["installed"] else f"not installed, {called}")


def _pending(one: _Answer) -> str:
    names = f"{display(one['name'])}, for libvirt still {display(one['libvirt_name'])}"
    return f"{names}: {table.safe(one['why'])}"


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
