from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.data import save_png
from ddpm.errors import SamplingError
from ddpm.sampling import Recipe, file_sha256, read_recipe

RECIPE = Recipe(
    picture=3,
    seed=2**64 - 1,
    sampling={"sampler": "ddim", "steps": 5, "eta": 0.5},
    model="../model.safetensors",
    model_sha256="0" * 64,
    step=8,
    precision="float32",
    version="0.1.0",
)


def with_text(path: Path, text: str) -> Path:
    save_png(Image.fromarray(np.zeros((4, 4), np.uint8)), path, {"ddpm": text})
    return path


def test_a_recipe_comes_back_whole(tmp_path: Path) -> None:
    assert read_recipe(with_text(tmp_path / "a.png", RECIPE.as_text())) == RECIPE
    assert RECIPE.as_words() == "ddim, 5 steps (eta 0.5)"
    assert replace(RECIPE, sampling={"sampler": "ddim", "steps": 1}).as_words() == "ddim, 1 step"


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps({**json.loads(RECIPE.as_text()), "picture": -1}),
        json.dumps({**json.loads(RECIPE.as_text()), "seed": 1.5}),
        json.dumps({**json.loads(RECIPE.as_text()), "sampling": None}),
        json.dumps({**json.loads(RECIPE.as_text()), "model": 3}),
    ],
)
def test_damaged_recipes_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SamplingError, match="is not whole"):
        read_recipe(with_text(tmp_path / "a.png", text))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SamplingError, match="no picture at"):
        read_recipe(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(SamplingError, match="no picture that can be read"):
        read_recipe(tmp_path / "text.png")
    save_png(Image.fromarray(np.zeros((4, 4), np.uint8)), tmp_path / "plain.png")
    with pytest.raises(SamplingError, match="holds no recipe"):
        read_recipe(tmp_path / "plain.png")


def test_the_model_is_found_beside_the_picture_and_by_its_hash_alone(tmp_path: Path) -> None:
    (tmp_path / "drawn").mkdir()
    picture, model, other = (tmp_path / name for name in ("drawn/a.png", "model.safetensors", "other.safetensors"))
    model.write_bytes(b"weights")
    other.write_bytes(b"weightz")
    recipe = replace(RECIPE, model_sha256=file_sha256(model))
    assert recipe.find_model(picture) == model
    with pytest.raises(SamplingError, match="is not the model that made"):
        recipe.find_model(picture, other)
    model.rename(tmp_path / "moved.safetensors")
    assert recipe.find_model(picture, tmp_path / "moved.safetensors") == tmp_path / "moved.safetensors"
    with pytest.raises(SamplingError, match="name it: ddpm sample --from"):
        recipe.find_model(picture)


def test_a_precision_that_is_none_is_refused() -> None:
    with pytest.raises(SamplingError, match="int8"):
        replace(RECIPE, precision="int8").checked_precision()
