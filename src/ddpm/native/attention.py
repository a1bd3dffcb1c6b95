"""Softmax attention as one differentiable function."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddpm.native.calls import has, integers, kernel, pointer, readable

_WIDTH = 32
"""The kernel takes the width of a head in steps of this many."""

_MOST_PIXELS = 1024
"""Most pixels whose attention weights are kept for the gradient, 2 MiB a head in bfloat16."""


def attends(qkv: Tensor) -> bool:
    """Whether `attention` can read `qkv` here, and is the fastest way: see `convolves` for the instructions."""
    return (
        readable(qkv)
        and has("attention", qkv.dtype)
        and qkv.is_contiguous()
        and qkv.shape[-1] % _WIDTH == 0
        and (qkv.shape[1] <= _MOST_PIXELS or not (torch.is_grad_enabled() and qkv.requires_grad))
    )


def attention(qkv: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v for each picture and head, [B, N, heads, D], in the dtype of `qkv`.

    Scores, softmax and sums are float32; the weights of the values are rounded to the dtype of `qkv`.

    Args:
        qkv: [B, N, 3, heads, D]: queries, keys and values; one that `attends` accepts.
    """
    result: Tensor = _Attention.apply(qkv)  # type: ignore[no-untyped-call]
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor) -> Tensor:
        batch, pixels, _, heads, width = qkv.shape
        y = qkv.new_empty(batch, pixels, heads, width)
        weights = qkv.new_empty(batch, heads, pixels, pixels) if ctx.needs_input_grad[0] else None
        kernel("attention", qkv.dtype)(
            *map(pointer, (qkv, y, weights)),
            *integers(batch, pixels, heads, width),
            ctypes.c_double(width**-0.5),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(qkv, y, weights)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        qkv, y, weights = ctx.saved_tensors  # weights [B, heads, N, N]
        q, k, v = qkv.transpose(1, 3).unbind(2)  # [B, heads, N, D] each
        dy = dy.to(qkv.dtype)
        product = (dy.float() * y).sum(-1).transpose(1, 2)[..., None]  # [B, heads, N, 1]
        dy = dy.transpose(1, 2)  # [B, heads, N, D]
        # The gradient of a softmax does not change when all values move together: their common part would only cancel.
        common = v.mean(2, keepdim=True)  # [B, heads, 1, D]
        centre = torch.matmul(dy, common.transpose(2, 3)).float()  # [B, heads, N, 1]
        d_weights = torch.matmul(dy, (v - common).transpose(2, 3))  # [B, heads, N, N]
        d_scores = (d_weights - (product - centre)).mul_(weights).mul_(qkv.shape[-1] ** -0.5).to(qkv.dtype)
        d_qkv = torch.empty_like(qkv)
        d_q, d_k, d_v = d_qkv.transpose(1, 3).unbind(2)
        d_q.copy_(torch.matmul(d_scores, k))
        d_k.copy_(torch.matmul(d_scores.transpose(2, 3), q))
        d_v.copy_(torch.matmul(weights.transpose(2, 3), dy))
        return d_qkv
