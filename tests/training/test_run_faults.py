"""What a run refuses, and what it survives."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from ddpm.errors import ConfigError, DdpmError, RunError, TrainingError
from ddpm.model import Model
from ddpm.training import run_folder
from ddpm.training.batches import Batch, BatchSource
from ddpm.training.checkpoint import read_notes
from ddpm.training.ema import Ema
from ddpm.training.events import Evaluated, Finished, Notice, Saved, Started
from ddpm.training.loop import StepReport
from ddpm.training.run import run
from ddpm.training.run_folder import GIB, MetricsFile, RunFolder, take_back
from tiny_runs import differing, metric_lines, only, parts, tensors, tiny_plan, train_all


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with 4 of its 12 steps made; tests only read it."""
    out = tmp_path_factory.mktemp("half") / "run"
    train_all(out, steps=4)
    return out


def train_and(out: Path, step: int, act: Callable[[], None], **training: Any) -> None:
    """Train, and do something when a step was saved."""
    for event in run(tiny_plan(out, **training)):
        if isinstance(event, Saved) and event.step == step:
            act()


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != ".lock"}


def refusal(out: Path, **training: Any) -> str:
    """Return the sentence with which a run is refused; it must leave the folder as it was."""
    before = contents(out) if out.is_dir() else None
    with pytest.raises(DdpmError) as caught:
        train_all(out, **training)
    assert before is None or contents(out) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_data_are_refused(half: Path) -> None:
    plan = tiny_plan(half)
    with pytest.raises(RunError, match=r"trained on other pictures \(digits\)"):
        list(run(replace(plan, store=replace(plan.store, fingerprint="0" * 64))))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"learning_rate": 0.5}, "training.learning_rate: 0.002 -> 0.5"),
        ({"batch_size": 9}, "training.batch_size: 8 -> 9"),
        ({"seed": 7}, "seed: 0 -> 7"),
        ({"network": {"dropout": 0.3}}, "network.dropout: 0.1 -> 0.3"),
    ],
)
def test_another_recipe_is_refused_by_its_key(half: Path, change: dict[str, Any], named: str) -> None:
    assert named in refusal(half, **change)


def test_a_damaged_checkpoint_is_refused_and_kept(half: Path, tmp_path: Path) -> None:
    whole = (half / "checkpoint.safetensors").read_bytes()
    (tmp_path / "checkpoint.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in refusal(tmp_path)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    assert "holds other files (letter.txt)" in refusal(tmp_path)
    assert "is a file" in refusal(tmp_path / "letter.txt")


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    first = run(tiny_plan(tmp_path))
    next(event for event in first if isinstance(event, StepReport))
    assert "another process is training" in refusal(tmp_path)
    first.close()  # type: ignore[attr-defined]
    assert only(train_all(tmp_path), Finished)[0].complete


def test_a_run_that_fails_at_once_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        train_all(tmp_path / "a" / "b", device="cuda:99")
    assert list(tmp_path.iterdir()) == []


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_a_file(_: Any, path: Path, *__: Any) -> None:
    """Write as much as goes, and fail as safetensors does."""
    Path(path).write_bytes(b"half")
    raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("failing", [full_disk, half_a_file])
def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: Any
) -> None:
    out = tmp_path / "run"
    saves = itertools.count()
    save_file = safetensors.torch.save_file

    def fails_later(*arguments: Any) -> None:
        (save_file if next(saves) < 5 else failing)(*arguments)  # two of step 0, two of step 4, then best of step 6

    monkeypatch.setattr(safetensors.torch, "save_file", fails_later)
    with pytest.raises(RunError, match=r"the disk is full\. The checkpoint of step 4 is safe") as caught:
        train_all(out)
    assert "\n" not in str(caught.value)
    assert parts(out) == []
    monkeypatch.undo()
    assert len(tensors(out / "checkpoint.safetensors")) > 100
    events = train_all(out)
    assert only(events, Started)[0].step == 4
    train_all(tmp_path / "whole")
    assert differing(tmp_path / "whole" / "checkpoint.safetensors", out / "checkpoint.safetensors") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_metrics_on_a_full_disk_end_the_run_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: MetricsFile, *arguments: Any, **options: Any) -> None:
        opened(self, *arguments, **options)
        self._file.close()
        self._file = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115
        monkeypatch.setattr(self, "sync", lambda: None)

    opened = MetricsFile.__init__
    monkeypatch.setattr(MetricsFile, "__init__", full)
    with pytest.raises(RunError, match=r"the disk is full\. The checkpoint of step 0 is safe"):
        train_all(tmp_path / "run")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a small file system: {error}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_while_training(small_disk: Path) -> None:
    out, filler = small_disk / "run", small_disk / "filler"

    def fill() -> None:
        free = os.statvfs(small_disk)
        filler.write_bytes(bytes(free.f_bavail * free.f_bsize - 30_000))

    with pytest.raises(RunError, match=r"the disk is full\. The checkpoint of step 4 is safe") as caught:
        train_and(out, 4, fill)
    assert "\n" not in str(caught.value)
    assert parts(out) == []
    assert read_notes(out / "checkpoint.safetensors")["config"]["training"]["steps"] == 12
    filler.unlink()
    assert only(train_all(out), Finished)[0].complete


