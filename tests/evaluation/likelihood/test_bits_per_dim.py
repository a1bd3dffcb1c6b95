from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.codec import PixelCodec
from ddpm.conditions import Condition
from ddpm.config import DataConfig, NetworkConfig, ObjectiveConfig
from ddpm.data import Store, open_store
from ddpm.diffusion.denoiser import Denoiser, Prediction
from ddpm.diffusion.guidance import Guidance
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.schedules import make_schedule
from ddpm.errors import ConfigError, DataError, SamplingError
from ddpm.evaluation.likelihood.bound import bits_per_dim_of
from ddpm.evaluation.likelihood.ode import ode_bits_per_dim_of
from ddpm.model import Model
from ddpm.networks import build_network


@pytest.fixture(scope="module")
def model(trained: Path) -> Model:
    """A network of a few steps, in float64, so that only its own arithmetic is compared; T = 50."""
    loaded = Model.load(trained)
    loaded.network.double()
    return loaded


@pytest.fixture(scope="module")
def digits() -> Store:
    return open_store("digits", DataConfig())


@dataclass(frozen=True, eq=False)
class LearnedVariance(Model):
    """A model whose variance lies a third of the way between the fixed ones."""

    def denoiser(
        self, *, clip: bool = True, condition: Condition | None = None, guidance: Guidance | None = None
    ) -> Denoiser:
        inner = Model.denoiser(self, clip=clip, condition=condition, guidance=guidance)

        def denoise(x_t: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
            prediction = inner(x_t, t)
            return Prediction(prediction.x_0, prediction.eps, torch.full_like(x_t, 1 / 3))

        return denoise


def with_learned_variance(model: Model) -> Model:
    parts = {name: getattr(model, name) for name in model.__dataclass_fields__}
    return LearnedVariance(**{**parts, "variance": "learned"})


# The bound -----------------------------------------------------------------------------------------------------------


def plain_bound(model: Model, picture: np.ndarray, number: int, variance: str) -> tuple[float, list[float]]:
    """L_T, then L_0, L_1, .. of one picture, in bits/dim: written out, pixel by pixel, slowly."""
    levels = model.codec.levels
    assert levels is not None
    x_0 = [2 * float(value) / (levels - 1) - 1 for value in picture.ravel()]
    betas = model.schedule.betas.tolist()
    bar = [math.prod(1 - beta for beta in betas[: t + 1]) for t in range(len(betas))]
    noise = NoiseSource(0, [number], (1, 8, 8))
    bits = len(x_0) * math.log(2)
    prior = sum(0.5 * (bar[-1] * x * x + (1 - bar[-1]) - 1 - math.log(1 - bar[-1])) for x in x_0)
    terms = []
    for t, beta in enumerate(betas):
        eps = noise.normal(t, "bound").double().flatten().tolist()
        x_t = [math.sqrt(bar[t]) * x + math.sqrt(1 - bar[t]) * e for x, e in zip(x_0, eps, strict=True)]
        shaped = torch.tensor(x_t, dtype=torch.float64).reshape(1, 1, 8, 8)
        v = model.network(shaped, torch.tensor([float(t)])).flatten().tolist()
        guess = [math.sqrt(bar[t]) * x - math.sqrt(1 - bar[t]) * w for x, w in zip(x_t, v, strict=True)]
        guess = [min(1.0, max(-1.0, x)) for x in guess]
        before = bar[t - 1] if t else 1.0
        tilde = (1 - before) / (1 - bar[t]) * beta if t else (1 - bar[0]) / (1 - bar[1]) * betas[1]
        sigma2 = {"fixed_large": beta, "fixed_small": tilde, "learned": beta ** (1 / 3) * tilde ** (2 / 3)}[variance]
        nats = 0.0
        for x, g in zip(x_0, guess, strict=True):
            if t == 0:
                nats -= plain_log_mass(x, g, math.sqrt(sigma2), levels)
            else:
                shift = math.sqrt(before) * beta / (1 - bar[t]) * (x - g)
                nats += 0.5 * (math.log(sigma2 / tilde) - 1 + (tilde + shift * shift) / sigma2)
        terms.append(nats / bits)
    return prior / bits, terms


def plain_log_mass(x: float, mean: float, deviation: float, levels: int) -> float:
    """Mass of the bin about x, to 50 digits: far in a tail a double holds nothing of it."""
    half = mpmath.mpf(1) / (levels - 1)
    with mpmath.workdps(50):
        low = -mpmath.inf if x == -1 else (x - half - mean) / (deviation * mpmath.sqrt(2))
        high = mpmath.inf if x == 1 else (x + half - mean) / (deviation * mpmath.sqrt(2))
        if low + high < 0:
            low, high = -high, -low
        return float(mpmath.log((mpmath.erfc(low) - mpmath.erfc(high)) / 2))


class KilledError(Exception):
    pass


class DiesAt:
    """Keeps arrays in memory, and dies instead of keeping one more than `most`."""

    def __init__(self, most: int | None = None) -> None:
        self.kept: dict[str, np.ndarray] = {}
        self.most = most

    def get(self, key: Mapping[str, Any]) -> np.ndarray | None:
        return self.kept.get(json.dumps(key))

    def put(self, key: Mapping[str, Any], rows: np.ndarray) -> None:
        if len(self.kept) == self.most:
            raise KilledError
        self.kept[json.dumps(key)] = rows


def test_a_killed_measurement_goes_on_and_ends_with_the_same_bits(model: Model, digits: Store) -> None:
    passes: list[int] = []

    @contextmanager
    def counting(total: int | None, description: str) -> Iterator[Any]:
        yield SimpleNamespace(update=passes.append)

    whole = bits_per_dim_of(model, digits, n=6, batch_size=2, strata=5, progress=counting)
    assert sum(passes) == 3 * 6
    keeper = DiesAt(2)
    with pytest.raises(KilledError):
        bits_per_dim_of(model, digits, n=6, batch_size=2, strata=5, keeper=keeper)
    keeper.most = None
    passes.clear()
    assert bits_per_dim_of(model, digits, n=6, batch_size=2, strata=5, keeper=keeper, progress=counting) == whole
    assert passes == [6, 6] + [1] * 6
    other = bits_per_dim_of(model, digits, n=6, batch_size=2, strata=5, keeper=keeper, seed=1)
    assert other.total != whole.total
    assert len(keeper.kept) == 6


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_the_bound_is_that_of_a_plain_version(model: Model, digits: Store, variance: str) -> None:
    assert model.parameterization == "v"
    measured = with_learned_variance(model) if variance == "learned" else model
    pictures = digits.pictures[:2]
    bits = bits_per_dim_of(measured, pictures, strata=None, variance=variance)  # type: ignore[arg-type]
    plain = [plain_bound(model, picture, number, variance) for number, picture in enumerate(pictures)]
    assert bits.prior.value == pytest.approx(np.mean([prior for prior, _ in plain]), abs=1e-6)
    terms = np.array([terms for _, terms in plain])
    ours = np.array([level.bits.value for level in bits.levels])
    assert np.abs(ours - terms.mean(0)).max() < 1e-6
    totals = np.array([prior for prior, _ in plain]) + terms.sum(1)
    assert bits.total.value == pytest.approx(totals.mean(), abs=1e-6)
    assert bits.total.error == pytest.approx(abs(totals[0] - totals[1]) / 2, abs=1e-6)


def test_terms_add_up_and_the_network_may_be_float32(trained: Path, model: Model, digits: Store) -> None:
    single = bits_per_dim_of(Model.load(trained), digits, n=4, strata=None)
    double = bits_per_dim_of(model, digits, n=4, strata=None)
    assert single.total.value == pytest.approx(double.total.value, rel=1e-5)
    added = single.prior.value + sum(level.bits.value for level in single.levels)
    assert single.total.value == pytest.approx(added, abs=1e-6)
    assert single.rates()[0] == pytest.approx(added - single.decoder.value, abs=1e-6)
    assert [(level.first, level.last) for level in single.levels] == [(t, t) for t in range(50)]


def test_strata_are_unbiased_and_their_errors_honest(trained: Path, digits: Store) -> None:
    """The same pictures with other times: totals scatter about the full bound as the mean over repeats should."""
    model = Model.load(trained)
    full = bits_per_dim_of(model, digits, n=12, strata=None)
    few = [bits_per_dim_of(model, digits.pictures[chosen(digits, 12)], seed=s, strata=3) for s in range(30)]
    totals = np.array([bits.total.value for bits in few])
    scatter = totals.std(ddof=1)
    assert abs(totals.mean() - full.total.value) < 4 * scatter / math.sqrt(30)
    spread_of_pictures = full.total.error
    stated = np.mean([bits.total.error for bits in few])
    assert stated == pytest.approx(math.hypot(scatter, spread_of_pictures), rel=0.35)


def chosen(store: Store, n: int) -> np.ndarray:
    from ddpm.evaluation.likelihood.unseen import choose

    model = Model(
        torch.nn.Linear(1, 1),
        NetworkConfig(),
        make_schedule("cosine", 50),
        ObjectiveConfig().parameterization,
        PixelCodec(store.levels, store.value_range, "uint8"),
        (8, 8, 1),
    )
    return choose(model, store, n, 0).numbers


def test_pictures_have_the_same_numbers_in_any_batch(model: Model, digits: Store) -> None:
    together, apart = (bits_per_dim_of(model, digits, n=5, strata=6, batch_size=size) for size in (None, 2))
    assert together.total.value == pytest.approx(apart.total.value, rel=1e-10)
    assert together.total.error == pytest.approx(apart.total.error, rel=1e-8)
    assert bits_per_dim_of(model, digits, n=5, strata=6, seed=1).total != together.total


def test_more_draws_average(model: Model, digits: Store) -> None:
    first, both = (bits_per_dim_of(model, digits, n=4, strata=5, draws=draws) for draws in (1, 2))
    assert first.prior == both.prior
    assert first.total.value != both.total.value


def test_the_recipe_says_how(trained: Path, digits: Store) -> None:
    model = Model.load(trained)
    tree = json.loads(json.dumps(bits_per_dim_of(model, digits, n=3, strata=5, seed=9).as_tree(), allow_nan=False))
    recipe = tree["recipe"]
    assert recipe["precision"] == "network float32, terms float64"
    assert (recipe["n"], recipe["of"], recipe["seed"], recipe["draws"]) == (3, len(digits.held_out), 9, 1)
    assert (recipe["times_a_picture"], recipe["num_timesteps"], recipe["levels"]) == (6, 50, 17)
    assert (recipe["variance"], recipe["clip"], recipe["step"]) == ("fixed_large", True, 8)
    assert recipe["data_fingerprint"] == digits.fingerprint
    learned = bits_per_dim_of(with_learned_variance(model), digits, n=3, strata=5)
    assert learned.recipe["variance"] == "learned"


def test_clipping_is_that_of_the_model(model: Model, digits: Store) -> None:
    free = bits_per_dim_of(model.with_sampling(clip=False), digits, n=3, strata=5)
    assert free.recipe["clip"] is False
    assert free.total != bits_per_dim_of(model, digits, n=3, strata=5).total


def test_every_network_pass_is_told(model: Model, digits: Store) -> None:
    told: list[int] = []

    class Counter:
        def update(self, n: int, /) -> None:
            told.append(n)

    @contextmanager
    def progress(total: int | None, description: str) -> Iterator[Counter]:
        yield Counter()
        assert sum(told) == total

    bits_per_dim_of(model, digits, n=5, strata=3, draws=2, batch_size=2, progress=progress)
    assert sum(told) == 3 * 2 * 4


# Refusals ------------------------------------------------------------------------------------------------------------


def points_model() -> Model:
    config = NetworkConfig(kind="mlp", base_channels=8, blocks_per_level=1)
    codec = PixelCodec(None, (-2.0, 2.0), "float32")
    network = build_network(config, (1, 1, 2)).requires_grad_(False)
    return Model(network, config, make_schedule("cosine", 20), "v", codec, (1, 1, 2))


def points(n: int = 4) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 1, 1, 2)).astype(np.float32)


