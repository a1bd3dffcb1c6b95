"""A folder of the worst pictures people really have, built from nothing, each with what it must be read as."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 16
LONG_NAME = "a very long name " * 14 + ".png"
UNICODE_NAME = "Grüße 图片 🦆 naïve.PNG"


def noise(*shape: int, high: int = 256, seed: int = 0) -> np.ndarray:
    """Return random numbers of the smallest fitting type."""
    dtype = np.uint8 if high <= 256 else np.uint16
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def png16(values: np.ndarray) -> bytes:
    """Encode uint16 [H, W, C] as a PNG of 16 bits a channel, which Pillow cannot write for colour."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff16(values: np.ndarray, order: str = "<", compressed: bool = False) -> bytes:
    """Encode uint16 [H, W, 1 or 3] as a TIFF of 16 bits a channel, little (``<``) or big endian (``>``)."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if compressed else data
    bits_at, count = 8, 10
    strip_at = bits_at + 2 * channels + (2 * channels) % 4
    ifd_at = strip_at + len(data) + len(data) % 2
    bits = (3, channels, 16) if channels == 1 else (3, channels, bits_at)
    tags = {256: (4, 1, width), 257: (4, 1, height), 258: bits, 259: (3, 1, 8 if compressed else 1)}
    tags |= {262: (3, 1, 1 if channels == 1 else 2), 273: (4, 1, strip_at), 277: (3, 1, channels), 278: (4, 1, height)}
    tags |= {279: (4, 1, len(data)), 284: (3, 1, 1)}
    assert len(tags) == count
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", ifd_at)
    out += struct.pack(f"{order}{channels}H", *[16] * channels)
    out = out.ljust(strip_at, b"\0") + data
    out = out.ljust(ifd_at, b"\0") + struct.pack(f"{order}H", count)
    for tag, (kind, n, value) in sorted(tags.items()):
        short = kind == 3 and n * 2 <= 4
        packed = struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
        out += struct.pack(f"{order}HHI", tag, kind, n) + packed
    return out + b"\0\0\0\0"


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    """Return the file of an image."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Composite on white in exact arithmetic: round(c a + 255 (255 - a)) / 255, halves upwards."""
    c, a = colour.astype(np.int64), alpha.astype(np.int64)
    return ((c * a + 255 * (255 - a)) * 2 + 255) // 510


def as_rgb(values: np.ndarray) -> np.ndarray:
    return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values


def make_torture_folder(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, int]]:
    """Fill a folder.

    Returns:
        What each good file must become as RGB uint8 [16, 16, 3] at size 16x16; a part of the reason for each bad file;
        the number of files that are ignored, by kind.
    """
    good: dict[str, np.ndarray] = {}
    s = SIDE

    def put(name: str, data: bytes, expected: np.ndarray | None = None) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        if expected is not None:
            good[name] = as_rgb(expected)

    gray, rgb, rgba = noise(s, s, 1), noise(s, s, 3, seed=1), noise(s, s, 4, seed=2)
    deep, deep_rgb = noise(s, s, 1, high=65536), noise(s, s, 3, high=65536, seed=3)
    put("rgb.png", encode(Image.fromarray(rgb), "PNG"), rgb)
    put("gray.PNG", encode(Image.fromarray(gray[..., 0]), "PNG"), gray)
    put("bmp/rgb.BMP", encode(Image.fromarray(rgb), "BMP"), rgb)
    put("lossless.webp", encode(Image.fromarray(rgb), "WEBP", lossless=True), rgb)
    put("sixteen.png", encode(Image.fromarray(deep[..., 0]), "PNG"), np.rint(deep / 257))
    put("sixteen.tiff", encode(Image.fromarray(deep[..., 0]), "TIFF"), np.rint(deep / 257))
    put("sixteen-colour.png", png16(deep_rgb), np.rint(deep_rgb / 257))
    put("sixteen-colour.tif", tiff16(deep_rgb), np.rint(deep_rgb / 257))
    gray_alpha = Image.fromarray(noise(s, s, 2, seed=4), "LA")
    values = np.asarray(gray_alpha)
    put("gray-alpha.png", encode(gray_alpha, "PNG"), on_white(values[..., :1], values[..., 1:]))
    put("rgba.png", encode(Image.fromarray(rgba), "PNG"), on_white(rgba[..., :3], rgba[..., 3:]))
    palette = Image.fromarray(rgb).quantize(8)
    looked_up = np.asarray(palette.convert("RGB"))
    clear = np.asarray(palette)[..., None] == 3
    put("palette.png", encode(palette, "PNG", transparency=3), np.where(clear, 255, looked_up))
    one_bit = Image.fromarray(gray[..., 0]).convert("1")
    put("one-bit.png", encode(one_bit, "PNG"), np.asarray(one_bit)[..., None] * 255)
    cmyk = encode(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=95)
    put("cmyk.jpg", cmyk, np.asarray(Image.open(io.BytesIO(cmyk)).convert("RGB")))
    frames = [Image.fromarray(noise(s, s, seed=k)) for k in range(3)]
    put(
        "animated.gif",
        encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        np.asarray(frames[0])[..., None],
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(Image.fromarray(rgb), "JPEG", quality=95, exif=exif)
    put("turned.JPeG", turned, np.rot90(np.asarray(Image.open(io.BytesIO(turned))), -1))
    put("1x1.png", encode(Image.fromarray(rgb[:1, :1]), "PNG"), np.broadcast_to(rgb[:1, :1], rgb.shape))
    strip = noise(s, 20_000, 3, seed=5)
    put("strip.png", encode(Image.fromarray(strip), "PNG", compress_level=0), strip[:, 9992:10008])
    put(UNICODE_NAME, encode(Image.fromarray(rgb[::-1]), "PNG"), rgb[::-1])
    put(LONG_NAME, encode(Image.fromarray(rgb[:, ::-1]), "PNG"), rgb[:, ::-1])
    put("copies/copy.png", encode(Image.fromarray(rgb), "PNG"), rgb)
    floats = noise(s, s, 1, seed=6) / 255
    put("float.tif", encode(Image.fromarray(floats[..., 0].astype(np.float32)), "TIFF"), np.rint(floats * 255))
    lossy = encode(Image.fromarray(noise(64, 64, 3, seed=7)), "JPEG", quality=90)
    put("truncated.jpg", lossy[: len(lossy) // 2])
    put("empty.png", b"")
    put("text.png", b"this is no picture\n")
    put(".DS_Store", b"\0\0\0\1Bud1")
    put("__MACOSX/._rgb.png", b"\0\5\26\7")
    put("Thumbs.db", b"\xd0\xcf")
    put("notes.txt", b"remember the milk")
    put("README", b"no extension")
    os.symlink(folder, folder / "loop", target_is_directory=True)
    os.symlink(folder / "nowhere.png", folder / "broken-link.png")
    bad = {
        "truncated.jpg": "truncated",
        "empty.png": "",
        "text.png": "not a picture",
        "broken-link.png": "a link that leads nowhere",
    }
    return good, bad, {"hidden files": 1, "system files": 2, ".txt": 1, "no extension": 1}
