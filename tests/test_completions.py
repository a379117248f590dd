"""The three shells offer the commands and options that there are, and the guests."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from namefs import cli

if TYPE_CHECKING:
    from collections.abc import Callable

COMPLETIONS = Path(__file__).parent.parent / "contrib" / "completions"
NAMEFS = """\
#!/bin/sh
[ "$1" = ps ] && printf '4711\\t0\\t1M\\t0\\tweb\\n' || printf 'web\\trunning\\nmy guest\\tshut off\\n'
"""
TIMEOUT_S = 30.0

FISH = 'source $argv[1]/namefs.fish; complete -C "$argv[2]"'

BASH = """\
source "$1/namefs.bash"
compopt() { :; }
read -ra COMP_WORDS <<<"${2//\\\\ /@}"
COMP_WORDS=("${COMP_WORDS[@]//@/\\\\ }")
[[ $2 != *' ' ]] || COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_namefs
((${#COMPREPLY[@]} == 0)) || printf '%s\\n' "${COMPREPLY[@]}"
"""

ZSH = """\
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PROMPT=; fpath=($1 \\$fpath); autoload -Uz compinit; compinit -u -D"
# What is offered is printed, whatever becomes of it on the screen.
zpty -w shell 'compadd() {
    builtin compadd "$@"
    [[ " $* " == *" -"[OAD]" "* ]] && return
    local -a offered
    builtin compadd -O offered "$@"
    (($#offered)) && printf "<%s>" "${offered[@]}"
}
say() { zle complete-word; printf "<end>" }
zle -N say; bindkey "^I" say; print be"gun"'
zpty -r shell printed '*begun*'
zpty -w -n shell "$2"$'\\t'
zpty -r shell printed '*<end>*'
print -r -- "$printed"
"""
"""zsh has no way to ask for completions but a terminal."""


@pytest.fixture(params=["bash", "fish", "zsh"])
def offer(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], set[str]]:
    """What a shell offers after what was typed."""
    shell = request.param
    program = tmp_path / "namefs"
    program.write_text(NAMEFS)
    program.chmod(0o755)
    command = {
        "bash": ["bash", "-uc", BASH, "bash"],
        "fish": ["fish", "--no-config", "-c", FISH],
        "zsh": ["zsh", "-f", "-c", ZSH, "zsh"],
    }[shell]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": os.fspath(tmp_path)}

    def offered(typed: str) -> set[str]:
        done = subprocess.run(
            [*command, os.fspath(COMPLETIONS), typed],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=TIMEOUT_S,
        )
        assert done.stderr == ""
        if shell == "zsh":
            return set(re.findall(r"<([^>]*)>", done.stdout)) - {"end"}
        return {line.partition("\t")[0].replace("\\ ", " ") for line in done.stdout.splitlines()}

    return offered


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Each command's own parser."""
    (commands,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(commands.choices)


def test_all_commands_are_offered(offer: Callable[[str], set[str]]) -> None:
    assert offer("namefs ") == parsers().keys()


@pytest.mark.parametrize("command", parsers())
def test_all_options_of_a_command_are_offered(offer: Callable[[str], set[str]], command: str) -> None:
    options = {option for action in parsers()[command]._actions for option in action.option_strings}
    long = {option for option in options if option.startswith("--")}
    assert {option for option in offer(f"namefs {command} --") if option.startswith("--")} == long


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("namefs ch", {"check"}),
        ("namefs logs ", {"web", "my guest"}),
        ("namefs release web m", {"my guest"}),
        ("namefs history w", {"web"}),
        ("namefs rename web ", {"web", "my guest"}),
        ("namefs rename --config x m", {"my guest"}),
        ("namefs migrate-xml w", {"web"}),
        ("namefs which --pid ", {"4711"}),
    ],
)
def test_guests_are_offered_where_one_is_asked_for(
    offer: Callable[[str], set[str]], typed: str, expected: set[str]
) -> None:
    assert offer(typed) == expected
