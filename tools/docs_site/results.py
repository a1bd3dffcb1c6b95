"""Tables of the benchmarks page, from the JSON files of benchmarks/results."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

from docs_site.equations import ROOT

_SCORES = {
    "frechet_ratio": "Fréchet distance over pixels, relative to that of held-out scans; 1 is perfect",
    "two_sample_accuracy": "1-nearest-neighbour accuracy, samples against held-out; 0.5 is perfect",
    "copying_ratio": "distance to the nearest training scan, relative to that of held-out scans; 1 is perfect",
    "sure_ratio": "share that a classifier is sure of, relative to that of held-out scans; 1 is perfect",
}

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
    scores = result["scores"]
    head = ["score", *(f"seed {row['seed']}" for row in scores)]
    return _table(head, [[text, *(f"{row[key]:.3f}" for row in scores)] for key, text in _SCORES.items()])


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


def _sampling_speed(result: Any) -> str:
    rates, costs = result["pictures a second"], result["processor seconds a picture"]
    rows = [[name, f"{rate:.2f}", f"{costs[name]:.3f}"] for name, rate in rates.items()]
    return _table(["program", "pictures a second", "processor seconds a picture"], rows)


def _processes_speed(result: Any) -> str:
    rows = []
    for name, turns in result["turns"].items():
        middle = [f"{statistics.median(turns[clock]):.2f}" for clock in ("wall, s", "processor, s")]
        rows.append([f"{name}, threads of each: {result['facts'][name]['threads']}", *middle])
    return _table(["", "s a step", "s of the processor"], rows)


def _kernel_speed(result: Any) -> str:
    rows = [[row["kernel"], f"{row['library_ms']:.1f} ms", f"{row['ours_ms']:.1f} ms"] for row in result["rows"]]
    return _table(["kernel", "matrix library", "here"], rows)


def _examples(result: Any) -> str:
    keys = ("frechet_ratio", "two_sample_accuracy", "copying_ratio", "sure_ratio")
    columns = [(f"{sampler}, seed {row['seed']}", row) for sampler, rows in result["scores"].items() for row in rows]
    rows = [[_SCORES[key], result["goals"][key], *(f"{row[key]:.3f}" for _, row in columns)] for key in keys]
    return _table(["score", "goal", *(name for name, _ in columns)], rows)


def _guidance(result: Any) -> str:
    parts = [result] if "rows" in result else list(result.values())  # one run, or several
    rows = [
        [
            row["kind"],
            f"{row['scale']:g}",
            part["setting"]["number"],
            f"{row['frechet']:.2f} ± {row['frechet_error']:.2f}",
            f"{row['agreement']:.1%}" if "agreement" in row else "",
            f"{row['precision']:.3f}",
            f"{row['recall']:.3f}",
        ]
        for part in sorted(parts, key=lambda part: -part["setting"]["number"])
        for row in sorted(part["rows"], key=lambda row: (row["kind"], row["scale"]))
    ]
    return _table(
        ["guidance", "scale", "samples", "Fréchet distance", "of the asked class", "precision", "recall"], rows
    )


def _guidance_cost(result: Any) -> str:
    rows = [[name, f"{ratio:.2f}"] for name, ratio in result["ratio"].items()]
    return _table(["", f"times the time of no guidance; goal: at most {result['goal']}"], rows)


def _emoji(result: Any) -> str:
    found = [
        [scale, f"{row['among_5']:.1%}", f"{row['first']:.1%}", f"{row['median_rank']:g}"]
        for scale, row in result["retrieval"].items()
    ]
    return _table(["guidance", "right picture among the five nearest", "the nearest", "median rank"], found)


def _adapter(result: Any) -> str:
    kinds = {"held_out": "unseen", "training": "of training"}
    beside = {"alone": "alone", "with_label": "with its label", "with_tokens": "with its text"}
    rows = []
    for name, run in result.items():
        for kind, asked, space in product(kinds, beside, ("classifier", "colours")):
            if distances := run.get(kind, {}).get(asked, {}).get(space):
                means = [f"{distances[scale]['mean']:.3f}" for scale in ("0", "0.25", "0.5", "1")]
                found = f"{distances['0']['found']:.0%}, {distances['1']['found']:.0%}"
                rows.append([f"{name}, {kinds[kind]}, {beside[asked]}", space, *means, found])
    return _table(["prompts", "distance in", "0", "0.25", "0.5", "1", "own prompt the nearest, at 0 and 1"], rows)


def _objectives(result: Any) -> str:
    rows = []
    for row in result["rows"]:
        variance, bound = min(row["bounds"].items(), key=lambda item: item[1]["mean"])
        ratios = [f"{row[f'Fréchet ratio, {sampler}']:.2f}" for sampler in ("ddpm", "ddim")]
        rows.append([row["output"], row["objective"], f"{bound['mean']:.2f} ± {bound['error']:.2f}", variance, *ratios])
    return _table(["output", "objective", "bound, bits/dim", "variance", "Fréchet ratio, ddpm", "ddim"], rows)


def _time_to_quality(result: Any) -> str:
    rows = [
        [name, f"{point['minutes']:g}", f"{point['steps']:,}", f"{point['score']:.2f} ± {point['error']:.2f}"]
        for name, curve in result["curves"].items()
        for point in curve["points"]
    ]
    return _table(
        ["", "minutes of the processor", "steps", f"Fréchet distance; held-out pictures: {result['floor']:.2f}"], rows
    )


_TABLES: dict[str, Callable[[Any], str]] = {
    "digits": _digits,
    "examples": _examples,
    "guidance": _guidance,
    "guidance_cost": _guidance_cost,
    "emoji": _emoji,
    "adapter": _adapter,
    "objectives": _objectives,
    "objectives_mnist": _objectives,
    "sampling_speed": _sampling_speed,
    "training_speed": _sampling_speed,
    "kernel_speed": _kernel_speed,
    "processes_speed": _processes_speed,
    "time_to_quality": _time_to_quality,
    "bound": _bound,
    "samplers_mnist": _samplers_mnist,
    "data_speed": _data_speed,
    "fault_suite": _fault_suite,
    "score_speed": _score_speed,
}
