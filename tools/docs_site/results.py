"""Tables of the benchmarks page, from the JSON files of benchmarks/results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from docs_site.equations import ROOT

MARK = re.compile(r"^<!-- table: (?P<name>\w+) -->$", re.MULTILINE)


def with_tables(markdown: str) -> str:
    """Return a page with a table in the place of each ``<!-- table: NAME -->``."""
    return MARK.sub(lambda found: _TABLES[found["name"]](_result(found["name"])), markdown)


def _result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _digits(result: Any) -> str:
    names = {
        "frechet_ratio": "Fréchet distance over pixels, relative to that of held-out scans; 1 is perfect",
        "two_sample_accuracy": "1-nearest-neighbour accuracy, samples against held-out; 0.5 is perfect",
        "copying_ratio": "distance to the nearest training scan, relative to that of held-out scans; 1 is perfect",
        "sure_ratio": "share that a classifier is sure of, relative to that of held-out scans; 1 is perfect",
    }
    scores = result["scores"]
    head = ["score", *(f"seed {row['seed']}" for row in scores)]
    return _table(head, [[text, *(f"{row[key]:.3f}" for row in scores)] for key, text in names.items()])


def _bound(result: Any) -> str:
    rows = [
        [
            row["data"],
            row["variance"],
            row["seed"],
            f"{row['early_bits_per_dim']:.3f} ± {row['early_standard_error']:.3f}",
            f"{row['end_bits_per_dim']:.3f} ± {row['end_standard_error']:.3f}",
        ]
        for row in result["rows"]
    ]
    return _table(["data", "variance", "seed", f"at a tenth of {result['rows'][0]['steps']} steps", "at the end"], rows)


def _samplers_mnist(result: Any) -> str:
    rows = [
        [
            f"`{cell['sampler']}`",
            _options(cell.get("options", {})),
            cell["steps"],
            f"{cell['score']:.3f} ± {cell['error']:.3f}",
        ]
        for cell in sorted(result["cells"], key=lambda cell: (cell["evaluations"], cell["score"]))
    ]
    return _table(
        ["sampler", "options", "evaluations", f"Fréchet distance; held-out reach {result['floor']:.3f}"], rows
    )


def _options(options: dict[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())


def _data_speed(result: Any) -> str:
    rows = [[r["data"], r["loader"], f"{r['pictures']:,}", f"{r['pictures_per_second']:,.0f}"] for r in result["rows"]]
    return _table(["data", "loader", "pictures", "pictures a second"], rows)


def _fault_suite(result: Any) -> str:
    keys = ("kills", "kills_inside_a_write", "resumes", "steps_lost", "checkpoints_damaged", "differing_tensors")
    return _table([key.replace("_", " ") for key in keys], [[result[key] for key in keys]])


def _score_speed(result: Any) -> str:
    names = {
        "fid:sqrtm:flat": "Fréchet distance: scipy's matrix square root",
        "coverage:scipy": "coverage: scipy's cdist",
        "coverage:torch": "coverage: torch.cdist, without matrix products",
        "coverage:torch-mm": "coverage: torch.cdist, with matrix products",
    }
    times = result["times_faster"]
    return _table(
        ["beside", "times faster (processor time)"],
        [
            [text, f"{times[f'{key}, median_cpu_seconds']:.1f}"]
            for key, text in names.items()
            if f"{key}, median_cpu_seconds" in times
        ],
    )


_TABLES: dict[str, Callable[[Any], str]] = {
    "digits": _digits,
    "bound": _bound,
    "samplers_mnist": _samplers_mnist,
    "data_speed": _data_speed,
    "fault_suite": _fault_suite,
    "score_speed": _score_speed,
}
