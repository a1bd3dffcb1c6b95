from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from ddpm.errors import DataError, ModelFileError
from ddpm.evaluation.extractors import inception_weights
from ddpm.evaluation.extractors.inception import BlockE, InceptionV3, mean_pool, resize
from ddpm.evaluation.extractors.inception_weights import FILE, fetched, inception_extractor, network_of, read


def shapes_of_the_published_file() -> dict[str, tuple[int, ...]]:
    """The modules of the file, written out from the tables of the source: (out, in, height, width) of convolutions."""
    convolutions = {
        "Conv2d_1a_3x3": (32, 3, 3, 3),
        "Conv2d_2a_3x3": (32, 32, 3, 3),
        "Conv2d_2b_3x3": (64, 32, 3, 3),
        "Conv2d_3b_1x1": (80, 64, 1, 1),
        "Conv2d_4a_3x3": (192, 80, 3, 3),
        "Mixed_6a.branch3x3": (384, 288, 3, 3),
        "Mixed_6a.branch3x3dbl_1": (64, 288, 1, 1),
        "Mixed_6a.branch3x3dbl_2": (96, 64, 3, 3),
        "Mixed_6a.branch3x3dbl_3": (96, 96, 3, 3),
        "Mixed_7a.branch3x3_1": (192, 768, 1, 1),
        "Mixed_7a.branch3x3_2": (320, 192, 3, 3),
        "Mixed_7a.branch7x7x3_1": (192, 768, 1, 1),
        "Mixed_7a.branch7x7x3_2": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_3": (192, 192, 7, 1),
        "Mixed_7a.branch7x7x3_4": (192, 192, 3, 3),
    }
    for name, channels, pool in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        block = {
            "branch1x1": (64, channels, 1, 1),
            "branch5x5_1": (48, channels, 1, 1),
            "branch5x5_2": (64, 48, 5, 5),
            "branch3x3dbl_1": (64, channels, 1, 1),
            "branch3x3dbl_2": (96, 64, 3, 3),
            "branch3x3dbl_3": (96, 96, 3, 3),
            "branch_pool": (pool, channels, 1, 1),
        }
        convolutions |= {f"Mixed_{name}.{branch}": shape for branch, shape in block.items()}
    for name, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        block = {
            "branch1x1": (192, 768, 1, 1),
            "branch7x7_1": (inner, 768, 1, 1),
            "branch7x7_2": (inner, inner, 1, 7),
            "branch7x7_3": (192, inner, 7, 1),
            "branch7x7dbl_1": (inner, 768, 1, 1),
            "branch7x7dbl_2": (inner, inner, 7, 1),
            "branch7x7dbl_3": (inner, inner, 1, 7),
            "branch7x7dbl_4": (inner, inner, 7, 1),
            "branch7x7dbl_5": (192, inner, 1, 7),
            "branch_pool": (192, 768, 1, 1),
        }
        convolutions |= {f"Mixed_{name}.{branch}": shape for branch, shape in block.items()}
    for name, channels in (("7b", 1280), ("7c", 2048)):
        block = {
            "branch1x1": (320, channels, 1, 1),
            "branch3x3_1": (384, channels, 1, 1),
            "branch3x3_2a": (384, 384, 1, 3),
            "branch3x3_2b": (384, 384, 3, 1),
            "branch3x3dbl_1": (448, channels, 1, 1),
            "branch3x3dbl_2": (384, 448, 3, 3),
            "branch3x3dbl_3a": (384, 384, 1, 3),
            "branch3x3dbl_3b": (384, 384, 3, 1),
            "branch_pool": (192, channels, 1, 1),
        }
        convolutions |= {f"Mixed_{name}.{branch}": shape for branch, shape in block.items()}
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, shape in convolutions.items():
        shapes[f"{name}.conv.weight"] = shape
        shapes |= {f"{name}.bn.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes_of_the_published_file().items():
        values = torch.randn(shape, generator=generator)
        fan_in = max(1, values[0].numel()) if len(shape) > 1 else 1
        state[name] = values.abs() + 0.5 if "running_var" in name or "bn.weight" in name else values / fan_in**0.5
    return state


@pytest.fixture(scope="module")
def network(weights: dict[str, Any]) -> InceptionV3:
    return network_of(weights)


def test_the_published_names_and_shapes_load_key_for_key(weights: dict[str, Any]) -> None:
    network = network_of(weights | {"Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(0)})
    loaded = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.items())
    assert not any(value.requires_grad for value in network.parameters())
    assert sum(value.numel() for name, value in weights.items() if "running" not in name) == 23_850_960


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_other_weights_are_refused(weights: dict[str, Any], change: str) -> None:
    other = dict(weights)
    if change == "missing":
        del other["Mixed_7c.branch_pool.bn.bias"]
    elif change == "unknown":
        other["AuxLogits.fc.bias"] = torch.zeros(3)
    else:
        other["fc.weight"] = torch.zeros(1000, 2048)
    with pytest.raises(ModelFileError, match="no weights of the FID Inception network"):
        network_of(other)


def test_outputs_have_the_published_sizes(network: InceptionV3) -> None:
    with torch.no_grad():
        features = network(torch.rand(2, 3, 299, 299) * 2 - 1)
    assert [tuple(part.shape) for part in features] == [(2, 2048), (2, 2023), (2, 1008)]
    assert not network.training
    torch.testing.assert_close(features.probabilities.sum(1), torch.ones(2))
    logits = features.pooled @ network.fc.weight.T
    assert torch.equal(features.probabilities, logits.softmax(1))  # without biases, as the inception score is published


def test_means_leave_the_padding_out() -> None:
    x = torch.arange(1.0, 10).reshape(1, 1, 3, 3)
    pooled = mean_pool(x)[0, 0]
    assert pooled[0, 0] == (1 + 2 + 4 + 5) / 4
    assert pooled[0, 1] == (1 + 2 + 3 + 4 + 5 + 6) / 6
    assert pooled[1, 1] == 5


@pytest.mark.parametrize("mean_pooling", [True, False])
def test_the_last_block_pools_with_the_maximum(mean_pooling: bool, network: InceptionV3) -> None:
    block = BlockE(1, mean_pooling=mean_pooling).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        block.branch_pool.conv.weight.fill_(1)
        block.branch_pool.bn.weight.fill_(1)
        x = torch.arange(1.0, 10).reshape(1, 1, 3, 3)
        pooled = block(x)[0, -1] * (1 + 1e-3) ** 0.5  # the normalization divides by (variance + eps)^(1/2)
    torch.testing.assert_close(pooled[0, 0], torch.tensor(3.0 if mean_pooling else 5.0))
    assert network.Mixed_7b.mean_pooling
    assert not network.Mixed_7c.mean_pooling


def test_scaling_is_bilinear_between_pixel_centres() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    scaled = resize(ramp)
    centres = ((torch.arange(299) + 0.5) * 8 / 299 - 0.5).clamp(0, 7)
    torch.testing.assert_close(scaled[0, 0, 100], centres)
    stripes = torch.arange(598).remainder(2).float().expand(1, 1, 598, 598)
    assert torch.equal(resize(stripes), functional.interpolate(stripes, size=(299, 299), mode="bilinear"))


@pytest.fixture
def file(weights: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "mine.pth"
    torch.save(weights, place)
    monkeypatch.setattr(inception_weights, "SHA256", hashlib.sha256(place.read_bytes()).hexdigest())
    return place


def test_the_extractor_scales_and_normalizes(file: Path, weights: dict[str, Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(inception_weights.read, "__defaults__", (inception_weights.SHA256,))
    extractor = inception_extractor(file, torch.device("cpu"))
    pictures = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = extractor(pictures, (0, 255))
    with torch.no_grad():
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        expected = network_of(weights)(2 * functional.interpolate(x, size=(299, 299), mode="bilinear") - 1)
    assert features.spatial is not None
    assert features.probabilities is not None
    for found, right in zip((features.pooled, features.spatial, features.probabilities), expected, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)
    gray = extractor(pictures[..., :1], (0, 255)).pooled
    np.testing.assert_array_equal(gray, extractor(np.repeat(pictures[..., :1], 3, axis=3), (0, 255)).pooled)
    assert extractor.recipe()["sha256"] == inception_weights.SHA256


def test_another_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    place = tmp_path / "weights.pth"
    place.write_bytes(b"not a file of weights")
    with pytest.raises(ModelFileError, match=r"has the SHA-256 .* it is another file, or is damaged"):
        read(place)
    assert len(inception_weights.SHA256) == 64
    assert inception_weights.SHA256.startswith(FILE[-12:-4])  # the name ends in the first digits of the hash


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/good" else 404)
            self.end_headers()
            self.wfile.write(b"weights")

        def log_message(self, *_: object) -> None:
            pass

    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    thread.join()
    serving.server_close()


def test_weights_are_fetched_once_and_verified(server: str, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    place = fetched(tmp_path, [f"{server}/none", f"{server}/good"], digest)
    assert place.read_bytes() == b"weights"
    assert fetched(tmp_path, [], digest) == place
    with pytest.raises(DataError, match="cannot be fetched"):
        fetched(tmp_path / "other", [f"{server}/good"], "0" * 64)
    assert list((tmp_path / "other").iterdir()) == []


def test_without_a_network_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"get http://127.0.0.1:1/x on another machine and put it at '.*6726825d.pth'"):
        fetched(tmp_path, ["http://127.0.0.1:1/x"])
    assert list(tmp_path.iterdir()) == []
