from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli.test_cli_conditions import CLASSES, Capture, refused, sample, saved
from ddpm.config.conditions import ConditionSpec, TextSpec
from ddpm.errors import SamplingError
from ddpm.model import Model
from ddpm.sampling.recipe import read_recipe
from ddpm.text.tokenizer import learn

CAPTIONS = ("red heart", "blue heart", "red square")
TEXTS = ConditionSpec(
    text=TextSpec(tokens=7, captions=CAPTIONS, merges=learn(CAPTIONS * 2, 100).merges),
    dropout=0.1,
)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model() -> Model:
    return saved(TEXTS)


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def texts_of(folder: str) -> list[str]:
    with open(f"{folder}/labels.csv", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def test_texts_are_drawn_in_turn_and_written_beside_the_pictures(model: Model) -> None:
    sample("m.safetensors", "-n", "4", "--text", "red heart", "--text", "a, b", "--out", "s")
    assert texts_of("s") == ["red heart", "a, b"] * 2
    expected = model.sample(4, text=["red heart", "a, b"])
    for i in range(4):
        assert np.abs(pixels(f"s/{i:05d}.png") - expected[i]).max() <= 1
    assert read_recipe(Path("s/00001.png")).condition == {"text": "a, b"}


def test_another_text_makes_another_picture(model: Model) -> None:
    first, second = model.sample(1, text="red heart"), model.sample(1, text="blue square")
    assert np.abs(first.astype(int) - second).max() > 2


def test_without_a_text_captions_are_drawn() -> None:
    saved(TEXTS)
    sample("m.safetensors", "-n", "6", "--out", "s")
    assert set(texts_of("s")) <= set(CAPTIONS)


def test_a_picture_comes_again_from_its_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    saved(TEXTS)
    words = ("--text", "red heart", "--negative", "blue", "--guidance", "3")
    sample("m.safetensors", "-n", "2", *words, "--out", "s")
    sample("--from", "s/00001.png", "--out", "again")
    assert np.abs(pixels("s/00001.png") - pixels("again/00001.png")).max() <= 1
    assert read_recipe(Path("s/00001.png")).sampling["negative"] == "blue"


class TestNegative:
    def test_it_leads_away_from_the_text(self, model: Model) -> None:
        plain = model.sample(1, text="red heart", guidance=3).astype(int)
        away = model.sample(1, text="red heart", guidance=3, negative="blue square")
        assert np.abs(plain - away).max() > 2

    def test_away_from_the_text_itself_is_no_guidance(self, model: Model) -> None:
        """eps(y) + (scale - 1) (eps(y) - eps(y)): an identity."""
        plain = model.sample(2, text="red heart").astype(int)
        itself = model.sample(2, text="red heart", guidance=3, negative="red heart")
        assert np.abs(plain - itself).max() <= 1

    def test_it_needs_guidance(self, model: Model, capsys: Capture) -> None:
        assert "negative without guidance" in refused(["sample", "m.safetensors", "--negative", "blue"], capsys)

    def test_it_needs_texts(self, capsys: Capture) -> None:
        saved(CLASSES)
        words = ["sample", "m.safetensors", "--negative", "blue", "--guidance", "2"]
        assert "negative 'blue', but this model was trained without texts" in refused(words, capsys)


def test_a_prompt_that_is_too_long_is_refused_before_any_work(capsys: Capture) -> None:
    saved(TEXTS)
    line = refused(["sample", "m.safetensors", "--text", "red heart", "--text", "red " * 8, "--out", "s"], capsys)
    assert "is 8 tokens long; expected at most 7" in line
    assert not Path("s").exists()


def test_a_negative_that_is_too_long_is_refused_before_any_work(capsys: Capture) -> None:
    saved(TEXTS)
    words = ["--text", "red", "--negative", "red " * 8, "--guidance", "2", "--out", "s"]
    assert "expected at most 7" in refused(["sample", "m.safetensors", *words], capsys)
    assert not Path("s").exists()


def test_texts_for_a_model_without_are_refused(capsys: Capture) -> None:
    saved(CLASSES)
    assert "trained without texts" in refused(["sample", "m.safetensors", "--text", "red"], capsys)


def test_long_texts_make_folders_of_names_that_differ(model: Model) -> None:
    for last in ("a", "b"):
        words = [word for text in ["日本 " * 2, "red heart", "red heart", "blue", last] for word in ("--text", text)]
        saved(ConditionSpec(text=TEXTS.text.model_copy(update={"tokens": 40}), dropout=0.1))  # type: ignore[union-attr]
        sample("m.safetensors", "-n", "1", *words * 4)
    folders = list(Path("samples").iterdir())
    assert len(folders) == 2
    assert all(len(folder.name.encode()) < 200 for folder in folders)


def test_no_text_at_all_is_refused(model: Model) -> None:
    with pytest.raises(SamplingError, match="no text"):
        model.sample(1, text=[])
