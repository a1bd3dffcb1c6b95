"""The presets, as data: trees that override the defaults of `ddpm.config`."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ddpm.errors import ConfigError, nearest

PRESETS: dict[str, dict[str, Any]] = {
    # 1,437 scans of 8x8: the smallest network that a person would call a success, in under three minutes on two cores.
    "digits": {
        "schedule": {"name": "cosine"},
        "objective": {"parameterization": "v"},
        "network": {
            "base_channels": 32,
            "channel_multipliers": [1, 2],
            "blocks_per_level": 1,
            "attention_levels": [1],
            "num_groups": 8,
        },
        "training": {
            "steps": 1700,
            "batch_size": 64,
            "learning_rate": 2e-3,
            "warmup_steps": 100,
            "decay": "cosine",
            "ema_decay": 0.999,
            "checkpoint_every": 100,
            "preview_every": 400,
            "evaluate_every": 100,
            "log_every": 10,
        },
    },
    "mnist": {
        "schedule": {"name": "cosine"},
        "objective": {"parameterization": "v"},
        "network": {
            "base_channels": 32,
            "channel_multipliers": [1, 2, 2],
            "blocks_per_level": 1,
            "attention_levels": [2],
            "num_groups": 8,
        },
        "training": {
            "steps": 5000,
            "batch_size": 128,
            "learning_rate": 1e-3,
            "warmup_steps": 200,
            "decay": "cosine",
            "ema_decay": 0.999,
            "checkpoint_every": 250,
            "preview_every": 250,
            "evaluate_every": 250,
        },
    },
    # Some 1,600 captioned pictures of 64x64: text to image in half an hour on two cores. Squares of 4x4 pixels cost 16
    # times less than pixels; what they show is simpler than their noise, so the network returns x_0. So few pictures
    # are learned by being seen often, here 220 times each: a narrow network sees more of them a second. It is told of
    # places, for in pure noise the text alone says what lies where.
    "emoji": {
        "conditions": {"text": "own"},
        "schedule": {"name": "cosine"},
        "objective": {"parameterization": "x_0"},
        "sampling": {"guidance": 2.0},
        "network": {
            "base_channels": 48,
            "channel_multipliers": [1, 2, 4],
            "blocks_per_level": 1,
            "attention_levels": [1, 2],
            "head_channels": 32,
            "time_conditioning": "scale_shift",
            "num_groups": 8,
            "patch_size": 4,
            "place_waves": 6,
            "text_width": 192,
        },
        "training": {
            "steps": 11_000,
            "batch_size": 32,
            "learning_rate": 1e-3,
            "warmup_steps": 200,
            "decay": "cosine",
            "ema_decay": 0.999,
            "checkpoint_every": 500,
            "preview_every": 1000,
            "evaluate_every": 1000,
            "previews": 25,
            "milestones": 0,
            "stop": "budget",
        },
    },
    # 50,000 photographs of 32x32: half an hour on two cores. So few steps want a narrow network and small batches.
    "cifar10": {
        "data": {"flip": True},
        "schedule": {"name": "cosine"},
        "objective": {"parameterization": "v"},
        "network": {
            "base_channels": 64,
            "channel_multipliers": [1, 2, 2],
            "blocks_per_level": 1,
            "attention_levels": [2],
            "num_groups": 8,
        },
        "training": {
            "steps": 4500,
            "batch_size": 64,
            "learning_rate": 1e-3,
            "warmup_steps": 200,
            "decay": "cosine",
            "ema_decay": 0.999,
            "checkpoint_every": 250,
            "preview_every": 500,
            "evaluate_every": 500,
        },
    },
    # Ho et al. 2020, Sec. 4 and App. B: the paper's own recipe.
    "cifar10-paper": {
        "data": {"flip": True},
        "schedule": {"name": "linear"},
        "objective": {"parameterization": "eps", "variance": "fixed_large"},
        "network": {
            "base_channels": 128,
            "channel_multipliers": [1, 2, 2, 2],
            "blocks_per_level": 2,
            "attention_levels": [1],
            "dropout": 0.1,
        },
        "training": {
            "steps": 800_000,
            "batch_size": 128,
            "learning_rate": 2e-4,
            "warmup_steps": 5000,
            "ema_decay": 0.9999,
            "checkpoint_every": 5000,
            "preview_every": 5000,
            "evaluate_every": 5000,
            "stop": "budget",
        },
        "sampling": {"sampler": "ddpm", "steps": 1000},
    },
}
"""Every preset with a fixed recipe; `auto` is made from the data by `auto_preset`."""

# Points: half a minute of one core. Evaluations are cheap, so there are more sampling steps than for pictures
_POINTS: dict[str, Any] = {
    "schedule": {"name": "cosine"},
    "objective": {"parameterization": "v"},
    "network": {"kind": "mlp", "base_channels": 64, "blocks_per_level": 3},
    "training": {
        "steps": 3000,
        "batch_size": 256,
        "precision": "float32",
        "learning_rate": 2e-3,
        "warmup_steps": 100,
        "decay": "cosine",
        "ema_decay": 0.999,
        "checkpoint_every": 1000,
        "preview_every": 1000,
        "evaluate_every": 500,
        "previews": 2000,
    },
    "sampling": {"steps": 100},
}

NAMES = (*PRESETS, "auto")

_OF_DATA_SETS = ("mnist", "cifar10")


def default_preset(source: str, known: Collection[str] = NAMES) -> str:
    """Return the preset of a source: its own where its name has one among those known, else "auto"."""
    if source == "digits" and not Path(source).exists():  # a folder of that name is one's own pictures
        return "digits"
    name = source.rstrip("/").rsplit("/", 1)[-1]
    return name if name in _OF_DATA_SETS and name in known else "auto"


def preset_tree(name: str, *, size: tuple[int, int], count: int) -> dict[str, Any]:
    """Return the tree of a preset.

    Args:
        name: one of `NAMES`.
        size: height and width of the pictures, which "auto" needs.
        count: how many pictures there are to train on, which "auto" needs.

    Raises:
        ConfigError: for an unknown name.
    """
    if name == "auto":
        return auto_preset(size, count)
    if name not in PRESETS:
        raise ConfigError(f"unknown preset '{name}'{nearest(name, NAMES)}; known are {', '.join(NAMES)}")
    return PRESETS[name]


def auto_preset(size: tuple[int, int], count: int) -> dict[str, Any]:
    """Return a recipe for pictures of one's own, from their size and number; size 1x1 stands for points.

    Levels, at most 8, go down to about 8 pixels, with attention where the side is at most 16; few pictures get dropout
    and a smaller network, because a larger one would learn them by heart.
    """
    side = max(size)
    if side == 1:
        return _POINTS
    levels = min(max(2, math.ceil(math.log2(side / 8)) + 1), 8)
    few = count < 2000
    return {
        "schedule": {"name": "cosine"},
        "objective": {"parameterization": "v"},
        "network": {
            "base_channels": 32 if few or side > 64 else 64,
            "channel_multipliers": [min(2**level, 4) for level in range(levels)],
            "blocks_per_level": 1 if few else 2,
            "attention_levels": [level for level in range(levels) if side / 2**level <= 16] or [levels - 1],
            "dropout": 0.1 if few else 0.0,
            "head_channels": 32,
            "num_groups": 8,
        },
        "training": {
            "steps": max(2000, min(100_000, 40 * count)),
            "batch_size": 32 if side >= 64 else 64,
            "learning_rate": 5e-4,
            "warmup_steps": 200,
            "decay": "cosine",
            "ema_decay": 0.999,
            "checkpoint_every": 250,
            "preview_every": 250,
            "evaluate_every": 250,
            "previews": 16 if side >= 64 else 36,
        },
    }
