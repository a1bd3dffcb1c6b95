"""A report: scores with their recipe, as lines for people, as JSON, and as a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm.errors import RunError
from ddpm.evaluation.metrics import Score
from ddpm.evaluation.report.exhibits import Exhibits
from ddpm.evaluation.report.recipe import differences
from ddpm.files import write_text

FORMAT = "ddpm-evaluation"


@dataclass(frozen=True, eq=False)
class Report:
    """What an evaluation found.

    Attributes:
        title: what was scored.
        recipe: how: "samples", "measure", "software"; plain JSON values.
        scores: each beside its floor, the most telling first.
        details: more of some groups of scores, by their names; plain JSON values.
        notes: what must be known beside the numbers.
        left_out: groups of scores that were not to be had -> why.
        exhibits: the pictures of the page.
    """

    title: str
    recipe: dict[str, Any]
    scores: tuple[Score, ...]
    details: dict[str, Any]
    notes: tuple[str, ...]
    left_out: dict[str, str]
    exhibits: Exhibits

    def __getitem__(self, name: str) -> Score:
        """Return the score of a name, such as ``report["fid"].value``."""
        return {score.name: score for score in self.scores}[name]

    def __str__(self) -> str:
        """Return the lines for people."""
        return self.table()

    def as_tree(self) -> dict[str, Any]:
        """Return plain JSON values."""
        tree = {
            "format": FORMAT,
            "title": self.title,
            "recipe": self.recipe,
            "scores": {score.name: score.as_tree() for score in self.scores},
            "details": self.details,
            "notes": list(self.notes),
            "left_out": self.left_out,
        }
        plain: dict[str, Any] = json.loads(json.dumps(tree))  # tuples become lists
        return plain

    def header(self) -> list[str]:
        """Return in two lines what was scored, against what."""
        measure = self.recipe["measure"]
        features = f"features: {measure['features']['name']}" if measure["features"] else "no features"
        held_out = f"{measure['held_out_pictures']:,} held-out pictures"
        if not len(self.exhibits.samples):
            return [f"{self.title} on {held_out} of {measure['data']}", "nothing is sampled for these scores"]
        return [
            f"{measure['samples']:,} pictures of {self.title} against {measure['reference_pictures']:,} training "
            f"pictures of {measure['data']}",
            f"{features}; beside each score what the {held_out} reach in the samples' place",
        ]

    def table(self) -> str:
        """Return the report as lines for a terminal."""
        rows = [("", "samples", "as many", "held-out", "")]
        rows += [
            (score.label, shown(score.value, score.error), at_floor_of(score), floor_of(score), score.meaning)
            for score in self.scores
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            f"{label:<{widths[0]}}  {value:>{widths[1]}}  {same:>{widths[2]}}  {floor:>{widths[3]}}  {meaning}".rstrip()
            for label, value, same, floor, meaning in rows
        ]
        notes = [f"note: {note}" for note in self.notes]
        missing = [f"left out: {name}: {reason}" for name, reason in self.left_out.items()]
        return "\n".join([*self.header(), *notes, "", *lines, *([""] if missing else []), *missing])

    def comparison(self, old: Mapping[str, Any]) -> str:
        """Return the scores beside those of an earlier report of the same measure, and what differs in what is scored.

        Args:
            old: the earlier report's tree, whose "measure" equals this one's.
        """
        lines = [f"compared with {old.get('title', 'the earlier report')}, measured in the same way:"]
        for score in self.scores:
            before = old["scores"].get(score.name)
            if before is not None:
                change = score.value - before["value"]
                lines.append(
                    f"  {score.label}: {shown(before['value'], before['error'])} -> {shown(score.value, score.error)} "
                    f"({change:+.4g})"
                )
        for part in ("samples", "software"):
            lines += [f"  differs: {line}" for line in differences(old["recipe"].get(part, {}), self.recipe[part])]
        return "\n".join(lines)

    def save_json(self, file: Path) -> None:
        """Write scores and recipe.

        Raises:
            RunError: if the file cannot be written.
        """
        self._write(file, json.dumps(self.as_tree(), indent=2) + "\n", "--json")

    def save_page(self, file: Path) -> None:
        """Write one HTML file that holds everything, its pictures too.

        Raises:
            RunError: if the file cannot be written.
        """
        self._write(file, self.page(), "--html")

    def page(self) -> str:
        """Return the page: one HTML document that holds everything."""
        from ddpm.evaluation.report.page import page

        return page(self)

    def _write(self, file: Path, text: str, option: str) -> None:
        try:
            write_text(file, text)
        except OSError as error:
            raise RunError(
                f"cannot write the scores to '{file}' ({error.strerror or error}); use another {option}"
            ) from error


def shown(value: float, error: float | None = None) -> str:
    """Return a number for people, with as many digits as its error allows."""
    if error is None or error <= 0:
        return f"{value:.4g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.1e}"
    digits = min(8, max(0, 1 - int(f"{error:.1e}".split("e")[1])))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def floor_of(score: Score) -> str:
    """Return what held-out pictures reach, and how many they are."""
    return "" if score.floor is None else f"{shown(score.floor, score.floor_error)} of {score.floor_n:,}"


def at_floor_of(score: Score) -> str:
    """Return the score of as many samples as there are held-out pictures, where those are fewer."""
    if score.at_floor_n is None or score.floor_n == score.n:
        return ""
    return f"{shown(score.at_floor_n)} of {score.floor_n:,}"
