"""How pictures came to be: x_t and the x_0-hat believed at t, as a strip of moments or as a film."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ddpm.codec import Pictures, PixelCodec
from ddpm.data import render_grid
from ddpm.data.pictures import render_points
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers import SampleStep
from ddpm.errors import RunError, SamplingError, nearest
from ddpm.files import write_atomically
from ddpm.model import Model

FilmKind = Literal["gif", "webp", "apng", "mp4", "strip"]

MOST_PICTURES, MOST_POINTS = 16, 2000
"""Most pictures, or points in the plane, that a film shows."""

_MOST_FRAMES = 120
_STRIP_PICTURES, _STRIP_MOMENTS = 5, 9
_PLANE_IN_STRIP, _PLANE_IN_FILM = 120, 384  # pixels of a side of the plane that points lie in
_NOISE_REACH = 2.6  # half the plane's side, over half the range of the data: where 99% of N(0, 1) lies
_CELL = 64  # pixels of the longer side of a picture, in strips and films: smaller ones are enlarged
_LINE = 18  # pixels of a line of text
_GAP = 2
_MARGIN = 56  # pixels left of a strip's rows
_FRAMES_A_SECOND, _LAST_SECONDS = 12, 2


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment of all the shown pictures.

    Attributes:
        t: the time; none for the finished pictures.
        x_t: [K, H, W, C], decoded to the range of the data.
        x_0: [K, H, W, C], what the denoiser believed at t, decoded.
    """

    t: float | None
    x_t: Pictures
    x_0: Pictures

    @property
    def label(self) -> str:
        """The time, for people."""
        return "done" if self.t is None else f"t = {self.t:.4g}"


