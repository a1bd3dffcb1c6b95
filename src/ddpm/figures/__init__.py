"""Figures: functions of numbers that return a matplotlib Figure; matplotlib is imported when one is drawn."""

from ddpm.figures.likelihood import bound_shares, rate_distortion

__all__ = ["bound_shares", "rate_distortion"]
