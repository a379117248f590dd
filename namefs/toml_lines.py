"""The line that each key of a TOML text stands on, which the standard library's tomllib does not tell.

Only for texts that tomllib has accepted: the scan relies on their being well-formed.
"""

from __future__ import annotations

import re
import tomllib

Path = tuple[str | int, ...]
"""Keys from the top of the file down; an int counts the ``[[tables]]`` of one array from 0."""

_BLANK = re.compile(r"(?:\s|#[^\n]*)*")
_KEY_PART = re.compile(r"""[ \t]*("(?:\\.|[^"\\])*"|'[^']*'|[A-Za-z0-9_-]+)[ \t]*""")
_VALUE_PART = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?'{3,5}'''
    r"""|"(?:\\.|[^"\\])*"|'[^']*'|#[^\n]*|[\[{]|[\]}]|\n|[^"'#\[\]{}\n]+""",
    re.DOTALL,
)


def key_lines(text: str) -> dict[Path, int]:
    """The line, counted from 1, of every table header and every key that begins a line.

    Keys in inline tables are left out: `line_of` gives them the line of the key that they belong to.
    """
    # tomllib reads CR LF as LF too, so the lines agree.
    text = text.replace("\r\n", "\n")
    lines: dict[Path, int] = {}
    arrays: dict[Path, int] = {}
    table: Path = ()
    at = _end(_BLANK, text, 0)
    while at < len(text):
        line = text.count("\n", 0, at) + 1
        brackets = 2 if text.startswith("[[", at) else int(text[at] == "[")
        keys, at = _dotted_key(text, at + brackets)
        path = () if brackets else table
        for position, key in enumerate(keys):
            path = (*path, key)
            if brackets == 2 and position == len(keys) - 1:
                arrays[path] = arrays.get(path, -1) + 1
            # An array's line is that of its first element.
            lines.setdefault(path, line)
            if path in arrays:
                path = (*path, arrays[path])
                lines.setdefault(path, line)
        if brackets:
            table = path
            at += brackets
        else:
            at = _end_of_value(text, at + len("="))
        at = _end(_BLANK, text, at)
    return lines


def line_of(lines: dict[Path, int], path: Path) -> int:
    """The line of the key, or of the nearest table or key around it that begins a line."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _dotted_key(text: str, at: int) -> tuple[list[str], int]:
    keys = []
    while True:
        match = _KEY_PART.match(text, at)
        if match is None:
            raise ValueError(f"no key at character {at}: not a TOML text that tomllib accepts")
        key, at = match[1], match.end()
        # The escapes in a quoted key are TOML's own; tomllib knows them.
        keys.append(tomllib.loads(f"key = {key}")["key"] if key[0] in "\"'" else key)
        if not text.startswith(".", at):
            return keys, at
        at += len(".")


def _end_of_value(text: str, at: int) -> int:
    depth = 0
    for match in _VALUE_PART.finditer(text, at):
        part = match[0]
        if part in "[{":
            depth += 1
        elif part in "]}":
            depth -= 1
        elif part == "\n" and depth == 0:
            return match.start()
    return len(text)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return at if match is None else match.end()
