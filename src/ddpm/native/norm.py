"""Group norm, scale and shift, and SiLU as one differentiable function over channels_last activations."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddpm.native.calls import integers, kernel, pointer


@dataclass(frozen=True, slots=True)
class Dropout:
    """Which activations are dropped behind the SiLU (`ddpm.networks.dropout` says how it is decided).

    Attributes:
        positions: int64 [H W C / 4], a well-mixed word for every four activations of a picture, in (h, w, c) order.
        states: int64 [B], a well-mixed word for every picture.
        dropped: how many of 65536 are dropped; below 65536.
    """

    positions: Tensor
    states: Tensor
    dropped: int


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
    dropout: Dropout | None = None,
) -> Tensor:
    """Return dropout(silu(norm(x + offset) (1 + scale) + shift)), [B, C, H, W], in the dtype of `x`.

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
        dropout: what is dropped, decided again in the backward pass and never stored; none: nothing. Its channels must
            be a multiple of four.

    Raises:
        RuntimeError: for a table of another shape; the kernel itself would read past its end.
    """
    batch, channels, height, width = x.shape
    words = None if dropout is None else (dropout.positions.contiguous(), dropout.states.contiguous())
    if words is not None and (channels % 4, *map(len, words)) != (0, channels * height * width // 4, batch):
        raise RuntimeError(f"dropout of {[len(each) for each in words]} words for pictures of shape {list(x.shape)}")
    of_channels = (table.float().expand(channels).contiguous() for table in (gain, bias))
    of_pictures = (
        None if table is None else table.float().expand(batch, channels).contiguous()
        for table in (offset, scale, shift)
    )
    result: Tensor = _NormSilu.apply(  # type: ignore[no-untyped-call]
        x, *of_channels, *of_pictures, *(words or (None, None)), dropout.dropped if dropout else 0, groups, eps, silu
    )
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
        positions: Tensor | None,
        states: Tensor | None,
        dropped: int,
        groups: int,
        eps: float,
        silu: bool,
    ) -> Tensor:
        batch, channels, height, width = x.shape
        y = torch.empty_like(x)
        mean, rstd = x.new_empty((2, batch, groups), dtype=torch.float32).unbind()
        tables = (gain, bias, offset, scale, shift)
        kernel("norm_silu_forward", x.dtype)(
            *map(pointer, (x, y, mean, rstd, *tables, positions, states)),
            *integers(dropped, batch, height * width, channels, groups),
            ctypes.c_double(eps),
            int(silu),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(x, mean, rstd, positions, states, *tables)
        ctx.dropped, ctx.groups, ctx.silu = dropped, groups, silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, positions, states, *tables = ctx.saved_tensors
        batch, channels, height, width = x.shape
        dy = dy.to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        d_gain, d_bias, d_offset, d_scale, d_shift = x.new_empty((5, batch, channels), dtype=torch.float32).unbind()
        grads = (d_gain, d_bias, d_offset, d_scale, d_shift)
        kernel("norm_silu_backward", x.dtype)(
            *map(pointer, (x, dy, dx, mean, rstd, *tables, *grads, positions, states)),
            *integers(ctx.dropped, batch, height * width, channels, ctx.groups),
            int(ctx.silu),
            torch.get_num_threads(),
        )
        of_pictures = (
            None if table is None else grad
            for table, grad in zip(tables[2:], (d_offset, d_scale, d_shift), strict=True)
        )
        return dx, d_gain.sum(0), d_bias.sum(0), *of_pictures, *(None,) * 6
