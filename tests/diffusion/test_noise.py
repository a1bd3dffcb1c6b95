"""Noise is a function of (seed, picture, purpose, draw), standard normal, and independent in each of the four."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from ddpm.diffusion.noise import NoiseSource, stream

SHAPE = (3, 8, 8)
SEEDS = [0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1]


def normal(seed: int = 0, pictures: tuple[int, ...] = (0,), draw: int = 0, purpose: str = "eps") -> torch.Tensor:
    return NoiseSource(seed, pictures, SHAPE).normal(draw, purpose)


def test_a_picture_has_the_same_noise_in_every_batch() -> None:
    together = normal(pictures=tuple(range(10)))
    assert together.shape == (10, *SHAPE)
    assert torch.equal(together[7:8], normal(pictures=(7,)))
    assert torch.equal(together[[3, 9, 0]], normal(pictures=(3, 9, 0)))
    assert torch.equal(together[[4, 4]], normal(pictures=(4, 4)))
    assert torch.equal(together, torch.cat([normal(pictures=(0, 1, 2)), normal(pictures=tuple(range(3, 10)))]))


@pytest.mark.parametrize(("count", "shape"), [(0, (2,)), (3, ()), (2, (1,)), (2, (3, 4, 5, 6))])
def test_pictures_have_any_shape_and_number(count: int, shape: tuple[int, ...]) -> None:
    assert NoiseSource(0, range(count), shape).normal(0, "eps").shape == (count, *shape)


def test_draws_come_in_any_order() -> None:
    source = NoiseSource(0, range(3), SHAPE)
    forwards = [source.normal(k, "step") for k in range(5)]
    backwards = [source.normal(k, "step") for k in reversed(range(5))]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_holds_the_same_numbers(dtype: torch.dtype) -> None:
    cast = NoiseSource(0, [0], SHAPE, dtype=dtype).normal(0, "eps")
    assert cast.dtype == dtype
    assert torch.equal(cast, normal().to(dtype))


def test_neither_global_generator_matters_nor_is_moved() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = normal()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(normal(), first)


@pytest.mark.parametrize("seed", [0, 2**32, 2**63, 2**64 - 1])
@pytest.mark.parametrize("purpose", ["eps", "step"])
def test_numbers_are_normal(seed: int, purpose: str) -> None:
    count = 200_000
    numbers = NoiseSource(seed, [5], (count,)).normal(3, purpose).double().numpy()[0]
    for power, moment in [(1, 0), (2, 1), (3, 0), (4, 3)]:  # the variance of z^p is (2p - 1)!! less the squared moment
        deviation = ((1, 3, 15, 105)[power - 1] - moment**2) ** 0.5
        assert (numbers**power).mean() == pytest.approx(moment, abs=5 * deviation / count**0.5)
    assert stats.kstest(numbers, "norm").pvalue > 1e-3
    assert len(np.unique(numbers)) > 0.95 * count  # a float32 ziggurat repeats a few


def test_streams_are_independent() -> None:
    """Neighbours in each of the four keys: no correlation, at any lag within the first 64."""
    count = 20_000
    keys = list(itertools.product([0, 1, 2**32, 2**63], [0, 1, 2**32], ["eps", "step"], [0, 1]))
    rows = np.stack([NoiseSource(s, [i], (count,)).normal(d, p).double().numpy()[0] for s, i, p, d in keys])
    correlations = np.corrcoef(rows) - np.eye(len(keys))
    assert np.abs(correlations).max() < 5 / count**0.5
    neighbours = rows[:2]
    lagged = [(np.roll(neighbours[0], lag) * neighbours[1]).mean() for lag in range(-64, 65)]
    assert np.abs(lagged).max() < 5 / count**0.5


def test_no_stream_runs_into_the_next() -> None:
    long = [set(stream(0, "eps", p, d).bit_generator.random_raw(20_000).tolist()) for p in range(3) for d in range(3)]
    assert len(set.union(*long)) == sum(map(len, long))


@pytest.mark.parametrize("seed", SEEDS)
def test_every_bit_of_the_seed_counts(seed: int) -> None:
    """torch's own CPU generator keeps only the low 32 bits."""
    others = [other for other in SEEDS if other != seed]
    assert not any(torch.equal(normal(seed), normal(other)) for other in others)


def philox(key: list[int], counter: list[int]) -> list[int]:
    """Philox4x64-10 (Salmon et al. 2011), written from the paper."""
    (key_0, key_1), (x_0, x_1, x_2, x_3), word = key, counter, 2**64
    for _ in range(10):
        high_0, low_0 = divmod(x_0 * 0xD2E7470EE14C6C93, word)
        high_1, low_1 = divmod(x_2 * 0xCA5A826395121157, word)
        x_0, x_1, x_2, x_3 = high_1 ^ x_1 ^ key_0, low_1, high_0 ^ x_3 ^ key_1, low_0
        key_0, key_1 = (key_0 + 0x9E3779B97F4A7C15) % word, (key_1 + 0xBB67AE8584CAA73B) % word
    return [x_0, x_1, x_2, x_3]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_generator_is_philox_keyed_by_seed_and_purpose(seed: int) -> None:
    """So no seed of today gives another picture tomorrow. numpy counts up once before the first four numbers."""
    key = [seed, int.from_bytes(hashlib.blake2b(b"eps", digest_size=8).digest(), "little")]
    raw = stream(seed, "eps", picture=2**40, draw=17).bit_generator.random_raw(8).tolist()
    assert raw == philox(key, [1, 0, 17, 2**40]) + philox(key, [2, 0, 17, 2**40])
