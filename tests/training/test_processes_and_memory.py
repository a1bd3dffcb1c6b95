"""Memory that runs out in one of two processes: both agree on smaller parts, and nobody waits for the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ddpm.training.evaluate
import ddpm.training.session
from ddpm.codec import PixelCodec
from ddpm.config import NetworkConfig, ObjectiveConfig, TrainingConfig
from ddpm.diffusion.schedules import make_schedule
from ddpm.engine import Engine
from ddpm.errors import TrainingError
from ddpm.networks import build_unet
from ddpm.processes import Group
from ddpm.processes.launch import is_lost_peer
from ddpm.training.batches import BatchSource
from ddpm.training.ema import Ema
from ddpm.training.loop import Objective, TrainState, make_optimizer, no_room_for_one, train_steps
from ddpm.training.run import run
from groups import alone, together
from tiny_runs import tiny_plan

BATCH, STEPS, T = 16, 5, 50
TRAINING = TrainingConfig(steps=STEPS, batch_size=BATCH, learning_rate=2e-3, warmup_steps=2)
NETWORK = NetworkConfig(
    base_channels=8, channel_multipliers=(1,), blocks_per_level=1, attention_levels=(), num_groups=4, dropout=0.2
)


class Short(nn.Module):
    """A network for which memory is short: never for more pictures at once than some, and once at a certain call."""

    def __init__(self, network: nn.Module, most_at_once: int, at_call: int) -> None:
        super().__init__()
        self.network = network
        self.most_at_once, self.at_call = most_at_once, at_call
        self.calls: list[int] = []

    def forward(self, x_t: Tensor, t: Tensor, y: object = None, *, dropout_keys: Tensor | None = None) -> Tensor:
        self.calls.append(len(x_t))
        if len(x_t) > self.most_at_once or len(self.calls) == self.at_call:
            raise torch.OutOfMemoryError("out of memory (simulated)")
        output: Tensor = self.network(x_t, t, dropout_keys=dropout_keys)
        return output


def train(group: Group, *, micro: int = BATCH, short: int = 1, most_at_once: int = BATCH, at_call: int = 0) -> Any:
    """Make some steps, with a shortage in process `short` alone; return what was seen, or the error that ended it."""
    from sklearn.datasets import load_digits

    pictures = load_digits().images[..., None].astype(np.uint8)
    codec = PixelCodec(17, (0.0, 16.0), "uint8")
    source = BatchSource(pictures, np.arange(len(pictures)), codec, BATCH, T, seed=0, part=group.part(BATCH))
    torch.manual_seed(0)
    mine = group.rank == short
    network = Short(build_unet(NETWORK, 1), most_at_once if mine else BATCH, at_call if mine else 0)
    state = TrainState(network, Ema(network, 0.9), make_optimizer(network, TRAINING), micro)
    engine = Engine(device="cpu", precision="float32", channels_last=False, threads=1)
    objective = Objective(make_schedule("cosine", T), ObjectiveConfig(parameterization="v"), engine)
    try:
        reports = list(train_steps(state, map(source.batch, range(STEPS)), objective, TRAINING, group))
    except (TrainingError, RuntimeError) as error:
        return error
    return {
        "losses": [report.losses.tolist() for report in reports],
        "norms": [report.gradient_norm for report in reports],
        "average": torch.cat([weight.flatten() for weight in state.ema.network.parameters()]).tolist(),
        "notices": [(report.step, notice.split(":")[0]) for report in reports for notice in report.notices],
        "micro": state.micro_batch_size,
        "calls": network.calls,
    }


def forecast(group: Group, out: Path) -> Any:
    """Begin a run for which the second process has no room, and return the error."""

    def full(*words: object) -> Any:
        raise TrainingError(no_room_for_one())

    if group.rank == 1:
        ddpm.training.session.foresee = full  # type: ignore[assignment]
    try:
        next(iter(run(tiny_plan(out), None, group)))
    except (TrainingError, RuntimeError) as error:
        return error


SHORTAGES: dict[str, Callable[[Group, Path], Any]] = {
    "at once": lambda group, out: train(group, most_at_once=3),
    "second part": lambda group, out: train(group, micro=4, at_call=4),
    "no room": lambda group, out: train(group, most_at_once=0),
    "no room foreseen": forecast,
}


def shortages(group: Group, out: Path) -> dict[str, Any]:
    return {name: meet(group, out) for name, meet in SHORTAGES.items()}


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each of two processes has met, of which the second was short of memory."""
    first, second = together(shortages, tmp_path_factory.mktemp("short") / "run")
    return first, second


@pytest.fixture(scope="module")
def ample() -> dict[str, Any]:
    """The steps of one process that has memory."""
    found: dict[str, Any] = alone(train)
    return found


@pytest.mark.parametrize(
    ("case", "steps", "micro", "calls"),
    [
        ("at once", [1, 1], 2, [[8, 4, 4] + [2] * 4 * STEPS, [8, 4] + [2] * 4 * STEPS]),
        ("second part", [2], 2, [[4, 4, 4, 4] + [2] * 4 * 4, [4, 4, 4, 4] + [2] * 4 * 4]),
    ],
)
def test_both_halve_their_parts_and_make_the_steps_of_one(
    met: tuple[dict[str, Any], dict[str, Any]],
    ample: dict[str, Any],
    case: str,
    steps: list[int],
    micro: int,
    calls: list[list[int]],
) -> None:
    for rank, found in enumerate(each[case] for each in met):
        assert found["notices"] == [(step, "out of memory") for step in steps]
        assert (found["micro"], found["calls"]) == (micro, calls[rank])
        assert found["norms"] == pytest.approx(ample["norms"], rel=1e-5)
        np.testing.assert_allclose(found["losses"], ample["losses"], rtol=1e-5)
        apart = np.subtract(found["average"], ample["average"])
        assert np.linalg.norm(apart) < 1e-5 * np.linalg.norm(ample["average"])


@pytest.mark.parametrize("case", ["no room", "no room foreseen"])
def test_where_one_process_has_no_room_for_one_picture_both_say_so(
    met: tuple[dict[str, Any], dict[str, Any]], case: str
) -> None:
    for each in met:
        assert isinstance(each[case], TrainingError)
        assert str(each[case]) == no_room_for_one()


def shortage_in_step_4(group: Group) -> tuple[str, bool]:
    """Return the kind of error that ends the steps, and whether it says that the other process is gone."""
    error = train(group, at_call=4)
    return type(error).__name__, is_lost_peer(error)


def test_a_later_shortage_ends_both_so_that_they_are_started_again() -> None:
    first, second = together(shortage_in_step_4)
    assert second == ("OutOfMemoryError", False)
    assert first[1], first
