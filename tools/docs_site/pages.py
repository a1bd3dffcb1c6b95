"""Pages that nobody writes: the reference, the command line and the proofs, made from the code itself."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

from docs_site.equations import DOCS, ROOT, Proof, proofs_named

PACKAGE = ROOT / "src" / "ddpm"
COLUMNS = "78"


def rooms() -> dict[str, list[str]]:
    """Return the public modules of each package, by its dotted path: a page of the reference each."""
    found: dict[str, list[str]] = {}
    for folder in [PACKAGE, *sorted(path for path in PACKAGE.rglob("*") if path.is_dir())]:
        names = [path.stem for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")]
        room = ".".join(folder.relative_to(PACKAGE.parent).parts)
        if names:
            found[room] = [f"{room}.{name}" for name in names]
    return found


def reference_pages() -> dict[str, str]:
    """Return the reference, Markdown by path: a list of rooms, and a page of each."""
    pages = {}
    index = ["# Reference", "", "From the docstrings. Each function shows the equations that it computes.", ""]
    for room, modules in rooms().items():
        path = f"reference/{room}.md"
        summary = _summary(room)
        index.append(f"- [`{room}`]({room}.md): {summary}")
        pages[path] = "\n\n".join([f"# {room}", summary, *(f"::: {module}" for module in modules)]) + "\n"
    return {"reference/index.md": "\n".join(index) + "\n", **pages}


def _summary(room: str) -> str:
    init = PACKAGE.parent.joinpath(*room.split(".")) / "__init__.py"
    docstring = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) if init.exists() else None
    if docstring is None:
        return "Its modules:"
    return docstring.split("\n\n")[0].replace("\n", " ")


def command_line_page() -> str:
    """Return the page of all commands, from what `--help` prints."""
    overall = _help([])
    names = re.search(r"\{([\w,-]+)\}", overall)
    if names is None:
        raise RuntimeError("`ddpm --help` names no commands")
    parts = ["# The command line", "What `--help` prints.", "## ddpm", _fenced(overall)]
    for name in names[1].split(","):
        parts += [f"## ddpm {name}", _fenced(_help([name]))]
    return "\n\n".join(parts) + "\n"


def _help(words: list[str]) -> str:
    from ddpm.cli.main import main

    with _environment(COLUMNS=COLUMNS, NO_COLOR="1"), contextlib.redirect_stdout(io.StringIO()) as printed:
        with contextlib.suppress(SystemExit):
            main([*words, "--help"])
        return re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue()).strip()


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def _fenced(text: str) -> str:
    return f"```text\n{text}\n```"


def proof_pages() -> dict[str, str]:
    """Return a page for each file of tests that the pages name, with the code of the tests named."""
    named: dict[str, dict[str, Proof]] = {}
    for path in sorted(DOCS.rglob("*.md")):
        for test in proofs_named(path.read_text(encoding="utf-8")):
            named.setdefault(test.page, {})[test.name] = test
    return {page: _proof_page(list(tests.values())) for page, tests in sorted(named.items())}


def _proof_page(tests: list[Proof]) -> str:
    file = tests[0].file
    parts = [f"# {Path(file).stem}", f"From `{file}`. To run them all: `pytest {file}`."]
    for test in sorted(tests, key=lambda test: test.name):
        source = test.source()
        if source is None:
            raise RuntimeError(f"a page names {test.file}::{test.name}, which does not exist")
        parts += [f"## {test.anchor} {{ #{test.anchor} }}", f"```python\n{source}\n```"]
    return "\n\n".join(parts) + "\n"
