"""3x3 convolution, with what stands around it in a U-Net: one function, so that it can be one pass over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddpm import native


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with a margin of zeros.

    Attributes:
        fused: whether to use the compiled kernel where it can read the activations: about 1.9 times faster than the
            matrix library's convolution on a CPU with AVX512, 3 times on doubled pictures. Equal within rounding.
        keeps: whether weights that are not trained are kept in transformed form; not where they come and go in pieces.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self.fused = False
        self.keeps = True
        self._transformed: tuple[Tensor, int, Tensor] | None = None

    def forward(self, input: Tensor, *, residual: Tensor | None = None, doubled: bool = False) -> Tensor:
        """Return residual + conv(input).

        Args:
            input: [B, in_channels, H, W].
            residual: [B, out_channels, H, W]; none: zeros.
            doubled: whether every pixel of `input` is first repeated 2x2; the result is [B, out_channels, 2H, 2W].
        """
        if self.fused:
            x = input.bfloat16() if torch.is_autocast_enabled("cpu") else input
            weight = self.weight  # computed at every reading where it has a low-rank update
            if native.convolves(x, weight):
                return native.conv3x3(
                    x,
                    weight,
                    self.bias,
                    residual=residual,
                    doubled=doubled,
                    transformed=self._kept(weight, x.dtype),
                )
        h = super().forward(double(input) if doubled else input)
        return h if residual is None else residual + h

    def _kept(self, weight: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Return the transformed weights, kept while they do not change; none for weights that are being trained.

        They take 16 / 9 of the memory that the weights would take in `dtype`.
        """
        if weight.requires_grad or not self.keeps:
            self._transformed = None
            return None
        if self._transformed is not None:
            source, version, transformed = self._transformed
            if source is weight and version == weight._version and transformed.dtype == dtype:
                return transformed
        transformed = native.transform_weights(weight, dtype)
        self._transformed = weight, weight._version, transformed
        return transformed

    def __getstate__(self) -> dict[str, Any]:
        # A copy has weights of its own, whose versions are counted anew.
        return {**self.__dict__, "_transformed": None}


def double(x: Tensor) -> Tensor:
    """Return every pixel repeated 2x2, [B, C, 2H, 2W]."""
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")
