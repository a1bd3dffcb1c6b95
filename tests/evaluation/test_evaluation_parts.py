"""The parts of an evaluation: scales, recipes, shards filled by others, scores over features."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm.data import to_image
from ddpm.data.progress import silent
from ddpm.errors import ConfigError, DataError, RunError
from ddpm.evaluation.extractors.features import Pixels
from ddpm.evaluation.metrics import METRICS, Evidence, feature_scores, parse_metrics
from ddpm.evaluation.report.recipe import differences
from ddpm.evaluation.report.report import shown
from ddpm.evaluation.scores.frechet import frechet_distance_between
from ddpm.evaluation.shards import SHARD, Job
from ddpm.evaluation.subject import Scale, Tick
from ddpm.evaluation.workers import run_jobs


@pytest.mark.parametrize(
    "scale",
    [Scale(17, (0.0, 16.0), "uint8"), Scale(256, (0.0, 255.0), "uint8"), Scale(2, (0.0, 1.0), "uint8")],
)
def test_pictures_saved_in_more_levels_come_back_exactly(scale: Scale) -> None:
    assert scale.levels is not None
    picture = np.arange(scale.levels, dtype=np.uint8).reshape(1, -1, 1)
    saved = np.asarray(to_image(picture, levels=scale.levels))[..., None]
    back = Scale(256, (0.0, 255.0), "uint8").express(saved, scale)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, picture)


def test_eight_bits_in_sixteen_and_in_floating_point() -> None:
    eight = Scale(256, (0.0, 255.0), "uint8")
    picture = np.array([0, 1, 128, 255], dtype=np.uint8)
    assert eight.express(picture, Scale(65536, (0.0, 65535.0), "uint16")).tolist() == [0, 257, 32896, 65535]
    np.testing.assert_allclose(
        eight.express(picture, Scale(None, (-1.0, 1.0), "float32")), picture / 127.5 - 1, atol=1e-7
    )


def test_metrics_by_name() -> None:
    assert parse_metrics(["recall", " FID", "precision"]) == ("fid", "prdc")
    assert parse_metrics(["all"]) == METRICS
    with pytest.raises(ConfigError, match="did you mean 'memorization'"):
        parse_metrics(["memorizatoin"])
    with pytest.raises(ConfigError, match=r"no metric is asked for; known are .*kid, fid"):
        parse_metrics([])


def test_differences_are_named_by_their_place() -> None:
    old = {"features": {"name": "pixels", "sha256": None}, "samples": 10}
    assert differences(old, old) == []
    new = {"features": {"name": "inception", "sha256": "67"}, "samples": 10, "seed": 0}
    assert differences(old, new) == [
        "features.name: pixels, now inception",
        "features.sha256: none, now 67",
        "seed: none, now 0",
    ]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.1234567, None, "0.1235"),
        (12.3456, 0.0321, "12.346 ± 0.032"),
        (123.456, 12.3, "123 ± 12"),
        (0.0, 0.0, "0"),
        (1.2e-7, None, "1.2e-07"),
        (0.01, 0.0998, "0.01 ± 0.10"),
    ],
)
def test_numbers_have_the_digits_that_their_error_allows(value: float, error: float | None, text: str) -> None:
    assert shown(value, error) == text


def test_floors_are_of_as_many_pictures() -> None:
    random = np.random.default_rng(0)
    train, held_out, samples = (random.normal(shift, 1, (n, 3)) for shift, n in ((0, 400), (0, 50), (1, 300)))
    evidence = Evidence({"pooled": samples}, {"pooled": train}, {"pooled": held_out})
    (fid,) = feature_scores("fid", evidence)
    assert (fid.n, fid.floor_n) == (300, 50)
    assert fid.value == pytest.approx(frechet_distance_between(samples, train), rel=1e-9)
    assert fid.floor == pytest.approx(frechet_distance_between(held_out, train), rel=1e-9)
    evenly = samples[np.linspace(0, 299, 50).astype(int)]
    assert fid.at_floor_n == pytest.approx(frechet_distance_between(evenly, train), rel=1e-9)
    assert fid.value == pytest.approx(3, rel=0.2)
    few = feature_scores("kid", Evidence({"pooled": samples}, {"pooled": train}, {"pooled": held_out[:5]}))[0]
    assert (few.floor, few.floor_n, few.at_floor_n) == (None, None, None)
    with pytest.raises(DataError, match="10 pictures; it needs at least 20"):
        feature_scores("kid", Evidence({"pooled": samples[:10]}, {"pooled": train}, {"pooled": held_out}))


@dataclass(frozen=True)
class Ramp:
    """Pictures whose values are their numbers; the one of `stops_at` ends its process, or is refused."""

    stops_at: int = -1
    by: str = ""

    def key(self) -> dict[str, Any]:
        return {"ramp": True}

    def open(self, device: str) -> Callable[[range, Tick], Any]:
        def read(numbers: range, tick: Tick) -> Any:
            if self.stops_at in numbers:
                if self.by == "exit":
                    os._exit(9)
                raise DataError(f"picture {self.stops_at} is broken")
            tick(len(numbers))
            return np.broadcast_to(np.array(numbers, np.float32)[:, None, None, None], (len(numbers), 2, 2, 1)).copy()

        return read


def job(root: Path, source: Ramp, count: int) -> Job:
    return Job(
        source=source,
        count=count,
        scale=(0.0, 1.0),
        extractor=Pixels(),
        extractor_key={},
        with_spatial=False,
        keeps_pictures=True,
        device="cpu",
        root=root,
    )


def run_silently(work: Job, processes: int = 1) -> None:
    run_jobs({"ramp": work}, processes=processes, progress=silent)


def test_shards_hold_the_pictures_in_order(tmp_path: Path) -> None:
    work = job(tmp_path, Ramp(), SHARD + 3)
    assert not work.is_done(1)
    run_silently(work)
    assert [len(numbers) for numbers in work.shards()] == [SHARD, 3]
    np.testing.assert_array_equal(work.features()["pooled"][:, 0], np.arange(SHARD + 3))
    np.testing.assert_array_equal(np.concatenate(list(work.pictures()))[:, 0, 0, 0], np.arange(SHARD + 3))
    fewer = job(tmp_path, Ramp(), 5)
    assert fewer.is_done(0)
    assert len(fewer.features()["pooled"]) == 5


@pytest.mark.parametrize(
    ("by", "error", "words"),
    [
        ("exit", RunError, r"was killed .exit code 9.*goes on"),
        pytest.param("error", DataError, "picture 300 is broken", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_dies_or_fails_is_told_of_and_the_rest_kept(
    by: str, error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        run_silently(job(tmp_path, Ramp(300, by), 2 * SHARD), processes=2)
    healthy = job(tmp_path, Ramp(), 2 * SHARD)
    run_silently(healthy)
    np.testing.assert_array_equal(healthy.features()["pooled"][:, 0], np.arange(2 * SHARD))


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    class Broken(Pixels):
        def __call__(self, pictures: Any, value_range: tuple[float, float]) -> Any:
            features = super().__call__(pictures, value_range)
            features.pooled[0] = np.nan
            return features

    work = Job(**{**job(tmp_path, Ramp(), 4).__dict__, "extractor": Broken()})
    with pytest.raises(DataError, match=r"of pictures 0 to 3 .* not finite"):
        run_silently(work)
    assert not work.is_done(0)
