from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY
from ddpm.conditions.asked import Asked, draw, encode
from ddpm.conditions.of_data import conditions_of, declare
from ddpm.config import DataConfig, merge
from ddpm.config.conditions import ConditionsConfig, conditions_tree
from ddpm.data import open_store
from ddpm.errors import ConfigError, DataError, SamplingError, TextError
from ddpm.model import Model
from ddpm.networks import build_network
from ddpm.text.tokenizer import Tokenizer
from ddpm.training.plan import make_plan
from ddpm.training.run import run

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def captioned(folder: Path, count: int = 120) -> Path:
    """Write pictures of one colour whose captions name it, in one of several phrasings."""
    phrasings = ("{}", "a {} square", "square, {}")
    lines = ["file_name,text"]
    for i in range(count):
        name = list(COLOURS)[i % 4]
        Image.new("RGB", (8, 8), COLOURS[name]).save(folder / f"{i:03d}.png")
        lines.append(f'{i:03d}.png,"{phrasings[i // 4 % 3].format(name)}"')
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captioned(tmp_path_factory.mktemp("captioned"))


@pytest.fixture(scope="module")
def painter(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model that has learned what the colours are called: a few seconds."""
    training = {"steps": 120, "batch_size": 32, "learning_rate": 5e-3, "warmup_steps": 20, "ema_decay": 0.9}
    rarely = dict.fromkeys(("checkpoint_every", "preview_every", "evaluate_every", "log_every"), 120)
    text: dict[str, Any] = {
        "schedule": {"name": "cosine"},
        "objective": {"parameterization": "x_0"},
        "network": {"text_width": 32, "text_layers": 1, "patch_size": 2},
        "conditions": {"text": "own"},
        "training": {**training, **rarely, "milestones": 0, "decay": "cosine"},
    }
    out = tmp_path_factory.mktemp("painter") / "run"
    deque(run(make_plan(data, merge(TINY, text), preset="digits", out=out)), maxlen=0)
    return Model.load(out)


def painted(model: Model, texts: list[str]) -> list[str]:
    """Return the colour that each text's sample is nearest to."""
    condition = encode(model.conditions, [Asked(text=text) for text in texts])
    pictures = model.sample(len(texts), steps=10, condition=condition)
    means = pictures.reshape(len(texts), -1, 3).astype(float).mean(axis=1)
    distances = np.abs(means[:, None] - np.asarray(list(COLOURS.values()))[None]).sum(axis=2)
    assert float(distances.min(axis=1).max()) < 150  # of 765: it is a clear colour
    return [list(COLOURS)[int(place)] for place in distances.argmin(axis=1)]


class TestLearned:
    def test_the_caption_decides_the_colour(self, painter: Model) -> None:
        names = list(COLOURS) * 2
        assert painted(painter, names) == names
        assert painted(painter, [f"A {name} square" for name in names]) == names

    def test_a_text_of_unknown_words_and_signs_is_drawn_too(self, painter: Model) -> None:
        condition = encode(painter.conditions, [Asked(text="zebra ✈ 日本")])
        assert painter.sample(1, steps=2, condition=condition).shape == (1, 8, 8, 3)

    def test_without_texts_captions_are_drawn_as_the_data_have_them(self, painter: Model) -> None:
        asks = draw(painter.conditions, range(400), seed=0)
        assert asks == draw(painter.conditions, range(400), seed=0)
        red = sum("red" in (ask.text or "") for ask in asks)
        assert abs(red - 100) < 4 * (400 * 0.25 * 0.75) ** 0.5

    def test_the_file_brings_all_that_is_needed(self, painter: Model, tmp_path: Path) -> None:
        painter.save(tmp_path / "model.safetensors")
        loaded = Model.load(tmp_path / "model.safetensors")
        assert loaded.conditions == painter.conditions
        assert loaded.conditions.text is not None
        tokenizer = Tokenizer(loaded.conditions.text.merges)
        assert tokenizer.decode(tokenizer.encode("a green square")) == "a green square"
        condition = encode(loaded.conditions, [Asked(text="blue")])
        pictures = [model.sample(1, steps=3, condition=condition) for model in (painter, loaded)]
        assert np.array_equal(*pictures)

    def test_what_was_asked_for_can_be_written_down(self, painter: Model) -> None:
        from ddpm.conditions.asked import asked_of

        for ask in (Asked(text="red, and blue"), Asked(label="a", text=""), Asked()):
            assert asked_of(ask.as_tree()) == ask

    def test_texts_that_are_too_long_are_refused(self, painter: Model) -> None:
        assert painter.conditions.text is not None
        limit = painter.conditions.text.tokens
        with pytest.raises(TextError, match=f"expected at most {limit}"):
            encode(painter.conditions, [Asked(text="red " * (limit + 1))])


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_a_frozen_encoder_of_a_folder_is_loaded_trained_on_and_sampled_with(
    kind: str, data: Path, tmp_path: Path
) -> None:
    """Real networks of `transformers`, tiny and random: from `conditions.text=FOLDER` to pictures of new texts."""
    pytest.importorskip("transformers", reason="frozen text encoders need the extra 'transformers'")
    from text import frozen_encoders

    place = tmp_path / kind
    folder = frozen_encoders.clip(place, limit=32) if kind == "clip" else frozen_encoders.t5(place)
    tree = merge(TINY, {"conditions": conditions_tree([f"text={folder}"]), "training": {"steps": 2}})
    deque(run(make_plan(data, tree, preset="digits", out=tmp_path / "run")), maxlen=0)
    model = Model.load(tmp_path / "run")
    assert model.conditions.text is not None
    assert (model.conditions.text.encoder, model.conditions.text.features) == (str(folder), 16)
    assert model.sampling.guidance == 3.0
    assert model.sample(2, text=["red", "blue heart"], steps=2).shape == (2, 8, 8, 3)


class TestData:
    def test_rows_come_with_their_captions(self, data: Path) -> None:
        store = open_store(data, DataConfig())
        found = declare(store, ConditionsConfig(text="own"), DataConfig())
        assert found is not None
        assert found.spec.text is not None
        rows = store.held_out
        condition = found.of(rows, torch.zeros(len(rows), 3, 8, 8), seed=0, pictures=rows)
        tokenizer = Tokenizer(found.spec.text.merges)
        assert condition.tokens is not None
        assert store.captions is not None
        assert [tokenizer.decode(row) for row in condition.tokens.tolist()] == [store.captions[int(i)] for i in rows]

    def test_other_data_are_read_by_the_models_own_tokenizer(self, data: Path, tmp_path: Path) -> None:
        store = open_store(data, DataConfig())
        found = declare(store, ConditionsConfig(text="own"), DataConfig())
        assert found is not None
        other = open_store(captioned(tmp_path, 8), DataConfig())
        again = conditions_of(other, found.spec, ConditionsConfig(text="own"), DataConfig())
        assert again is not None
        assert again.spec.text == found.spec.text

    def test_missing_captions_are_counted_and_refused(self, data: Path, tmp_path: Path) -> None:
        folder = captioned(tmp_path, 8)
        table = (folder / "metadata.csv").read_text().splitlines()
        table[2], table[5] = "001.png,", "004.png,  "
        (folder / "metadata.csv").write_text("\n".join(table) + "\n")
        store = open_store(folder, DataConfig())
        with pytest.raises(DataError, match=r"missing for 2 of 8 pictures, the first is .*001\.png"):
            declare(store, ConditionsConfig(text="own"), DataConfig())

    def test_data_without_captions_are_refused(self) -> None:
        with pytest.raises(DataError, match=r"no captions .*data\.text_column=NAME"):
            declare(open_store("digits", DataConfig()), ConditionsConfig(text="own"), DataConfig())

    def test_texts_for_a_model_without_are_refused(self, trained: Path) -> None:
        with pytest.raises(SamplingError, match="trained without texts"):
            draw(Model.load(trained).conditions, range(2), 0, texts=["red"])

    def test_points_have_no_text(self, data: Path) -> None:
        store = open_store(data, DataConfig())
        found = declare(store, ConditionsConfig(text="own"), DataConfig())
        assert found is not None
        config = make_plan("digits", TINY, preset="digits", out=data.parent / "none").config.network
        with pytest.raises(ConfigError, match="reads no text"):
            build_network(config.model_copy(update={"kind": "mlp"}), (1, 1, 2), conditions=found.spec)

    def test_words_of_the_command_line(self) -> None:
        assert conditions_tree(["text"]) == {"text": "own"}
        assert conditions_tree(["text=openai/clip-vit-base-patch32"]) == {"text": "openai/clip-vit-base-patch32"}
        with pytest.raises(ConfigError, match="expected label, numbers"):
            conditions_tree(["text="])
