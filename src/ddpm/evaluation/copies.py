"""Near-copies of training pictures among samples: by pixels, and by features where there are others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.codec import Pictures
from ddpm.data import Store
from ddpm.evaluation.metrics import Evidence, Score
from ddpm.evaluation.report.exhibits import Pair
from ddpm.evaluation.scores.memorization import Memorization, memorization
from ddpm.evaluation.scores.pixel_scores import MAX_DIMENSIONS

PIXELS = "pixels"

_PAIRS = 12  # of samples and their nearest training pictures that a report shows
_MOST_LISTED = 1000  # near-copies named in the JSON
_BLOCK = 256  # pictures made small at a time


@dataclass(frozen=True, eq=False)
class Copies:
    """What a report says of near-copies, by one measure of nearness.

    Attributes:
        measure: "pixels", or the name of the extractor.
        score: the share of near-copies, beside that of held-out pictures.
        details: which samples they are; plain JSON values.
        pairs: samples that are nearest to a training picture, the nearest first.
    """

    measure: str
    score: Score
    details: dict[str, Any]
    pairs: list[Pair]


def copies(
    samples: Pictures, store: Store, train_rows: NDArray[np.int64], extractor: str | None, evidence: Evidence | None
) -> list[Copies]:
    """Return the near-copies by pixels and, with an extractor of other features, by these.

    A copy that is shifted or recoloured is near by features alone; one of a plain motif, that a network takes for
    many others, by pixels alone.

    Args:
        samples: [N, H, W, C], in the scale of the data.
        store: the data.
        train_rows: training pictures that are compared with.
        extractor: its name; none: no features.
        evidence: its features, of the samples, of the pictures of `train_rows`, and of the held-out ones.

    Raises:
        DataError: if there are too few pictures, or they are all the same.
    """
    parts = [shrunk(samples), shrunk(store.pictures, train_rows), shrunk(store.pictures, store.held_out)]
    found = [_described(PIXELS, memorization(*parts), samples, store, train_rows)]
    if evidence is not None and extractor is not None and extractor != PIXELS:
        of_features = memorization(*(side["pooled"] for side in (evidence.samples, evidence.train, evidence.held_out)))
        found.append(_described(extractor, of_features, samples, store, train_rows))
    return found


def shrunk(pictures: Pictures, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """Return pictures as rows of pixels, float32 [N, D], averaged over areas where D would pass 1,024.

    Means over areas keep what makes a picture a copy, and let 50,000 large pictures fit into memory.
    """
    chosen = np.arange(len(pictures), dtype=np.int64) if rows is None else rows
    height, width, channels = pictures.shape[1:]
    scale = min(1.0, (MAX_DIMENSIONS / (height * width * channels)) ** 0.5)
    sides = (max(1, int(height * scale)), max(1, int(width * scale)))
    blocks = [_small(pictures[chosen[start : start + _BLOCK]], sides) for start in range(0, len(chosen), _BLOCK)]
    return np.concatenate(blocks)


def _small(pictures: Pictures, sides: tuple[int, int]) -> NDArray[np.float32]:
    values = torch.from_numpy(pictures.astype(np.float32)).permute(0, 3, 1, 2)
    if sides != pictures.shape[1:3]:
        values = torch.nn.functional.adaptive_avg_pool2d(values, sides)
    rows: NDArray[np.float32] = values.flatten(1).numpy()
    return rows


def _described(
    measure: str, found: Memorization, samples: Pictures, store: Store, train_rows: NDArray[np.int64]
) -> Copies:
    by_pixels = measure == PIXELS
    score = Score(
        name="near_copies" if by_pixels else "near_copies_features",
        label=f"near-copies of training, by {'pixels' if by_pixels else 'features'}",
        value=found.share,
        n=found.samples,
        meaning="share; no more than of held-out",
        error=_error_of_share(found.share, found.samples),
        floor=found.share_held_out,
        floor_error=_error_of_share(found.share_held_out, found.held_out),
        floor_n=found.held_out,
    )
    details = {
        "share": found.share,
        "share_held_out": found.share_held_out,
        "near_copies": np.flatnonzero(found.is_near_copy)[:_MOST_LISTED].tolist(),
        "training_pictures": len(train_rows),
    }
    numbers = [int(i) for i in np.argsort(found.ratios, kind="stable") if i < len(samples)][:_PAIRS]
    pairs = [_pair(number, found, samples, store, int(train_rows[found.nearest[number]])) for number in numbers]
    return Copies(measure, score, details, pairs)


def _pair(number: int, found: Memorization, samples: Pictures, store: Store, row: int) -> Pair:
    return Pair(
        number=number,
        sample=samples[number],
        nearest=store.pictures[row],
        name=str(store.names[row]),
        ratio=float(found.ratios[number]),
        is_near_copy=bool(found.is_near_copy[number]),
    )


def _error_of_share(share: float, n: int) -> float:
    return float(np.sqrt(share * (1 - share) / n))
