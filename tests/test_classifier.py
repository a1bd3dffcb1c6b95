from __future__ import annotations

import copy
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm.classifier import Accuracy, Classifier
from ddpm.config import merge
from ddpm.data.sources.embedded import digits
from ddpm.errors import ConfigError, DataError, ModelFileError
from ddpm.model import Model
from ddpm.model_file import CLASSIFIER_FORMAT, read_model_file
from ddpm.training.classifier import run_classifier
from ddpm.training.classifier_plan import plan_classifier

TINY: dict[str, Any] = {
    "network": {"base_channels": 16, "num_groups": 1, "dropout": 0.0},
    "training": {"steps": 25, "warmup_steps": 5, "precision": "float32", "device": "cpu"},
    "features": 8,
}


def trained(out: Path, **sections: Any) -> Classifier:
    deque(run_classifier(plan_classifier("digits", merge(TINY, sections), out=out)), maxlen=0)
    return Classifier.load(out)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return trained(tmp_path_factory.mktemp("classifier") / "clean.safetensors")


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    schedule = {"name": "cosine", "num_timesteps": 50}
    return trained(tmp_path_factory.mktemp("classifier") / "noisy.safetensors", noisy=True, schedule=schedule)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return digits().pictures[:40]


def test_features_do_not_depend_on_the_batch_size_or_on_autocast(clean: Classifier, pictures: np.ndarray) -> None:
    pooled, probabilities = clean.features(pictures)
    assert (pooled.shape, probabilities.shape) == ((40, 8), (40, 10))
    assert (pooled.dtype, probabilities.dtype) == (np.float32, np.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for size in (1, 7):
            other, others = clean.features(pictures, batch_size=size)
            assert np.abs(other - pooled).max() <= 1e-5 * np.abs(pooled).max()
            assert np.abs(others - probabilities).max() <= 1e-5
    assert np.abs(probabilities.sum(axis=1) - 1).max() < 1e-5


def test_pooled_are_what_the_logits_are_made_of(clean: Classifier, pictures: np.ndarray) -> None:
    pooled, probabilities = clean.features(pictures)
    logits = clean.network.logits(torch.from_numpy(pooled))
    assert np.abs(logits.softmax(1).numpy() - probabilities).max() < 1e-6


def test_no_pictures_have_no_features(clean: Classifier, pictures: np.ndarray) -> None:
    pooled, probabilities = clean.features(pictures[:0])
    assert (pooled.shape, probabilities.shape) == ((0, 8), (0, 10))


def test_a_file_holds_all_of_it(clean: Classifier, noisy: Classifier, pictures: np.ndarray, tmp_path: Path) -> None:
    for classifier in (clean, noisy):
        first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
        classifier.save(first)
        again = Classifier.load(first)
        again.save(second)
        (description, tensors), (other, others) = (read_model_file(f, CLASSIFIER_FORMAT) for f in (first, second))
        assert description == other
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[name], others[name]) for name in tensors)
        assert again.config == classifier.config
        assert (again.codec, again.classes, again.provenance) == (
            classifier.codec,
            classifier.classes,
            classifier.provenance,
        )
        assert np.array_equal(again.features(pictures)[0], classifier.features(pictures)[0])
    assert again.schedule is not None
    assert torch.equal(again.schedule.betas, noisy.schedule.betas)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:, :7], r"\[40, 7, 8, 1\]; this classifier expects \[N, 8, 8, 1\]"),
        (lambda x: x.repeat(3, axis=3), r"expects \[N, 8, 8, 1\]"),
        (lambda x: x[0], r"expects \[N, 8, 8, 1\]"),
        (lambda x: x.astype(np.float32), "float32; this classifier expects uint8"),
        (lambda x: x * 15, "to 240; this classifier's go from 0 to 16"),
    ],
)
def test_other_pictures_are_refused(clean: Classifier, pictures: np.ndarray, change: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        clean.features(change(pictures))


def test_the_gradient_of_log_probability(noisy: Classifier) -> None:
    classifier = replace(noisy, network=copy.deepcopy(noisy.network).double())
    torch.manual_seed(0)
    x_t = torch.randn(3, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    t, y, direction = torch.tensor([0, 20, 49]), [1, 5, 9], torch.randn(3, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():  # as in a sampler
        log_probability = classifier.log_probability(x_t, t)
    gradient = torch.autograd.grad(log_probability[range(3), y].sum(), x_t)[0]
    step = 1e-5
    ahead, behind = (
        classifier.log_probability(x_t.detach() + sign * step * direction, t)[range(3), y] for sign in (1, -1)
    )
    expected = (ahead - behind) / (2 * step)
    assert expected.abs().max() > 1e-3
    assert ((gradient * direction).sum((1, 2, 3)) - expected).abs().max() < 1e-7
    assert (classifier.log_probability(x_t, t).exp().sum(1) - 1).abs().max() < 1e-12
    assert all(parameter.grad is None for parameter in classifier.network.parameters())


def test_a_classifier_of_clean_pictures_guides_nothing(clean: Classifier, pictures: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="--noisy"):
        clean.log_probability(torch.zeros(1, 1, 8, 8), torch.tensor([3]))
    with pytest.raises(ConfigError, match="--noisy"):
        clean.accuracy_by_noise(pictures, np.zeros(40, dtype=np.int64))


def test_the_accuracy_of_a_share() -> None:
    accuracy = Accuracy(90, 100)
    assert accuracy.share == 0.9
    assert abs(accuracy.standard_error - 0.03) < 1e-12  # sqrt(0.9 x 0.1 / 100)
    assert str(accuracy) == "90.00% (n = 100, standard error 3.00%)"


def test_other_files_are_refused(clean: Classifier, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        Classifier.load(tmp_path / "none.safetensors")
    with pytest.raises(ModelFileError, match="is a folder"):
        Classifier.load(trained)
    with pytest.raises(ModelFileError, match="a diffusion model"):
        Classifier.load(trained / "model.safetensors")
    whole = tmp_path / "whole.safetensors"
    clean.save(whole)
    with pytest.raises(ModelFileError, match="that is a classifier"):
        Model.load(whole)
    half = tmp_path / "half.safetensors"
    half.write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match="truncated"):
        Classifier.load(half)
    pickle = tmp_path / "pickle.safetensors"
    pickle.write_bytes(b"\x80\x02rest")
    with pytest.raises(ModelFileError, match="pickle"):
        Classifier.load(pickle)
