"""Several processes make the steps of one: the same losses, gradients, average, learning rates and checkpoints."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddpm.errors import ConfigError
from ddpm.processes import Group, joined, launch
from ddpm.training.events import Finished, Notice
from ddpm.training.loop import StepReport
from ddpm.training.run import check_processes, run
from groups import alone, together
from tiny_runs import differing, metric_lines, only, tensors, tiny_plan

RUN: dict[str, Any] = {
    "steps": 50,
    "batch_size": 8,
    "micro_batch_size": 3,
    "warmup_steps": 10,
    "decay": "cosine",
    "checkpoint_every": 10,
    "evaluate_every": 50,
    "log_every": 5,
    "data": {"flip": True},
}
"""50 steps with all that is random: flips, t, eps, and dropout masks at 0.1."""


def train(group: Group, out: Path, **changes: Any) -> list[tuple[float, float, float, list[float]]]:
    """Train; return loss, gradient norm, learning rate and the losses of each picture, of every step."""
    events = list(run(tiny_plan(out, **{**RUN, **changes}), None, group))
    assert only(events, Finished)[0].complete
    return [
        (report.loss, report.gradient_norm, report.learning_rate, report.losses.tolist())
        for report in only(events, StepReport)
    ]


def train_until(group: Group, out: Path, stop: int, **changes: Any) -> None:
    """Train until a step was made, and go without saving, as a kill would."""
    events = run(tiny_plan(out, **{**RUN, **changes}), None, group)
    for event in events:
        if isinstance(event, StepReport) and event.step == stop:
            break
    events.close()  # type: ignore[attr-defined]


def steps_told(out: Path) -> list[int]:
    return [line["step"] for line in metric_lines(out)]


def furthest(one: Path, other: Path) -> float:
    """Return the largest |a - b| over the largest |a| of any tensor of two files."""
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).abs().max() / a[n].abs().max().clamp(min=1e-8)) for n in a if a[n].numel())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The run of one process, and its steps."""
    out = tmp_path_factory.mktemp("one") / "run"
    return out, alone(train, out)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The run of two processes, and the steps as each of them has seen them."""
    out = tmp_path_factory.mktemp("two") / "run"
    return out, together(train, out)


def test_two_processes_make_the_steps_of_one(whole: tuple[Path, Any], pair: tuple[Path, list[Any]]) -> None:
    (out, expected), (other, (first, second)) = whole, pair
    assert first == second  # both know the losses of the whole batch
    assert len(first) == len(expected) == 50
    for (loss, norm, rate, each), (a, b, c, of_each) in zip(first, expected, strict=True):
        assert (loss, norm, rate) == (pytest.approx(a, rel=1e-5), pytest.approx(b, rel=1e-5), c)
        assert each == pytest.approx(of_each, rel=1e-5)
    for name in ("checkpoint.safetensors", "model.safetensors", "best.safetensors"):
        assert furthest(out / name, other / name) < 1e-5, name


def test_one_process_writes(whole: tuple[Path, Any], pair: tuple[Path, list[Any]]) -> None:
    names = [
        sorted(file.relative_to(out).name for file in out.rglob("*") if file.is_file()) for out, _ in (whole, pair)
    ]
    assert names[0] == names[1]
    assert steps_told(whole[0]) == steps_told(pair[0])


def test_the_number_of_processes_may_change_at_a_resume(tmp_path: Path, whole: tuple[Path, Any]) -> None:
    out = tmp_path / "run"
    alone(train_until, out, 12)
    together(train_until, out, 33)
    notices = [event.text for event in run(tiny_plan(out, **RUN)) if isinstance(event, Notice)]
    assert any("processes: 2 -> 1" in text for text in notices)
    assert steps_told(out) == steps_told(whole[0])
    assert furthest(whole[0] / "checkpoint.safetensors", out / "checkpoint.safetensors") < 1e-5


SHARDED: dict[str, Any] = {"steps": 12, "warmup_steps": 4, "checkpoint_every": 4, "evaluate_every": 6, "log_every": 3}


def test_weights_in_pieces_make_the_same_steps(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    expected = alone(train, one, **SHARDED)
    first, second = together(train, two, **{**SHARDED, "sharding": "full"})
    assert first == second
    for (loss, norm, rate, each), (a, b, c, of_each) in zip(first, expected, strict=True):
        assert (loss, norm, rate) == (pytest.approx(a, rel=1e-5), pytest.approx(b, rel=1e-5), c)
        assert each == pytest.approx(of_each, rel=1e-5)
    for name in ("model.safetensors", "best.safetensors"):  # whole, as any other
        assert furthest(one / name, two / name) < 1e-5, name
    assert sorted(path.name for path in two.glob("shards-*")) == ["shards-00000012"]
    assert steps_told(one) == steps_told(two)
    held_out, others = ([line["held_out"] for line in metric_lines(out) if "held_out" in line] for out in (one, two))
    assert others == pytest.approx(held_out, rel=1e-5)


def test_weights_may_be_whole_or_in_pieces_at_a_resume(tmp_path: Path) -> None:
    alone(train, tmp_path / "whole", **SHARDED)
    out = tmp_path / "run"
    alone(train_until, out, 5, **SHARDED)
    together(train_until, out, 9, **{**SHARDED, "sharding": "full"})
    assert (out / "shards-00000008").is_dir()
    alone(train, out, **SHARDED)
    assert not list(out.glob("shards-*"))
    assert furthest(tmp_path / "whole" / "checkpoint.safetensors", out / "checkpoint.safetensors") < 1e-5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sharding": "full", "batch_size": 9}, "a batch of 9 and 2 processes"),
        ({"sharding": "full", "network": {"self_conditioning": True}}, "goes without network.self_conditioning"),
        ({"device": "cuda:1"}, "training.device is 'cuda:1' with 2 processes"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    plan = tiny_plan(tmp_path / "run", **{key: value for key, value in changes.items() if key != "device"})
    if "device" in changes:  # this machine may not have it
        training = plan.config.training.model_copy(update={"device": changes["device"]})
        plan = replace(plan, config=plan.config.model_copy(update={"training": training}))
    with pytest.raises(ConfigError, match=words):
        check_processes(plan, Group(0, 2))
    check_processes(plan, Group())


def train_and_die(out: Path) -> None:
    """Train; the second process is killed after step 25, the first time."""
    with joined() as group:
        for event in run(tiny_plan(out, **RUN), None, group):
            now = isinstance(event, StepReport) and event.step == 25 and group.rank == 1
            if now and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
                os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
def test_a_killed_process_is_started_again_and_the_run_ends_the_same(
    tmp_path: Path, pair: tuple[Path, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    launch(train_and_die, tmp_path / "run", processes=2)
    assert differing(pair[0] / "checkpoint.safetensors", tmp_path / "run" / "checkpoint.safetensors") == []
    assert metric_lines(pair[0]) == metric_lines(tmp_path / "run")
