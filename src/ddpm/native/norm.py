"""Group norm, scale and shift, and SiLU as one differentiable function over channels_last activations."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddpm.native.calls import integers, kernel, pointer


def norm_silu(
    x: Tensor,
    groups: int,
    gain: Tensor,
    bias: Tensor,
    eps: float,
    *,
    offset: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
) -> Tensor:
    """Return silu(norm(x + offset) (1 + scale) + shift), [B, C, H, W], in the dtype of `x`.

    Reads `x` twice and writes once, where single operations read and write it six times. Statistics, tables and sums
    are float32 or better whatever the dtype of `x`. Pictures do not mix: results depend on neither batch nor threads.

    Args:
        x: [B, C, H, W], one that `takes` accepts.
        groups: of channels that share their statistics; divides C.
        gain: [C], of the norm.
        bias: [C], of the norm.
        eps: added to the variance.
        offset: [B, C] or [1, C], added to `x` before the norm; none: zeros.
        scale: [B, C] or [1, C]; none: zeros.
        shift: [B, C] or [1, C]; none: zeros.
        silu: whether SiLU follows.

    Raises:
        RuntimeError: for a table of another shape; the kernel itself would read past its end.
    """
    batch, channels = x.shape[:2]
    of_channels = (table.float().expand(channels).contiguous() for table in (gain, bias))
    of_pictures = (
        None if table is None else table.float().expand(batch, channels).contiguous()
        for table in (offset, scale, shift)
    )
    result: Tensor = _NormSilu.apply(x, *of_channels, *of_pictures, groups, eps, silu)  # type: ignore[no-untyped-call]
    return result


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        bias: Tensor,
        offset: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        groups: int,
        eps: float,
        silu: bool,
    ) -> Tensor:
        batch, channels, height, width = x.shape
        y = torch.empty_like(x)
        mean, rstd = x.new_empty((2, batch, groups), dtype=torch.float32).unbind()
        tables = (gain, bias, offset, scale, shift)
        kernel("norm_silu_forward", x.dtype)(
            *map(pointer, (x, y, mean, rstd, *tables)),
            *integers(batch, height * width, channels, groups),
            ctypes.c_double(eps),
            int(silu),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(x, mean, rstd, *tables)
        ctx.groups, ctx.silu = groups, silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, *tables = ctx.saved_tensors
        batch, channels, height, width = x.shape
        dy = dy.to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        d_gain, d_bias, d_offset, d_scale, d_shift = x.new_empty((5, batch, channels), dtype=torch.float32).unbind()
        kernel("norm_silu_backward", x.dtype)(
            *map(pointer, (x, dy, dx, mean, rstd, *tables, d_gain, d_bias, d_offset, d_scale, d_shift)),
            *integers(batch, height * width, channels, ctx.groups),
            int(ctx.silu),
            torch.get_num_threads(),
        )
        of_pictures = (
            None if table is None else grad
            for table, grad in zip(tables[2:], (d_offset, d_scale, d_shift), strict=True)
        )
        return dx, d_gain.sum(0), d_bias.sum(0), *of_pictures, None, None, None
