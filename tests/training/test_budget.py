from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import ddpm
from ddpm.cli.main import main
from ddpm.errors import ConfigError
from ddpm.training import budget
from ddpm.training.budget import within
from ddpm.training.run import run
from tiny_runs import tensors, tiny_plan, train_all


def test_twice_the_time_is_twice_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tiny_plan(tmp_path / "run")
    monkeypatch.setattr(budget, "_seconds_a_step", lambda plan, group: 0.5)
    short, told = within(plan, 1)
    long, _ = within(plan, 2)
    assert (short.config.training.steps, long.config.training.steps) == (114, 228)  # 60 s and 120 s, of them 95 %
    assert told.startswith("114 steps of 0.5 s fit into ")


def test_the_time_of_a_step_is_measured_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(10**6))
    monkeypatch.setattr(budget.time, "perf_counter", lambda: 3.0 * next(now))
    plan, _ = within(tiny_plan(tmp_path / "run", steps=100), 1)
    assert plan.config.training.steps == math.floor(60 * 0.95 / 3)
    assert not (tmp_path / "run").exists()


def test_the_steps_made_to_time_them_change_nothing(tmp_path: Path) -> None:
    plan, _ = within(tiny_plan(tmp_path / "timed"), 1e-9)
    assert plan.config.training.steps == 1
    list(run(plan))
    train_all(tmp_path / "plain", steps=1)
    timed, plain = (tensors(tmp_path / name / "model.safetensors") for name in ("timed", "plain"))
    assert all(torch.equal(timed[name], plain[name]) for name in plain)


def test_a_run_keeps_the_steps_that_it_began_with(tmp_path: Path) -> None:
    train_all(tmp_path / "run", steps=4)
    plan, told = within(tiny_plan(tmp_path / "run"), 1000)
    assert plan.config.training.steps == 4
    assert told == "the run keeps the 4 steps that it began with"


@pytest.mark.parametrize("minutes", [0, -1, math.nan, math.inf, 1e9])
def test_no_time_is_refused(minutes: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a positive number"):
        within(tiny_plan(tmp_path / "run"), minutes)


def test_there_is_one_budget(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"minutes=1 beside steps=5"):
        ddpm.train("digits", steps=5, minutes=1)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "digits", "--steps", "5", "--minutes", "1"])
    assert stopped.value.code == 2
    assert "--minutes 1 beside --steps 5" in capsys.readouterr().err
