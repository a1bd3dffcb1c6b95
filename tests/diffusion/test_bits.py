from __future__ import annotations

import json
import math

import pytest
import torch

from ddpm.diffusion.bits import BitsPerDim, NoiseLevel
from ddpm.estimate import Estimate, mean_estimate


def level(first: int, last: int, bits: float) -> NoiseLevel:
    return NoiseLevel(first, last, Estimate(bits, 0.1), Estimate(10.0 * first, 0.2))


def test_a_mean_has_the_error_of_its_spread() -> None:
    """1, 2, 3, 6: squared deviations 4 + 1 + 0 + 9 = 14, so the variance is 14 / 3, and of the mean 14 / 12."""
    estimate = mean_estimate(torch.tensor([1.0, 2.0, 3.0, 6.0]).double())
    assert estimate.value == 3.0
    assert estimate.error == pytest.approx(math.sqrt(14 / 12), rel=1e-14)


def test_rates_accumulate_from_noise_to_data() -> None:
    bits = BitsPerDim(Estimate(0, 0), Estimate(1.0, 0), (level(0, 0, 8.0), level(1, 1, 4.0), level(2, 2, 2.0)), {})
    assert bits.rates() == (1 + 2 + 4, 1 + 2, 1)


def test_the_rate_of_a_range_is_that_of_its_times_on_average() -> None:
    """Times 1 to 4 cost 1 each: at 4 nothing of them is paid, at 1 three; 1.5 on average, and 4 below them."""
    bits = BitsPerDim(Estimate(0, 0), Estimate(0.5, 0), (level(0, 0, 7.0), level(1, 4, 4.0)), {})
    assert bits.rates() == (4.5, 2.0)


def test_the_tree_is_json_with_everything_in_it() -> None:
    bits = BitsPerDim(Estimate(3.0, 0.3), Estimate(0.5, 0), (level(0, 0, 1.0), level(1, 4, 1.5)), {"n": 5})
    tree = json.loads(json.dumps(bits.as_tree(), allow_nan=False))
    assert tree["bits_per_dim"] == {"value": 3.0, "error": 0.3}
    assert tree["decoder"] == {"value": 1.0, "error": 0.1}
    assert [(row["first"], row["last"], row["rate"]) for row in tree["levels"]] == [(0, 0, 2.0), (1, 4, 1.0625)]
    assert tree["recipe"] == {"n": 5}
