from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ddpm.errors import DataError
from ddpm.evaluation.scores.inception_score import inception_score


def softmax(seed: int, rows: int, classes: int) -> NDArray[np.float32]:
    powers = np.exp(2 * np.random.default_rng(seed).standard_normal((rows, classes), dtype=np.float32))
    return powers / powers.sum(1, keepdims=True)


def test_sure_and_even_over_classes_reaches_their_number() -> None:
    assert inception_score(np.eye(7)[np.arange(140) % 7]).value == pytest.approx(7)
    assert inception_score(np.eye(7)[np.arange(140) % 7]).error == pytest.approx(0, abs=1e-12)


def test_one_class_and_no_idea_are_the_least() -> None:
    assert inception_score(np.tile(softmax(0, 1, 5), (50, 1))).value == pytest.approx(1, abs=1e-6)
    assert inception_score(np.eye(5)[np.zeros(50, dtype=int)]).value == 1


def test_is_the_exponential_of_the_mutual_information() -> None:
    probabilities = softmax(0, 40, 6).astype(np.float64)
    scores = []
    for part in (probabilities[:20], probabilities[20:]):
        marginal = [sum(row[k] for row in part) / 20 for k in range(6)]
        scores.append(np.exp(sum(row[k] * np.log(row[k] / marginal[k]) for row in part for k in range(6)) / 20))
    found = inception_score(probabilities, splits=2)
    assert found.value == pytest.approx(np.mean(scores), rel=1e-12)
    assert found.error == pytest.approx(abs(scores[0] - scores[1]) / 2, rel=1e-9)


@pytest.mark.parametrize(
    ("probabilities", "words"),
    [
        (softmax(0, 19, 4), "19 samples in 10 splits"),
        (np.ones((40, 1)), "at least 2 classes"),
        (np.full((40, 4), np.nan), "not finite"),
        (np.ones((40, 4)), "do not sum to 1"),
        (np.tile([1.5, -0.5], (40, 1)), "negative"),
    ],
)
def test_refuses(probabilities: NDArray[np.float32], words: str) -> None:
    with pytest.raises(DataError, match=words):
        inception_score(probabilities)
