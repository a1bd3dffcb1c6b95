from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.cli.main import main
from ddpm.codec import PixelCodec
from ddpm.config import NetworkConfig
from ddpm.config.conditions import ConditionSpec, NumberColumn, PairedPicture
from ddpm.config.sampling import SamplingConfig
from ddpm.diffusion import make_schedule
from ddpm.model import Model
from ddpm.networks import build_network

Capture = pytest.CaptureFixture[str]

CLASSES = ConditionSpec(classes=("cat", "dog", "owl"), class_counts=(6, 3, 1), dropout=0.1)
AGES = ConditionSpec(
    classes=("cat", "dog"),
    class_counts=(1, 1),
    numbers=(NumberColumn(name="age", mean=5.0, std=2.0, low=1.0, high=9.0),),
    examples=((0.0, 3.0), (1.0, 7.0)),
    dropout=0.1,
)


def picture_spec(kind: str, channels: int) -> ConditionSpec:
    return ConditionSpec.model_validate_json(
        json.dumps({"picture": {"kind": kind, "channels": channels, "factor": 4}, "dropout": 0.1})
    )


def saved(spec: ConditionSpec, file: str = "m.safetensors", channels: int = 3) -> Model:
    """Write a model with weights that make conditions visible."""
    config = NetworkConfig(
        base_channels=8, channel_multipliers=(1,), attention_levels=(), blocks_per_level=1, num_groups=4
    )
    network = build_network(config, (8, 8, channels), conditions=spec).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.data = 0.2 * torch.randn(weight.shape, generator=generator)
    codec = PixelCodec(256, (0.0, 255.0), "uint8")
    shape = (8, 8, channels)
    advice = SamplingConfig(steps=3)
    model = Model(network, config, make_schedule("cosine", 50), "v", codec, shape, conditions=spec, sampling=advice)
    model.save(file)
    return Model.load(file)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(words: list[str], capture: Capture) -> str:
    capture.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([*words, "--precision", "float32"])
    assert caught.value.code == 2
    return capture.readouterr().err.splitlines()[-1]


def sample(*words: str) -> None:
    main(["sample", *words, "--precision", "float32", "--batch-size", "4"])


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


class TestLabels:
    def test_a_table_beside_the_pictures_says_which_class_each_is_of(self) -> None:
        model = saved(CLASSES)
        sample("m.safetensors", "--labels", "all", "-n", "7", "--out", "all")
        names = ["cat", "dog", "owl", "cat", "dog", "owl", "cat"]
        assert rows_of("all/labels.csv") == [
            {"file_name": f"{i:05d}.png", "label": name} for i, name in enumerate(names)
        ]
        expected = model.sample(7, label="all")
        for i in range(7):
            assert np.abs(pixels(f"all/{i:05d}.png").astype(int) - expected[i]).max() <= 1
        sheet = pixels("all/grid.png")
        assert sheet.shape[:2] == (3 * 34 + 2, 3 * 34 + 2)  # 8 pixels, enlarged four times, and a gap
        assert bool((sheet[36:70, 70:] == 255).all())  # the dogs are two

    def test_a_picture_of_a_class_is_the_same_in_any_company(self) -> None:
        saved(CLASSES)
        sample("m.safetensors", "--label", "dog,owl", "-n", "6", "--out", "a")
        sample("m.safetensors", "--label", "1,2", "--pictures", "5,2", "--out", "b")
        assert [row["label"] for row in rows_of("b/labels.csv")] == ["owl", "dog"]
        for name in ("00005.png", "00002.png"):
            assert np.abs(pixels(f"a/{name}").astype(int) - pixels(f"b/{name}")).max() <= 1
        sample("m.safetensors", "--label", "cat", "--pictures", "5", "--out", "c")
        assert np.abs(pixels("a/00005.png").astype(int) - pixels("c/00005.png")).max() > 5

    def test_without_a_label_they_come_as_often_as_in_the_training_data(self) -> None:
        model = saved(CLASSES)
        sample("m.safetensors", "-n", "12", "--out", "drawn")
        labels = [row["label"] for row in rows_of("drawn/labels.csv")]
        assert labels.count("cat") > labels.count("owl")
        assert np.abs(pixels("drawn/00003.png").astype(int) - model.sample(12)[3]).max() <= 1

    def test_no_class_can_be_asked_for(self) -> None:
        model = saved(CLASSES)
        sample("m.safetensors", "--label", "none", "-n", "2", "--out", "none")
        plain = model.sample(2, label="none")
        assert np.abs(pixels("none/00001.png").astype(int) - plain[1]).max() <= 1
        assert not np.array_equal(plain, model.sample(2, label="cat"))

    def test_the_recipe_makes_a_picture_again_with_its_class_and_guidance(self, capsys: Capture) -> None:
        saved(CLASSES)
        sample("m.safetensors", "--labels", "all", "-n", "6", "--guidance", "3", "--out", "drawn")
        sample("m.safetensors", "--labels", "all", "-n", "6", "--out", "plain")
        assert np.abs(pixels("drawn/00004.png").astype(int) - pixels("plain/00004.png")).max() > 5
        capsys.readouterr()
        main(["sample", "--from", "drawn/00004.png", "--out", "again"])
        assert "equal" in capsys.readouterr().err
        assert np.abs(pixels("again/00004.png").astype(int) - pixels("drawn/00004.png")).max() <= 1
        main(["inspect", "drawn/00004.png"])
        assert 'label "dog"' in capsys.readouterr().out

    def test_two_wishes_never_share_a_folder(self) -> None:
        saved(CLASSES)
        sample("m.safetensors", "--label", "cat", "-n", "1")
        sample("m.safetensors", "--label", "dog", "-n", "1")
        sample("m.safetensors", "--label", "dog", "-n", "1", "--guidance", "2")
        assert len(list(Path("samples").iterdir())) == 3