def test_too_little_space_is_said_before_the_first_step(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(1_700_000))
    assert "free some" in refusal(small_disk / "run")
    assert not (small_disk / "run").exists()


def test_milestones_are_kept_and_the_oldest_gives_way(tmp_path: Path) -> None:
    def kept(name: str) -> list[int]:
        return sorted(int(path.stem) for path in (tmp_path / name / "milestones").glob("*.safetensors"))

    training = {"steps": 12, "checkpoint_every": 2, "evaluate_every": 100}
    train_all(tmp_path / "all", **training, milestones=3)
    assert kept("all") == [4, 8]
    assert Model.load(tmp_path / "all" / "milestones" / "00000004.safetensors").provenance["step"] == 4
    size = (tmp_path / "all" / "model.safetensors").stat().st_size
    numbers = 4 * Model.load(tmp_path / "all").num_parameters
    limit = RunFolder(tmp_path / "all").size() - size + 4.5 * numbers  # one milestone, and a checkpoint being written
    events = train_all(tmp_path / "limited", **training, milestones=3, disk_limit_gib=limit / GIB)
    assert kept("limited") == [8]
    assert sum("removed 1 milestone" in notice.text for notice in only(events, Notice)) == 1
    assert RunFolder(tmp_path / "limited").size() + 4 * numbers <= limit


def test_a_limit_that_nothing_fits_into_is_refused(tmp_path: Path) -> None:
    assert "training.disk_limit_gib" in refusal(tmp_path / "run", disk_limit_gib=1e-6)


def test_the_best_model_is_the_evaluation_with_the_lowest_held_out_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddpm.training.evaluate import HeldOut

    losses, evaluate = iter([3.0, 1.0, 2.0, 1.5]), HeldOut.evaluate
    monkeypatch.setattr(
        HeldOut, "evaluate", lambda self, *arguments: replace(evaluate(self, *arguments), held_out=next(losses))
    )
    events = train_all(tmp_path, steps=8, evaluate_every=2)
    assert [event.evaluation.held_out for event in only(events, Evaluated)] == [3.0, 1.0, 2.0, 1.5]
    assert Model.load(tmp_path / "best.safetensors").provenance["step"] == 4
    assert Model.load(tmp_path / "model.safetensors").provenance["step"] == 8


def plant_nan(monkeypatch: pytest.MonkeyPatch, first: int, last: int) -> None:
    """Put a NaN into the third picture of some steps, counted from 1."""
    batch = BatchSource.batch

    def planted(self: BatchSource, step: int) -> Batch:
        made = batch(self, step)
        if first <= step + 1 <= last:
            made.x_0[2, 0, 0, 0] = math.nan
        return made

    monkeypatch.setattr(BatchSource, "batch", planted)


def test_a_nan_is_skipped_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_nan(monkeypatch, 5, 5)
    events = train_all(tmp_path)
    reports = only(events, StepReport)
    assert [report.step for report in reports if report.skipped] == [5]
    assert len(reports) == 12
    (line,) = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    plan = tiny_plan(tmp_path)
    assert (line["step"], line["pictures"]) == (5, [plan.store.names[int(reports[4].batch.rows[2])]])
    assert any("step 5 skipped" in notice.text for notice in only(events, Notice))
    assert sum(line.get("skipped", 0) for line in metric_lines(tmp_path)) == 1
    assert all(
        bool(np.isfinite(tensor.numpy()).all()) for tensor in tensors(tmp_path / "checkpoint.safetensors").values()
    )


def test_ten_skipped_steps_save_and_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_nan(monkeypatch, 3, 99)
    with pytest.raises(TrainingError, match="10 steps in a row"):
        train_all(tmp_path, steps=40)
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 10
    monkeypatch.undo()
    events = train_all(tmp_path, steps=40)
    assert only(events, Started)[0].step == 12
    assert only(events, Finished)[0].complete


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil() -> None:
        monkeypatch.setattr(Ema, "update", lambda self, network, step: next(self.network.parameters()).fill_(math.inf))
        safe.append((tmp_path / "checkpoint.safetensors").read_bytes())

    safe: list[bytes] = []
    with pytest.raises(TrainingError, match=r"no longer finite at step 8; the checkpoint of step 4 is kept"):
        train_and(tmp_path, 4, spoil, evaluate_every=100)
    assert [(tmp_path / "checkpoint.safetensors").read_bytes()] == safe


def test_lines_after_the_checkpoint_and_cut_lines_are_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 4}\n{"step": 5}\n{"ste')
    take_back(path, 4)
    assert path.read_text() == '{"step": 1}\n{"step": 4}\n'


def test_metrics_are_valid_json_also_where_a_number_is_not_finite() -> None:
    assert run_folder.json_line({"a": math.nan, "b": [math.inf, 1.0]}) == '{"a": null, "b": [null, 1.0]}\n'