def test_data_without_levels_are_refused() -> None:
    with pytest.raises(DataError, match="continuous: L_0 is the mass of a level, and they have no levels"):
        bits_per_dim_of(points_model(), points())


@pytest.mark.parametrize("score", [bits_per_dim_of, ode_bits_per_dim_of])
def test_what_cannot_be_scored_is_refused(model: Model, digits: Store, score: object) -> None:
    assert callable(score)
    with pytest.raises(DataError, match=r"uint8 \(8, 7, 1\), the model's are uint8 \(8, 8, 1\)"):
        score(model, digits.pictures[:4, :, :7])
    with pytest.raises(DataError, match="pictures are float32"):
        score(model, digits.pictures[:4].astype("float32"))
    with pytest.raises(DataError, match="1 picture to score"):
        score(model, digits.pictures[:1])
    with pytest.raises(ConfigError, match="n is 1; a standard error needs"):
        score(model, digits, n=1)
    with pytest.raises(ConfigError, match="seed -1"):
        score(model, digits, seed=-1)
    with pytest.raises(DataError, match="has 256 levels"):
        score(model, replace(digits, levels=256))
    with pytest.raises(ConfigError, match="batches of 0"):
        score(model, digits, batch_size=0)


@pytest.mark.parametrize("score", [bits_per_dim_of, ode_bits_per_dim_of])
def test_half_precision_is_refused_and_autocast_kept_off(trained: Path, digits: Store, score: object) -> None:
    assert callable(score)
    model = Model.load(trained)
    options = {"strata": 2} if score is bits_per_dim_of else {"steps": 2, "probes": 2}
    plain = score(model, digits, n=2, **options)
    with torch.autocast("cpu", torch.bfloat16):
        assert score(model, digits, n=2, **options).total == plain.total
    model.network.bfloat16()
    with pytest.raises(ConfigError, match=r"weights are torch\.bfloat16; a likelihood needs torch\.float32"):
        score(model, digits, n=2, **options)


