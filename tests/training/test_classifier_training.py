from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.classifier import Classifier
from ddpm.cli.main import main
from ddpm.config import merge
from ddpm.diffusion.schedules import make_schedule
from ddpm.errors import ConfigError, DataError, RunError
from ddpm.model import Model
from ddpm.training.classifier import ClassifierSaved, ClassifierStep, Scored, moved, run_classifier
from ddpm.training.classifier_plan import ClassifierPlan, plan_classifier
from tiny_runs import differing

TINY: dict[str, Any] = {
    "network": {"base_channels": 16, "num_groups": 1},
    "training": {"steps": 6, "batch_size": 16, "warmup_steps": 2, "precision": "float32", "device": "cpu"},
    "features": 8,
}


def tiny_plan(out: Path, data: str | Path = "digits", **sections: Any) -> ClassifierPlan:
    return plan_classifier(data, merge(TINY, sections), preset="digits", out=out)


def folder_of(root: Path, counts: dict[str, int]) -> Path:
    """Write a folder a class with as many different pictures."""
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(root / name / f"{index}.png")
    return root


def test_it_learns(tmp_path: Path) -> None:
    training = {"steps": 120, "batch_size": 32, "evaluate_every": 40, "ema_decay": 0.9}
    events = list(run_classifier(tiny_plan(tmp_path / "c.safetensors", training=training)))
    scored = [event for event in events if isinstance(event, Scored)]
    assert [event.step for event in scored] == [40, 80, 120]
    assert scored[-1].accuracy.n == 360
    assert scored[-1].accuracy.share > 0.6  # chance is 0.1
    losses = [event.loss for event in events if isinstance(event, ClassifierStep)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3


def test_accuracy_in_the_file_is_that_of_its_weights(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "c.safetensors")
    list(run_classifier(plan))
    classifier, rows = Classifier.load(plan.out), plan.store.held_out
    accuracy = classifier.accuracy(plan.store.pictures[rows], plan.labels[rows])
    assert classifier.provenance["accuracy"] == {"correct": accuracy.correct, "n": accuracy.n}


def test_the_seed_decides_and_nothing_else(tmp_path: Path) -> None:
    files: list[Path] = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(len(files))  # the global generator has no say
        plan = tiny_plan(tmp_path / name, seed=seed)
        list(run_classifier(plan))
        files.append(plan.out)
    assert differing(files[0], files[1]) == []
    assert differing(files[0], files[2]) != []


def test_noisy_ones_know_the_schedule_and_report_by_noise(tmp_path: Path) -> None:
    schedule = {"name": "linear", "num_timesteps": 1000}
    training = {"steps": 250, "batch_size": 64, "warmup_steps": 50, "ema_decay": 0.9}
    plan = tiny_plan(tmp_path / "c.safetensors", noisy=True, schedule=schedule, training=training)
    scored = [event for event in run_classifier(plan) if isinstance(event, Scored)][-1]
    assert sum(part.n for part in scored.by_noise) == scored.accuracy.n == 360
    assert scored.by_noise[0].share > 0.4  # with little noise it has learned something; chance is 0.1
    assert scored.by_noise[0].share > scored.by_noise[-1].share + 0.15  # with most noise there is nothing to see
    loaded = Classifier.load(plan.out)
    assert loaded.schedule is not None
    assert torch.equal(loaded.schedule.betas, make_schedule("linear", 1000).betas)


def test_the_schedule_of_a_model(trained: Path, tmp_path: Path) -> None:
    tree = merge(TINY, {"noisy": True})
    plan = plan_classifier("digits", tree, schedule_of=str(trained), out=tmp_path / "c")
    assert plan.schedule is not None
    assert torch.equal(plan.schedule.betas, Model.load(trained).schedule.betas)
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        plan_classifier("digits", tree, schedule_of="cosin", out=tmp_path / "c")
    with pytest.raises(ConfigError, match="add --noisy"):
        plan_classifier("digits", TINY, schedule_of="cosine", out=tmp_path / "c")


def test_balanced_epochs_hold_every_class_equally_often(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", {"few": 8, "many": 40})
    plan = tiny_plan(tmp_path / "c", data, balanced=True)
    counts = Counter(plan.labels[plan.rows].tolist())
    assert counts[0] == counts[1]
    assert set(plan.rows.tolist()) == set(plan.store.train.tolist())
    plain = tiny_plan(tmp_path / "c", data)
    assert np.array_equal(plain.rows, plain.store.train)


def test_moving_repeats_the_edge() -> None:
    x_0 = torch.arange(2 * 2 * 5 * 4, dtype=torch.float32).reshape(2, 2, 5, 4)
    assert moved(x_0, 0, 0, 0) is x_0
    seen = set()
    for step in range(30):
        for picture, before in zip(moved(x_0, 1, 0, step), x_0, strict=True):
            padded = torch.nn.functional.pad(before[None], (1, 1, 1, 1), mode="replicate")[0]
            fits = [(d, r) for d in range(3) for r in range(3) if torch.equal(padded[:, d : d + 5, r : r + 4], picture)]
            assert len(fits) == 1
            seen.add(fits[0])
    assert len(seen) == 9


def test_an_existing_file_is_kept_unless_asked(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "c.safetensors")
    plan.out.write_bytes(b"mine")
    with pytest.raises(RunError, match="--overwrite"):
        tiny_plan(plan.out)
    assert plan.out.read_bytes() == b"mine"
    list(run_classifier(plan_classifier("digits", TINY, preset="digits", out=plan.out, overwrite=True)))
    assert Classifier.load(plan.out).provenance["step"] == 6


def test_stopping_saves(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "c.safetensors", training={"steps": 1000})
    last = None
    for event in run_classifier(plan):
        if isinstance(event, ClassifierStep) and event.step == 3:
            assert not plan.out.exists()
            os.kill(os.getpid(), signal.SIGINT)
        last = event
    assert isinstance(last, ClassifierSaved)
    assert "SIGINT" in str(last.reason)
    assert Classifier.load(plan.out).provenance["step"] == last.step <= 4
    assert list(tmp_path.iterdir()) == [plan.out]


def test_it_is_saved_at_intervals(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "c.safetensors", training={"checkpoint_every": 2})
    saved = []
    for event in run_classifier(plan):
        if isinstance(event, ClassifierSaved):
            assert Classifier.load(plan.out).provenance["step"] == event.step
            saved.append((event.step, event.reason))
    assert saved == [(2, None), (4, None), (6, "all steps made")]


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"only": 12}, "no classes"),
        ({"cats": 30, "dogs": 4}, r"too few pictures to train on in class 'dogs' \([34]\)"),
    ],
)
def test_data_without_enough_classes_are_refused(tmp_path: Path, counts: dict[str, int], words: str) -> None:
    data = folder_of(tmp_path / "data", counts)
    with pytest.raises(DataError, match=words):
        tiny_plan(tmp_path / "out" / "c", data)
    assert not (tmp_path / "out" / "c").exists()


