"""3x3 convolution with what stands around it in a U-Net, as one differentiable function over channels_last pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ddpm.native.calls import has, integers, kernel, pointer, readable, takes

_CHANNELS = 32
"""The kernel takes channels in steps of this many."""


def convolves(x: Tensor, weight: Tensor) -> bool:
    """Whether `conv3x3` can read its arguments here: numbers of channels that 32 divides, AVX512 for float32.

    For bfloat16, AVX512-BF16 without AMX: with AMX plain convolutions are faster.
    """
    return (
        takes(x)
        and has("winograd", x.dtype)
        and weight.dtype == torch.float32
        and readable(weight)
        and not any(channels % _CHANNELS for channels in weight.shape[:2])
    )


def transform_weights(weight: Tensor, dtype: torch.dtype, *, transposed: bool = False) -> Tensor:
    """Return the weights as the kernel reads them, [16 in out], to be given to any number of calls.

    Args:
        weight: float32 [out, in, 3, 3], of any strides.
        dtype: of the pictures.
        transposed: whether they are those of the gradient's convolution: turned by 180 degrees, [in, out].
    """
    out, in_ = weight.shape[:2]
    of_out, of_in, row, column = weight.stride()
    start = 0
    if transposed:
        out, in_, of_out, of_in, row, column, start = in_, out, of_in, of_out, -row, -column, 2 * (row + column)
    made = torch.empty(16 * in_ * out, dtype=dtype)
    kernel("winograd_weights", dtype)(
        pointer(weight.detach(), start),
        *integers(of_out, of_in, row, column, in_, out),
        pointer(made),
        torch.get_num_threads(),
    )
    return made


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    residual: Tensor | None = None,
    doubled: bool = False,
    transformed: Tensor | None = None,
) -> Tensor:
    """Return residual + conv(x), [B, out, H, W], a 3x3 convolution with a margin of zeros, in the dtype of `x`.

    Winograd's F(2x2, 3x3): 2.25 times fewer products than the sum written out; of doubled pictures, 4 times fewer. In
    float32 it is as exact. In bfloat16, where inputs and weights are rounded once more after their transforms, its
    error is 1.5 times that of a plain bfloat16 convolution; sums are float32. Pictures do not mix: results depend on
    neither batch nor threads.

    Args:
        x: [B, in, H, W], or [B, in, H / 2, W / 2] if `doubled`; one that `convolves` accepts with `weight`.
        weight: float32 [out, in, 3, 3].
        bias: [out]; none: zeros.
        residual: [B, out, H, W], added to the result before it is rounded; none: zeros.
        doubled: whether every pixel of `x` stands for 2x2 equal ones.
        transformed: what `transform_weights` made of `weight` before; none: made now.

    Raises:
        RuntimeError: for weights, a bias or a residual of another shape; the kernel itself would read past their end.
    """
    batch, channels, height, width = x.shape
    if weight.shape[1:] != (channels, 3, 3):
        raise RuntimeError(f"weights of shape {list(weight.shape)}; expected [out, {channels}, 3, 3]")
    shape = (batch, len(weight), height * 2, width * 2) if doubled else (batch, len(weight), height, width)
    if bias is not None:
        bias = bias.float().expand(len(weight)).contiguous()
    if residual is not None:
        residual = residual.to(x.dtype).expand(shape).contiguous(memory_format=torch.channels_last)
    result: Tensor = _Conv3x3.apply(x, weight, bias, residual, doubled, transformed)  # type: ignore[no-untyped-call]
    return result


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        doubled: bool,
        transformed: Tensor | None,
    ) -> Tensor:
        made = transform_weights(weight, x.dtype) if transformed is None else transformed
        ctx.save_for_backward(x, weight)
        ctx.doubled = doubled
        return _convolved(x, made, len(weight), bias, residual, doubled)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad[:4]
        dy = dy.to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx = d_weight = d_bias = None
        if needs_x:
            turned = transform_weights(weight, x.dtype, transposed=True)
            dx = _convolved(dy, turned, weight.shape[1], None, None, False)
            dx = functional.avg_pool2d(dx, 2, divisor_override=1) if ctx.doubled else dx
        if needs_weight or needs_bias:
            d_weight, d_bias = _gradients(x, dy, ctx.doubled)
        return dx, d_weight, d_bias if needs_bias else None, dy if needs_residual else None, None, None


def _convolved(
    x: Tensor, transformed: Tensor, out: int, bias: Tensor | None, residual: Tensor | None, doubled: bool
) -> Tensor:
    batch, in_, height, width = x.shape
    if doubled:
        height, width = 2 * height, 2 * width
    y = torch.empty((batch, out, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    kernel("winograd", x.dtype)(
        *map(pointer, (x, transformed, bias, residual, y)),
        *integers(batch, height, width, in_, out),
        int(doubled),
        torch.get_num_threads(),
    )
    return y


def _gradients(x: Tensor, dy: Tensor, doubled: bool) -> tuple[Tensor, Tensor]:
    """Return the gradients of weights and bias, float32."""
    batch, out, height, width = dy.shape
    in_ = x.shape[1]
    d_weight, d_bias = torch.empty((out, 3, 3, in_)), torch.empty(out)
    kernel("winograd_gradient", x.dtype)(
        *map(pointer, (x, dy, d_weight, d_bias)),
        *integers(batch, height, width, in_, out),
        int(doubled),
        torch.get_num_threads(),
    )
    return d_weight.permute(0, 3, 1, 2), d_bias
