"""The recipe of a score: without it a number means nothing, and numbers of different recipes do not compare."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm.errors import DataError

Tree = dict[str, Any]


def flat(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    """Return the leaves of a tree by their dotted names."""
    leaves: Tree = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return in words where two trees differ: ``name: old, now new``."""
    before, after = flat(old), flat(new)
    return [
        f"{name}: {_show(before.get(name))}, now {_show(after.get(name))}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def read_report(file: Path) -> Tree:
    """Read the JSON of an earlier evaluation.

    Raises:
        DataError: if there is none, or it is something else.
    """
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        recipe, scores = tree["recipe"], tree["scores"]
        if isinstance(recipe["measure"], dict) and isinstance(recipe["samples"], dict) and isinstance(scores, dict):
            return dict(tree)
    except OSError as error:
        raise DataError(f"cannot read '{file}' ({error.strerror}); expected the --json of an earlier run") from error
    except (ValueError, KeyError, TypeError):
        pass
    raise DataError(f"'{file}' is no report of 'ddpm evaluate'; expected what its --json wrote")


def refuse_other_recipe(file: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Stop where two recipes measure in different ways.

    Raises:
        DataError: naming every difference.
    """
    found = differences(old["measure"], new["measure"])
    if found:
        raise DataError(
            f"the scores in '{file}' were measured in another way, so they do not compare ({'; '.join(found)}); "
            "measure both in the same way"
        )


def _show(value: Any) -> str:
    return "none" if value is None else f"{value}"
