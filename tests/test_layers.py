"""Imports point one way: values <- rules <- adapters <- daemon <- cli.

The rules live in modules that can be tested without a kernel, a database or a hypervisor, and each foreign
library can be replaced in one file. Both hold only while nobody imports across.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "namefs").rglob("*.py"))
}

PURE = {
    "applying", "domxml", "draft", "following", "generations", "index", "inodes",
    "layout", "lifelog", "logs", "migration", "name_sources", "naming", "rows", "shown", "tree",
}  # fmt: skip
# The rules in a package that has more than rules.
PURE_MODULES = {"adoption.definition", "adoption.plan", "adoption.records", "adoption.spans"}
ADAPTERS = {"backing", "control", "control_server", "fuse", "invalidation", "journal", "mounts", "sources"}
# The two ends of one socket.
ONE_ADAPTER = {"control", "control_server"}
# What touches the world. A rule that needs one of these is no rule but an adapter.
IMPURE_STDLIB = {
    "asyncio", "io", "os", "pathlib", "random", "shutil", "signal", "socket", "sqlite3", "subprocess",
    "tempfile", "threading", "time",
}  # fmt: skip
# libvirt has two: what the daemon is told of, and what a command changes.
FILES_OF = {
    "pyfuse3": {"fuse"},
    "libvirt": {"sources.libvirt", "sources.definitions"},
    "sqlite3": {"journal"},
}
SLOW_TO_IMPORT = {"trio", "pyfuse3", "libvirt", "sqlite3"}


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def statements(body: list[ast.stmt], *, functions: bool, types: bool) -> Iterator[ast.stmt]:
    """All statements below ``body``; those of functions and of ``if TYPE_CHECKING`` on request."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and not functions:
            continue
        if isinstance(statement, ast.If) and is_type_checking(statement.test) and not types:
            yield from statements(statement.orelse, functions=functions, types=types)
            continue
        for child in ast.iter_child_nodes(statement):
            if isinstance(child, ast.stmt):
                yield from statements([child], functions=functions, types=types)
            elif isinstance(child, ast.ExceptHandler | ast.match_case):
                yield from statements(child.body, functions=functions, types=types)


def imports(source: str, module: str, *, functions: bool = True, types: bool = True) -> set[str]:
    """Full dotted names that ``source``, being ``module``, imports."""
    found: set[str] = set()
    for statement in statements(ast.parse(source).body, functions=functions, types=types):
        if isinstance(statement, ast.Import):
            found.update(alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{module}: relative import at line {statement.lineno}"
            base = statement.module or ""
            submodules = {f"{base}.{alias.name}" for alias in statement.names} & MODULES.keys()
            found.update(submodules or {base})
    return found


def imports_of(module: str, *, functions: bool = True, types: bool = True) -> set[str]:
    return imports(MODULES[module].read_text(), module, functions=functions, types=types)


def inside(imported: set[str]) -> set[str]:
    """The parts of namefs among ``imported``, without the package's own name; ``layout.nova`` in full."""
    return {name.removeprefix("namefs.") for name in imported if name.startswith("namefs.")}


def outside(imported: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in imported} - {"namefs"}


def part(module: str) -> str:
    """The part of namefs that a module belongs to: ``layout`` for ``namefs.layout.nova``."""
    return module.removeprefix("namefs.").partition(".")[0]


def test_there_are_modules_to_check() -> None:
    assert "namefs.model" in MODULES


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import os.path", {"os.path"}),
        ("from trio import sleep", {"trio"}),
        ("from namefs import model", {"namefs.model"}),
        ("from namefs.model import Key", {"namefs.model"}),
        ("def f():\n    try:\n        pass\n    except OSError:\n        import trio", {"trio"}),
        ("match 1:\n    case 1:\n        import trio", {"trio"}),
        ("if 1:\n    pass\nelse:\n    import trio", {"trio"}),
    ],
)
def test_every_form_of_import_is_seen(source: str, expected: set[str]) -> None:
    assert imports(source, "namefs.x") == expected


def test_imports_that_do_not_run_can_be_told_apart() -> None:
    source = "if TYPE_CHECKING:\n    import trio\nelse:\n    import re\ndef f():\n    import os\nimport ast"
    assert imports(source, "namefs.x", functions=False, types=False) == {"re", "ast"}
    assert imports(source, "namefs.x", functions=False) == {"trio", "re", "ast"}
    assert imports(source, "namefs.x", types=False) == {"re", "os", "ast"}


def test_model_imports_the_standard_library_alone() -> None:
    imported = imports_of("namefs.model")
    assert not inside(imported)
    assert outside(imported) <= sys.stdlib_module_names - IMPURE_STDLIB


def is_pure(name: str) -> bool:
    return part(name) in PURE or name.removeprefix("namefs.") in PURE_MODULES


@pytest.mark.parametrize("module", [m for m in MODULES if is_pure(m)])
def test_rules_know_nothing_of_the_world(module: str) -> None:
    imported = imports_of(module)
    assert {name for name in inside(imported) if not is_pure(name)} <= {"model"}
    allowed = set(sys.stdlib_module_names) - IMPURE_STDLIB
    if part(module) in {"index", "tree"}:
        allowed.add("sortedcontainers")
    assert outside(imported) <= allowed


@pytest.mark.parametrize("module", MODULES)
def test_a_foreign_library_has_its_files(module: str) -> None:
    here = module.removeprefix("namefs.")
    strangers = {library for library, homes in FILES_OF.items() if here not in homes}
    assert not outside(imports_of(module)) & strangers


@pytest.mark.parametrize("module", [m for m in MODULES if part(m) in ADAPTERS])
def test_adapters_do_not_import_each_other(module: str) -> None:
    """A package of them, such as ``sources``, counts as one."""
    own = {part(module)} | (ONE_ADAPTER if part(module) in ONE_ADAPTER else set())
    assert {part(name) for name in inside(imports_of(module))} & ADAPTERS <= own


@pytest.mark.parametrize("module", MODULES)
def test_nothing_below_imports_the_daemon_or_the_command(module: str) -> None:
    above = {part(name) for name in inside(imports_of(module))} & {"daemon", "cli"}
    match part(module):
        case "cli" | "__main__":
            return
        case "daemon" | "commands":
            assert "cli" not in above
        case _:
            assert not above


def test_the_command_starts_without_loading_what_is_slow() -> None:
    """``namefs list`` has 100 ms to start; trio alone takes 180 ms here."""
    seen: set[str] = set()
    todo = {"namefs.cli"}
    while todo:
        module = todo.pop()
        seen.add(module)
        if module in MODULES:
            todo |= imports_of(module, functions=False, types=False) - seen
    assert not outside(seen) & SLOW_TO_IMPORT
