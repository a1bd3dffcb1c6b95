"""Text to image from scratch: 1,633 captioned emoji, half an hour on two cores, then prompts and retrieval.

python benchmarks/emoji.py DATA [--out RUN] [--minutes 30] [--scales 2 1 3 5] [--json FILE] [--grid FILE.png]

The same command goes on with a run that was interrupted, and only measures one that is finished. Retrieval: of each of
200 training captions that belong to one picture, a sample is made; is that picture among the five nearest of all
training pictures? Pictures are compared by their colours in a grid of 16x16, the means of 4x4 pixels. That this is a
sensible distance is measured beside it: the share of training pictures that are found again by a version of themselves
that is moved by 2 pixels, brighter or darker by 10 %, and noisy.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from turns import machine

from ddpm.config import from_tree
from ddpm.data import Store, open_store, render_grid, save_png
from ddpm.engine import choose_engine
from ddpm.files import write_text
from ddpm.model import Model

CAPTIONS = 200
NEAREST = 5
GOALS = {"retrieval": "at least 0.10 among the five nearest (chance 0.003)", "minutes": "at most 30 on two cores"}

PROMPTS = (
    # seen in training
    ("red apple", "blue heart", "slice of pizza", "panda face", "sunflower", "rocket", "soccer ball", "tropical fish"),
    # recombined: no caption says so
    ("red heart", "green apple face", "yellow book", "purple circle", "orange car", "green star", "red cat",
     "blue flower"),
    ("cat face with sunglasses", "dog face with tears of joy", "bear face with open mouth", "smiling moon face",
     "robot face with sunglasses", "pig face with halo", "frog with hat", "blue cat face"),
)  # fmt: skip


def main() -> None:
    """Train for the time that there is, draw, measure, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/emoji"))
    parser.add_argument("--minutes", type=float, default=30.0, help="after so many, training is stopped and resumable")
    parser.add_argument(
        "--scales", type=float, nargs="+", default=[2.0, 1.0, 3.0, 5.0], help="of guidance; the grid has the first"
    )
    parser.add_argument("--steps", type=int, default=20, help="of sampling")
    parser.add_argument("--set", action="append", default=[], help="passed on to 'ddpm train'")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--grid", type=Path)
    arguments = parser.parse_args()
    trained = train(arguments.data, arguments.out, arguments.minutes, arguments.set)
    model = Model.load(arguments.out)
    store = open_store(arguments.data, from_tree(model.provenance["config"]).data)
    result = {
        "goals": GOALS,
        "training": {**trained, "step": model.provenance["step"], "parameters": model.num_parameters},
        "distance": found_again(store),
        "prompts": seen_prompts(store),
        "retrieval": {f"{scale:g}": retrieval(model, store, scale, arguments.steps) for scale in arguments.scales},
        "machine": machine(),
    }
    print(json.dumps(result, indent=2))
    if arguments.grid:
        save_png(grid(model, arguments.scales[0], arguments.steps), arguments.grid)
    if arguments.json:
        write_text(arguments.json, json.dumps(result, indent=2) + "\n")


def train(data: Path, out: Path, minutes: float, settings: list[str]) -> dict[str, float]:
    """Train, or go on, for at most so many minutes; return the seconds by the clock and of the processor."""
    words = [sys.executable, "-m", "ddpm.cli.main", "train", str(data), "--preset", "emoji", "--out", str(out)]
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen([*words, *(word for each in settings for word in ("--set", each))])
    try:
        process.wait(timeout=60 * minutes)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # after which everything is saved
    if process.wait() not in (0, 130):
        raise SystemExit(process.returncode)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(time.monotonic() - start, 1), "processor_seconds": round(used, 1)}


def sample(model: Model, texts: list[str], scale: float, steps: int) -> NDArray[np.uint8]:
    """Return a picture for each text [B, H, W, C], with classifier-free guidance; picture i has noise i."""
    engine = choose_engine()
    engine.place(model.network)
    with engine.autocast():
        return model.sample(len(texts), text=texts, guidance=scale, steps=steps, batch_size=25)


def layout(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the colours of pictures in a grid of 16x16, [B, 768]."""
    count, height, width, channels = pictures.shape
    squares = pictures.reshape(count, 16, height // 16, 16, width // 16, channels)
    colours: NDArray[np.float64] = squares.mean(axis=(2, 4)).reshape(count, -1) / 255
    return colours


def rank(features: NDArray[np.float64], known: NDArray[np.float64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many of the known rows are nearer to each row of features than the right one."""
    distances = np.stack([((known - row) ** 2).sum(axis=1) for row in features])
    nearer: NDArray[np.int64] = (distances < distances[np.arange(len(right)), right][:, None]).sum(axis=1)
    return nearer


def found_again(store: Store) -> dict[str, float]:
    """Return the share of training pictures that their own changed versions find."""
    pictures, source = np.asarray(store.pictures[store.train]), np.random.default_rng(0)
    chosen = source.permutation(len(pictures))[:CAPTIONS]
    changed = []
    for picture in pictures[chosen].astype(np.float64):
        moved = np.roll(picture, source.choice([-2, 2], 2), axis=(0, 1))
        changed.append(moved * source.uniform(0.9, 1.1) + source.normal(0, 12, moved.shape))
    ranks = rank(layout(np.clip(np.stack(changed), 0, 255).astype(np.uint8)), layout(pictures), chosen)
    return {"changed_versions_found": float((ranks < NEAREST).mean()), "chance": NEAREST / len(pictures)}


def retrieval(model: Model, store: Store, scale: float, steps: int) -> dict[str, float]:
    """Return how often the picture of a caption is among the nearest of the caption's sample."""
    assert store.captions is not None
    texts = [store.captions[int(row)] for row in store.train]
    counts = Counter(texts)
    single = [place for place, text in enumerate(texts) if counts[text] == 1]
    right = np.asarray([single[i * len(single) // CAPTIONS] for i in range(CAPTIONS)])
    samples = sample(model, [texts[place] for place in right], scale, steps)
    ranks = rank(layout(samples), layout(np.asarray(store.pictures[store.train])), right)
    return {
        "among_5": float((ranks < NEAREST).mean()),
        "first": float((ranks == 0).mean()),
        "median_rank": float(np.median(ranks)),
    }


def seen_prompts(store: Store) -> dict[str, bool]:
    """Return of each prompt whether it is a training caption."""
    assert store.captions is not None
    captions = {store.captions[int(row)] for row in store.train}
    return {text: text in captions for row in PROMPTS for text in row}


def grid(model: Model, scale: float, steps: int) -> Any:
    """Return the pictures of `PROMPTS`, a row of the program a row of the grid."""
    texts = [text for row in PROMPTS for text in row]
    return render_grid(sample(model, texts, scale, steps), len(PROMPTS[0]))


if __name__ == "__main__":
    main()
