"""The trade-off of guidance: Fréchet distance, precision, recall and the asked class against the scale.

    python benchmarks/guidance.py CONDITIONAL --features C --classifier NOISY --unconditional MODEL --json FILE

Dhariwal & Nichol 2021 (Fig. 4) and Ho & Salimans 2022 (Fig. 4) show it for ImageNet. Here: classifier-free guidance of
a conditional model, classifier guidance of an unconditional one, and that model alone; all classes equally often, from
the same noise, scored in the features of a classifier of clean pictures. A row that the JSON file has is not made
again. `--plot FILE.png` draws the curves.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm.classifier import Classifier
from ddpm.config import from_tree
from ddpm.data import Store, open_store
from ddpm.engine import choose_engine
from ddpm.evaluation.scores.coverage import coverage
from ddpm.evaluation.scores.frechet import Moments, frechet_distance, frechet_estimate, moments_of
from ddpm.figures.style import blank, finished, legend_below, panels, reference, save_figure
from ddpm.files import sha256_of, write_text
from ddpm.model import Model
from ddpm.model.guides import guided_by_classifier
from ddpm.model_file import locate

FREE, BY_CLASSIFIER, PLAIN = "classifier-free", "classifier", "unconditional"
NEIGHBOURS = 5


@dataclass(frozen=True)
class Measure:
    """What samples are compared with: features of the training split, all for moments, some for neighbours."""

    classifier: Classifier
    moments: Moments
    near: np.ndarray

    def __call__(self, pictures: np.ndarray, labels: np.ndarray | None) -> dict[str, Any]:
        """Return the scores of pictures, and the share that has its label."""
        features, probabilities = self.classifier.features(pictures)
        found, distance = coverage(self.near, features, k=NEIGHBOURS), frechet_estimate(features, self.moments)
        row = {
            "frechet": distance.value,
            "frechet_error": distance.error,
            "precision": found.precision,
            "recall": found.recall,
        }
        return row if labels is None else {**row, "agreement": float((probabilities.argmax(1) == labels).mean())}


def main() -> None:
    """Make the rows that are missing; print, write and draw them."""
    arguments = parse()
    model = Model.load(locate(arguments.model))
    store = open_store(str(model.provenance["data"]), from_tree(model.provenance["config"]).data)
    measure = measure_by(arguments.features, store)
    tree = setting(arguments)
    if arguments.json.exists():
        known = json.loads(arguments.json.read_text(encoding="utf-8"))
        if known["setting"] != tree["setting"]:
            raise SystemExit(f"'{arguments.json}' holds another comparison; use another --json")
        tree = known
    tree["held_out"] = floor(measure, store, arguments.number)
    for kind, scale in wanted(arguments):
        if any((row["kind"], row["scale"]) == (kind, scale) for row in tree["rows"]):
            continue
        tree["rows"].append(row_of(arguments, measure, kind, scale))
        print(tree["rows"][-1], flush=True)
        write_text(arguments.json, json.dumps(tree, indent=2) + "\n")
    if arguments.plot:
        draw(tree, arguments.plot)


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a conditional model, or its run")
    parser.add_argument("--features", type=Path, required=True, help="classifier of clean pictures")
    parser.add_argument("--classifier", type=Path, help="classifier of x_t, for classifier guidance")
    parser.add_argument("--unconditional", type=Path, help="model that it guides")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0])
    parser.add_argument("--number", "-n", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def setting(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what all rows have in common, and no rows yet."""
    files = {
        "model": locate(arguments.model),
        "features": arguments.features,
        "classifier": arguments.classifier,
        "unconditional": arguments.unconditional and locate(arguments.unconditional),
    }
    hashes = {name: sha256_of(file)[:12] for name, file in files.items() if file}
    return {
        "setting": {**hashes, "number": arguments.number, "steps": arguments.steps, "seed": 0, "k": NEIGHBOURS},
        "machine": {"torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count()},
        "rows": [],
    }


def measure_by(file: Path, store: Store) -> Measure:
    """Return the measure in the features of a classifier."""
    classifier = Classifier.load(file)
    pictures = store.pictures[spread(store.train, 10_000)]
    features, _ = classifier.features(pictures)
    return Measure(classifier, moments_of(features), features[spread(np.arange(len(features)), 3000)])


def floor(measure: Measure, store: Store, count: int) -> dict[str, Any]:
    """Return what held-out pictures reach in the samples' place, with their own labels."""
    rows = spread(store.held_out, count)
    found = measure(store.pictures[rows], None if store.labels is None else store.labels[rows])
    whole = frechet_distance(
        moments_of(measure.classifier.features(store.pictures[store.held_out])[0]), measure.moments
    )
    return {**found, "n": len(rows), "frechet_of_all": whole}


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` rows, evenly spread: data sets are often sorted by class."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]


def wanted(arguments: argparse.Namespace) -> list[tuple[str, float]]:
    """Return the rows to make: those first that matter most, should time run out."""
    scales = sorted(arguments.scales, key=lambda scale: abs(scale - 1.5))
    rows = [(FREE, scale) for scale in scales]
    if arguments.unconditional:
        rows.insert(0, (PLAIN, 0.0))
        rows += [(BY_CLASSIFIER, scale) for scale in scales if scale > 0] if arguments.classifier else []
    return rows


def row_of(arguments: argparse.Namespace, measure: Measure, kind: str, scale: float) -> dict[str, Any]:
    """Sample, and score."""
    engine, start = choose_engine("cpu", "auto"), time.process_time()
    model = Model.load(locate(arguments.model if kind == FREE else arguments.unconditional))
    engine.place(model.network)
    model = model.with_sampling(sampler="unipc", steps=arguments.steps, guidance=scale)
    if kind == PLAIN:
        model = model.with_sampling(guidance=1.0)
    elif kind == BY_CLASSIFIER:
        model = guided_by_classifier(model, arguments.classifier)
    with engine.autocast():
        pictures = model.sample(arguments.number, label=None if kind == PLAIN else "all")
    asked = None if kind == PLAIN else np.arange(arguments.number) % len(measure.classifier.classes)
    return {
        "kind": kind,
        "scale": scale,
        **measure(pictures, asked),
        "processor_seconds": round(time.process_time() - start, 1),
    }


def draw(tree: dict[str, Any], file: Path) -> None:
    """Draw three panels: distance and agreement against the scale, and precision against recall."""
    figure, palette = blank("light", 3.0, 9.0)
    axes = panels(figure, 1, 3)
    for colour, kind in zip(palette.series, (FREE, BY_CLASSIFIER), strict=False):
        rows = sorted((row for row in tree["rows"] if row["kind"] == kind), key=lambda row: float(row["scale"]))
        if not rows:
            continue
        curve(axes[0], [row["scale"] for row in rows], [row["frechet"] for row in rows], colour, kind)
        agreeing = [row for row in rows if "agreement" in row]
        curve(axes[1], [r["scale"] for r in agreeing], [100 * r["agreement"] for r in agreeing], colour, kind)
        curve(axes[2], [row["recall"] for row in rows], [row["precision"] for row in rows], colour, kind)
        for row in rows:
            axes[2].annotate(f"{row['scale']:g}", (row["recall"], row["precision"]), fontsize=7, color=palette.ink)
    plain = [row for row in tree["rows"] if row["kind"] == PLAIN]
    if plain:
        reference(axes[0], palette, plain[0]["frechet"], "unconditional")
    for axis, title, x in (
        (axes[0], "Fréchet distance", "guidance scale"),
        (axes[1], "of the asked class, %", "guidance scale"),
        (axes[2], "precision, by recall", "recall"),
    ):
        axis.set_title(title)
        axis.set_xlabel(x)
    legend_below(axes[0], 2)
    save_figure(finished(figure, palette), file, "png", 100)


def curve(axis: Any, x: Sequence[float], y: Sequence[float], colour: Any, label: str) -> None:
    """Draw a line with points."""
    axis.plot(x, y, color=colour, marker="o", markersize=3, label=label)


if __name__ == "__main__":
    main()
