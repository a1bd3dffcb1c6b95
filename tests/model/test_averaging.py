from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ddpm.errors import ConfigError, ModelFileError
from ddpm.model import Model
from ddpm.model.averaging import KEPT_WIDTHS, KeptAverages, Profile, exponent, misfit, mixing_weights, overlap
from ddpm.training.ema import PowerAverage
from tiny_runs import train_all


def density(profile: Profile, tau: np.ndarray) -> np.ndarray:
    """Return a profile by its definition, zero after its step."""
    gamma = exponent(profile.width)
    inside = (gamma + 1) * tau**gamma / profile.step ** (gamma + 1)
    return np.where(tau <= profile.step, inside, 0.0)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.25])
def test_the_exponent_gives_a_profile_of_the_width(width: float) -> None:
    tau = (np.arange(200_000) + 0.5) / 200_000
    weights = density(Profile(width, 1), tau) / len(tau)
    mean = weights @ tau
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    assert np.sqrt(weights @ (tau - mean) ** 2) == pytest.approx(width, abs=1e-6)


def test_the_exponents_are_those_of_the_paper() -> None:
    assert [round(exponent(width), 2) for width in KEPT_WIDTHS] == [16.97, 6.94]  # Karras et al. 2024b, Sec. 3.1


@pytest.mark.parametrize("width", [0.0, 0.009, 0.26, -1.0, float("nan")])
def test_widths_out_of_range_are_refused(width: float) -> None:
    with pytest.raises(ConfigError, match=r"expected a share of the training from 0\.01 to 0\.25"):
        exponent(width)


@pytest.mark.parametrize("pair", [(Profile(0.05, 300), Profile(0.1, 800)), (Profile(0.1, 800), Profile(0.1, 800))])
def test_overlap_is_the_integral_of_the_product(pair: tuple[Profile, Profile]) -> None:
    tau = (np.arange(400_000) + 0.5) * 800 / 400_000
    by_sum = float(density(pair[0], tau) @ density(pair[1], tau)) * 800 / 400_000
    assert overlap(*pair) == pytest.approx(by_sum, rel=1e-6)
    assert overlap(*pair) == overlap(*reversed(pair))


def test_a_kept_average_is_given_back_as_it_is() -> None:
    kept = [Profile(width, step) for step in range(100, 1001, 100) for width in KEPT_WIDTHS]
    weights = mixing_weights(kept, kept[-1])
    assert abs(weights - np.eye(len(kept))[-1]).max() < 1e-8


def test_more_averages_fit_better_and_weights_that_never_move_are_kept() -> None:
    wanted = Profile(0.02, 1000)
    few, many = (
        [Profile(width, step) for step in range(1000 // count, 1001, 1000 // count) for width in KEPT_WIDTHS]
        for count in (4, 20)
    )
    assert misfit(many, wanted) < 0.5 * misfit(few, wanted)
    assert mixing_weights(few, wanted).sum() == pytest.approx(1, abs=1e-10)


def test_an_average_made_afterwards_is_the_one_that_would_have_been_kept() -> None:
    # A weight that drifts, and shakes as under an optimizer; the average of width 0.07 beside that of the kept ones.
    network = nn.Linear(64, 1, bias=False).double()
    nn.init.zeros_(network.weight)
    averages = {width: PowerAverage(network, width) for width in (*KEPT_WIDTHS, 0.07)}
    source, kept, values = np.random.default_rng(0), [], []
    for step in range(1, 1001):
        drift = np.sqrt(step) + source.normal(size=(1, 64))
        network.weight.data.copy_(torch.from_numpy(drift))
        for average in averages.values():
            average.update(network, step)
        if step % 100 == 0:
            kept += [Profile(width, step) for width in KEPT_WIDTHS]
            values += [averages[width].network.weight.detach().clone() for width in KEPT_WIDTHS]
    weights = mixing_weights(kept, Profile(0.07, 1000))
    made = sum(float(weight) * value for weight, value in zip(weights, values, strict=True))
    wanted = averages[0.07].network.weight
    last = averages[0.05].network.weight
    assert float((made - wanted).abs().max()) < 0.05 * float((last - wanted).abs().max())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kept") / "run"
    train_all(out, steps=12, checkpoint_every=3, snapshots=4)
    return out


def test_a_run_keeps_averages_that_are_models(run: Path) -> None:
    kept = KeptAverages.of_run(run)
    assert kept.profiles == tuple(Profile(width, step) for step in (3, 6, 9, 12) for width in (0.05, 0.1))
    last = Model.load(kept.files[-1])
    assert last.provenance["average_width"] == 0.1
    assert last.provenance["step"] == 12


def test_the_model_of_a_width_has_the_mixed_weights(run: Path) -> None:
    kept = KeptAverages.of_run(run)
    model = kept.model(0.08)
    weights = mixing_weights(kept.profiles, Profile(0.08, 12))
    name, found = next(iter(model.network.state_dict().items()))
    parts = [Model.load(file).network.state_dict()[name].double() for file in kept.files]
    by_hand = sum(float(weight) * part for weight, part in zip(weights, parts, strict=True))
    assert float((found - by_hand).abs().max()) < 1e-7
    assert model.provenance["average_width"] == 0.08
    again = kept.model(0.1).network.state_dict()
    last = Model.load(kept.files[-1]).network.state_dict()
    assert max(float((again[name] - last[name]).abs().max()) for name in last) < 1e-6


def test_a_run_without_averages_says_how_to_keep_them(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"holds no averages; expected .*training\.snapshots=16"):
        KeptAverages.of_run(tmp_path)


def test_a_file_that_is_no_average_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "averages").mkdir()
    (tmp_path / "averages" / "x.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    with pytest.raises(ModelFileError, match="is no average that a run has kept"):
        KeptAverages.of_run(tmp_path)
