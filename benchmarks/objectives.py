"""The sources' comparison of objectives: Ho et al. 2020, Table 2, with v, and the hybrid of Nichol & Dhariwal 2021.

    python benchmarks/objectives.py [--data digits] [--steps 1700] [--seeds 3] [--json FILE] [--markdown FILE]

Every row trains the same network on the same data, budget, schedule and seeds; only the objective differs. It is scored
by the variational bound on held-out pictures, in bits/dim, and by Fréchet distances over pixels between samples and
the training split, over that of held-out pictures (1 is perfect). A row that the JSON file has is not made again.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ddpm
from ddpm.config import from_tree
from ddpm.config.sampling import Variance
from ddpm.data import Store, open_store
from ddpm.evaluation.likelihood.bound import bits_per_dim_of
from ddpm.evaluation.scores.frechet import frechet_distance_between
from ddpm.files import write_text
from ddpm.model import Model

PARAMETERIZATIONS = ("mu", "x_0", "eps", "v")
OBJECTIVES: dict[str, dict[str, Any]] = {
    "L, fixed variance": {"loss": "bound", "variance": "fixed_large"},
    "L, learned variance": {"loss": "bound", "variance": "learned"},
    "L_simple, fixed variance": {"loss": "simple", "variance": "fixed_large"},
    "L_hybrid, learned variance": {"loss": "hybrid", "variance": "learned"},
}
ANCESTRAL = "Fréchet ratio, ddpm"
DETERMINISTIC = "Fréchet ratio, ddim"
BOUND = "bound, bits/dim"


@dataclass(frozen=True, slots=True)
class Setting:
    """What all rows have in common; rows of another setting are another comparison.

    Attributes:
        data: what is trained on.
        steps: optimizer steps.
        batch_size: pictures a step; None is the preset's.
        schedule: of the noise.
        held_out: how many held-out pictures the bound is measured on, at most.
        samples: how many pictures are sampled.
        ddpm_steps: of the ancestral sampler.
        ddim_steps: of the deterministic sampler.
    """

    data: str
    steps: int
    batch_size: int | None
    schedule: str
    held_out: int
    samples: int
    ddpm_steps: int
    ddim_steps: int


def main() -> None:
    """Make the rows that are missing, then print the table, and write it if asked."""
    arguments = parse()
    setting = Setting(
        arguments.data,
        arguments.steps,
        arguments.batch_size,
        arguments.schedule,
        arguments.held_out,
        arguments.samples,
        arguments.ddpm_steps,
        arguments.ddim_steps,
    )
    rows = known_rows(arguments.json, setting)
    wanted = [
        (parameterization, objective, seed)
        for seed in range(arguments.seeds)
        for parameterization in arguments.parameterizations
        for objective in OBJECTIVES
    ]
    for number, (parameterization, objective, seed) in enumerate(wanted, start=1):
        if any((row["output"], row["objective"], row["seed"]) == (parameterization, objective, seed) for row in rows):
            continue
        print(f"{number} of {len(wanted)}: {parameterization}, {objective}, seed {seed}", flush=True)
        rows.append(make_row(setting, parameterization, objective, seed))
        if arguments.json:
            write_text(arguments.json, json.dumps(as_tree(setting, rows), indent=2) + "\n")
    print(table(rows))
    if arguments.markdown:
        write_text(arguments.markdown, table(rows) + "\n")


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--steps", type=int, default=1700)
    parser.add_argument("--batch-size", type=int, help="the preset's, if not given")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--schedule", default="linear", help="the paper's is linear")
    parser.add_argument("--parameterizations", nargs="+", choices=PARAMETERIZATIONS, default=PARAMETERIZATIONS)
    parser.add_argument("--held-out", type=int, default=100, help="held-out pictures for the bound, at most")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--ddpm-steps", type=int, default=100)
    parser.add_argument("--ddim-steps", type=int, default=50)
    parser.add_argument("--json", type=Path, help="results; rows already in it are not made again")
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args()


def known_rows(file: Path | None, setting: Setting) -> list[dict[str, Any]]:
    """Return the rows of a results file; end the program if they are of another setting."""
    if file is None or not file.exists():
        return []
    tree = json.loads(file.read_text(encoding="utf-8"))
    if tree["setting"] != setting_tree(setting):
        raise SystemExit(f"'{file}' holds another comparison ({tree['setting']}); use another --json")
    rows: list[dict[str, Any]] = tree["rows"]
    return rows


def setting_tree(setting: Setting) -> dict[str, Any]:
    """Return the setting as plain JSON values."""
    return {name: getattr(setting, name) for name in Setting.__slots__}


def as_tree(setting: Setting, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what is written."""
    machine = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    return {"setting": setting_tree(setting), "machine": machine, "rows": list(rows)}


