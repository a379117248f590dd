"""Tables for people and for programs, and text that a terminal shows as it is.

On a terminal: a bold header and columns aligned by what the terminal makes of each character.
Otherwise: no header, and one tab between the columns, for cut(1) and awk(1).
"""

from __future__ import annotations

import os
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_BOLD = "\033[1m{}\033[0m"
_GAP = "  "


def on_terminal() -> bool:
    """Whether standard output is a terminal, and so is read by a person."""
    # Not sys.stdout.isatty(): sys.stdout is None if standard output is closed.
    return os.isatty(1)


def rendered(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """The rows as lines of text. On a terminal, columns that are empty in every row are left out.

    The cells must be safe to print, without tabs and newlines: see `safe` and `namefs.naming.display`.
    """
    if not on_terminal():
        return "".join("\t".join(row) + "\n" for row in rows)
    kept = [column for column in range(len(header)) if any(row[column] for row in rows)]
    lines = aligned([tuple(line[column] for column in kept) for line in (header, *rows)])
    return "".join(f"{line if number else bold(line)}\n" for number, line in enumerate(lines) if rows)


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """One line for each row, its columns padded to the widest cell of each."""
    widths = [max(width(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        _GAP.join(cell + " " * (size - width(cell)) for cell, size in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def bold(text: str) -> str:
    """The text, in bold on a terminal that can."""
    return _BOLD.format(text) if on_terminal() and os.environ.get("TERM", "dumb") != "dumb" else text


def safe(text: str) -> str:
    """The text with everything that a terminal would act on or cannot show as a backslash escape.

    For paths and messages: they are shown as they are, but for what could hide or forge something.
    What stands in the way is written as Python and bash's ``$'...'`` write it; bytes that are not
    UTF-8 (lone surrogates, PEP 383) as ``\\xff``. A backslash stays single, so this is for reading only.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def width(text: str) -> int:
    """How many columns of a terminal the text takes: two for East Asian wide characters, none for marks."""
    if text.isascii():
        return len(text)
    return sum(_character_width(character) for character in text)


def _character_width(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode()
