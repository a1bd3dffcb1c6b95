"""Reading the bytes of one picture: every mode of the table, and bytes that are no picture."""

from __future__ import annotations

import io
import random
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torture_folder import encode, noise, png16, tiff16

from ddpm.data.decode import BadPictureError, read_header, read_pixels, turn_upright


def read(data: bytes) -> np.ndarray:
    return read_pixels(io.BytesIO(data)).values


def header(data: bytes):
    return read_header(io.BytesIO(data))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_keeps_every_bit(channels: int):
    values = noise(9, 7, channels, high=65536)
    assert read(png16(values)).dtype == np.uint16
    np.testing.assert_array_equal(read(png16(values)), values)
    about = header(png16(values))
    assert (about.depth, about.colour, about.alpha) == ("uint16", channels > 2, channels in (2, 4))
    assert (about.height, about.width) == (9, 7)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_tiff_keeps_every_bit(order: str, compressed: bool, channels: int):
    values = noise(9, 7, channels, high=65536)
    np.testing.assert_array_equal(read(tiff16(values, order, compressed)), values)


@pytest.mark.parametrize("maximum", [1, 100, 40_000])
def test_range_is_that_of_the_depth_not_of_the_picture(maximum: int):
    values = np.full((4, 4), maximum, np.uint16)
    assert read(encode(Image.fromarray(values), "PNG")).max() == maximum