class Film:
    """Records the way of some pictures through a sampler, over batches of any size."""

    def __init__(self, model: Model, numbers: Sequence[int], seed: int) -> None:
        """Begin to record.

        Args:
            model: that samples.
            numbers: all pictures that will be sampled; the film shows the first of them.
            seed: of their noise.
        """
        most = MOST_POINTS if model.picture_shape[:2] == (1, 1) else MOST_PICTURES
        self._model, self._seed = model, seed
        self._shown = tuple(numbers[:most])
        self._wanted = frozenset(self._shown)
        self._seen: dict[int, tuple[float, dict[int, tuple[Pictures, Pictures]]]] = {}
        self._last: dict[int, Pictures] = {}

    def record(self, numbers: Sequence[int], step: SampleStep) -> None:
        """Take in one step of one batch; a batch that is made again replaces what was recorded."""
        rows = {number: row for row, number in enumerate(numbers) if number in self._wanted}
        if not rows:
            return
        if step.index == 0:
            self._begin(numbers, rows)
        after = self._decoded(step.x, rows)
        if step.index in _spread(step.num_steps, _MOST_FRAMES):
            believed = self._decoded(step.prediction.x_0, rows)
            pairs = {number: (self._last[number], believed[number]) for number in rows}
            self._seen.setdefault(step.index, (step.t, {}))[1].update(pairs)
        self._last.update(after)

    def moments(self) -> list[Moment]:
        """Return the recorded moments in order; the last is the finished pictures."""
        moments = [
            Moment(t, *(np.stack([pairs[number][side] for number in self._shown]) for side in (0, 1)))
            for _, (t, pairs) in sorted(self._seen.items())
        ]
        done = np.stack([self._last[number] for number in self._shown])
        return [*moments, Moment(None, done, done)]

    def _begin(self, numbers: Sequence[int], rows: dict[int, int]) -> None:
        height, width, channels = self._model.picture_shape
        x_T = NoiseSource(self._seed, numbers, (channels, height, width)).normal(0, "x_T")
        self._last.update(self._decoded(x_T, rows))

    def _decoded(self, x: Tensor, rows: dict[int, int]) -> dict[int, Pictures]:
        chosen = self._model.codec.decode(x[list(rows.values())])
        return dict(zip(rows, chosen, strict=True))


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` of 0 to count - 1, evenly spread, with both ends."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def render_strip(moments: Sequence[Moment], codec: PixelCodec) -> Image.Image:
    """Return a sheet of moments: a column a time, and for x_t, then for x_0-hat, a row a picture, or all points."""
    columns = [moments[i] for i in _spread(len(moments), _STRIP_MOMENTS)]
    blocks = [
        [_column(side, codec) for side in sides]
        for sides in ([moment.x_t for moment in columns], [moment.x_0 for moment in columns])
    ]
    width, height = blocks[0][0].size
    wide = max(width, 72) + _GAP
    sheet = Image.new("RGB", (_MARGIN + len(columns) * wide, _LINE + 2 * (height + 4 * _GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for row, (name, images) in enumerate(zip(("x_t", "x_0-hat"), blocks, strict=True)):
        top = _LINE + row * (height + 4 * _GAP)
        draw.text((2, top + height // 2), name, fill="black", font=font, anchor="lm")
        for i, image in enumerate(images):
            sheet.paste(image, (_MARGIN + i * wide, top))
    for i, moment in enumerate(columns):
        draw.text((_MARGIN + i * wide + width // 2, _LINE // 2), moment.label, fill="black", font=font, anchor="mm")
    return sheet


def render_frames(moments: Sequence[Moment], codec: PixelCodec) -> list[Image.Image]:
    """Return the frames of a film: x_t at the left, x_0-hat at the right, the time above."""
    frames = []
    for moment in moments:
        left, right = (_frame(side, codec) for side in (moment.x_t, moment.x_0))
        size = (_even(max(left.width + right.width + 4 * _GAP, 240)), _even(left.height + _LINE))
        frame = Image.new("RGB", size, "white")
        frame.paste(left, (0, _LINE))
        frame.paste(right, (left.width + 4 * _GAP, _LINE))
        draw, font = ImageDraw.Draw(frame), ImageFont.load_default(13)
        draw.text((4, _LINE // 2), f"x_t, {moment.label}", fill="black", font=font, anchor="lm")
        draw.text((left.width + 4 * _GAP + 4, _LINE // 2), "x_0-hat", fill="black", font=font, anchor="lm")
        frames.append(frame)
    return frames


def save_film(moments: Sequence[Moment], codec: PixelCodec, folder: Path, kind: FilmKind) -> Path:
    """Write a film or a strip into a folder, and return its file.

    Raises:
        SamplingError: for MP4 without an encoder.
        RunError: if it cannot be written.
    """
    check_film(kind)
    name, suffix = ("strip", "png") if kind == "strip" else ("film", "png" if kind == "apng" else kind)
    path = folder / f"{name}.{suffix}"
    images = [render_strip(moments, codec)] if kind == "strip" else render_frames(moments, codec)
    write = _write_mp4 if kind == "mp4" else _write_frames
    try:
        write_atomically(path, lambda part: write(images, part, kind))
    except OSError as error:
        raise RunError(f"cannot write '{path}': {error.strerror or error}; free some space") from error
    return path


def check_film(kind: str) -> None:
    """Refuse a film that cannot be written, before anything is sampled.

    Raises:
        SamplingError: for an unknown kind, or MP4 without an encoder.
    """
    known = get_args(FilmKind)
    if kind not in known:
        raise SamplingError(f"unknown film '{kind}'{nearest(kind, known)}; known are {', '.join(known)}")
    if kind == "mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise SamplingError("no encoder for MP4; get one with: pip install 'ddpm[film]', or use --film gif")


def _write_frames(images: Sequence[Image.Image], part: Path, kind: FilmKind) -> None:
    step = 1000 // _FRAMES_A_SECOND
    durations = [*[step] * (len(images) - 1), 1000 * _LAST_SECONDS]
    first, rest = images[0], list(images[1:])
    if kind == "strip":
        first.save(part, "PNG", optimize=True)
    elif kind == "apng":
        first.save(part, "PNG", save_all=True, append_images=rest, duration=durations, loop=0)
    elif kind == "webp":
        first.save(part, "WEBP", save_all=True, append_images=rest, duration=durations, loop=0, lossless=True)
    else:
        first.save(part, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)


def _write_mp4(images: Sequence[Image.Image], part: Path, kind: FilmKind) -> None:
    import imageio_ffmpeg

    frames = [*images, *[images[-1]] * (_FRAMES_A_SECOND * _LAST_SECONDS)]
    writer = imageio_ffmpeg.write_frames(
        str(part),
        images[0].size,
        fps=_FRAMES_A_SECOND,
        codec="libx264",
        macro_block_size=2,
        output_params=["-f", "mp4"],  # the name of the temporary file does not end in .mp4
    )
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(np.asarray(frame)))
    writer.close()


def _column(pictures: Pictures, codec: PixelCodec) -> Image.Image:
    if are_points(pictures):
        return _plane(pictures, codec, _PLANE_IN_STRIP)
    return _enlarged(_grid(pictures[:_STRIP_PICTURES], codec, columns=1))


def _frame(pictures: Pictures, codec: PixelCodec) -> Image.Image:
    return _plane(pictures, codec, _PLANE_IN_FILM) if are_points(pictures) else _enlarged(_grid(pictures, codec))


def _plane(points: Pictures, codec: PixelCodec, side: int) -> Image.Image:
    """Return points [n, 1, 1, 2] as dots in a plane that has room for the noise they come from."""
    low, high = codec.value_range
    middle, reach = (low + high) / 2, _NOISE_REACH * (high - low) / 2
    return render_points(points.reshape(-1, 2), (middle - reach, middle + reach), side).convert("RGB")


def are_points(pictures: Pictures) -> bool:
    """Whether these are points in the plane, [n, 1, 1, 2]."""
    return pictures.shape[1:] == (1, 1, 2)


def _grid(pictures: Pictures, codec: PixelCodec, columns: int | None = None) -> Image.Image:
    return render_grid(pictures, columns, levels=codec.levels, value_range=codec.value_range).convert("RGB")


def _enlarged(grid: Image.Image) -> Image.Image:
    factor = max(1, round(_CELL / grid.width))
    return grid.resize((grid.width * factor, grid.height * factor), Image.Resampling.NEAREST)


def _even(side: int) -> int:
    return side + side % 2  # H.264 halves the colours' resolution
