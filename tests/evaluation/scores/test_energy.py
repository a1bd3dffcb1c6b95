from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import ddpm
from ddpm.diffusion.noise import stream
from ddpm.errors import DataError
from ddpm.evaluation.scores import energy
from ddpm.evaluation.scores.energy import energy_distance


def test_it_is_its_definition_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = stream(0, "test energy")
    x, y = rng.standard_normal((23, 2)), rng.standard_normal((31, 2)) + 0.5
    between = np.mean([math.dist(a, b) for a in x for b in y])
    within = [
        np.mean([math.dist(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]) for rows in (x, y)
    ]
    assert energy_distance(x, y) == pytest.approx(2 * between - sum(within), rel=1e-12)
    monkeypatch.setattr(energy, "_BLOCK_VALUES", 100)
    assert energy_distance(x, y) == pytest.approx(2 * between - sum(within), rel=1e-12)


def test_it_is_unbiased_and_knows_the_distance_of_two_blocks() -> None:
    """U(0, 1) and U(1, 2): E|x - y| = 1, E|x - x'| = 1/3."""
    rng = stream(1, "test energy")
    same = [energy_distance(rng.random((40, 1)), rng.random((40, 1))) for _ in range(400)]
    assert abs(np.mean(same)) < 4 * np.std(same) / 20
    apart = [energy_distance(rng.random((40, 1)), 1 + rng.random((40, 1))) for _ in range(100)]
    assert np.mean(apart) == pytest.approx(2 - 2 / 3, abs=4 * float(np.std(apart)) / 10)


@pytest.mark.parametrize(
    ("rows", "says"), [(np.zeros((19, 2)), "at least 20"), (np.full((20, 2), np.nan), "not finite")]
)
def test_refusals(rows: np.ndarray, says: str) -> None:
    with pytest.raises(DataError, match=says):
        energy_distance(rows, stream(0, "test energy").standard_normal((30, 2)))


def test_a_model_of_points_is_scored_and_what_makes_no_sense_is_refused(trained_points: Path, trained: Path) -> None:
    report = ddpm.evaluate(trained_points, n=60, steps=2, metrics=["energy", "kid"], quiet=True, device="cpu")
    score = report["energy"]
    assert score.n == 60
    assert score.floor is not None
    assert score.value > score.floor
    with pytest.raises(DataError, match="points have no colours"):
        ddpm.evaluate(trained_points, n=60, metrics=["colour"], quiet=True)
    with pytest.raises(DataError, match="of pictures, use kid"):
        ddpm.evaluate(trained, n=60, metrics=["energy"], quiet=True)
