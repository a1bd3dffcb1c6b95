"""What a kill leaves on the disk, at every moment of every write, is enough to end as the run that was never killed.

The folder is copied at each of these moments: a copy is what `kill -9` would have left there and then.
"""

from __future__ import annotations

import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

import ddpm.files
import ddpm.training.evaluate
import ddpm.training.preview
from ddpm.errors import RunError, TrainingError
from ddpm.model import Model
from ddpm.training.checkpoint import read_notes
from ddpm.training.events import Finished, Notice
from ddpm.training.loop import StepReport
from ddpm.training.run import run
from tiny_runs import differing, metric_lines, only, parts, tiny_plan, train_all

SHORT: dict[str, Any] = {
    "steps": 4,
    "batch_size": 6,
    "micro_batch_size": 4,
    "checkpoint_every": 2,
    "evaluate_every": 2,
    "preview_every": 2,
    "log_every": 1,
    "milestones": 2,
    "warmup_steps": 2,
}


@pytest.fixture(autouse=True)
def _cheap_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ddpm.training.evaluate, "_MOST", 16)
    monkeypatch.setattr(ddpm.training.preview, "_STEPS", 2)


def files(folder: Path) -> list[str]:
    found = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return sorted(str(file.relative_to(folder)) for file in found)


def differences(one: Path, other: Path) -> list[str]:
    """Return everything in which two run folders differ, but for what the clock says."""
    if files(one) != files(other):
        return [f"files {set(files(one)) ^ set(files(other))}"]
    found = []
    for name in files(one):
        if name.endswith(".safetensors"):
            found += [f"{name}: {tensor}" for tensor in differing(one / name, other / name)]
        elif name.endswith(".png") and (one / name).read_bytes() != (other / name).read_bytes():
            found.append(name)
    notes = [read_notes(folder / "checkpoint.safetensors") for folder in (one, other)]
    found += [f"notes.{key}" for key in notes[0] if key != "seconds" and notes[0][key] != notes[1][key]]
    return found + ["metrics"] * (metric_lines(one) != metric_lines(other))


def train_with_snapshots(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Train to the end; return copies of the folder, from before each file was whole and after it was in place."""
    taken: list[Path] = []
    flush = ddpm.files._flush

    def flush_and_copy(path: Path) -> None:
        target = folder.with_name(f"snapshot{len(taken)}")
        shutil.copytree(folder, target)
        for part in parts(target):  # its last bytes have not reached the disk
            part.write_bytes(part.read_bytes()[:-100])
        taken.append(target)
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(ddpm.files, "_flush", flush_and_copy)
        train_all(folder, **SHORT)
    return taken


def test_a_kill_at_any_moment_of_any_write_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "run"
    snapshots = train_with_snapshots(whole, monkeypatch)
    assert len(snapshots) > 20
    assert sum(bool(parts(snapshot)) for snapshot in snapshots) > 10
    for number, snapshot in enumerate(snapshots):
        events = train_all(snapshot, **SHORT)
        assert only(events, Finished)[-1].complete
        assert differences(whole, snapshot) == [], f"killed at moment {number}"
        assert parts(snapshot) == []


def test_a_run_in_pieces_is_the_run_in_one(tmp_path: Path) -> None:
    train_all(tmp_path / "whole", **SHORT)
    for steps in (1, 2, 4):  # closing the iterator saves nothing, so each session begins at the last checkpoint
        for event in run(tiny_plan(tmp_path / "pieces", **SHORT)):
            if isinstance(event, StepReport) and event.step == steps:
                break
        assert "ddpm-prefetch" not in [thread.name for thread in threading.enumerate()]
    train_all(tmp_path / "pieces", **SHORT)
    assert differences(tmp_path / "whole", tmp_path / "pieces") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_after_the_step_and_costs_nothing(tmp_path: Path, number: signal.Signals) -> None:
    settings = {**SHORT, "log_every": 2}
    train_all(tmp_path / "whole", **settings)
    before, events = signal.getsignal(number), []
    for event in run(tiny_plan(tmp_path / "run", **settings)):
        events.append(event)
        if isinstance(event, StepReport) and event.step == 3:
            signal.raise_signal(number)
    assert events[-1] == Finished(3, f"asked to stop ({number.name})", complete=False)
    assert signal.getsignal(number) == before
    assert [line["step"] for line in metric_lines(tmp_path / "run") if "loss" in line] == [2, 3]  # none is lost
    assert files(tmp_path / "run" / "milestones") == files(tmp_path / "whole" / "milestones")  # and no extra one
    train_all(tmp_path / "run", **settings)
    for name in ("checkpoint", "model", "best"):
        assert differing(tmp_path / "whole" / f"{name}.safetensors", tmp_path / "run" / f"{name}.safetensors") == []


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    settings = {**SHORT, "steps": 8, "checkpoint_every": 8, "evaluate_every": 8, "preview_every": 8, "warmup_steps": 0}
    with pytest.raises(TrainingError, match=r"no longer finite at step \d+; the checkpoint of step 0 is kept"):
        train_all(tmp_path / "run", **settings, learning_rate=1e39)
    assert Model.load(tmp_path / "run").sample(1, steps=1).shape == (1, 8, 8, 1)


def test_a_run_without_room_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="disk_limit_gib"):
        train_all(tmp_path / "deep" / "run", disk_limit_gib=1e-9)
    assert list(tmp_path.iterdir()) == []


def test_milestones_are_spaced_and_give_way_to_the_disk_limit(tmp_path: Path) -> None:
    settings = {**SHORT, "steps": 12, "checkpoint_every": 2, "milestones": 6, "evaluate_every": 12, "preview_every": 12}
    train_all(tmp_path / "free", **settings)
    all_of_them = files(tmp_path / "free" / "milestones")
    assert all_of_them == [f"{step:08d}.safetensors" for step in (2, 4, 6, 8, 10)]
    model, checkpoint = ((tmp_path / "free" / f"{name}.safetensors").stat().st_size for name in ("model", "checkpoint"))
    limit = 2 * checkpoint + 4.5 * model
    largest, events = 0, []
    for event in run(tiny_plan(tmp_path / "tight", **settings, disk_limit_gib=limit / 2**30)):
        events.append(event)
        largest = max(largest, sum(file.stat().st_size for file in (tmp_path / "tight").rglob("*") if file.is_file()))
    kept = files(tmp_path / "tight" / "milestones")
    assert 0 < len(kept) < len(all_of_them)
    assert kept == all_of_them[-len(kept) :]
    assert largest <= limit
    assert any("to stay within" in notice.text for notice in only(events, Notice))
