from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.codec import PixelCodec
from ddpm.engine import choose_engine
from ddpm.errors import SamplingError
from ddpm.model import Model
from ddpm.sampling import Film, make_pictures, render_frames, render_strip, save_film
from ddpm.sampling.films import check_film


def recorded(trained: Path, steps: int, batch_size: int, count: int = 7) -> tuple[Model, Film, np.ndarray]:
    model = Model.load(trained).with_sampling(sampler="ddim", steps=steps)
    film = Film(model, range(count), 3)
    engine = choose_engine("cpu", "float32")
    batches = make_pictures(model, range(count), seed=3, engine=engine, batch_size=batch_size, on_step=film.record)
    return model, film, np.concatenate([pictures for _, pictures in batches])


def test_a_film_begins_with_noise_and_ends_with_the_pictures_over_any_batches(trained: Path) -> None:
    model, film, pictures = recorded(trained, 5, 7)
    moments = film.moments()
    assert [moment.t for moment in moments] == [49, 39, 29, 19, 9, None]
    np.testing.assert_array_equal(moments[-1].x_t, pictures)
    np.testing.assert_array_equal(moments[-1].x_0, pictures)
    first = next(iter(model.sample_steps(range(7), seed=3)))
    np.testing.assert_array_equal(moments[0].x_0, model.codec.decode(first.prediction.x_0))
    np.testing.assert_array_equal(moments[1].x_t, model.codec.decode(first.x))
    assert (moments[0].x_t == 16).mean() > 0.1  # noise beyond white
    _, in_small_batches, _ = recorded(trained, 5, 2)
    for one, other in zip(moments, in_small_batches.moments(), strict=True):
        np.testing.assert_array_equal(one.x_t, other.x_t)
        np.testing.assert_array_equal(one.x_0, other.x_0)


def test_a_long_way_is_thinned_with_both_ends(trained: Path) -> None:
    _, film, _ = recorded(trained, 50, 30, 30)
    moments = film.moments()
    assert len(moments) == 51
    assert moments[0].x_t.shape == (16, 8, 8, 1)


@pytest.mark.parametrize(
    ("kind", "name", "frames"),
    [("gif", "film.gif", 4), ("webp", "film.webp", 4), ("apng", "film.png", 4), ("strip", "strip.png", 1)],
)
def test_films_are_written(trained: Path, tmp_path: Path, kind: str, name: str, frames: int) -> None:
    model, film, _ = recorded(trained, 3, 4)
    path = save_film(film.moments(), model.codec, tmp_path, kind)  # type: ignore[arg-type]
    assert path == tmp_path / name
    assert [found.name for found in tmp_path.iterdir()] == [name]
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == frames


def test_a_strip_has_a_column_a_moment_and_two_blocks_of_rows(trained: Path) -> None:
    model, film, _ = recorded(trained, 3, 4)
    strip = np.asarray(render_strip(film.moments(), model.codec).convert("L"))
    last = strip[:, -70:]
    middle = len(last) // 2
    ink = [block[block.min(1) < 200] for block in (last[18:middle], last[middle:])]
    assert min(map(len, ink)) > 5 * 60  # five pictures in each block
    frames = render_frames(film.moments(), model.codec)
    assert len(frames) == 4
    assert all(side % 2 == 0 for side in frames[0].size)


def test_points_and_16_bit_pictures_can_be_filmed() -> None:
    from ddpm.sampling.films import Moment

    points = np.random.default_rng(0).normal(size=(50, 1, 1, 2)).astype(np.float32)
    moments = [Moment(9.0, points, points), Moment(None, points, points)]
    strip = np.asarray(render_strip(moments, PixelCodec(None, (-3.0, 3.0), "float32")).convert("L"))
    planes = strip[:, -240:]  # two moments, 120 pixels wide each
    assert (planes < 128).sum(0).reshape(2, 120).sum(1).min() > 100  # 50 dots and a frame in each
    deep = np.full((2, 8, 8, 1), 65535, np.uint16)
    frame = render_frames([Moment(None, deep, deep)], PixelCodec(65536, (0.0, 65535.0), "uint16"))[0]
    assert frame.getpixel((10, 40)) == (255, 255, 255)


def test_films_that_cannot_be_written_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SamplingError, match="did you mean 'gif'"):
        check_film("gift")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SamplingError, match=r"pip install 'ddpm\[film\]'"):
        check_film("mp4")


def test_mp4_where_there_is_an_encoder(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    model, film, _ = recorded(trained, 3, 4)
    path = save_film(film.moments(), model.codec, tmp_path, "mp4")
    assert path.read_bytes()[4:8] == b"ftyp"
