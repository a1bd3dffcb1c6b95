"""From the bytes of a picture file to its numbers. Every rule about file formats is here, and in this table.

====================  =============================================================  ========  ==============
Pillow's mode         what it is read as                                             depth     channels
====================  =============================================================  ========  ==============
1                     black 0, white 255                                             uint8     gray
L                     as it is; 1-, 2- and 4-bit files are widened by their format   uint8     gray
LA, La                as it is (16-bit PNG: all 16 bits)                             8 or 16   gray, alpha
P, PA                 looked up in the palette; alpha where it has transparency      uint8     RGB (+ alpha)
RGB, RGBX             as it is (16-bit PNG and TIFF: all 16 bits)                    8 or 16   RGB (+ alpha)
RGBA, RGBa            as it is (16-bit PNG and TIFF: all 16 bits)                    8 or 16   RGB, alpha
CMYK, YCbCr, HSV      Pillow's conversion to RGB, without a colour profile           uint8     RGB
I;16 (any order), I   as it is; 32-bit values must lie in 0 to 65535                 uint16    gray
F                     as it is; must be finite                                       float32   gray
====================  =============================================================  ========  ==============

Also: a transparent colour of a PNG or GIF becomes alpha; a picture is turned upright by its EXIF orientation; of an
animation the first frame counts; colour profiles are not applied. A picture's range is that of its depth (0 to 255, 0
to 65535), never its own minimum and maximum. A truncated file is bad, and so is one of more pixels than
``PIL.Image.MAX_IMAGE_PIXELS`` (a decompression bomb).
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from ddpm.errors import DataError

Depth = Literal["uint8", "uint16", "float32"]

FORMATS = ("PNG", "JPEG", "MPO", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "AVIF")
"""Formats that are opened. Others that Pillow knows run foreign programs (EPS) or are no photographs."""

MAX_BYTES = 2**30
"""Largest picture file, in bytes."""

ORIENTATION_TAG = 0x0112


class BadPictureError(DataError):
    """A file cannot be read as a picture; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture says of itself before its pixels are decoded; its sides are those of the upright picture."""

    height: int
    width: int
    mode: str
    colour: bool
    alpha: bool
    depth: Depth


@dataclass(frozen=True, slots=True)
class Pixels:
    """A decoded picture.

    Attributes:
        values: [H, W, C] in its own depth; C is 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.
        digest: SHA-256 of what was read, 32 bytes.
        conversions: what was done to it, in words.
    """

    values: NDArray[Any]
    digest: bytes
    conversions: tuple[str, ...] = ()


def read_header(opened: BinaryIO | NDArray[Any]) -> Header:
    """Read what the channels, the depth and the size are decided from; the pixels stay untouched.

    Raises:
        BadPictureError: if this is no picture.
    """
    if isinstance(opened, np.ndarray):
        height, width, channels = opened.shape
        return Header(height, width, "array", channels > 2, channels in (2, 4), _array_depth(opened))
    try:
        with _open(opened) as image:
            return _header_of(image)
    except BadPictureError:
        raise
    except Exception as error:
        raise BadPictureError(_reason(error)) from error


def read_pixels(opened: BinaryIO | NDArray[Any]) -> Pixels:
    """Decode a picture completely, by the table above.

    Raises:
        BadPictureError: if it cannot be decoded; nothing else is raised, whatever the bytes.
    """
    if isinstance(opened, np.ndarray):
        values = np.ascontiguousarray(opened)
        _array_depth(values)
        _require_finite(values)
        return Pixels(values, hashlib.sha256(values.tobytes()).digest())
    try:
        data = opened.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise BadPictureError(f"more than {MAX_BYTES // 2**20} MiB")
        if not data:
            raise BadPictureError("an empty file")
        return _decode(data)
    except BadPictureError:
        raise
    # Whatever a decoder throws at bytes from elsewhere, it says one thing: this file is bad.
    except Exception as error:
        raise BadPictureError(_reason(error)) from error


def _decode(data: bytes) -> Pixels:
    conversions: list[str] = []
    with _open(BytesIO(data)) as image:
        header = _header_of(image)
        if getattr(image, "is_animated", False):
            conversions.append("animations read by their first frame")
            image.seek(0)
        if _is_deep(image):
            values = _deep_values(image, data)
        else:
            image.load()
            values = _values(image, header, conversions)
        orientation = _orientation(image)
    if orientation != 1:
        values = turn_upright(values, orientation)
        conversions.append("turned upright by their EXIF tag")
    _require_finite(values)
    return Pixels(np.ascontiguousarray(values), hashlib.sha256(data).digest(), tuple(conversions))


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open(stream: BinaryIO) -> ImageFile.ImageFile:
    try:
        image = Image.open(stream, formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadPictureError(f"a decompression bomb: more than {_max_pixels():,} pixels") from error
    if image.width * image.height > _max_pixels():
        raise BadPictureError(
            f"a decompression bomb: {image.width}x{image.height} pixels, more than the {_max_pixels():,} allowed"
        )
    if image.width < 1 or image.height < 1:
        raise BadPictureError("a picture without pixels")
    return image


def _max_pixels() -> int:
    return Image.MAX_IMAGE_PIXELS or sys.maxsize


def _header_of(image: ImageFile.ImageFile) -> Header:
    mode = image.mode
    raw = _raw_mode(image)
    gray = mode in ("1", "L", "LA", "La", "I", "F") or mode.startswith("I;16") or raw.startswith("LA")
    if mode == "P":
        gray = _has_gray_palette(image)
    depth: Depth = "uint8"
    if mode == "I" or mode.startswith("I;16") or _is_deep(image):
        depth = "uint16"
    elif mode == "F":
        depth = "float32"
    alpha = mode in ("LA", "La", "PA", "RGBA", "RGBa") or _has_transparent_colour(image)
    # PNG may carry the tag behind its pixels; asking for it here would decode them.
    orientation = _orientation(image) if "exif" in image.info else 1
    height, width = (image.width, image.height) if orientation >= 5 else (image.height, image.width)
    label = mode if depth != "uint16" or not _is_deep(image) else f"{'LA' if gray else mode};16"
    return Header(height, width, label, not gray, alpha, depth)


def _values(image: Image.Image, header: Header, conversions: list[str]) -> NDArray[Any]:
    """Return the numbers [H, W, C] of a loaded picture of at most 8 bits, or of one channel."""
    mode = image.mode
    if mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[..., None]
    if mode == "I":
        wide = np.asarray(image)
        if wide.size and (wide.min() < 0 or wide.max() > 65535):
            raise BadPictureError("32-bit values outside 0 to 65535; save it as 16 bits, or as float")
        return wide.astype(np.uint16)[..., None]
    if mode == "F":
        return np.asarray(image, dtype=np.float32)[..., None]
    target = _target_mode(mode, header)
    if mode in ("P", "PA"):
        conversions.append("palette looked up")
    elif target.rstrip("A") != mode.rstrip("AaX"):
        conversions.append(f"{mode} converted to {target}")
    values = np.asarray(image if mode == target else image.convert(target))
    return values[..., None] if values.ndim == 2 else values


def _target_mode(mode: str, header: Header) -> str:
    if mode in ("1", "L", "LA", "La"):
        return "LA" if header.alpha else "L"
    return "RGBA" if header.alpha else "RGB"


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """Return how the file packs its pixels, or an empty string where Pillow does not say."""
    if not image.tile:
        return ""
    arguments = image.tile[0][3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Say whether the file holds several channels of 16 bits, of which Pillow alone would give the upper 8."""
    raw = _raw_mode(image)
    known = raw.removesuffix(";16B").removesuffix(";16L").removesuffix(";16N")
    return known != raw and (image.mode, known) in {("RGB", "RGB"), ("RGB", "RGBX"), ("RGBA", "RGBA"), ("RGBA", "LA")}


