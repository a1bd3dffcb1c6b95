"""Denoising Diffusion Probabilistic Models: every formula right, one command to train, one to sample."""

__version__ = "0.1.0"
