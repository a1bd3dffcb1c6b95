"""Files of models: one is left by a save, and whatever is no valid model is refused in a sentence."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model

from ddpm.errors import ModelFileError, SamplingError
from ddpm.model import Model

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    tiny_model().save(path)
    return path


def rewrite(saved: Path, target: Path, *, change: Change = lambda tree: None, **metadata: str) -> Path:
    """Write a copy of a model whose description was changed."""
    with safe_open(saved, framework="pt") as file:
        old = dict(file.metadata())
    description = json.loads(old["description"])
    change(description)
    save_file(load_file(saved), target, {**old, "description": json.dumps(description), **metadata})
    return target


def refusal(path: Path) -> str:
    """Return the sentence with which a file is refused."""
    with pytest.raises(ModelFileError) as caught:
        Model.load(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


def test_a_folder_stands_for_the_model_in_it(saved: Path) -> None:
    np.testing.assert_array_equal(Model.load(saved.parent).sample(1), Model.load(str(saved)).sample(1))


def test_only_one_file_is_left_by_a_save(tmp_path: Path) -> None:
    for _ in range(2):
        tiny_model().save(tmp_path / "a" / "m.safetensors")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["m.safetensors"]


def test_a_file_that_names_no_variance_has_the_large_one(tmp_path: Path, saved: Path) -> None:
    older = rewrite(saved, tmp_path / "m.safetensors", change=lambda tree: tree.pop("variance"))
    assert Model.load(older).variance == "fixed_large"


def test_a_variance_that_the_weights_do_not_fit_is_refused(tmp_path: Path, saved: Path) -> None:
    for value in ("learned", "large", None):
        path = rewrite(saved, tmp_path / "m.safetensors", change=lambda tree, value=value: tree.update(variance=value))
        assert "describes no valid model" in refusal(path)


def test_missing_paths_are_refused(tmp_path: Path, saved: Path) -> None:
    assert "no model at" in refusal(tmp_path / "absent.safetensors")
    assert "no model in" in refusal(tmp_path)
    assert str(saved) in refusal(saved.parent / "modle.safetensors")
    assert "no model at" in refusal(tmp_path / ("x" * 5000))


def test_a_truncated_model_is_refused(tmp_path: Path, saved: Path) -> None:
    whole = saved.read_bytes()
    path = tmp_path / "m.safetensors"
    lengths = {0, 1, 7, 8, 9, 100, len(whole) - 1, *range(0, len(whole), len(whole) // 40)}
    for length in lengths:
        path.write_bytes(whole[:length])
        assert "take another copy" in refusal(path)
    path.write_bytes(whole + b"\0")
    refusal(path)


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    for version in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(Trap(), protocol=version))
        assert "is a pickle" in refusal(tmp_path / "a.pkl")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Trap(), protocol=0))
    refusal(tmp_path / "a.pkl")
    torch.save({"weight": Trap()}, tmp_path / "a.pt")
    assert "is a pickle" in refusal(tmp_path / "a.pt")
    torch.save({"weight": Trap()}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    assert "is a pickle" in refusal(tmp_path / "b.pt")
    assert not (tmp_path / "sprung").exists()


def test_other_files_are_refused(tmp_path: Path, trained: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("data.pkl", b"")
    refusal(tmp_path / "a.zip")
    (tmp_path / "words.safetensors").write_text("not a model\n" * 100)
    refusal(tmp_path / "words.safetensors")
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    assert "of format 'none', expected 'ddpm-model'" in refusal(tmp_path / "foreign.safetensors")
    assert "run 'ddpm train' with the same arguments" in refusal(trained / "checkpoint.safetensors")


def test_other_versions_and_broken_descriptions_are_refused(tmp_path: Path, saved: Path) -> None:
    path = tmp_path / "m.safetensors"
    for version in ("2", "0", "", "1.0"):
        assert f"format version '{version}'" in refusal(rewrite(saved, path, format_version=version))
    for text in ("", "{", "[]", "null", '"text"', "[" * 100_000, '{"network": NaN}'):
        refusal(rewrite(saved, path, description=text))


HOSTILE: list[tuple[str, Any]] = [
    ("network", None),
    ("network", {"kind": "mlp"}),
    ("network.base_channels", 4096),
    ("network.base_channels", 10**12),
    ("network.base_channels", -8),
    ("network.base_channels", "8"),
    ("network.channel_multipliers", [10**9, 10**9]),
    ("network.channel_multipliers", [1] * 100),
    ("network.channel_multipliers", [0, 0]),
    ("network.blocks_per_level", 10**6),
    ("network.head_channels", 3),
    ("network.num_groups", 0),
    ("network.unknown", 1),
    ("parameterization", "epsilon"),
    ("parameterization", ["v"]),
    ("codec", None),
    ("codec", []),
    ("codec", "uint8"),
    ("codec.levels", "many"),
    ("codec.levels", 1),
    ("codec.levels", None),
    ("codec.dtype", "object"),
    ("codec.dtype", ["uint8"]),
    ("codec.value_range", [0]),
    ("codec.value_range", ["a", "b"]),
    ("codec.value_range", [5, 5]),
    ("codec.value_range", [float("nan"), 1]),
    ("codec.value_range", [0, float("inf")]),
    ("codec.value_range", [0, 10**400]),
    ("picture_shape", [6, 5]),
    ("picture_shape", [6, 5, 4]),
    ("picture_shape", [6, 5, -3]),
    ("picture_shape", [0, 5, 3]),
    ("picture_shape", [10**9, 10**9, 3]),
    ("picture_shape", [6.5, 5, 3]),
    ("picture_shape", [float("inf"), 5, 3]),
    ("picture_shape", "653"),
    ("picture_shape", {"a": 1}),
    ("sampling", None),
    ("sampling.steps", 0),
    ("sampling.sampler", "none"),
    ("sampling.eta", float("nan")),
    ("provenance", None),
    ("provenance", 5),
    ("provenance", [1, 2]),
    ("provenance", "text"),
    ("provenance.step", "seven"),
]


@pytest.mark.parametrize(("key", "value"), HOSTILE)
def test_a_hostile_description_is_refused(tmp_path: Path, saved: Path, key: str, value: Any) -> None:
    def change(tree: dict[str, Any]) -> None:
        *sections, leaf = key.split(".")
        for section in sections:
            tree = tree[section]
        tree[leaf] = value

    assert "describes no valid model" in refusal(rewrite(saved, tmp_path / "m.safetensors", change=change))


@pytest.mark.parametrize(
    "key", ["network", "parameterization", "codec", "picture_shape", "sampling", "provenance", "codec.levels"]
)
def test_a_missing_part_is_never_made_up(tmp_path: Path, saved: Path, key: str) -> None:
    def change(tree: dict[str, Any]) -> None:
        *sections, leaf = key.split(".")
        for section in sections:
            tree = tree[section]
        del tree[leaf]

    refusal(rewrite(saved, tmp_path / "m.safetensors", change=change))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("schedule.betas", None),
        ("schedule.betas", torch.full((20,), 0.1)),
        ("schedule.betas", torch.full((1,), 0.1, dtype=torch.float64)),
        ("schedule.betas", torch.full((20,), 1.5, dtype=torch.float64)),
        ("schedule.betas", torch.full((20,), float("nan"), dtype=torch.float64)),
        ("schedule.betas", torch.full((4, 5), 0.1, dtype=torch.float64)),
        ("schedule.betas", torch.zeros(0, dtype=torch.float64)),
        ("network.conv_in.weight", None),
        ("network.conv_in.weight", torch.zeros(8, 3, 3, 4)),
        ("network.conv_in.weight", torch.zeros(8, 3, 3, 3, dtype=torch.int32)),
        ("network.conv_in.weight", torch.zeros(8, 3, 3, 3, dtype=torch.float16)),
        ("network.another.weight", torch.zeros(1)),
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, saved: Path, name: str, tensor: torch.Tensor | None) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(saved)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, tmp_path / "m.safetensors", metadata)
    assert "describes no valid model" in refusal(tmp_path / "m.safetensors")


def mutate_and_load(saved: Path, path: Path, rounds: int, seed: int) -> int:
    """Load models with random bytes changed, half of them in the header; return how many were refused."""
    rng = np.random.default_rng(seed)
    whole = np.frombuffer(saved.read_bytes(), dtype=np.uint8)
    header = 8 + int(whole[:8].view("<u8")[0])
    refused = 0
    for number in range(rounds):
        data = whole.copy()
        places = rng.integers(0, header if number % 4 else len(data), rng.integers(1, 9))
        data[places] = rng.integers(0, 256, len(places)) if number % 2 else data[rng.permutation(header)[: len(places)]]
        path.write_bytes(data.tobytes())
        try:
            loaded = Model.load(path)
        except ModelFileError:
            refused += 1
            continue
        try:
            assert loaded.sample(1, steps=1).shape == (1, *loaded.picture_shape)
        except SamplingError as error:
            assert "not finite" in str(error)  # noqa: PT017  what a changed weight may do
    return refused


def test_mutated_bytes_are_a_valid_model_or_refused(tmp_path: Path, saved: Path) -> None:
    refused = mutate_and_load(saved, tmp_path / "m.safetensors", 300, seed=0)
    assert 50 < refused < 300


@pytest.mark.slow
def test_thousands_of_mutated_models(tmp_path: Path, saved: Path) -> None:
    assert mutate_and_load(saved, tmp_path / "m.safetensors", 5000, seed=1) > 1000
