"""The numbered equations of the concept pages: what each says, what computes it, what proves it.

An equation is a block between lines of ``$$``, followed by its caption: ``**Equation 1.2.** SOURCE. Computed by
`ddpm.FUNCTION`, ... Proved by `tests/FILE.py::TEST`, ...``.
"""

from __future__ import annotations

import ast
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

BLOCK = re.compile(r"^\$\$\n(?P<latex>.+?)\n\$\$$", re.DOTALL | re.MULTILINE)
CAPTION = re.compile(r"^\*\*Equation (?P<number>\d+\.\d+)\.\*\* (?P<about>.+?)(?=\n\n|\n*\Z)", re.DOTALL | re.MULTILINE)
FUNCTION = re.compile(r"`(?P<path>ddpm(?:\.\w+)+)`")
TEST = re.compile(r"`(?P<file>tests/[\w/]+\.py)::(?P<name>\w+(?:::\w+)?)`")


@dataclass(frozen=True, slots=True)
class Proof:
    """A test by its file, relative to the root, and its name; in a class, as pytest writes it: ``CLASS::NAME``."""

    file: str
    name: str

    @property
    def page(self) -> str:
        """The page of the site that shows it."""
        return f"proofs/{Path(self.file).stem}.md"

    @property
    def anchor(self) -> str:
        """The anchor on that page."""
        return self.name.replace("::", ".")

    def source(self) -> str | None:
        """Return its code, decorators included; None if there is no such test."""
        path = ROOT / self.file
        if not path.is_file():
            return None
        text = path.read_text(encoding="utf-8")
        body: list[ast.stmt] = ast.parse(text).body
        *classes, name = self.name.split("::")
        for outer in classes:
            body = [
                stmt for node in body if isinstance(node, ast.ClassDef) and node.name == outer for stmt in node.body
            ]
        for node in body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                return textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno]))
        return None


@dataclass(frozen=True, slots=True)
class Equation:
    """An equation of a concept page.

    Attributes:
        number: page and place on it, "1.2".
        latex: the formula.
        source: where it comes from.
        functions: dotted paths of what computes it.
        tests: what proves it.
        page: relative to docs/.
    """

    number: str
    latex: str
    source: str
    functions: tuple[str, ...]
    tests: tuple[Proof, ...]
    page: str

    @property
    def anchor(self) -> str:
        """The anchor on its page."""
        return f"eq-{self.number}"


def proofs_named(markdown: str) -> tuple[Proof, ...]:
    """Return every test that a text names, in order."""
    return tuple(Proof(found["file"], found["name"]) for found in TEST.finditer(markdown))


def equations_of(page: str) -> list[Equation]:
    """Return the equations of one page, a path relative to docs/.

    Raises:
        ValueError: if a formula has no caption, or a caption no formula.
    """
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks, captions = list(BLOCK.finditer(text)), list(CAPTION.finditer(text))
    for block, caption in zip(blocks, captions, strict=False):
        if text[block.end() : caption.start()].strip():
            raise ValueError(f"{page}: the caption of equation {caption['number']} does not follow its formula")
    if len(blocks) != len(captions):
        raise ValueError(f"{page}: {len(blocks)} formulas, but {len(captions)} captions")
    return [_equation(page, b["latex"], c["number"], c["about"]) for b, c in zip(blocks, captions, strict=True)]


def _equation(page: str, latex: str, number: str, about: str) -> Equation:
    source = about.split("Computed by")[0].strip().rstrip(".")
    functions = tuple(found["path"] for found in FUNCTION.finditer(about))
    return Equation(number, latex, source, functions, proofs_named(about), page)


def all_equations() -> list[Equation]:
    """Return the equations of every concept page, in order of their numbers."""
    pages = sorted((DOCS / "concepts").glob("*.md"))
    found = [equation for path in pages for equation in equations_of(path.relative_to(DOCS).as_posix())]
    return sorted(found, key=lambda equation: tuple(int(part) for part in equation.number.split(".")))