def test_numbers_that_are_not_finite_are_refused(trained: Path, digits: Store) -> None:
    model = Model.load(trained)
    next(model.network.parameters()).fill_(math.nan)
    with pytest.raises(SamplingError, match="not finite"):
        bits_per_dim_of(model, digits, n=2, strata=2)
    with pytest.raises(SamplingError, match="not finite"):
        ode_bits_per_dim_of(model, digits, n=2, steps=2, probes=2)


# The probability-flow ODE --------------------------------------------------------------------------------------------


class Oracle(torch.nn.Module):
    """v of x_0 ~ N(0, c) in every dimension: E[x_0 | x_t] = a c / (a^2 c + b^2) x_t."""

    def __init__(self, model: Model, variance: float) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(variance, dtype=torch.float64), requires_grad=False)
        self.schedule = model.schedule

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        a, b = (c.reshape(-1, 1, 1, 1) for c in self.schedule.signal_and_noise(t))
        return a * b * (1 - self.scale) / (a * a * self.scale + b * b) * x_t


@pytest.mark.parametrize("probes", [None, 3])
def test_the_ode_of_normal_points_has_their_density(probes: int | None) -> None:
    """x_0 = points / 2 here; the density of x_0 ~ N(0, c + sigma_0^2), per dimension, in bits.

    The Jacobian is a multiple of the identity, of which any sign vector gives the divergence exactly.
    """
    base = replace(points_model(), schedule=make_schedule("cosine", 200, zero_terminal_snr=True))
    model = replace(base, network=Oracle(base, 0.25))
    bar = float(model.schedule.alphas_cumprod[0])
    variance = 0.25 + (1 - bar) / bar
    x_0 = points(5).reshape(5, 2).astype(np.float64) / 2
    exact = (0.5 * math.log2(2 * math.pi * variance) + x_0**2 / (2 * variance) * math.log2(math.e)).mean(1)
    bits = ode_bits_per_dim_of(model, points(5), steps=60, probes=probes)
    assert bits.total.value == pytest.approx(exact.mean(), abs=1e-5)  # the network is told t in float32
    assert bits.total.error == pytest.approx(exact.std(ddof=1) / math.sqrt(5), abs=1e-5)
    assert bits.divergence_error < 1e-9
    assert bits.recipe["is_bound"] is False
    assert bits.recipe["dequantisation"] == "none"


