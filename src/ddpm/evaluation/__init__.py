"""Scores of samples against held-out pictures; every score carries its recipe."""

from ddpm.evaluation.scores.pixel_scores import PixelScores, pixel_scores

__all__ = ["PixelScores", "pixel_scores"]
