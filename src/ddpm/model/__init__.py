"""A trained model: what it is made of, its file, and what is added to it or steers it from outside."""

from __future__ import annotations

from ddpm.model.model import Model, OnStep

__all__ = ["Model", "OnStep"]
