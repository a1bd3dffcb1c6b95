"""Softmax attention over tokens of which some are padding, and some are nearer than others."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

_MOST_SCORES = 2**22
"""Most scores that are kept for the gradient on a CPU: 8 MiB in bfloat16."""


def attend(q: Tensor, k: Tensor, v: Tensor, there: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(D) + bias) v, [B, heads, N, D].

    On a CPU, few scores are written out: the fused kernel of the framework is made for long sequences, and takes up to
    eight times longer for the gradient over the dozen tokens of a caption.

    Args:
        q: [B, heads, N, D].
        k: [B, heads, M, D].
        v: [B, heads, M, D].
        there: bool [B, M], false for padding, which has no part in it; none: there is no padding.
        bias: [heads, N, M], added to the scores; none: nothing is.
    """
    batch, heads, queries, width = q.shape
    mask = None if there is None else there[:, None, None]  # [B, 1, 1, M]
    if q.device.type != "cpu" or batch * heads * queries * k.shape[2] > _MOST_SCORES:
        if bias is not None:
            mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * width**-0.5) @ k.transpose(2, 3)  # [B, heads, N, M]
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    h: Tensor = scores.softmax(dim=3) @ v  # [B, heads, N, D]
    return h
