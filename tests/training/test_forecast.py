"""What a run will take: exact where it can be counted, and what follows from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import MakePlan
from ddpm.errors import TrainingError
from ddpm.training.events import Started
from ddpm.training.forecast import MemoryForecast, _Live, foresee, foretell
from ddpm.training.loop import Objective
from ddpm.training.plan import Plan
from ddpm.training.run import run
from ddpm.training.session import Session

MIB = 2**20
FORECAST = MemoryForecast(
    weights=10 * MIB,
    average=10 * MIB,
    gradients=10 * MIB,
    optimizer=20 * MIB,
    step=MIB,
    picture=4 * MIB,
    free=1000 * MIB,
    batch_size=32,
    micro_batch_size=32,
)


def parts(plan: Plan) -> tuple[nn.Module, Objective]:
    from ddpm.engine import choose_engine

    return plan.start(choose_engine("cpu", "float32"))


class TestLive:
    def test_the_peak_is_what_lives_at_once(self) -> None:
        x = torch.zeros(MIB // 4)
        with _Live() as live:
            h = x + 1  # 1 MiB
            h = h + 1  # the old one goes when the new one is there
            del h
            _ = x + 2
        assert live.peak == 2 * MIB

    def test_views_and_changes_in_place_take_nothing(self) -> None:
        x = torch.zeros(MIB // 4)
        with _Live() as live:
            x.add_(1).view(2, -1).t().mul_(2)
        assert live.peak == 0

    def test_what_autograd_keeps_lives(self) -> None:
        x = torch.zeros(MIB // 4, requires_grad=True)
        with _Live() as live:
            h = x
            for _ in range(8):
                h = torch.sigmoid(h)  # whose gradient needs its output
            h.sum().backward()
        assert 8 * MIB <= live.peak <= 10.1 * MIB


class TestForesee:
    def test_counts_weights_and_leaves_them_alone(self, plan: MakePlan) -> None:
        made = plan()
        network, objective = parts(made)
        before = [weight.detach().clone() for weight in network.parameters()]
        forecast = foresee(network, objective, made.batches(50).batch(0), made.config.training)
        size = 4 * sum(weight.numel() for weight in network.parameters())
        assert (forecast.weights, forecast.average, forecast.gradients) == (size, size, size)
        assert forecast.optimizer == 2 * size
        for old, weight in zip(before, network.parameters(), strict=True):
            assert torch.equal(old, weight)
            assert weight.grad is None

    def test_activations_of_a_pass_grow_as_foretold(self, plan: MakePlan) -> None:
        made = plan()
        network, objective = parts(made)
        batch = made.batches(50).batch(0)
        forecast = foresee(network, objective, batch, made.config.training)
        for weight in network.parameters():
            weight.grad = torch.zeros_like(weight)
        with _Live() as live:
            objective.losses(network, batch).total.sum().backward()  # type: ignore[no-untyped-call]
        assert forecast.step + len(batch) * forecast.picture == pytest.approx(live.peak, rel=0.02)

    def test_checkpointing_is_foretold_to_take_less(self, plan: MakePlan) -> None:
        taken = []
        for wanted in (False, True):
            made = plan(
                training={"gradient_checkpointing": wanted}, network={"blocks_per_level": 3, "base_channels": 16}
            )
            network, objective = parts(made)
            taken.append(foresee(network, objective, made.batches(50).batch(0), made.config.training))
        assert taken[1].picture < taken[0].picture / 2
        assert taken[1].total(16) < taken[0].total(16)
        assert taken[1].unseen > taken[0].unseen  # what a block takes inside its operations is not kept less

    def test_no_room_for_a_picture_is_said(self, plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
        made = plan()
        network, objective = parts(made)

        def full(*inputs: object, **options: object) -> Tensor:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")

        monkeypatch.setattr(network, "forward", full)
        with pytest.raises(TrainingError, match="not enough memory for one picture"):
            foresee(network, objective, made.batches(50).batch(0), made.config.training)


class TestFitting:
    def test_all_at_once_where_it_fits(self) -> None:
        assert FORECAST.largest_fitting() == 32
        assert FORECAST.total(32) == (40 + 10 + 1 + 128) * MIB

    def test_what_is_not_seen_grows_with_the_pictures_alone(self) -> None:
        more = replace(FORECAST, unseen=2.0)
        assert more.total(32) == (40 + 10 + 1 + 256) * MIB
        assert more.total(0) == FORECAST.total(0)

    def test_parts_are_even_and_fit(self) -> None:
        tight = replace(FORECAST, free=90 * MIB)  # 81 to be used: 30 + 1 + 10 fixed, 40 for ten pictures
        assert tight.largest_fitting() == 8
        assert tight.fits(8)
        assert tight.fits(10)
        assert not tight.fits(11)

    def test_where_nothing_fits_it_is_one_and_said(self) -> None:
        hopeless = replace(FORECAST, free=MIB)
        assert hopeless.largest_fitting() == 1
        assert any("too much" in line for line in replace(hopeless, micro_batch_size=1).lines())

    def test_a_run_starts_with_what_fits_and_says_so(self, plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
        roomy = next(event for event in run(plan("roomy")) if isinstance(event, Started)).memory
        assert roomy.micro_batch_size == 16
        enough_for_half = (roomy.total(8) - roomy.weights) / 0.9 + 1
        monkeypatch.setattr("ddpm.training.forecast.free_memory", lambda device: int(enough_for_half))
        made = plan("tight")
        session = Session.open(made, _folder(made))
        assert session.state.micro_batch_size in (6, 8)
        assert any("in parts of" in line for line in session.notices)

    def test_what_is_asked_for_is_not_refitted(self, plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ddpm.training.forecast.free_memory", lambda device: 1)
        made = plan(training={"micro_batch_size": 4})
        assert Session.open(made, _folder(made)).state.micro_batch_size == 4


def test_a_dry_run_tells_memory_and_time(plan: MakePlan) -> None:
    lines = foretell(plan())
    assert any(line.startswith("memory: about") and "a batch of 16" in line for line in lines)
    assert any(line.startswith("time: about") for line in lines)


def _folder(plan: Plan):  # type: ignore[no-untyped-def]
    from ddpm.training.run_folder import RunFolder

    path: Path = plan.out
    return RunFolder(path, plan.result)
