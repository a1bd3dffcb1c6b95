"""The best model may be chosen by a score of samples: what is kept, written, refused, and the same after a kill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ddpm
import ddpm.training.evaluate
import ddpm.training.preview
from ddpm.cli.main import main
from ddpm.config import merge
from ddpm.errors import ConfigError, DataError, DdpmError, RunError
from ddpm.estimate import Estimate
from ddpm.evaluation.scorer import scorer_for
from ddpm.evaluation.scores.frechet import frechet_distance_between
from ddpm.model import Model
from ddpm.training.checkpoint import read_notes
from ddpm.training.events import Event, Notice, Scored
from ddpm.training.run import run
from ddpm.training.scoring import SampleScore, is_best
from tiny_runs import TINY, differing, metric_lines, only, tiny_plan

SCORED: dict[str, Any] = {
    "steps": 6,
    "checkpoint_every": 4,
    "evaluate_every": 100,
    "score": "frechet",
    "score_every": 2,
    "score_samples": 30,
    "sampling": {"steps": 2},
}


@pytest.fixture(autouse=True)
def _cheap_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ddpm.training.evaluate, "_MOST", 16)
    monkeypatch.setattr(ddpm.training.preview, "_STEPS", 2)
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))


class Scripted:
    """Gives the scores that a test wants, or raises them."""

    words = "a script"

    def __init__(self, *scores: float | Exception, recipes: str = "") -> None:
        self.scores = iter(scores)
        self.recipes = iter(recipes)

    def recipe(self, model: Model) -> str:
        return next(self.recipes, "")

    def __call__(self, model: Model) -> Estimate:
        score = next(self.scores)
        if isinstance(score, Exception):
            raise score
        return Estimate(score, 0.0)


def scored(out: Path, **training: Any) -> Iterator[Event]:
    plan = tiny_plan(out, **merge(SCORED, training))
    return run(plan, scorer_for(plan))


def best_step(out: Path) -> int:
    return int(Model.load(out / "best.safetensors").provenance["step"])


def test_the_score_is_the_distance_of_fixed_samples_to_the_training_split(tmp_path: Path) -> None:
    events = list(scored(tmp_path / "run"))
    found = only(events, Scored)
    assert [event.score.step for event in found] == [2, 4, 6]
    last = Model.load(tmp_path / "run")
    plan = tiny_plan(tmp_path / "other")
    as_values = [plan.store.pictures[plan.store.train], last.sample(30, steps=2, seed=plan.config.seed)]
    train, samples = (pictures.reshape(len(pictures), -1) / np.float32(16) for pictures in as_values)
    assert found[-1].score.value == pytest.approx(frechet_distance_between(samples, train), rel=1e-6)
    lines = [line for line in metric_lines(tmp_path / "run") if "frechet" in line]
    assert lines == [
        {"step": event.score.step, "frechet": event.score.value, "frechet_error": event.score.error} for event in found
    ]
    least = min(found, key=lambda event: event.score.value).score.step
    assert best_step(tmp_path / "run") == least
    assert [event.is_best for event in found].count(True) >= 1
    assert "frechet distance of 30 samples" in " ".join(event.text for event in only(events, Notice))


def test_a_conditional_model_is_scored_as_it_is_sampled_with_drawn_classes_and_its_guidance(tmp_path: Path) -> None:
    found = only(list(scored(tmp_path / "run", conditions={"label": True})), Scored)
    last = Model.load(tmp_path / "run")
    store = tiny_plan(tmp_path / "other").store
    as_values = [store.pictures[store.train], last.sample(30, steps=2, guidance=1.5)]
    train, samples = (pictures.reshape(len(pictures), -1) / np.float32(16) for pictures in as_values)
    assert found[-1].score.value == pytest.approx(frechet_distance_between(samples, train), rel=1e-6)
    assert '"guidance": 1.5' in found[-1].score.recipe


@pytest.mark.parametrize("at", [3, 5, 6])
def test_a_killed_run_ends_with_the_bits_and_scores_of_one_that_never_was(at: int, tmp_path: Path) -> None:
    list(scored(tmp_path / "whole"))
    with closing(scored(tmp_path / "killed")) as events:  # type: ignore[type-var]
        for event in events:
            if getattr(event, "step", None) == at and not isinstance(event, Scored):
                break  # without saving, as a kill would
    list(scored(tmp_path / "killed"))
    for name in ("checkpoint", "model", "best"):
        assert differing(tmp_path / f"whole/{name}.safetensors", tmp_path / f"killed/{name}.safetensors") == []
    assert metric_lines(tmp_path / "killed") == metric_lines(tmp_path / "whole")
    notes = [read_notes(tmp_path / f"{name}/checkpoint.safetensors")["scores"] for name in ("whole", "killed")]
    assert notes[0] == notes[1]
    assert len(notes[0]) == 3


def test_the_best_so_far_outlives_a_resume_and_a_worse_score_replaces_nothing(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, **SCORED)
    list(run(plan, Scripted(3.0, 1.0, 2.0)))
    assert best_step(tmp_path) == 4
    longer = tiny_plan(tmp_path, **{**SCORED, "steps": 10})
    events = list(run(longer, Scripted(1.5, 0.5)))
    assert [event.is_best for event in only(events, Scored)] == [False, True]
    assert best_step(tmp_path) == 10


def test_scores_of_another_recipe_do_not_compare(tmp_path: Path) -> None:
    history = [SampleScore(1, 1.0, 0.0, "a"), SampleScore(2, 5.0, 0.0, "b")]
    assert is_best(history)
    assert not is_best([*history, SampleScore(3, 2.0, 0.0, "a")])
    list(run(tiny_plan(tmp_path, **SCORED), Scripted(1.0, 5.0, 2.0, recipes="aba")))
    assert best_step(tmp_path) == 4


def test_samples_without_a_score_are_told_of_and_the_run_goes_on(tmp_path: Path) -> None:
    events = list(run(tiny_plan(tmp_path, **SCORED), Scripted(DataError("all the same"), 2.0, 3.0)))
    assert "no score at step 2: all the same" in [event.text for event in only(events, Notice)]
    assert best_step(tmp_path) == 4


def test_slow_advice_is_sampled_fast(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run", **{**SCORED, "steps": 1, "sampling": {"sampler": "ddpm", "steps": 1000}})
    scorer = scorer_for(plan)
    assert scorer is not None
    list(run(plan, Scripted(1.0)))
    recipe = scorer.recipe(Model.load(tmp_path / "run"))
    assert '"sampler": "unipc"' in recipe
    assert '"steps": 50' in recipe


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"score": "fid"}, ConfigError, "score"),
        ({"score_samples": 19}, ConfigError, "20"),
        ({"score_every": 0}, ConfigError, "score_every"),
        ({"score_features": "pixel"}, ConfigError, "did you mean 'pixels'"),
        ({"score_features": "absent.pth"}, ConfigError, "no file of features 'absent.pth'"),
    ],
)
def test_bad_input_is_refused_before_any_step(
    changes: dict[str, Any], error: type[DdpmError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        scored(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_run_without_its_scorer_and_data_too_few_for_it_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no scorer is given"):
        next(run(tiny_plan(tmp_path / "run", **SCORED)))
    np.save(tmp_path / "few.npy", np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1)).astype(np.uint8))
    with pytest.raises(DataError, match="needs at least 20"):
        ddpm.train(
            tmp_path / "few.npy",
            out=tmp_path / "run",
            overrides=merge(TINY, {"training": {"score": "kernel"}}),
            quiet=True,
        )
    assert not (tmp_path / "run").exists()


def test_the_score_cannot_change_on_resume_but_how_often_can(tmp_path: Path) -> None:
    list(run(tiny_plan(tmp_path, **SCORED), Scripted(3.0, 2.0, 1.0)))
    with pytest.raises(RunError, match=r"training.score: frechet -> kernel"):
        list(run(tiny_plan(tmp_path, **{**SCORED, "steps": 8, "score": "kernel"}), Scripted(1.0)))
    assert only(list(run(tiny_plan(tmp_path, **{**SCORED, "steps": 8, "score_every": 8}), Scripted(1.0))), Scored)


def test_the_command_shows_scores_and_so_does_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = merge(TINY, {"training": {**SCORED, "score": "kernel"}})
    config["sampling"] = config["training"].pop("sampling")
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    main(["train", "digits", "--config", str(tmp_path / "tiny.json"), "--out", str(tmp_path / "run")])
    err = capsys.readouterr().err
    assert "the best model is chosen by the kernel distance of 30 samples" in err
    assert "step 2: kernel" in err
    main(["inspect", str(tmp_path / "run")])
    assert "kernel: " in capsys.readouterr().out


def test_features_of_the_training_split_are_made_once(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run", **SCORED)
    scorer_for(plan)
    (folder,) = (tmp_path / "cache/evaluations").glob("features-*")
    files = {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    assert len(files) == 6  # shards of 256 of 1,437 pictures
    scorer_for(plan)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")} == files
