from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm.codec import PixelCodec

CODECS = {
    17: PixelCodec(17, (0.0, 16.0), "uint8"),
    256: PixelCodec(256, (0.0, 255.0), "uint8"),
    65536: PixelCodec(65536, (0.0, 65535.0), "uint16"),
}


@pytest.mark.parametrize("levels", CODECS)
def test_every_level_survives_and_the_ends_are_minus_one_and_one(levels: int) -> None:
    codec = CODECS[levels]
    every = np.arange(levels, dtype=codec.dtype).reshape(1, 1, levels, 1)
    x_0 = codec.encode(every)
    assert (float(x_0.min()), float(x_0.max())) == (-1.0, 1.0) == codec.clip_range
    assert x_0.dtype == torch.float32
    assert bool((x_0.diff(dim=-1) > 0).all())
    back = codec.decode(x_0)
    assert back.dtype == codec.dtype
    np.testing.assert_array_equal(back, every)


@given(st.sampled_from(list(CODECS)), st.tuples(*[st.integers(1, 5)] * 4), st.integers(0, 2**32 - 1))
def test_pictures_of_any_shape_survive_in_place(levels: int, shape: tuple[int, ...], seed: int) -> None:
    codec = CODECS[levels]
    pictures = np.random.default_rng(seed).integers(0, levels, shape).astype(codec.dtype)
    x_0 = codec.encode(pictures)
    assert tuple(x_0.shape) == (shape[0], shape[3], shape[1], shape[2])
    np.testing.assert_array_equal(codec.decode(x_0), pictures)


@given(st.sampled_from(list(CODECS)), st.floats(-0.49, 0.49), st.integers(0, 2**16 - 1))
def test_decode_rounds_to_the_nearest_level(levels: int, offset: float, level: int) -> None:
    level %= levels
    value = torch.tensor((level + offset) * 2 / (levels - 1) - 1).reshape(1, 1, 1, 1)
    assert CODECS[levels].decode(value).item() == level


@pytest.mark.parametrize("levels", CODECS)
def test_decode_clamps_what_lies_outside(levels: int) -> None:
    outside = torch.tensor([-1e9, -1.5, 1.5, 1e9]).reshape(1, 1, 1, 4)
    assert CODECS[levels].decode(outside).ravel().tolist() == [0, 0, levels - 1, levels - 1]


def test_floating_point_is_scaled_but_neither_rounded_nor_clamped() -> None:
    codec = PixelCodec(None, (-3.0, 5.0), "float32")
    points = np.array([[-3.0, 5.0], [1.0, 0.3]], dtype=np.float32).reshape(2, 1, 1, 2)
    x_0 = codec.encode(points)
    assert codec.clip_range is None
    torch.testing.assert_close(x_0.reshape(4), torch.tensor([-1.0, 1.0, 0.0, -0.175]))
    np.testing.assert_allclose(codec.decode(x_0), points, atol=1e-6)
    assert codec.decode(x_0 * 10).max() > 5
