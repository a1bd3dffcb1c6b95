from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import TINY
from ddpm.conditions.asked import draw
from ddpm.config import merge
from ddpm.errors import ConfigError, DataError
from ddpm.evaluation.likelihood.unseen import choose
from ddpm.evaluation.opening import Request
from ddpm.evaluation.plan import make_plan as evaluation_plan
from ddpm.evaluation.run import run as evaluate
from ddpm.evaluation.scores.agreement import agreement
from ddpm.evaluation.shards import SHARD
from ddpm.model import Model
from ddpm.training.classifier import run_classifier
from ddpm.training.classifier_plan import plan_classifier
from ddpm.training.plan import make_plan
from ddpm.training.run import run


def trained_with(folder: Path, conditions: dict[str, Any]) -> Path:
    tree = merge(TINY, {"conditions": conditions, "training": {"steps": 4}})
    deque(run(make_plan("digits", tree, preset="digits", out=folder)), maxlen=0)
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_with(tmp_path_factory.mktemp("labelled") / "run", {"label": True})


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_with(tmp_path_factory.mktemp("masked") / "run", {"picture": "mask"})


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("classifier") / "c.safetensors"
    tree = {"training": {"steps": 30, "precision": "float32"}}
    deque(run_classifier(plan_classifier("digits", tree, out=file)), maxlen=0)
    return file


def test_a_share_and_its_parts_by_hand() -> None:
    probabilities = np.eye(3)[[0, 1, 1, 2]]
    found = agreement(probabilities, np.asarray([0, 1, 0, 0]), ("a", "b", "c"))
    assert found.share.value == 0.5
    assert found.share.error == 0.25
    assert found.by_class == {"a": (1 / 3, 3), "b": (1.0, 1)}


def test_a_classifier_says_how_often_samples_show_their_class(labelled: Path, classifier: Path) -> None:
    request = Request(n=60, features=classifier, metrics=["agreement", "colour"], device="cpu", precision="float32")
    report = evaluate(evaluation_plan(labelled, request))
    (score,) = (score for score in report.scores if score.name == "agreement")
    model = Model.load(labelled)
    from ddpm.classifier import Classifier

    judge = Classifier.load(classifier)
    samples = torch.from_numpy(model.sample(60))
    seen = np.asarray(judge.features(samples.numpy())[1]).argmax(1)
    asked = [judge.classes.index(each.label) for each in draw(model.conditions, range(60), 0) if each.label]
    assert score.value == pytest.approx((seen == asked).mean())
    assert score.floor is not None
    assert (
        score.floor > 0.3 > score.value
    )  # chance is 0.1: real digits are recognised, and four steps of training make none
    assert sum(part["n"] for part in report.details["agreement"].values()) == 60
    assert any("agrees least" in note for note in report.notes)


def test_agreement_is_left_out_or_refused_with_the_reason(labelled: Path, trained: Path, classifier: Path) -> None:
    with pytest.raises(DataError, match="of a model with labels"):
        evaluation_plan(trained, Request(n=60, features=classifier, metrics=["agreement"], device="cpu"))
    with pytest.raises(DataError, match="features are not of a classifier"):
        evaluation_plan(labelled, Request(n=60, metrics=["agreement"], device="cpu"))
    assert "agreement" not in evaluation_plan(trained, Request(n=60, device="cpu")).left_out
    assert "agreement" in evaluation_plan(labelled, Request(n=60, device="cpu")).left_out


def test_guidance_makes_other_samples_and_is_in_the_recipe(labelled: Path) -> None:
    plain, guided = (
        evaluation_plan(labelled, Request(n=30, metrics=["colour"], guidance=scale, device="cpu"))
        for scale in (None, 3.0)
    )
    assert guided.recipe["samples"]["guidance"] == 3.0
    assert plain.samples.source.key() != guided.samples.source.key()


def test_samples_are_made_with_the_models_own_guidance_unless_told(labelled: Path) -> None:
    def recipe(scale: float | None) -> dict[str, Any]:
        plan = evaluation_plan(labelled, Request(n=30, metrics=["colour"], guidance=scale, device="cpu"))
        made = plan.recipe["samples"]
        assert isinstance(made, dict)
        return made

    assert [recipe(scale)["guidance"] for scale in (None, 1.0)] == [1.5, 1.0]


def test_two_processes_make_of_a_conditional_model_what_one_makes(
    labelled: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for processes in (1, 2):
        monkeypatch.setenv("DDPM_CACHE", str(tmp_path / f"cache-{processes}"))
        request = Request(
            n=SHARD + 20,
            steps=2,
            features=classifier,
            metrics=["agreement", "fid"],
            device="cpu",
            precision="float32",
            processes=processes,
        )
        report = evaluate(evaluation_plan(labelled, request))
        found.append({score.name: score.value for score in report.scores})
    assert found[0] == found[1]
    assert found[0].keys() == {"agreement", "fid"}


def test_pictures_to_begin_with_are_drawn_from_the_data(masked: Path) -> None:
    report = evaluate(evaluation_plan(masked, Request(n=24, metrics=["colour"], device="cpu", precision="float32")))
    assert report.scores
    with pytest.raises(ConfigError, match="sampled by one process"):
        evaluation_plan(masked, Request(n=24, processes=2, device="cpu"))


def test_a_likelihood_knows_the_classes_of_held_out_pictures(labelled: Path) -> None:
    model = Model.load(labelled)
    store = make_plan("digits", TINY, preset="digits", out=labelled.parent / "unused").store
    unseen = choose(model, store, 6, 0)
    numbers = unseen.numbers
    x_t = unseen.x_0(numbers).float()
    t = torch.full((6,), 20.0, dtype=torch.float64)
    labels = store.labels
    assert labels is not None
    generator = torch.Generator().manual_seed(0)
    for weight in model.network.parameters():
        weight.data = 0.2 * torch.randn(weight.shape, generator=generator)
    from ddpm.conditions import Condition

    known = model.denoiser(condition=Condition(label=torch.from_numpy(labels[numbers])))(x_t, t)
    assert torch.equal(unseen.denoiser(numbers, clip=True)(x_t, t).x_0, known.x_0)
    assert not torch.equal(model.denoiser()(x_t, t).x_0, known.x_0)
