"""Figures: functions of numbers that return a matplotlib Figure; matplotlib is imported when one is drawn."""

from ddpm.figures.likelihood import bound_shares, rate_distortion
from ddpm.figures.registry import FIGURES, Entry, Request, entry_of
from ddpm.figures.style import save_figure

__all__ = ["FIGURES", "Entry", "Request", "bound_shares", "entry_of", "rate_distortion", "save_figure"]