class TestGuidance:
    def test_scale_one_is_the_condition_alone_bit_for_bit(self) -> None:
        model = saved(CLASSES)
        plain = model.sample(4, label="all", seed=2)
        assert np.array_equal(model.sample(4, label="all", seed=2, guidance=1.0), plain)
        assert not np.array_equal(model.sample(4, label="all", seed=2, guidance=2.0), plain)

    def test_an_interval_without_any_step_changes_nothing(self) -> None:
        model = saved(CLASSES).with_sampling(guidance=3.0, guidance_interval=[48.2, 48.7])
        plain = saved(CLASSES)
        assert np.array_equal(model.sample(4, label="owl"), plain.sample(4, label="owl"))

    def test_it_costs_one_pass_of_twice_the_batch_a_step(self) -> None:
        model, sizes = saved(CLASSES), []
        model.network.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
        model.sample(5, label="cat", guidance=2.0)
        assert sizes == [10] * 3


class TestNumbers:
    def test_they_are_asked_for_by_name_and_written_down(self) -> None:
        model = saved(AGES)
        sample("m.safetensors", "--label", "dog", "--numbers", "age=3.5", "-n", "2", "--out", "a")
        row = {"file_name": "00001.png", "label": "dog", "age": "3.5"}
        assert rows_of("a/labels.csv")[1] == row
        expected = model.sample(2, label="dog", numbers={"age": 3.5})
        assert np.abs(pixels("a/00001.png").astype(int) - expected[1]).max() <= 1
        assert not np.array_equal(expected, model.sample(2, label="dog", numbers={"age": 8.0}))

    def test_those_that_are_not_asked_for_are_drawn_with_their_class(self) -> None:
        saved(AGES)
        sample("m.safetensors", "-n", "8", "--out", "a")
        found = {(row["label"], row["age"]) for row in rows_of("a/labels.csv")}
        assert found == {("cat", "3"), ("dog", "7")}


class TestPictures:
    def test_a_gray_one_gets_colour(self, capsys: Capture) -> None:
        model = saved(picture_spec("gray", 1))
        rng = np.random.default_rng(0)
        Path("in").mkdir()
        for i in range(2):
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(f"in/{i}.png")
        sample("m.safetensors", "--image", "in", "-n", "4", "--out", "out")
        rows = rows_of("out/labels.csv")
        assert [Path(row["image"]).name for row in rows] == ["0.png", "1.png", "0.png", "1.png"]
        given = [pixels(f"in/{i}.png")[..., None] for i in range(2)]
        expected = model.sample(4, image=given)
        assert np.abs(pixels("out/00003.png").astype(int) - expected[3]).max() <= 1
        assert np.abs(model.sample(4, image=given[0]).astype(int)[1] - expected[1]).max() > 5
        Path("in").rename("moved")
        assert "began with a picture" in refused(["sample", "--from", "out/00001.png"], capsys)
        Path("moved").rename("in")
        main(["sample", "--from", "out/00001.png", "--out", "again"])
        assert np.abs(pixels("again/00001.png").astype(int) - pixels("out/00001.png")).max() <= 1

    def test_a_small_one_and_a_large_one_are_the_same_low_resolution(self) -> None:
        model = saved(picture_spec("low_resolution", 3))
        small = np.random.default_rng(0).integers(0, 256, (2, 2, 3), dtype=np.uint8)
        large = small.repeat(4, axis=0).repeat(4, axis=1)
        assert np.array_equal(model.sample(2, image=small), model.sample(2, image=large))

    def test_what_is_transparent_is_filled_in(self) -> None:
        model = saved(picture_spec("mask", 3))
        picture = np.full((8, 8, 4), 255, np.uint8)
        picture[2:5, 2:5, 3] = 0
        first = model.sample(1, image=picture)
        picture[3, 3, :3] = 7  # under the hole: nobody sees it
        assert np.array_equal(model.sample(1, image=picture), first)
        picture[0, 0, :3] = 7
        assert not np.array_equal(model.sample(1, image=picture), first)


