"""The variational bound on held-out pictures: at a tenth of training and at its end, variance learned and fixed.

    python benchmarks/bound.py [--data digits $DDPM_DATA/mnist] [--seeds 3] [--json FILE]

Each run minimises the bound itself, with importance-sampled times and a network that knows the gray levels. Its
bits/dim stand beside those of a model that draws every pixel from its own histogram. A run that the JSON file has is
not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import ddpm
from ddpm.config import DataConfig
from ddpm.data import Store, open_store
from ddpm.evaluation.likelihood.bound import bits_per_dim_of
from ddpm.evaluation.likelihood.histogram import histogram_bits_per_dim
from ddpm.files import write_text
from ddpm.model import Model

VARIANCES = ("learned", "fixed_small", "fixed_large")
BUDGETS = {"digits": {"steps": 1200, "batch_size": 64}, "mnist": {"steps": 1200, "batch_size": 64}}


def main() -> None:
    """Make the runs that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["digits"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variances", nargs="+", choices=VARIANCES, default=VARIANCES)
    parser.add_argument("--held-out", type=int, default=200, help="held-out pictures, at most")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tree: dict[str, Any] = {"rows": [], "histogram": {}}
    if arguments.json and arguments.json.exists():
        tree = json.loads(arguments.json.read_text(encoding="utf-8"))
    tree["machine"] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    for data in arguments.data:
        name = Path(data).name
        store = open_store(data, DataConfig())
        if name not in tree["histogram"]:
            tree["histogram"][name] = histogram(store)
        for seed in range(arguments.seeds):
            for variance in arguments.variances:
                key = {"data": name, "seed": seed, "variance": variance, "held_out": arguments.held_out}
                if not any(key.items() <= row.items() for row in tree["rows"]):
                    print(f"{name}, {variance}, seed {seed}", flush=True)
                    tree["rows"].append({**key, **measure(data, store, seed, variance, arguments.held_out)})
                if arguments.json:
                    write_text(arguments.json, json.dumps(tree, indent=2) + "\n")
    print(table(tree))


def histogram(store: Store) -> dict[str, float]:
    """Return the bits/dim of the factorised histogram model on all held-out pictures."""
    assert store.levels is not None  # the bound is of pictures with gray levels
    train, held_out = store.pictures[store.train], store.pictures[store.held_out]
    found = histogram_bits_per_dim(train, held_out, store.levels, value_range=store.value_range)
    return {"bits_per_dim": found.value, "standard_error": found.error}


def measure(data: str, store: Store, seed: int, variance: str, held_out: int) -> dict[str, Any]:
    """Train one model, and return its bits/dim at a tenth of its steps and at their end."""
    budget = BUDGETS.get(Path(data).name, BUDGETS["digits"])
    tenth = budget["steps"] // 10
    overrides: dict[str, Any] = {
        "objective": {"loss": "bound", "variance": variance, "timesteps": "importance"},
        "network": {"fourier_levels": store.levels},
        "training": {**budget, "checkpoint_every": tenth, "milestones": 10, "preview_every": budget["steps"]},
    }
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        start = time.monotonic()
        last = ddpm.train(data, seed=seed, out=run, overrides=overrides, quiet=True)
        seconds = time.monotonic() - start
        early = Model.load(min(run.rglob("*.safetensors"), key=steps_of))
        found = {
            when: bits_per_dim_of(model, store, n=held_out).total for when, model in (("early", early), ("end", last))
        }
    return {
        **budget,
        "seconds": round(seconds, 1),
        "early_step": early.provenance["step"],
        **{
            f"{when}_{name}": value
            for when, bits in found.items()
            for name, value in (("bits_per_dim", bits.value), ("standard_error", bits.error))
        },
    }


def steps_of(file: Path) -> float:
    """Return the steps of a milestone by its name; other models of a run come last."""
    return int(file.stem) if file.stem.isdigit() else float("inf")


def table(tree: dict[str, Any]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| data | variance | seed | at a tenth | at the end | histogram |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(tree["rows"], key=lambda row: (row["data"], row["variance"], row["seed"])):
        early, end = (
            f"{row[f'{when}_bits_per_dim']:.3f} ± {row[f'{when}_standard_error']:.3f}" for when in ("early", "end")
        )
        floor = tree["histogram"][row["data"]]["bits_per_dim"]
        lines.append(f"| {row['data']} | {row['variance']} | {row['seed']} | {early} | {end} | {floor:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
