"""Denoising Diffusion Probabilistic Models: every formula right, one command to train, one to sample."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ddpm.version import __version__

_HOMES = {
    "Model": "ddpm.model",
    "train": "ddpm.api.train",
    "evaluate": "ddpm.api.evaluate",
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
    from ddpm.api.evaluate import evaluate
    from ddpm.api.train import train
    from ddpm.data import open_store, render_grid
    from ddpm.diffusion import NoiseSchedule, Prediction, make_schedule
    from ddpm.errors import DdpmError
    from ddpm.model import Model


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: ``import ddpm`` itself loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ddpm' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
