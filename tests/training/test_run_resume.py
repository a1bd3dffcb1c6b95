"""A run that is interrupted or killed goes on, and ends with the bits of one that never was."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm.training.checkpoint import read_notes
from ddpm.training.events import Finished, Notice, Saved, Started
from ddpm.training.loop import StepReport
from ddpm.training.run import run
from tiny_runs import differing, metric_lines, only, parts, tensors, tiny_plan, train_all, training_elsewhere

FILES = ("checkpoint.safetensors", "model.safetensors", "best.safetensors")
OFTEN = {"steps": 40, "checkpoint_every": 2, "evaluate_every": 20, "log_every": 1}
"""A run that is almost always about to write something."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train_all(out)
    return out


@pytest.fixture(scope="module")
def whole_often(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "often"
    train_all(out, **OFTEN)
    return out


def stop_after(out: Path, step: int, **changes: Any) -> None:
    """Train until a step was reported, and go without saving, as a kill would."""
    events = run(tiny_plan(out, **changes))
    for event in events:
        if isinstance(event, StepReport) and event.step == step:
            break
    events.close()  # type: ignore[attr-defined]


def assert_equal_runs(one: Path, other: Path, *, metrics: bool = True) -> None:
    for name in FILES:
        assert differing(one / name, other / name) == [], name
    assert parts(other) == []
    assert not metrics or metric_lines(one) == metric_lines(other)


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


def last_step(out: Path) -> int:
    """Return the step of the last whole line of metrics."""
    path = out / "metrics.jsonl"
    whole_lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return int(json.loads(whole_lines[-1])["step"]) if whole_lines else 0


@pytest.mark.parametrize("steps", [[1], [5], [4, 9, 11], [7, 7]])
def test_a_run_left_without_saving_goes_on_to_the_same_bits(tmp_path: Path, whole: Path, steps: list[int]) -> None:
    out = tmp_path / "run"
    for step in steps:
        stop_after(out, step)
    events = train_all(out)
    assert only(events, Started)[0].step == steps[-1] // 4 * 4
    assert_equal_runs(whole, out)
    notes, expected = (read_notes(folder / "checkpoint.safetensors") for folder in (out, whole))
    assert notes["history"] == expected["history"]


EVERYTHING: dict[str, Any] = {
    "schedule": {"num_timesteps": 4},
    "sampling": {"steps": 4},
    "network": {"self_conditioning": True},
    "objective": {"loss": "hybrid", "variance": "learned", "weighting": "min_snr", "timesteps": "importance"},
}
"""An objective with all that can be chosen; so few times that importance sampling soon has something to go by."""


def test_the_whole_objective_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    train_all(tmp_path / "whole", **EVERYTHING)
    stop_after(tmp_path / "run", 11, **EVERYTHING)
    middle = tensors(tmp_path / "run" / FILES[0])["history.counts"]
    assert int(middle.min()) >= 10, "times were uniform up to the kill"
    train_all(tmp_path / "run", **EVERYTHING)
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")
    saved = tensors(tmp_path / "run" / FILES[0])
    assert int(saved["history.counts"].sum()) == 12 * 8
    assert {"simple", "bound"} <= metric_lines(tmp_path / "run")[0].keys()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path: Path, whole: Path, name: str) -> None:
    out, number = tmp_path / "run", getattr(signal, name)
    with training_elsewhere(out, slow_writes=True) as process:
        wait_for(lambda: last_step(out) > 0)
        os.kill(process.pid, number)
        process.join(60)
        assert process.exitcode == 0
    saved = metric_lines(out)[-1]["step"]
    assert 3 <= saved < 12
    events = train_all(out)
    assert only(events, Started)[0].step == saved
    assert_equal_runs(whole, out, metrics=False)  # what was said on the way out is one line more
    assert metric_lines(out)[-1] == metric_lines(whole)[-1]


def test_a_signal_in_this_process_is_reported_and_handlers_come_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    events = []
    for event in run(tiny_plan(tmp_path / "run")):
        events.append(event)
        if isinstance(event, StepReport) and event.step == 2:
            signal.raise_signal(signal.SIGTERM)
    finished = only(events, Finished)[0]
    assert (finished.step, finished.complete) == (2, False)
    assert "SIGTERM" in finished.reason
    assert [event.step for event in only(events, Saved)] == [0, 2]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
def test_kill_9_at_random_moments_costs_no_bit(tmp_path: Path, whole_often: Path) -> None:
    out, chance, reached, inside = tmp_path / "run", random.Random(), 0, 0
    for in_a_write in (False, True, True):
        target = reached + chance.randint(1, 7)
        with training_elsewhere(out, slow_writes=in_a_write, **OFTEN) as process:
            wait_for(lambda target=target: last_step(out) >= target or not process.is_alive())
            if in_a_write:
                wait_for(lambda: bool(parts(out)) or not process.is_alive())
            else:
                time.sleep(chance.uniform(0.0, 0.1))
            assert process.is_alive(), "the run ended before it was killed"
            os.kill(process.pid, signal.SIGKILL)
            process.join(60)
            assert process.exitcode == -signal.SIGKILL
        reached, inside = last_step(out), inside + bool(parts(out))
    assert inside >= 2  # the first kill may find a write under way too
    train_all(out, **OFTEN)
    assert_equal_runs(whole_often, out)


def test_more_steps_go_on_from_a_finished_run(tmp_path: Path) -> None:
    long, grown = tmp_path / "long", tmp_path / "grown"
    train_all(long, steps=8)
    train_all(grown, steps=4)
    events = train_all(grown, steps=8)
    assert any("training.steps: 4 -> 8" in notice.text for notice in only(events, Notice))
    assert only(events, Started)[0].step == 4
    assert differing(long / FILES[0], grown / FILES[0]) == []


def test_a_finished_run_says_so_and_touches_nothing(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir() if path.name != ".lock"}
    events = train_all(whole)
    assert [type(event) for event in events] == [Notice, Started, Finished]
    assert events[-1] == Finished(12, "budget spent: all 12 steps were made", complete=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_fewer_threads_do_not_change_the_run(tmp_path: Path, whole: Path) -> None:
    out, threads = tmp_path / "run", torch.get_num_threads()
    stop_after(out, 5)
    torch.set_num_threads(threads + 1)
    try:
        train_all(out)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert_equal_runs(whole, out)