def test_a_table_of_one_class_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, {"pictures": 12})
    rows = [f"pictures/{index}.png,cat" for index in range(12)]
    (tmp_path / "table.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    with pytest.raises(DataError, match="one class only"):
        tiny_plan(tmp_path / "c", tmp_path / "table.csv")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"network": {"kind": "mlp"}}, "half of a 'unet'"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"network": {"channel_multipliers": [1, 1, 1, 1, 1, 1]}}, "too many for pictures of 8x8"),
    ],
)
def test_wrong_values_are_refused(tmp_path: Path, overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        list(run_classifier(plan_classifier("digits", merge(TINY, overrides), out=tmp_path / "c")))


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "c.safetensors"
    words = ["train-classifier", "digits", "--steps", "4", "--seed", "1", "--out", str(out)]
    small = ["--set", "network.base_channels=8", "--set", "training.precision=float32"]
    main([*words, *small])
    told = capfd.readouterr().err
    assert "moved by up to 1 pixels each way" in told
    assert "n = 360, standard error" in told
    assert f"next: ddpm evaluate MODEL --features {out}" in told
    main(["inspect", str(out)])
    said = capfd.readouterr().out
    assert "a classifier of pictures" in said
    assert "classes: 10 (0, 1, 2" in said
    assert f"ddpm evaluate MODEL --features {out}" in said
    with pytest.raises(SystemExit) as ended:
        main([*words, *small])
    assert ended.value.code == 2
    assert "--overwrite" in capfd.readouterr().err
