from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor, nn

from ddpm.errors import ConfigError, DataError, ModelFileError
from ddpm.evaluation.extractors.features import Features, load_extractor
from ddpm.training.classifier import run_classifier
from ddpm.training.classifier_plan import plan_classifier


def pictures(channels: int = 3, count: int = 5) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 6, 4, channels), dtype=np.uint8)


def saved(network: nn.Module, place: Path) -> str:
    torch.jit.script(network).save(str(place))
    return str(place)


class Means(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class WithProbabilities(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.dropout(x), x.mean((2, 3)).softmax(1)


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean()


def test_pixels_are_the_values_in_the_unit_range() -> None:
    extractor = load_extractor("pixels")
    values = pictures()
    np.testing.assert_allclose(extractor(values, (0, 255)).pooled, values.reshape(5, -1) / 255, rtol=1e-6)
    points = np.array([[[[-2.0, 2.0]]]], dtype=np.float32)
    assert extractor(points, (-2, 2)).pooled.tolist() == [[0, 1]]
    sixteen = np.full((1, 2, 2, 1), 65535, dtype=np.uint16)
    assert extractor(sixteen, (0, 65535)).pooled.tolist() == [[1, 1, 1, 1]]
    assert extractor.recipe()["name"] == "pixels"


def test_a_script_sees_rgb_in_the_unit_range(tmp_path: Path) -> None:
    extractor = load_extractor(saved(Means(), tmp_path / "means.pt"))
    values = pictures(count=150)  # more than a batch
    features = extractor(values, (0, 255))
    np.testing.assert_allclose(features.pooled, values.mean((1, 2)) / 255, rtol=1e-5)
    assert features.pooled.dtype == np.float32
    assert features.spatial is None
    assert features.probabilities is None
    gray = pictures(1)
    np.testing.assert_allclose(extractor(gray, (0, 255)).pooled, gray.mean((1, 2)).repeat(3, 1) / 255, rtol=1e-5)
    recipe = extractor.recipe()
    assert recipe["sha256"] == extractor.sha256
    assert "gray is repeated" in recipe["channels"]


def test_a_script_runs_without_dropout_and_may_give_probabilities(tmp_path: Path) -> None:
    extractor = load_extractor(saved(WithProbabilities().train(), tmp_path / "both.ts"))
    features = extractor(pictures(), (0, 255))
    assert features.pooled.shape == (5, 3 * 6 * 4)
    np.testing.assert_allclose(features.pooled.max(), pictures().max() / 255, rtol=1e-6)
    assert features.probabilities is not None
    np.testing.assert_allclose(features.probabilities.sum(1), 1, rtol=1e-6)


def test_what_no_network_can_read_is_refused(tmp_path: Path) -> None:
    extractor = load_extractor(saved(Means(), tmp_path / "means.pt"))
    with pytest.raises(DataError, match="4 channels; means knows no transparency"):
        extractor(pictures(4), (0, 255))
    with pytest.raises(DataError, match=r"2 channels; means expects 1 \(gray\) or 3"):
        extractor(pictures(2), (0, 255))
    for known in (extractor, load_extractor("pixels")):
        with pytest.raises(DataError, match="not finite, first in row 1"):
            known(np.array([0, np.nan], dtype=np.float32).reshape(2, 1, 1, 1), (0, 1))
        with pytest.raises(DataError, match="expected at least one"):
            known(pictures()[:0], (0, 255))
        with pytest.raises(DataError, match="expected at least one"):
            known(pictures()[0], (0, 255))
        with pytest.raises(DataError, match="value range"):
            known(pictures(), (1, 1))
    with pytest.raises(ModelFileError, match="for 5 pictures; expected features"):
        load_extractor(saved(Wrong(), tmp_path / "wrong.pt"))(pictures(), (0, 255))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("incepton", "did you mean 'inception'"),
        ("zebra", "expected 'pixels', 'inception' or 'dinov2', or a file"),
        ("none/such.pt", "there is no file of features 'none/such.pt'"),
    ],
)
def test_unknown_names_are_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_extractor(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("weights.bin", "is no file of an extractor"),
        ("weights.pt", "is no TorchScript program"),
        ("weights.pth", "has the SHA-256"),
        ("weights.safetensors", "cannot be read"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"something else entirely")
    with pytest.raises(ModelFileError, match=words):
        load_extractor(str(tmp_path / name))


def test_a_model_is_no_classifier(tmp_path: Path) -> None:
    place = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(3)}, place, metadata={"format": "ddpm"})
    with pytest.raises(ModelFileError, match="is no classifier \\(format 'ddpm'\\)"):
        load_extractor(str(place))


def test_a_classifier_that_the_project_trained(tmp_path: Path) -> None:
    tiny: dict[str, Any] = {
        "network": {"base_channels": 16, "num_groups": 1},
        "training": {"steps": 2, "warmup_steps": 1, "precision": "float32", "device": "cpu"},
        "features": 8,
    }
    place = tmp_path / "digits.safetensors"
    deque(run_classifier(plan_classifier("digits", tiny, out=place)), maxlen=0)
    extractor = load_extractor(str(place))
    digits = np.random.default_rng(0).integers(0, 17, (5, 8, 8, 1), dtype=np.uint8)
    features = extractor(digits, (0, 16))
    assert features.pooled.shape == (5, 8)
    assert features.probabilities is not None
    np.testing.assert_allclose(features.probabilities.sum(1), 1, rtol=1e-5)
    assert extractor.recipe()["sha256"] == extractor.sha256
    with pytest.raises(DataError, match="0 to 255; this classifier's data had 0 to 16"):
        extractor(digits, (0, 255))


def test_dinov2_from_a_folder(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    network = transformers.Dinov2Model(config).eval()
    network.save_pretrained(tmp_path)
    extractor = load_extractor(str(tmp_path))
    features = extractor(pictures(), (0, 255))
    assert isinstance(features, Features)
    x = torch.from_numpy(pictures()).permute(0, 3, 1, 2).float() / 255
    x = nn.functional.interpolate(x, size=(224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.no_grad():
        expected = network(pixel_values=x).pooler_output  # the class token after the last normalization
    np.testing.assert_allclose(features.pooled, expected, rtol=1e-4, atol=1e-5)
    assert features.pooled.shape == (5, 24)
    assert extractor.sha256 is not None
    assert extractor.recipe()["input_size"] == [224, 224]


def test_a_folder_of_another_network_is_refused(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    with pytest.raises(ModelFileError, match="holds no network"):
        load_extractor(str(tmp_path))
    transformers.ViTConfig(hidden_size=8, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(ModelFileError, match="of the kind 'vit'; expected 'dinov2'"):
        load_extractor(str(tmp_path))