def make_row(setting: Setting, parameterization: str, objective: str, seed: int) -> dict[str, Any]:
    """Train one model, and score it."""
    overrides = {
        "schedule": {"name": setting.schedule},
        "objective": {"parameterization": parameterization, **OBJECTIVES[objective]},
        "training": {
            "milestones": 0,
            "stop": "budget",
            "preview_every": setting.steps,
            "checkpoint_every": setting.steps,
            "previews": 1,
            **({"batch_size": setting.batch_size} if setting.batch_size else {}),
        },
    }
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        model = ddpm.train(setting.data, steps=setting.steps, seed=seed, out=out, overrides=overrides, quiet=True)
    trained = time.monotonic()
    store = open_store(setting.data, from_tree(model.provenance["config"]).data)
    scores = {"bounds": held_out_bounds(model, store, setting.held_out), **frechet_ratios(model, store, setting)}
    return {
        "output": parameterization,
        "objective": objective,
        "seed": seed,
        **scores,
        "training_seconds": round(trained - start, 1),
        "scoring_seconds": round(time.monotonic() - trained, 1),
    }


def held_out_bounds(model: Model, store: Store, most: int) -> dict[str, dict[str, float]]:
    """Return the bound in bits/dim, mean and standard error over pictures, for each variance that the model allows."""
    variances: tuple[Variance, ...] = ("learned",) if model.variance == "learned" else ("fixed_large", "fixed_small")
    bounds: dict[str, dict[str, float]] = {}
    for variance in variances:
        total = bits_per_dim_of(model, store, n=most, variance=variance).total
        bounds[variance] = {"mean": total.value, "error": total.error}
    return bounds


def frechet_ratios(model: Model, store: Store, setting: Setting) -> dict[str, float]:
    """Return the Fréchet distance of samples to the training split, over that of as many held-out pictures."""
    low, high = store.value_range

    def features(pictures: np.ndarray) -> np.ndarray:
        return (pictures.reshape(len(pictures), -1).astype(np.float64) - low) / (high - low)

    count = min(setting.samples, len(store.held_out))
    train = features(store.pictures[spread_rows(store.train, 10_000)])
    of_held_out = frechet_distance_between(features(store.pictures[spread_rows(store.held_out, count)]), train)
    ratios = {}
    for name, sampler, steps in ((ANCESTRAL, "ddpm", setting.ddpm_steps), (DETERMINISTIC, "ddim", setting.ddim_steps)):
        samples = features(model.sample(count, sampler=sampler, steps=steps, seed=1))
        ratios[name] = frechet_distance_between(samples, train) / of_held_out
    return ratios


def spread_rows(rows: np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` rows, evenly spread: data sets are often sorted by class."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table: mean over the seeds, and how far it is to the outermost of them."""
    lines = [
        f"| output | objective | {BOUND} | variance | {ANCESTRAL} | {DETERMINISTIC} | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for objective in OBJECTIVES:
        for parameterization in PARAMETERIZATIONS:
            same = [row for row in rows if (row["output"], row["objective"]) == (parameterization, objective)]
            if not same:
                continue
            best = min(same[0]["bounds"], key=lambda kind: statistics.mean(row["bounds"][kind]["mean"] for row in same))
            columns = [
                spread([row["bounds"][best]["mean"] for row in same]),
                best,
                spread([row[ANCESTRAL] for row in same]),
                spread([row[DETERMINISTIC] for row in same]),
                str(len(same)),
            ]
            lines.append(f"| {parameterization} | {objective} | {' | '.join(columns)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Return the mean, and where there are several values the farthest from it."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.3f}"
    return f"{mean:.3f} ± {max(abs(value - mean) for value in values):.3f}"


if __name__ == "__main__":
    main()
