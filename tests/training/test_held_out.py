from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ddpm.config import ObjectiveConfig
from ddpm.diffusion.schedules import make_schedule
from ddpm.engine import Engine
from ddpm.networks import build_network
from ddpm.training.evaluate import HeldOut
from ddpm.training.loop import Objective
from ddpm.training.metrics import NOISE_RANGES, noise_range
from ddpm.training.plan import Plan
from tiny_runs import same_bits, tiny_plan

T = 100
ENGINE = Engine("cpu", "float32", channels_last=False, threads=1)
OBJECTIVE = Objective(make_schedule("cosine", T), ObjectiveConfig(parameterization="v"), ENGINE)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return tiny_plan(tmp_path / "run")


def random_network(plan: Plan) -> nn.Module:
    """Return a network in which no weight is zero, so that dropout would show."""
    torch.manual_seed(0)
    network = build_network(plan.config.network, plan.picture_shape)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


def test_the_same_weights_give_the_same_bits(plan: Plan) -> None:
    network = random_network(plan)
    held_out = HeldOut.of(plan.store, plan.codec, T, seed=3)
    one = held_out.evaluate(network.train(), OBJECTIVE, 1)
    again = HeldOut.of(plan.store, plan.codec, T, seed=3).evaluate(network.train(), OBJECTIVE, 1)
    assert one == again
    assert one != HeldOut.of(plan.store, plan.codec, T, seed=4).evaluate(network, OBJECTIVE, 1)
    with torch.no_grad():
        next(network.parameters()).mul_(1.01)
    assert one != held_out.evaluate(network, OBJECTIVE, 1)


def test_there_is_no_dropout(plan: Plan) -> None:
    network = random_network(plan)
    plain = build_network(plan.config.network.model_copy(update={"dropout": 0.0}), plan.picture_shape)
    plain.load_state_dict(network.state_dict())
    held_out = HeldOut.of(plan.store, plan.codec, T, seed=0)
    assert plan.config.network.dropout > 0
    assert held_out.evaluate(network.train(), OBJECTIVE, 1) == held_out.evaluate(plain, OBJECTIVE, 1)


def test_held_out_and_training_pictures_are_what_they_say_with_equal_times(plan: Plan) -> None:
    chosen = HeldOut.of(plan.store, plan.codec, T, seed=0)
    for batches, rows in ((chosen.held_out, plan.store.held_out), (chosen.train, plan.store.train)):
        assert set(np.concatenate([batch.rows for batch in batches]).tolist()) <= set(rows.tolist())
        for batch in batches:
            assert torch.equal(batch.x_0, plan.codec.encode(plan.store.pictures[batch.rows]))
    for a, b in zip(chosen.held_out, chosen.train, strict=True):
        assert same_bits(a.t, b.t)
        assert same_bits(a.eps, b.eps)
    counts = torch.bincount(torch.cat([batch.t for batch in chosen.held_out]), minlength=T)
    assert set(counts.tolist()) == {2, 3}  # 256 times, spread evenly


def test_noise_ranges_are_half_open_and_whole() -> None:
    t = np.arange(T)
    assert np.flatnonzero(np.diff(noise_range(t, T))).tolist() == [24, 49, 74]
    assert (noise_range(t, T)[0], noise_range(t, T)[-1]) == (0, NOISE_RANGES - 1)
    for steps in (4, 7, 1000):
        ranges = noise_range(np.arange(steps), steps)
        assert set(ranges.tolist()) == {0, 1, 2, 3}
        assert (np.diff(ranges) >= 0).all()


def test_the_losses_by_noise_average_to_the_whole(plan: Plan) -> None:
    network = random_network(plan)
    evaluation = HeldOut.of(plan.store, plan.codec, T, seed=0).evaluate(network, OBJECTIVE, 7)
    assert evaluation.step == 7
    assert len(evaluation.by_noise) == NOISE_RANGES
    assert abs(float(np.mean(evaluation.by_noise)) - evaluation.held_out) < 1e-5  # 64 of the 256 times in each range


def test_the_parts_of_a_hybrid_loss_stand_beside_it(plan: Plan) -> None:
    config = ObjectiveConfig(parameterization="v", loss="hybrid", variance="learned")
    hybrid = Objective(OBJECTIVE.schedule, config, ENGINE, levels=17)
    torch.manual_seed(0)
    network = build_network(plan.config.network, plan.picture_shape, learned_variance=True)
    evaluation = HeldOut.of(plan.store, plan.codec, T, seed=0).evaluate(network, hybrid, 1)
    assert evaluation.parts.keys() == {"simple", "bound"}
    total = evaluation.parts["simple"] + config.bound_weight * evaluation.parts["bound"]
    assert abs(total - evaluation.held_out) < 1e-6