class TestRefusals:
    @pytest.mark.parametrize(
        ("spec", "words", "message"),
        [
            (CLASSES, ["--label", "dgo"], "no class 'dgo'; did you mean 'dog'"),
            (CLASSES, ["--labels", "cat,3"], "no class '3'.*cat, dog, owl"),
            (CLASSES, ["--numbers", "age=3"], "no column 'age'; this model was trained without numbers"),
            (CLASSES, ["--image", "x.png"], "makes its pictures from nothing"),
            (CLASSES, ["--guidance", "-1"], "guidance"),
            (CLASSES, ["--guidance", "nan"], "sampling.guidance"),
            (CLASSES, ["--negative", "blue"], "trained without texts"),
            (CLASSES, ["--guidance", "2", "--negative", "blue"], "trained without texts"),
            (CLASSES, ["--guidance", "2", "--guidance-interval", "10,1000"], "times of this model go from 0 to 49"),
            (CLASSES, ["--guidance", "2", "--guidance-interval", "30,10"], "smaller time first"),
            (CLASSES, ["--guidance-rescale", "1.5", "--guidance", "2"], "guidance_rescale"),
            (AGES, ["--numbers", "aeg=3"], "no column 'aeg'; did you mean 'age'"),
            (AGES, ["--numbers", "age"], "expected COLUMN=VALUE"),
            (AGES, ["--numbers", "age=nan"], "expected COLUMN=VALUE"),
            (ConditionSpec(), ["--label", "3"], "trained without labels"),
            (ConditionSpec(), ["--guidance", "2"], "trained without conditions"),
            (CLASSES.model_copy(update={"dropout": 0.0}), ["--guidance", "2"], "conditions.dropout=0"),
            (CLASSES.model_copy(update={"dropout": 0.0}), ["--label", "none"], "conditions.dropout=0"),
            (picture_spec("gray", 1), [], "makes a picture from another one"),
            (picture_spec("gray", 1), ["--image", "absent.png"], "cannot be read"),
            (picture_spec("gray", 1), ["--image", "wide.png"], "is 8x9 pixels, this model begins with 8x8"),
            (picture_spec("mask", 3), ["--image", "square.png"], "no transparent part"),
        ],
    )
    def test_what_cannot_be_done_is_refused_before_anything_is_written(
        self, spec: ConditionSpec, words: list[str], message: str, capsys: Capture
    ) -> None:
        import re

        saved(spec)
        for name, width in (("wide.png", 9), ("square.png", 8)):
            Image.fromarray(np.zeros((8, width, 3), np.uint8)).save(name)
        line = refused(["sample", "m.safetensors", "--out", "out", *words], capsys)
        assert re.search(message, line)
        assert not Path("out").exists()

    def test_a_recipe_that_asks_for_nonsense_is_refused(self, capsys: Capture) -> None:
        saved(CLASSES)
        sample("m.safetensors", "--label", "cat", "-n", "1", "--out", "out")
        with Image.open("out/00000.png") as image:
            tree = {**json.loads(image.info["ddpm"]), "condition": {"label": 3}}
            from PIL.PngImagePlugin import PngInfo

            texts = PngInfo()
            texts.add_text("ddpm", json.dumps(tree))
            image.save("bad.png", pnginfo=texts)
        assert "recipe in 'bad.png' is not whole" in refused(["sample", "--from", "bad.png"], capsys)


def test_train_with_classes_from_the_command_line_and_look_at_it(tiny_words: list[str], capsys: Capture) -> None:
    main(["train", "digits", "--condition", "label", "--out", "run", *tiny_words])
    main(["inspect", "run"])
    text = capsys.readouterr().out
    assert "conditions: label (10 classes: 0, 1, 2" in text
    assert "10 % of the training pictures without" in text
    sample("run", "--label", "3", "-n", "2")
    assert sum(1 for _ in Path("run/samples").glob("*/labels.csv")) == 1


def test_a_picture_spec_says_what_is_given() -> None:
    assert PairedPicture(kind="gray", channels=1) == picture_spec("gray", 1).picture
