"""Dropout as a pure function of (seed, picture, place), whatever the batch, memory format and number of processes."""

from __future__ import annotations

import torch
from torch import Tensor

# The increment and the multipliers of splitmix64 (Steele et al. 2014), as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def dropout_states(keys: Tensor, layers: int) -> Tensor:
    """Return one well-mixed word for every dropout layer and picture.

    Args:
        keys: int64 [B], one key a picture; neighbouring keys are as good as random ones.
        layers: how many dropout layers there are.

    Returns:
        int64 [layers, B].
    """
    layer = torch.arange(1, layers + 1, device=keys.device)
    return _mix(_mix(keys) + layer[:, None] * _GOLDEN)  # [layers, B]


def dropout(x: Tensor, state: Tensor, p: float) -> Tensor:
    """Zero a share `p` of `x` and scale the rest to keep the mean, as a pure function of its arguments.

    Whether an element stays is decided by a hash of (state of its picture, position in (h, w, c) order) alone: not
    by the batch around it, the memory format, the device, or any global generator. One 64-bit hash decides four
    elements, by 16 bits each; so `p` is rounded to a multiple of 2^-16, and the scale is that of the rounded share.
    On a CPU it costs about a third of torch's own dropout, forward and backward, and a little more in the default
    memory format, where the mask is read out of order. Behind a norm the compiled kernel makes the same mask
    (`ddpm.native.norm_silu`).

    Args:
        x: [B, C, H, W].
        state: int64 [B], from `dropout_states`.
        p: share to drop, in [0, 1).

    Returns:
        [B, C, H, W], dtype of `x`.
    """
    batch, channels, height, width = x.shape
    count = channels * height * width
    dropped = dropped_of(p)
    bits = _remix_(mixed_positions(count, x.device) ^ state[:, None]).view(torch.int16)[:, :count]
    keep = bits.ge_(dropped - 32768).to(x.dtype).mul_(65536 / (65536 - dropped))  # [B, count]
    return x * keep.view(batch, height, width, channels).permute(0, 3, 1, 2)  # [B, C, H, W]


def dropped_of(p: float) -> int:
    """Return how many of 65536 are dropped for a share `p` in [0, 1)."""
    return min(round(p * 65536), 65535)


def mixed_positions(count: int, device: torch.device) -> Tensor:
    """Return a well-mixed word for every four of `count` activations, int64, the same for all pictures of a batch."""
    return _mix(torch.arange((count + 3) // 4, device=device) * _GOLDEN)


def _mix(z: Tensor) -> Tensor:
    """Return int64 words mixed by the finaliser of splitmix64 (Steele et al. 2014)."""
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Return the words shifted as if they had no sign; torch's own shift copies the sign into the upper bits."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _remix_(z: Tensor) -> Tensor:
    """Mix, in place and in few passes, words that are the exclusive or of two well-mixed words.

    The shifts copy the sign. In the exclusive or that costs one bit of 64; in the closing sum, a borrow of one: no pass
    is spent on masking. Over millions of pairs of masks the largest correlation is that of fair coins; without the
    first multiplication it is not.
    """
    z.mul_(_MIX_1)
    z.bitwise_xor_(z >> 32)
    z.mul_(_MIX_2)
    return z.add_(z >> 32)
