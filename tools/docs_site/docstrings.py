"""A griffe extension: docstrings show the equations that their functions compute."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parents[1]))  # mkdocs loads this file by its path

from docs_site.equations import Equation, all_equations


class ShowEquations(griffe.Extension):
    """Appends to a docstring each equation of the concept pages whose caption names its object."""

    def __init__(self) -> None:
        self._by_path: dict[str, list[Equation]] = {}
        for equation in all_equations():
            for path in equation.functions:
                self._by_path.setdefault(path, []).append(equation)

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Append the equations of one object; keep shapes such as `x[k] [D]` from being read as links."""
        if obj.docstring is None:
            return
        obj.docstring.value = obj.docstring.value.replace("] [", "] &#91;")  # two shapes, not a link
        equations = self._by_path.get(obj.path, [])
        shown = [f"[**Equation {e.number}**][{e.anchor}] ({e.source}):\n\n$$\n{e.latex}\n$$" for e in equations]
        obj.docstring.value = "\n\n".join([obj.docstring.value, *shown])
