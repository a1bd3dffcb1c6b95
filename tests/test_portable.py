"""What is not there on every system is not needed when modules are imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ddpm

SOURCES = sorted(Path(ddpm.__file__).parent.rglob("*.py"))
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_CALLS = {"fork", "forkpty", "getuid", "geteuid", "killpg", "setsid", "sched_getaffinity", "uname", "sysconf"}
PORTABLE_SIGNALS = {"SIGINT", "SIGTERM"}


def imported_at_once(tree: ast.AST) -> Iterator[str]:
    """Names of modules that an import of this module imports: those outside of functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]
        elif not isinstance(node, ast.FunctionDef):
            yield from imported_at_once(node)


def attributes_of(tree: ast.AST, module: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module:
            yield node.attr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_module_needs_posix(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not POSIX_MODULES & set(imported_at_once(tree))
    assert not POSIX_CALLS & set(attributes_of(tree, "os"))
    signals = {name for name in attributes_of(tree, "signal") if name.startswith("SIG") and name != "SIG_DFL"}
    assert signals <= PORTABLE_SIGNALS


def test_the_rules_find_what_they_forbid() -> None:
    tree = ast.parse("import resource\nimport os, signal\nos.fork()\nsignal.SIGKILL\ndef f():\n    import fcntl\n")
    assert set(imported_at_once(tree)) == {"resource", "os", "signal"}
    assert list(attributes_of(tree, "os")) == ["fork"]
    assert list(attributes_of(tree, "signal")) == ["SIGKILL"]
