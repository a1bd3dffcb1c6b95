"""Denoising networks: nn.Modules, tensors in, tensors out; they know no file and no schedule."""

from __future__ import annotations

from ddpm.networks.unet import UNet, build_unet

__all__ = ["UNet", "build_unet"]
