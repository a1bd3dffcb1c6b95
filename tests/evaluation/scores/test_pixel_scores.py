from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ddpm.config import DataConfig
from ddpm.data import Store, open_store
from ddpm.errors import DataError
from ddpm.evaluation.scores.certainty import CertaintyScore
from ddpm.evaluation.scores.neighbours import copying_ratio, nearest_distances, two_sample_accuracy
from ddpm.evaluation.scores.pixel_scores import pixel_scores

Features = NDArray[np.float64]


@pytest.fixture(scope="module")
def digits() -> Store:
    return open_store("digits", DataConfig())


def normal(seed: int, rows: int, columns: int) -> Features:
    return np.random.default_rng(seed).standard_normal((rows, columns))


@given(st.integers(0, 2**31), st.integers(2, 30))
@settings(max_examples=30)
def test_two_sample_accuracy_is_what_brute_force_counts(seed: int, rows: int) -> None:
    first, second = normal(seed, rows, 3), normal(seed + 1, rows, 3) + 0.7
    together = np.concatenate([first, second])
    distances = np.linalg.norm(together[:, None] - together[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    is_first = np.arange(2 * rows) < rows
    right = is_first[distances.argmin(1)] == is_first
    assert two_sample_accuracy(first, second) == pytest.approx(right.mean())


def test_two_sample_accuracy_is_chance_for_equal_and_one_for_far_distributions() -> None:
    first, second = normal(0, 2000, 2), normal(1, 2000, 2)
    assert two_sample_accuracy(first, second) == pytest.approx(0.5, abs=0.04)
    assert two_sample_accuracy(first, second + 100) == 1
    with pytest.raises(DataError, match="2000 and 1999 rows"):
        two_sample_accuracy(first, second[1:])


def test_two_sample_accuracy_of_copies_is_zero() -> None:
    points = normal(0, 100, 4)
    assert two_sample_accuracy(points, points.copy()) == 0  # the nearest to a point is its copy in the other set
    assert two_sample_accuracy(np.repeat(points, 3, axis=0), np.repeat(points + 50, 3, axis=0)) == 1


def test_copying_ratio_is_zero_for_copies_and_one_for_the_distribution() -> None:
    train, held_out, samples = normal(0, 1000, 3), normal(1, 400, 3), normal(2, 400, 3)
    assert copying_ratio(train[:400], held_out, train) == 0
    assert copying_ratio(samples, held_out, train) == pytest.approx(1, abs=0.15)
    assert copying_ratio(samples + 50, held_out, train) > 10
    with pytest.raises(DataError, match="in the training set too"):
        copying_ratio(samples, train[:400], train)


def test_nearest_distances_are_euclidean() -> None:
    assert nearest_distances(np.array([[0.0, 0.0], [3.0, 5.0]]), np.array([[3.0, 4.0]])).tolist() == [5.0, 1.0]


def test_certainty_knows_digits_from_blends(digits: Store) -> None:
    assert digits.labels is not None
    features = digits.pictures.reshape(len(digits), -1) / 16.0
    score = CertaintyScore(features[digits.train], digits.labels[digits.train])
    real = score(features[digits.held_out])
    assert 0.9 < real.sure <= 1
    counted = np.bincount(digits.labels[digits.held_out], minlength=10) / len(digits.held_out)
    np.testing.assert_allclose(real.class_shares, counted, atol=0.01)
    held_out = features[digits.held_out]
    blends = score((held_out + np.random.default_rng(0).permutation(held_out)) / 2)
    assert blends.sure < real.sure - 0.05
    assert sum(blends.class_shares) == pytest.approx(1)


def test_certainty_sees_every_class_of_sorted_data() -> None:
    labels = np.repeat(np.arange(3), 3000)
    features = np.eye(3)[labels] + 0.05 * normal(0, len(labels), 3)
    np.testing.assert_allclose(CertaintyScore(features, labels)(features).class_shares, 1 / 3, atol=1e-3)


@pytest.mark.parametrize("labels", [np.zeros(20, dtype=np.int64), np.arange(20) // 17])
def test_certainty_refuses_too_few_classes_or_pictures(labels: NDArray[np.int64]) -> None:
    with pytest.raises(DataError, match="a classifier needs at least 2, with 5 pictures each"):
        CertaintyScore(normal(0, 20, 2), labels)


def test_held_out_digits_score_as_perfect_as_they_are(digits: Store) -> None:
    scores = pixel_scores(digits.pictures[digits.held_out], digits)
    assert (scores.samples, scores.held_out) == (360, 360)
    assert scores.frechet_ratio == pytest.approx(1)
    assert scores.copying_ratio == pytest.approx(1)
    assert scores.sure_ratio == pytest.approx(1)
    assert scores.two_sample_accuracy == 0  # every sample's nearest neighbour is itself, held out
    assert len(scores.class_shares) == 10
    assert scores.as_tree()["samples"] == 360


def test_copies_and_noise_are_seen_as_such(digits: Store) -> None:
    copies = pixel_scores(digits.pictures[digits.train[:400]], digits)
    assert copies.copying_ratio == 0
    noise = pixel_scores(np.random.default_rng(0).integers(0, 17, (100, 8, 8, 1)).astype(np.uint8), digits)
    assert noise.two_sample_accuracy > 0.95
    assert noise.frechet_ratio > 5
    assert noise.copying_ratio > 1.5


def test_data_without_classes_have_no_classifier(digits: Store) -> None:
    pictures = digits.pictures[digits.held_out]
    for labels in (None, np.zeros(len(digits), dtype=np.int64)):
        scores = pixel_scores(pictures, replace(digits, labels=labels))
        assert scores.sure_ratio is None
        assert scores.class_shares == ()


def test_pixel_scores_refuse_what_they_cannot_judge(digits: Store) -> None:
    held_out = digits.pictures[digits.held_out]
    with pytest.raises(DataError, match="expected the same shape"):
        pixel_scores(held_out[:, :4], digits)
    with pytest.raises(DataError, match=r"19 samples .* at least 20"):
        pixel_scores(held_out[:19], digits)
    with pytest.raises(DataError, match="5 held-out pictures"):
        pixel_scores(held_out, replace(digits, held_out=digits.held_out[:5]))
    large = np.zeros((50, 33, 32, 1), dtype=np.uint8)
    with pytest.raises(DataError, match=r"1,056 values; .* up to 1,024"):
        pixel_scores(large, replace(digits, pictures=large))


def test_identical_pictures_are_refused_in_a_sentence(digits: Store) -> None:
    with pytest.raises(DataError, match="in the training set too"):
        pixel_scores(digits.pictures[:100], replace(digits, pictures=np.zeros_like(digits.pictures)))
