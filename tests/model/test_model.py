"""Models sample: the same pictures after saving, in any batch, by every sampler and option; refusals in a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from ddpm.codec import PixelCodec
from ddpm.config.sampling import SamplingConfig, Variance
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers import SAMPLERS
from ddpm.errors import SamplingError
from ddpm.model import Model


def last_x(model: Model) -> torch.Tensor:
    *_, step = model.sample_steps(range(2))
    return step.x


@pytest.mark.parametrize("self_conditioning", [False, True])
@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small", "learned"])
def test_the_ancestral_sampler_uses_the_variance_of_training(
    tmp_path: Path, variance: Variance, self_conditioning: bool
) -> None:
    model = tiny_model(variance=variance, self_conditioning=self_conditioning, sampler="ddpm", steps=6)
    model.save(tmp_path / "m.safetensors")
    loaded = Model.load(tmp_path / "m.safetensors")
    assert (loaded.variance, loaded.network_config) == (variance, model.network_config)
    assert torch.equal(last_x(loaded), last_x(model))
    assert torch.equal(last_x(loaded), last_x(loaded.with_sampling(variance=variance)))
    for other in {"fixed_large", "fixed_small"} - {variance}:
        assert not torch.equal(last_x(loaded), last_x(loaded.with_sampling(variance=other)))
    if variance != "learned":
        with pytest.raises(SamplingError, match="this model's variance is fixed"):
            last_x(loaded.with_sampling(variance="learned"))


@pytest.mark.parametrize(
    "advice", [{}, {"sampler": "ddim", "eta": 0.7}, {"sampler": "ddpm"}, {"spacing": "karras", "clip": False}]
)
def test_a_saved_model_samples_the_same_bits(tmp_path: Path, advice: dict[str, Any]) -> None:
    model = tiny_model(**advice)
    model.save(tmp_path / "m.safetensors")
    loaded = Model.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(loaded.sample(4, seed=5), model.sample(4, seed=5))
    assert (loaded.sampling, loaded.provenance, loaded.codec) == (model.sampling, model.provenance, model.codec)
    assert (loaded.network_config, loaded.picture_shape) == (model.network_config, model.picture_shape)
    assert torch.equal(loaded.schedule.betas, model.schedule.betas)
    assert not loaded.network.training


def test_picture_i_does_not_depend_on_its_batch() -> None:
    model = tiny_model(sampler="ddim", eta=1.0)
    whole = model.sample(7, seed=3).astype(int)
    for batch_size in (1, 2, 5, 100):
        pictures = model.sample(7, seed=3, batch_size=batch_size).astype(int)
        assert np.abs(pictures - whole).max() <= 1  # sums of another order may round to the next level
    assert np.abs(model.sample(3, seed=3).astype(int) - whole[:3]).max() <= 1
    noise = NoiseSource(3, [0, 1, 2, 3], (3, 6, 5)).normal(0, "x_T")
    assert torch.equal(noise[2:3], NoiseSource(3, [2], (3, 6, 5)).normal(0, "x_T"))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_works_by_its_name(sampler: str) -> None:
    assert tiny_model(sampler=sampler).sample(2).shape == (2, 6, 5, 3)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("ddim", {"eta": 0.5}),
        ("ddpm", {"variance": "fixed_small"}),
        ("unipc", {"order": 1}),
        ("unipc", {"variant": "bh2"}),
        ("deis", {"order": 2}),
        ("lms", {"order": 1}),
        ("heun", {"churn": 2.0}),
        ("euler", {"churn": 2.0}),
        ("euler", {"churn": 2.0, "churn_range": (0.0, 1.0)}),
        ("euler", {"churn": 2.0, "churn_noise": 1.1}),
        ("langevin", {"inner_steps": 2}),
        ("langevin", {"step_size": 0.1}),
        ("predictor_corrector", {"corrector_steps": 2}),
        ("predictor_corrector", {"snr": 0.3}),
        ("adaptive", {"tolerance": 1e-3}),
        ("adaptive", {"tolerance": 1e-3, "absolute_tolerance": 1e-4}),
    ],
)
def test_every_option_reaches_its_sampler(sampler: str, options: dict[str, Any], tmp_path: Path) -> None:
    plain = tiny_model(sampler=sampler, steps=6)
    model = plain.with_sampling(**options)
    without = plain.with_sampling(**dict(list(options.items())[:-1]))
    assert last_x(model).ne(last_x(without)).any()
    model.save(tmp_path / "m.safetensors")
    loaded = Model.load(tmp_path / "m.safetensors")
    assert loaded.sampling.options().items() >= options.items()
    assert torch.equal(last_x(loaded), last_x(model))


def test_another_sampler_begins_with_its_own_options() -> None:
    model = tiny_model(sampler="unipc", order=3, spacing="karras")
    changed = model.with_sampling(sampler="lms")
    assert (changed.sampling.spacing, changed.sampling.options()) == (None, {})
    assert model.with_sampling(sampler="unipc", steps=5).sampling.options() == {"order": 3}


def test_the_spacing_is_the_samplers_unless_another_is_asked_for() -> None:
    def times(**advice: Any) -> list[float]:
        return [step.t for step in tiny_model(**advice).sample_steps([0])]

    assert times(sampler="heun") == times(sampler="heun", spacing="log_snr") != times(sampler="heun", spacing="leading")
    assert times(sampler="ddim") == times(sampler="ddim", spacing="trailing")


def test_pictures_and_seeds_differ() -> None:
    model = tiny_model()
    pictures = np.concatenate([model.sample(4, seed=0), model.sample(4, seed=1)])
    assert len({picture.tobytes() for picture in pictures}) == 8


@pytest.mark.parametrize(
    ("codec", "dtype"),
    [
        (PixelCodec(17, (0.0, 16.0), "uint8"), np.uint8),
        (PixelCodec(65536, (0.0, 65535.0), "uint16"), np.uint16),
        (PixelCodec(None, (-1.0, 1.0), "float32"), np.float32),
    ],
)
@pytest.mark.parametrize("n", [1, 3])
def test_samples_have_the_shape_and_dtype_of_the_data(codec: PixelCodec, dtype: type, n: int) -> None:
    pictures = tiny_model(codec=codec).sample(n)
    assert pictures.shape == (n, 6, 5, 3)
    assert pictures.dtype == dtype
    if codec.levels:
        assert pictures.max() < codec.levels


def test_every_step_is_reported() -> None:
    steps: list[object] = []
    tiny_model().sample(5, steps=4, batch_size=2, on_step=steps.append)
    assert len(steps) == 3 * 4


def test_arguments_override_the_advice_and_leave_the_model_alone() -> None:
    model = tiny_model()
    changed = model.with_sampling(sampler="ddpm", steps=5, eta=None)
    assert (changed.sampling.sampler, changed.sampling.steps, changed.sampling.eta) == ("ddpm", 5, 0.0)
    np.testing.assert_array_equal(model.sample(2, sampler="ddpm", steps=5), changed.sample(2))
    assert model.sampling == SamplingConfig(steps=3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 0}, "0 pictures; expected at least 1"),
        ({"n": -5}, "-5 pictures; expected at least 1"),
        ({"batch_size": 0}, "batch size 0; expected at least 1"),
        ({"seed": -1}, "seed -1; expected 0 to"),
        ({"sampler": "ddmp"}, "unknown sampler 'ddmp'; did you mean 'ddpm'.*known are"),
        ({"steps": 21}, "21 sampling steps; expected 1 to 20, the timesteps of training"),
        ({"steps": 0}, "steps.* 0.*greater than or equal to 1"),
    ],
)
def test_sampling_refuses_in_a_sentence(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(SamplingError, match=words) as caught:
        tiny_model().sample(**arguments)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_make_no_pictures() -> None:
    model = tiny_model(clip=False)
    next(model.network.parameters()).data.fill_(float("nan"))
    with pytest.raises(SamplingError, match="not finite"):
        model.sample(1)


def test_a_model_whose_advice_has_too_many_steps_can_be_loaded_but_not_followed(tmp_path: Path) -> None:
    model = tiny_model()
    replace(model, sampling=SamplingConfig(steps=50)).save(tmp_path / "m.safetensors")
    with pytest.raises(SamplingError, match="50 sampling steps; expected 1 to 20"):
        Model.load(tmp_path / "m.safetensors").sample(1)
    assert Model.load(tmp_path / "m.safetensors").sample(1, steps=2).shape == (1, 6, 5, 3)
