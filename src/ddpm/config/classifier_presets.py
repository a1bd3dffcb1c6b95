"""The recipes of classifiers, as data: trees that override the defaults of `ddpm.config.ClassifierConfig`."""

from __future__ import annotations

import math
from typing import Any

from ddpm.errors import ConfigError, nearest

CLASSIFIER_PRESETS: dict[str, dict[str, Any]] = {
    "digits": {
        "network": {
            "base_channels": 32,
            "channel_multipliers": [1, 2],
            "blocks_per_level": 1,
            "attention_levels": [],
            "num_groups": 2,
            "dropout": 0.1,
        },
        "features": 64,
        "shift": 1,
        "training": {"steps": 500, "batch_size": 64, "evaluate_every": 100, "checkpoint_every": 100},
    },
    "mnist": {
        "network": {
            "base_channels": 32,
            "channel_multipliers": [1, 2, 4],
            "blocks_per_level": 1,
            "attention_levels": [],
            "num_groups": 2,
        },
        "stem_stride": 2,
        "shift": 2,
        "training": {"steps": 4000, "batch_size": 128, "evaluate_every": 500, "checkpoint_every": 500},
    },
}
"""Every preset with a fixed recipe; `auto` is made from the data."""

_COMMON: dict[str, Any] = {
    "training": {
        "learning_rate": 3e-3,
        "warmup_steps": 100,
        "decay": "cosine",
        "weight_decay": 0.05,
        "adam_betas": [0.9, 0.99],
        "ema_decay": 0.998,
    }
}

NOISY_TIMES = 3
"""How many times the steps of a clean classifier a noisy one of the same preset takes."""

CLASSIFIER_PRESET_NAMES = (*CLASSIFIER_PRESETS, "auto")


def classifier_preset_tree(name: str, *, size: tuple[int, int], count: int, noisy: bool = False) -> dict[str, Any]:
    """Return the tree of a preset.

    Args:
        name: one of `CLASSIFIER_PRESET_NAMES`.
        size: height and width of the pictures, which "auto" needs.
        count: how many pictures there are to train on, which "auto" needs.
        noisy: whether x_t are classified. That is harder: it takes `NOISY_TIMES` as many steps. Its probabilities are
            to be right, not only its classes: smoothed labels and moved pictures make the gradients that guide weak.

    Raises:
        ConfigError: for an unknown name.
    """
    if name == "auto":
        tree = _auto(size, count)
    elif name in CLASSIFIER_PRESETS:
        tree = CLASSIFIER_PRESETS[name]
    else:
        known = ", ".join(CLASSIFIER_PRESET_NAMES)
        raise ConfigError(f"unknown preset '{name}'{nearest(name, CLASSIFIER_PRESET_NAMES)}; known are {known}")
    training = {**_COMMON["training"], **tree["training"]}
    if not noisy:
        return {**tree, "training": training}
    steps = training["steps"] * NOISY_TIMES
    return {**tree, "shift": 0, "label_smoothing": 0.0, "training": {**training, "steps": steps}}


def _auto(size: tuple[int, int], count: int) -> dict[str, Any]:
    """Levels go down to about 4 pixels from at most 64; nothing is moved, because a place can mean something."""
    side = min(size)
    stride = 1 if side < 20 else 2 if side < 96 else 4
    levels = max(1, min(6, math.floor(math.log2(max(4, side / stride) / 4)) + 1))
    steps = max(500, min(20_000, 12 * count // 64))
    return {
        "network": {
            "base_channels": 32,
            "channel_multipliers": [min(2**level, 8) for level in range(levels)],
            "blocks_per_level": 1,
            "attention_levels": [],
            "num_groups": 2,
            "dropout": 0.1,
        },
        "stem_stride": stride,
        "training": {"steps": steps, "batch_size": 64, "evaluate_every": 250, "checkpoint_every": 250},
    }
