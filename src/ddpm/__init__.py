"""Denoising Diffusion Probabilistic Models: every formula right, one command to train, one to sample."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ddpm.version import __version__

_HOMES = {
    "Model": "ddpm.model",
    "train": "ddpm.training.api",
    "evaluate": "ddpm.evaluation.api",
    "NoiseSchedule": "ddpm.diffusion",
    "Prediction": "ddpm.diffusion",
    "make_schedule": "ddpm.diffusion",
    "open_store": "ddpm.data",
    "render_grid": "ddpm.data",
    "DdpmError": "ddpm.errors",
}

__all__ = [
    "DdpmError",
    "Model",
    "NoiseSchedule",
    "Prediction",
    "__version__",
    "evaluate",
    "make_schedule",
    "open_store",
    "render_grid",
    "train",
]

if TYPE_CHECKING:
    from ddpm.data import open_store, render_grid
    from ddpm.diffusion import NoiseSchedule, Prediction, make_schedule
    from ddpm.errors import DdpmError
    from ddpm.evaluation.api import evaluate
    from ddpm.model import Model
    from ddpm.training.api import train


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: ``import ddpm`` itself loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ddpm' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