def _deep_values(image: ImageFile.ImageFile, data: bytes) -> NDArray[np.uint16]:
    """Return 16-bit colour [H, W, C] complete.

    Pillow keeps the upper byte of each number. Told that the bytes lie in the other order, it keeps the lower one, so
    two passes give both. Gray with alpha packs four bytes a pixel, as RGBA does: one pass.
    """
    raw = _raw_mode(image)
    if raw.startswith("LA"):
        _set_raw_mode(image, "RGBA")
        image.load()
        pairs: NDArray[np.uint16] = np.ascontiguousarray(np.asarray(image)).view(">u2").astype(np.uint16)
        return pairs
    image.load()
    upper: NDArray[np.uint16] = np.asarray(image).astype(np.uint16)
    with _open(BytesIO(data)) as again:
        _set_raw_mode(again, raw[:-1] + _other_order(raw[-1]))
        again.load()
        lower: NDArray[np.uint16] = np.asarray(again).astype(np.uint16)
    both: NDArray[np.uint16] = upper * np.uint16(256) + lower
    return both


def _other_order(order: str) -> str:
    if order == "N":
        order = "L" if sys.byteorder == "little" else "B"
    return "L" if order == "B" else "B"


def _set_raw_mode(image: ImageFile.ImageFile, raw: str) -> None:
    tiles: list[Any] = []
    for tile in image.tile:
        arguments: Any = tile[3]
        changed = (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw
        tiles.append(type(tile)(*tile[:3], changed) if hasattr(tile, "_fields") else (*tile[:3], changed))
    image.tile = tiles


def _has_gray_palette(image: Image.Image) -> bool:
    palette = image.getpalette("RGB")
    if not palette:
        return False
    colours = np.asarray(palette).reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())


def _has_transparent_colour(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "P", "RGB") and "transparency" in image.info


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # a broken tag says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def turn_upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo an EXIF orientation (1 to 8) of a picture [H, W, C]."""
    if orientation in (5, 6, 7, 8):
        values = values.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def _array_depth(values: NDArray[Any]) -> Depth:
    if values.dtype == np.uint8:
        return "uint8"
    if values.dtype == np.uint16:
        return "uint16"
    if values.dtype == np.float32:
        return "float32"
    raise BadPictureError(f"numbers of type {values.dtype}; expected uint8, uint16 or float32")


def _require_finite(values: NDArray[Any]) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadPictureError("NaN or infinite values")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a picture in a known format"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if isinstance(error, OSError) and error.filename is not None:
        return error.strerror or "cannot be opened"
    text = " ".join(str(error).split())[:120]
    return f"cannot be decoded: {text or type(error).__name__}"
