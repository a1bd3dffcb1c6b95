"""Image prompts: are samples nearer to the prompt picture, the more so the larger the scale, of unseen pictures too?

python benchmarks/adapter.py MODEL DATA [--out RUN] [--steps N] [--encoder NAME] [--prompts 64] [--json FILE] [--grid F]

The adapter is trained by `ddpm train-adapter` (the same command goes on with a run that was interrupted, and only
measures one that is finished). Prompts are held-out pictures, which neither the base nor the adapter has seen, and as
many training pictures. Every prompt is sampled at each scale from the same noise, without any text, and compared in two
ways: by the features that the adapter reads, standardised, and by the colours in a grid of at most 16x16, which it does
not read. Each distance is a root mean square; `found` is the share of samples that are nearer to their own prompt than
to any other prompt of the same kind. At scale 0 the samples are those of the base, bit for bit, which is checked.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ddpm.codec import Pictures
from ddpm.config import from_tree
from ddpm.data import Store, open_store, render_grid, save_png
from ddpm.engine import choose_engine
from ddpm.files import write_text
from ddpm.model import Model

SCALES = (0.0, 0.25, 0.5, 1.0)
GOAL = "the distance to the prompt falls over scales 0, 0.25, 0.5, 1, for held-out prompts as for training ones"
_BATCH = 32
_SHOWN = 12


def main() -> None:
    """Train, sample, measure, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, default=Path("runs/prompted"), help="of the adapter")
    parser.add_argument("--steps", type=int, default=2000, help="of its training")
    parser.add_argument("--encoder", default="base")
    parser.add_argument("--set", action="append", default=[], help="passed on to 'ddpm train-adapter'")
    parser.add_argument("--prompts", type=int, default=64, help="pictures of each kind")
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--grid", type=Path)
    arguments = parser.parse_args()
    words = ["train-adapter", str(arguments.model), arguments.data, "--out", str(arguments.out)]
    words += ["--steps", str(arguments.steps), "--encoder", arguments.encoder]
    words += [word for each in arguments.set for word in ("--set", each)]
    subprocess.run([sys.executable, "-m", "ddpm.cli.main", *words], check=True)
    base = Model.load(arguments.model).with_sampling(sampler="ddim", steps=arguments.sampling_steps)
    store = open_store(arguments.data, from_tree(base.provenance["config"]).data)
    measured = {}
    for kind, rows in (("held_out", store.held_out), ("training", store.train)):
        chosen = spread(rows, arguments.prompts)
        made = samples(base, arguments.out, store, chosen)
        measured[kind] = measure(base, arguments.out, np.array(store.pictures[chosen]), made)
        if arguments.grid and kind == "held_out":
            save_png(sheet(store, chosen, made), arguments.grid)
    result = {"goal": GOAL, **measured, "machine": machine()}
    print(json.dumps(result, indent=2))
    if arguments.json:
        write_text(arguments.json, json.dumps(result, indent=2) + "\n")


def spread(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return at most so many of the rows, evenly."""
    count = min(most, len(rows))
    return rows[np.arange(count) * len(rows) // count]


def samples(base: Model, adapter: Path, store: Store, rows: NDArray[np.int64]) -> dict[float, Pictures]:
    """Return for each scale a picture for each prompt, [N, H, W, C]; number i has noise i at every scale."""
    engine = choose_engine()
    made = {}
    for scale in SCALES:
        model = base.with_adapter(adapter, scale)
        prompt = model.with_prompt(None, np.array(store.pictures[rows]))
        engine.place(model.network)
        parts = []
        for start in range(0, len(rows), _BATCH):
            numbers = range(start, min(start + _BATCH, len(rows)))
            with engine.autocast():
                parts.append(model.sample_numbers(numbers, condition=prompt.select(slice(numbers.start, numbers.stop))))
        made[scale] = np.concatenate(parts)
    return made


def measure(base: Model, adapter: Path, prompts: Pictures, made: dict[float, Pictures]) -> dict[str, Any]:
    """Return the distances at each scale, whether they fall, and whether scale 0 is the base."""
    reader = base.with_adapter(adapter).prompt_reader
    assert reader is not None  # it is an image adapter
    kinds = {
        "features": lambda pictures: reader(pictures).flatten(1).numpy(),
        "colours": lambda pictures: layout(base, pictures),
    }
    result: dict[str, Any] = {"prompts": len(prompts), "base_at_scale_0": is_base(base, made[0.0])}
    for name, describe in kinds.items():
        known = describe(prompts)
        scores = {f"{scale:g}": scored(describe(pictures), known) for scale, pictures in made.items()}
        distances = [score["distance"] for score in scores.values()]
        result[name] = {**scores, "falls": all(a > b for a, b in pairwise(distances))}
    return result


def is_base(base: Model, pictures: Pictures) -> bool:
    """Whether these are bit for bit the pictures that the base makes when nothing is asked of it."""
    engine = choose_engine()
    engine.place(base.network)
    blank = replace(base, conditions=base.conditions.model_validate({}))
    numbers = range(min(_BATCH, len(pictures)))
    with engine.autocast():
        own = blank.sample_numbers(numbers)
    return bool(np.array_equal(own, pictures[: len(numbers)]))


def scored(features: NDArray[Any], known: NDArray[Any]) -> dict[str, float]:
    """Return the mean distance of each row to its own known one, its standard error, and how often that is nearest."""
    every = np.stack([np.sqrt(((known - row) ** 2).mean(axis=1)) for row in features])
    own = np.diagonal(every)
    found = float((every.argmin(axis=1) == np.arange(len(every))).mean())
    error = float(own.std(ddof=1) / np.sqrt(len(own))) if len(own) > 1 else 0.0
    return {"distance": round(float(own.mean()), 5), "error": round(error, 5), "found": round(found, 4)}


def layout(base: Model, pictures: Pictures) -> NDArray[Any]:
    """Return the colours of pictures in a grid of at most 16x16, each from -1 to 1."""
    x_0 = base.codec.encode(pictures)
    sides = [min(16, side) for side in x_0.shape[2:]]
    colours: NDArray[Any] = functional.adaptive_avg_pool2d(x_0, sides).flatten(1).numpy()
    return colours


def sheet(store: Store, rows: NDArray[np.int64], made: dict[float, Pictures]) -> Any:
    """Return a grid: prompts in the first row, then what is made of them at each scale."""
    shown = [store.pictures[rows[:_SHOWN]], *(pictures[:_SHOWN] for pictures in made.values())]
    picture = np.concatenate([np.array(each) for each in shown])
    return render_grid(picture, len(shown[0]), levels=store.levels, value_range=store.value_range)


def machine() -> dict[str, Any]:
    """Return what measured."""
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


if __name__ == "__main__":
    main()