@pytest.mark.parametrize(("levels", "dtype"), [(17, "uint8"), (256, "uint8"), (65536, "uint16")])
def test_dequantised_levels_cost_the_density_times_the_width(levels: int, dtype: str) -> None:
    """With p = N(0, 0.3 + sigma_0^2): E over a bin of width w of -log2 p - log2 w, here by quadrature."""
    base = points_model()
    codec = PixelCodec(levels, (0.0, levels - 1.0), dtype)
    base = replace(base, codec=codec, schedule=make_schedule("cosine", 100, zero_terminal_snr=True))
    model = replace(base, network=Oracle(base, 0.3)).with_sampling(clip=False)
    pictures = np.random.default_rng(1).integers(levels, size=(400, 1, 1, 2)).astype(dtype)
    bits = ode_bits_per_dim_of(model, pictures, steps=20)
    bar, width = float(model.schedule.alphas_cumprod[0]), 2 / (levels - 1)
    variance = 0.3 + (1 - bar) / bar
    x_0 = pictures.reshape(400, 2) * width - 1.0
    squares = x_0**2 + width**2 / 12
    exact = 0.5 * math.log2(2 * math.pi * variance) + squares / (2 * variance) * math.log2(math.e) - math.log2(width)
    noise = math.log2(math.e) / variance * width / math.sqrt(12) * 0.6 / math.sqrt(800)  # of the uniform draws
    assert bits.total.value == pytest.approx(exact.mean(), abs=5 * noise + 1e-4)
    assert bits.recipe["is_bound"] is True


def test_probes_agree_with_the_exact_divergence(model: Model, digits: Store) -> None:
    exact = ode_bits_per_dim_of(model, digits, n=2, steps=3)
    probed = ode_bits_per_dim_of(model, digits, n=2, steps=3, probes=8)
    assert exact.divergence_error == 0.0
    assert exact.recipe["divergence"] == "exact"
    assert probed.recipe["divergence"] == "Hutchinson, 8 Rademacher probes"
    assert abs(exact.total.value - probed.total.value) < 5 * probed.divergence_error
    assert json.loads(json.dumps(probed.as_tree(), allow_nan=False))["bits_per_dim"]["value"] == probed.total.value


def test_the_integration_error_falls_with_the_steps() -> None:
    base = replace(points_model(), schedule=make_schedule("cosine", 200))
    model = replace(base, network=Oracle(base, 0.05))
    coarse, fine = (ode_bits_per_dim_of(model, points(), steps=steps).integration_error for steps in (10, 20))
    assert 8 < coarse / fine < 40


def test_a_single_step_is_refused(model: Model, digits: Store) -> None:
    with pytest.raises(ConfigError, match=r"1 step, .* at least 2 steps"):
        ode_bits_per_dim_of(model, digits, n=2, steps=1)
