"""Image prompts: are samples nearer to the prompt picture, the more so the larger the scale, of unseen pictures too?

python benchmarks/adapter.py MODEL DATA [--out RUN] [--steps N] [--encoder NAME] [--features CLASSIFIER] [--prompts 128]
                             [--kinds held_out training] [--name NAME] [--json FILE] [--grid FILE]

The adapter is trained by `ddpm train-adapter` (the same command goes on with a run that was interrupted, and only
measures one that is finished). Prompts are held-out pictures, which the adapter has not seen, and as many that it was
trained on. Every prompt is sampled at each scale from the same noise: by its picture alone, and with the label or text
that belongs to the picture, which the base knows what to do with. Samples are compared with their prompt in two spaces
that the adapter does not read: the features of a classifier, where one is given, and the colours in a grid of at most
16x16; and by the features that it reads. Each distance is a root mean square, with the standard error of its mean.
`nearer` says by how much the distance falls from each scale to the next, with the standard error of the differences,
prompt by prompt; `found` is the share of samples that are nearer to their own prompt than to any other. At scale 0 the
samples are those of the base, bit for bit, which is checked.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.nn import functional
from turns import machine

from ddpm.classifier import Classifier
from ddpm.codec import Pictures
from ddpm.conditions import Condition
from ddpm.conditions.of_data import conditions_of
from ddpm.config import from_tree
from ddpm.data import Store, open_store, render_grid, save_png
from ddpm.engine import choose_engine
from ddpm.files import write_text
from ddpm.model import Model
from ddpm.model.adapter import Adapter

SCALES = (0.0, 0.25, 0.5, 1.0)
GOAL = "the distance to the prompt falls over scales 0, 0.25, 0.5, 1, for held-out prompts as for training ones"
_BATCH = 32
_SHOWN = 12

Space = Callable[[Pictures], NDArray[Any]]


def main() -> None:
    """Train, sample, measure, and write what was asked for."""
    arguments = parsed()
    words = ["train-adapter", str(arguments.model), arguments.data, "--out", str(arguments.out)]
    words += ["--steps", str(arguments.steps), "--encoder", arguments.encoder]
    words += [word for each in arguments.set for word in ("--set", each)]
    subprocess.run([sys.executable, "-m", "ddpm.cli.main", *words], check=True)
    base = Model.load(arguments.model).with_sampling(sampler="ddim", steps=arguments.sampling_steps)
    store = open_store(arguments.data, from_tree(Adapter.load(arguments.out).provenance["config"]).data)
    describe = spaces(base, arguments.out, arguments.features)
    measured: dict[str, Any] = {}
    for kind in arguments.kinds:
        rows = spread(store.held_out if kind == "held_out" else store.train, arguments.prompts)
        prompts, measured[kind] = np.array(store.pictures[rows]), {"prompts": len(rows)}
        for name, own in conditions(base, store, rows).items():
            made = samples(base, arguments.out, prompts, own)
            measured[kind][name] = {
                "base_at_scale_0": is_base(base, made[0.0], own),
                **{space: compared(of, prompts, made) for space, of in describe.items()},
            }
            if arguments.grid and (kind, name) == (arguments.kinds[0], "alone"):
                save_png(sheet(store, prompts, made), arguments.grid)
    trained = {"steps": arguments.steps, "sampling_steps": arguments.sampling_steps, "set": arguments.set}
    result = {"goal": GOAL, **trained, **measured, "machine": machine()}
    print(json.dumps(result, indent=2))
    if arguments.json:
        known = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
        write_text(
            arguments.json, json.dumps({**known, arguments.name or arguments.model.name: result}, indent=2) + "\n"
        )


def parsed() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, default=Path("runs/prompted"), help="of the adapter")
    parser.add_argument("--steps", type=int, default=1000, help="of its training")
    parser.add_argument("--encoder", default="base")
    parser.add_argument("--set", action="append", default=[], help="passed on to 'ddpm train-adapter'")
    parser.add_argument("--features", type=Path, help="a classifier's file, in whose features to measure")
    parser.add_argument("--prompts", type=int, default=128, help="pictures of each kind")
    parser.add_argument("--kinds", nargs="+", choices=["held_out", "training"], default=["held_out", "training"])
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--name", help="of the result in the file; by default the model's")
    parser.add_argument("--json", type=Path, help="to which the result is added")
    parser.add_argument("--grid", type=Path)
    return parser.parse_args()


def spread(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return at most so many of the rows, evenly."""
    count = min(most, len(rows))
    return rows[np.arange(count) * len(rows) // count]


def conditions(base: Model, store: Store, rows: NDArray[np.int64]) -> dict[str, Condition | None]:
    """Return what is asked beside the prompt: nothing, and what belongs to the picture where the base knows such."""
    config = from_tree(base.provenance["config"])
    known = conditions_of(store, base.conditions, config.conditions, config.data)
    if known is None:
        return {"alone": None}
    x_0 = base.codec.encode(np.array(store.pictures[rows]))
    own = known.of(rows, x_0, seed=0, pictures=range(len(rows)))
    return {"alone": None, f"with_{'_and_'.join(own.fields())}": own}


def samples(base: Model, adapter: Path, prompts: Pictures, own: Condition | None) -> dict[float, Pictures]:
    """Return for each scale a picture for each prompt, [N, H, W, C]; number i has noise i at every scale."""
    engine = choose_engine()
    made = {}
    for scale in SCALES:
        model = base.with_adapter(adapter, scale)
        condition = model.with_prompt(own, prompts)
        engine.place(model.network)
        with engine.autocast():
            made[scale] = np.concatenate(
                [model.sample_numbers(numbers, condition=part(condition, numbers)) for numbers in batches(len(prompts))]
            )
    return made


def part(condition: Condition, numbers: range) -> Condition:
    """Return the conditions of the pictures of these numbers."""
    return condition.select(slice(numbers.start, numbers.stop))


def batches(count: int) -> list[range]:
    """Return the numbers of pictures that are made at once."""
    return [range(start, min(start + _BATCH, count)) for start in range(0, count, _BATCH)]


def is_base(base: Model, pictures: Pictures, own: Condition | None) -> bool:
    """Whether these are bit for bit the pictures that the base makes when the same is asked of it without a prompt."""
    engine = choose_engine()
    engine.place(base.network)
    model = replace(base, conditions=base.conditions.model_validate({})) if own is None else base
    with engine.autocast():
        plain = [
            model.sample_numbers(numbers, condition=None if own is None else part(own, numbers))
            for numbers in batches(len(pictures))
        ]
    return bool(np.array_equal(np.concatenate(plain), pictures))


def spaces(base: Model, adapter: Path, features: Path | None) -> dict[str, Space]:
    """Return by name how pictures are described, [N, H, W, C] -> [N, D]."""
    reader = base.with_adapter(adapter).prompt_reader
    assert reader is not None  # it is an image adapter
    classifier = None if features is None else Classifier.load(features)
    own: dict[str, Space] = {} if classifier is None else {"classifier": lambda x: classifier.features(x)[0]}
    return {**own, "colours": lambda x: layout(base, x), "read": lambda x: reader(x).flatten(1).numpy()}


def layout(base: Model, pictures: Pictures) -> NDArray[Any]:
    """Return the colours of pictures in a grid of at most 16x16, each from -1 to 1."""
    x_0 = base.codec.encode(pictures)
    height, width = x_0.shape[2:]
    colours: NDArray[Any] = functional.adaptive_avg_pool2d(x_0, (min(16, height), min(16, width))).flatten(1).numpy()
    return colours


def compared(describe: Space, prompts: Pictures, made: dict[float, Pictures]) -> dict[str, Any]:
    """Return the distance to the prompts at each scale, and by how much it falls from each to the next."""
    known = describe(prompts)
    every = {scale: distances(describe(pictures), known) for scale, pictures in made.items()}
    own = {scale: np.diagonal(each) for scale, each in every.items()}
    nearer = {f"{a:g} to {b:g}": mean(own[a] - own[b]) for a, b in pairwise(own)}
    return {
        **{f"{scale:g}": {**mean(own[scale]), "found": found(each)} for scale, each in every.items()},
        "nearer": nearer,
        "falls": all(each["mean"] > 2 * each["error"] for each in nearer.values()),
    }


def distances(features: NDArray[Any], known: NDArray[Any]) -> NDArray[Any]:
    """Return the root mean square difference of each row to each known one, [N, N]."""
    return np.stack([np.sqrt(((known - row) ** 2).mean(axis=1)) for row in features])


def mean(values: NDArray[Any]) -> dict[str, float]:
    """Return a mean and its standard error."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"mean": round(float(values.mean()), 5), "error": round(float(error), 5)}


def found(every: NDArray[Any]) -> float:
    """Return the share of rows whose own known row is the nearest."""
    return round(float((every.argmin(axis=1) == np.arange(len(every))).mean()), 4)


def sheet(store: Store, prompts: Pictures, made: dict[float, Pictures]) -> Any:
    """Return a grid: prompts in the first row, then what is made of them at each scale."""
    shown = [prompts[:_SHOWN], *(pictures[:_SHOWN] for pictures in made.values())]
    picture = np.concatenate([np.array(each) for each in shown])
    return render_grid(picture, len(shown[0]), levels=store.levels, value_range=store.value_range)


if __name__ == "__main__":
    main()