def test_float_tiff_is_exact_and_must_be_finite():
    values = np.linspace(-3, 1e6, 12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(read(encode(Image.fromarray(values), "TIFF"))[..., 0], values)
    values[0, 0] = np.nan
    with pytest.raises(BadPictureError, match="NaN"):
        read(encode(Image.fromarray(values), "TIFF"))


def test_32_bit_integers_must_fit_16():
    values = np.array([[0, 65535]], np.int32)
    np.testing.assert_array_equal(read(encode(Image.fromarray(values), "TIFF"))[..., 0], values)
    with pytest.raises(BadPictureError, match="65535"):
        read(encode(Image.fromarray(values + 1), "TIFF"))


def test_transparent_colours_become_alpha():
    rgb = noise(4, 4, 3)
    colour = tuple(int(v) for v in rgb[1, 2])
    values = read(encode(Image.fromarray(rgb), "PNG", transparency=colour))
    assert values.shape == (4, 4, 4)
    assert values[1, 2, 3] == 0
    assert (values[..., 3] == 255).sum() == 15
    gray = np.arange(16, dtype=np.uint8).reshape(4, 4)
    values = read(encode(Image.fromarray(gray), "PNG", transparency=5))
    assert values.shape == (4, 4, 2)
    assert np.flatnonzero(values[..., 1] == 0).tolist() == [5]


def test_palette_colour_is_told_from_gray():
    gray = Image.fromarray(noise(8, 8)).quantize(4)
    assert not header(encode(gray, "PNG")).colour
    assert header(encode(Image.fromarray(noise(8, 8, 3)).quantize(4), "PNG")).colour


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_other_colour_spaces_are_what_pillow_makes_of_them(mode: str):
    data = encode(Image.fromarray(noise(8, 8, 3)).convert(mode), "JPEG" if mode == "CMYK" else "TIFF")
    np.testing.assert_array_equal(read(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation: int, form: str):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(noise(6, 4, 3)), form, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(read(data), expected)
    assert (header(data).height, header(data).width) == expected.shape[:2]


@given(st.integers(1, 8), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_turning_a_deep_picture_is_like_turning_an_image(orientation: int, height: int, width: int):
    values = noise(height, width, 3, seed=height * 10 + width)
    image = Image.fromarray(values)
    image.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(turn_upright(values, orientation), np.asarray(ImageOps.exif_transpose(image)))


@given(
    st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "F", "CMYK"]),
    st.sampled_from(["PNG", "TIFF", "GIF", "WEBP", "BMP", "PPM"]),
    st.integers(1, 20),
    st.integers(1, 20),
)
@settings(max_examples=80, deadline=None)
def test_any_mode_in_any_format_is_read_at_its_size(mode: str, form: str, height: int, width: int):
    source = Image.fromarray(noise(height, width, 3, seed=height))
    image = source.convert("L").convert("F").convert("I;16") if mode == "I;16" else source.convert(mode)
    try:
        data = encode(image, form)
    except (OSError, KeyError, ValueError):  # the format does not know the mode
        return
    values, about = read(data), header(data)
    assert values.shape[:2] == (height, width) == (about.height, about.width)
    assert values.dtype == about.depth
    assert (values.shape[2] in (2, 4)) == about.alpha
    assert values.flags.c_contiguous


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello", "not a picture"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "not a picture|cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not a picture"),
        (b"GIF89a", "not a picture|cannot be decoded"),
    ],
)
def test_no_picture_has_a_reason(data: bytes, reason: str):
    with pytest.raises(BadPictureError, match=reason):
        read(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_truncated_files_are_bad(form: str):
    data = encode(Image.fromarray(noise(40, 40, 3)), form)
    with pytest.raises(BadPictureError):
        read(data[: len(data) * 2 // 3])


def test_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch):
    data = encode(Image.new("1", (2000, 2000)), "PNG")
    assert len(data) < 5000
    for limit in (10**6, 3 * 10**6):  # far beyond Pillow's limit, and in the range where Pillow only warns
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(BadPictureError, match="decompression bomb"):
                read(data)
            with pytest.raises(BadPictureError, match="decompression bomb"):
                header(data)


def test_huge_files_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ddpm.data.decode.MAX_BYTES", 2**20)
    with pytest.raises(BadPictureError, match="1 MiB"):
        read(b"\0" * (2**20 + 1))


def seeds() -> list[bytes]:
    rgb = Image.fromarray(noise(24, 20, 3))
    gray = Image.fromarray(noise(24, 20))
    forms = ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"]
    made = [encode(rgb, form) for form in forms] + [encode(gray, form) for form in forms]
    made += [encode(rgb.quantize(9), "PNG", transparency=2), encode(rgb.convert("CMYK"), "JPEG")]
    made += [png16(noise(9, 8, c, high=65536)) for c in (1, 2, 3, 4)]
    made += [tiff16(noise(9, 8, 3, high=65536)), tiff16(noise(9, 8, 3, high=65536), ">", True)]
    made.append(encode(gray.convert("F"), "TIFF", compression="tiff_lzw"))
    made.append(encode(rgb, "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\3\0\x01\0\0\0\6\0\0\0\0\0\0\0"))
    return made


def mutate(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        kind, at = rng.randrange(4), rng.randrange(len(changed))
        # Headers decide most, so half of the hits go there.
        at = rng.randrange(min(64, len(changed))) if rng.random() < 0.5 else at
        if kind == 0:
            changed[at] = rng.randrange(256)
        elif kind == 1:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 2 and len(changed) > 8:
            del changed[at : at + rng.randrange(1, 8)]
        else:
            changed[at:at] = rng.randbytes(rng.randrange(1, 8))
        if not changed:
            return b""
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.1 else changed)


def survive(rounds: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2**22)  # a mutated header may ask for a huge picture
    made, rng = seeds(), random.Random(0)
    read_ones = refused = 0
    reasons: set[str] = set()
    for i in range(rounds):
        data = mutate(made[i % len(made)], rng)
        for reader in (header, read):
            try:
                result = reader(data)
            except BadPictureError as error:
                refused += 1
                reasons.add(str(error))
            else:
                read_ones += 1
                if reader is read:
                    assert result.ndim == 3
                    assert result.shape[2] in (1, 2, 3, 4)
    assert not any("\n" in reason or not reason for reason in reasons)
    return read_ones, refused


@pytest.mark.filterwarnings("ignore")
def test_mutated_files_are_read_or_refused(monkeypatch: pytest.MonkeyPatch):
    read_ones, refused = survive(1500, monkeypatch)
    assert read_ones > 50
    assert refused > 50


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_thousands_of_mutated_files_are_read_or_refused(monkeypatch: pytest.MonkeyPatch):
    survive(20_000, monkeypatch)
