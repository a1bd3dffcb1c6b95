"""What the network sees: channels, size and depth against references written out here."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torture_folder import noise, on_white

from ddpm.config import DataConfig
from ddpm.data.decide import Survey, choose_transform
from ddpm.data.decode import BadPictureError, Header
from ddpm.data.transform import Transform, composite, crop_box, to_depth, to_gray

WHITE = (255, 255, 255)


def transform(height=8, width=8, channels="rgb", depth="uint8", fit="crop", filter="lanczos", background=WHITE):
    return Transform(height, width, channels, depth, fit, filter, background)


def test_crop_is_the_centre_then_one_pass_of_the_filter():
    values = noise(30, 50, 3)
    expected = Image.fromarray(values).crop((10, 0, 40, 30)).resize((8, 8), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(transform()(values)[0], np.asarray(expected))


@pytest.mark.parametrize("name", ["lanczos", "bicubic", "bilinear", "box", "nearest"])
def test_stretch_uses_the_named_filter(name: str):
    values = noise(30, 50, 3)
    expected = Image.fromarray(values).resize((6, 9), Image.Resampling[name.upper()])
    made, _ = transform(9, 6, fit="stretch", filter=name)(values)
    np.testing.assert_array_equal(made, np.asarray(expected))


def test_pad_keeps_the_whole_picture_on_the_background():
    values = noise(20, 40, 3)
    made, _ = transform(16, 16, fit="pad", background=(1, 2, 3))(values)
    np.testing.assert_array_equal(
        made[4:12], np.asarray(Image.fromarray(values).resize((16, 8), Image.Resampling.LANCZOS))
    )
    assert (made[:4] == (1, 2, 3)).all()
    assert (made[12:] == (1, 2, 3)).all()
    clear, _ = transform(16, 16, channels="rgba", fit="pad")(values)
    assert (clear[:4, :, 3] == 0).all()
    assert (clear[4:12, :, 3] == 255).all()


def test_a_picture_of_the_right_size_stays_untouched():
    values = noise(8, 8, 3)
    made, done = transform(filter="box")(values)
    assert made is values
    assert done == ()


def test_antialiasing_averages():
    values = np.zeros((64, 64, 1), np.uint8)
    values[::2] = 200  # every other line: without antialiasing all would be 0 or 200
    made, _ = transform(8, 8, channels="gray")(values)
    assert np.abs(made.astype(int) - 100).max() <= 5


def test_16_bit_is_scaled_without_losing_depth():
    ramp = np.linspace(0, 65535, 64).round().astype(np.uint16)
    values = np.broadcast_to(ramp, (64, 64))[..., None]
    made, _ = transform(32, 32, channels="gray", depth="uint16", filter="box")(values)
    expected = ramp.astype(np.float64).reshape(32, 2).mean(axis=1)
    assert made.dtype == np.uint16
    assert np.abs(made[0, :, 0] - expected).max() <= 0.51
    assert len(np.unique(made % 256)) > 20


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_deep_pictures_do_not_overshoot(dtype: type):
    values = np.zeros((32, 32, 1), dtype)
    values[:, 16:] = 65535 if dtype is np.uint16 else 1.0
    made, _ = transform(9, 9, channels="gray", depth=np.dtype(dtype).name)(values)
    assert made.min() == 0
    assert made.max() == values.max()


def test_16_bit_alpha_is_scaled_as_8_bit_alpha_is():
    values = noise(40, 40, 4)
    deep = values.astype(np.uint16) * 257
    eight, _ = transform(8, 8, channels="rgba")(values)
    sixteen, _ = transform(8, 8, channels="rgba", depth="uint16")(deep)
    assert np.abs(sixteen / 257 - eight).max() < 3


def test_transparent_colour_does_not_bleed_when_scaled():
    values = np.zeros((16, 16, 4), np.uint16)
    values[:, :8] = (65535, 0, 0, 65535)
    values[:, 8:] = (0, 65535, 0, 0)
    made, _ = transform(5, 5, channels="rgba", depth="uint16")(values)
    seen = made[made[..., 3] > 3000]
    assert (seen[:, 1] < 700).all()


def test_luma_is_pillows():
    values = noise(50, 50, 3)
    np.testing.assert_array_equal(to_gray(values)[..., 0], np.asarray(Image.fromarray(values).convert("L")))
    deep = to_gray(values.astype(np.uint16) * 257)
    assert np.abs(deep / 257 - to_gray(values)).max() <= 1
    floats = to_gray((values / 255).astype(np.float32))
    assert np.abs(floats * 255 - to_gray(values)).max() <= 0.51


def test_composite_is_exact():
    every = np.stack(np.meshgrid(np.arange(256), np.arange(256)), axis=2).astype(np.uint8)
    np.testing.assert_array_equal(composite(every, WHITE), on_white(every[..., :1], every[..., 1:]))
    deep = composite(every.astype(np.uint16) * 257, WHITE)
    assert np.abs(deep / 257 - composite(every, WHITE)).max() <= 0.51
    half = np.array([[[0.5, 0.25]]], np.float32)
    assert composite(half, (0, 0, 0))[0, 0, 0] == pytest.approx(0.125)


def test_background_colour_is_used_and_named():
    values = np.zeros((4, 4, 4), np.uint8)
    made, done = transform(4, 4, background=(10, 20, 30))(values)
    assert (made == (10, 20, 30)).all()
    assert done == ("with alpha composited on rgb(10, 20, 30)",)
    gray, _ = transform(4, 4, channels="gray", background=(255, 0, 0))(np.zeros((4, 4, 2), np.uint8))
    assert (gray == 76).all()


def test_rgba_is_kept_where_asked_for():
    values = noise(8, 8, 4)
    np.testing.assert_array_equal(transform(channels="rgba")(values)[0], values)
    opaque, _ = transform(channels="rgba")(noise(8, 8, 1))
    assert (opaque[..., 3] == 255).all()
    assert (opaque[..., :3] == noise(8, 8, 1)).all()


def test_depths_map_full_scale_to_full_scale():
    assert to_depth(np.array([[[0, 128, 129, 65535]]], np.uint16), "uint8").ravel().tolist() == [0, 0, 1, 255]
    assert to_depth(np.array([[[0.0, 0.5, 1.0]]], np.float32), "uint8").ravel().tolist() == [0, 128, 255]
    with pytest.raises(BadPictureError, match="0 to 1"):
        to_depth(np.array([[[1.5]]], np.float32), "uint8")


@given(st.integers(1, 300), st.integers(1, 300), st.integers(4, 99), st.integers(4, 99))
@settings(max_examples=200, deadline=None)
def test_crop_box_is_inside_centred_and_of_the_shape(height: int, width: int, target_height: int, target_width: int):
    left, top, right, bottom = crop_box(height, width, target_height, target_width)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert abs(left - (width - right)) <= 1
    assert abs(top - (height - bottom)) <= 1
    assert right - left == width or bottom - top == height
    ideal = min(width / target_width, height / target_height)
    assert abs((right - left) - max(1, ideal * target_width)) <= 1
    assert abs((bottom - top) - max(1, ideal * target_height)) <= 1


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1, 2, 3, 4]),
    st.sampled_from(["uint8", "uint16", "float32"]),
    st.sampled_from(["gray", "rgb", "rgba"]),
    st.sampled_from(["crop", "pad", "stretch"]),
    st.integers(4, 24),
    st.integers(4, 24),
)
@settings(max_examples=120, deadline=None)
def test_any_picture_becomes_the_stated_shape(height, width, channels, source, kind, fit, target_height, target_width):
    values = noise(height, width, channels, high=256)
    if source != "uint8":
        values = values.astype(np.uint16) * 257 if source == "uint16" else (values / 255).astype(np.float32)
    made_by = transform(target_height, target_width, kind, "uint8" if source == "uint8" else source, fit)
    made, _ = made_by(values)
    assert made.shape == made_by.shape
    assert made.dtype == source
    again, _ = made_by(values)
    np.testing.assert_array_equal(made, again)


def survey(*headers: Header) -> Survey:
    found = Survey()
    for header in headers:
        found.add(header)
    return found


def one(height=32, width=32, colour=False, depth="uint8"):
    return Header(height, width, "RGB" if colour else "L", colour, False, depth)


@pytest.mark.parametrize(
    ("headers", "config", "expected"),
    [
        ([one()] * 3, {}, (32, 32, "gray", "uint8")),
        ([one(97, 64, True)] * 3, {}, (97, 64, "rgb", "uint8")),
        ([one(), one(colour=True)], {}, (32, 32, "rgb", "uint8")),
        ([one(depth="uint16")] * 2, {}, (32, 32, "gray", "uint16")),
        ([one(depth="uint16"), one()], {}, (32, 32, "gray", "uint8")),
        ([one(depth="float32")] * 2, {}, (32, 32, "gray", "float32")),
        ([one(257, 300)] * 2, {}, (64, 64, "gray", "uint8")),
        ([one(256, 256)] * 2, {}, (256, 256, "gray", "uint8")),
        ([one(400, 533), one(533, 400)], {}, (64, 64, "gray", "uint8")),
        ([one(40, 50), one(50, 40), one(500, 500)], {}, (32, 32, "gray", "uint8")),
        ([one(1, 1)] * 2, {}, (8, 8, "gray", "uint8")),
        ([one(3, 200)] * 2, {}, (8, 8, "gray", "uint8")),
        ([one(colour=True)] * 2, {"channels": "rgba", "size": (8, 12)}, (8, 12, "rgba", "uint8")),
        ([one(colour=True)] * 2, {"channels": "gray"}, (32, 32, "gray", "uint8")),
    ],
)
def test_what_is_decided_from_the_data(headers, config, expected):
    made, words, _ = choose_transform(survey(*headers), DataConfig(**config))
    assert (made.height, made.width, made.channels, made.depth) == expected
    assert words.startswith(f"{made.height}x{made.width}")
