"""What is asked for at the command line, against what a model, and a distilled one, was made for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddpm.diffusion.analytic import GaussianDenoiser
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers import pndm, spaced_timesteps
from ddpm.diffusion.schedules import make_schedule
from ddpm.errors import RunError, SamplingError
from ddpm.model import Model
from ddpm.sampling.cautions import cautions, divergence, misuse, stretched
from ddpm.sampling.comparing import plan_comparison
from ddpm.sampling.job import with_options
from ddpm.terminal import bar


@pytest.fixture(scope="module")
def model(trained: Path) -> Model:
    return Model.load(trained)


@pytest.fixture(scope="module")
def few(model: Model) -> Model:
    """Stands for a distilled model."""
    own = {"sampler": "ddim", "steps": 2, "timesteps": (49.0, 24.0)}
    return replace(model.with_sampling(**own), provenance={**model.provenance, "distilled_from": {}})


def test_options_are_read_and_reach_the_model(model: Model) -> None:
    words = ["churn=2", "sampling.churn_range=[0.05, 50]", "spacing=karras"]
    advice = with_options(model, sampler="heun", steps=3, assignments=words).sampling
    assert advice.options() == {"churn": 2.0, "churn_range": (0.05, 50.0)}
    assert (advice.steps, advice.spacing) == (3, "karras")


@pytest.mark.parametrize("option", ["churn=2", "variance=fixed_small", "order=2"])
def test_what_the_sampler_does_not_take_is_refused(model: Model, option: str) -> None:
    with pytest.raises(SamplingError, match=r"sampler 'ddim' takes no option '\w+'; it takes eta"):
        with_options(model, sampler="ddim", steps=None, assignments=[option])


def test_what_is_out_of_range_is_refused_before_the_first_step(model: Model) -> None:
    for words in (["order=4"], ["timesteps=[50.0]"]):
        with pytest.raises(SamplingError):
            with_options(model, sampler="deis", steps=1, assignments=words).sampling_batches(1)


def test_a_distilled_model_used_otherwise_is_remarked_upon(model: Model, few: Model) -> None:
    assert misuse(few, few.with_sampling(steps=2)) is None
    for other in (few.with_sampling(steps=5), few.with_sampling(sampler="unipc"), few.with_sampling(eta=0.5)):
        assert "distilled for ddim at its own 2 times" in str(misuse(few, other))
    assert misuse(model, model.with_sampling(sampler="unipc", steps=7)) is None


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_pndm_is_remarked_upon_exactly_where_it_diverges(model: Model, name: str) -> None:
    """Gaussian data of deviation 0.3, known exactly: the true factor is 1, and the sampler's is the method's."""
    long = replace(model, schedule=make_schedule(name, 1000))  # type: ignore[arg-type]
    for steps in (3, 4, 5, 10, 20):
        asked = long.with_sampling(sampler="pndm", steps=steps)
        exact = GaussianDenoiser(long.schedule, torch.zeros(1).double(), torch.full((1, 1), 0.09, dtype=torch.float64))
        times = spaced_timesteps(steps, long.schedule, "log_snr")
        x = torch.linspace(-2, 2, 5, dtype=torch.float64).unsqueeze(1)
        *_, last = pndm(exact, long.schedule, x, NoiseSource(0, range(5), (1,)), timesteps=times)
        assert (last.x.abs() - 0.3 * stretched(asked) * x.abs()).abs().max() < 1e-9 * last.x.abs().max()
        words = divergence(asked)
        assert (words is None) == (steps >= 10)
        assert words is None or (f"pndm in {steps} steps" in words and "unipc" in words)
    assert (divergence(long.with_sampling(sampler="pndm", steps=50, spacing="trailing")) is None) == (name == "linear")
    assert divergence(long.with_sampling(sampler="ddim", steps=2)) is None


def test_all_cautions_are_told(few: Model) -> None:
    assert cautions(few, few) == []
    assert len(cautions(few, few.with_sampling(sampler="pndm", steps=2))) == 2


def test_previews_are_what_will_be_sampled_in_at_most_20_steps(model: Model, few: Model) -> None:
    assert few.within(20) is few
    many = model.with_sampling(sampler="heun", steps=40, spacing="karras", churn=2.0)
    advice = many.within(20).sampling
    assert (advice.sampler, advice.steps, advice.spacing) == ("heun", 20, "karras")
    assert advice.options() == many.sampling.options()
    advice = model.with_sampling(sampler="ddpm", steps=50).within(20).sampling
    assert (advice.sampler, advice.steps) == ("unipc", 20)


def test_a_comparison_has_the_steps_that_the_model_was_made_for(few: Model, tmp_path: Path) -> None:
    few.save(tmp_path / "few.safetensors")
    words = {"samplers": None, "steps": None, "count": 40, "seed": 0, "data": None, "features": "pixels"}
    common = {**words, "device": "cpu", "progress": bar}
    (own,) = plan_comparison(tmp_path / "few.safetensors", file=None, **common).models
    assert own.sampling == few.sampling
    with pytest.raises(RunError, match="missing or read-only"):
        plan_comparison(tmp_path / "few.safetensors", file=tmp_path / "no" / "cells.json", **common)
