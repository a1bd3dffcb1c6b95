"""Guides from end to end: a classifier of x_t or a worse model beside the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ddpm.classifier import Classifier, build_classifier_network
from ddpm.cli.main import main
from ddpm.codec import PixelCodec
from ddpm.config import ClassifierConfig, NetworkConfig
from ddpm.config.conditions import ConditionSpec
from ddpm.config.sampling import SamplingConfig
from ddpm.diffusion import make_schedule
from ddpm.diffusion.schedules import NoiseSchedule
from ddpm.errors import SamplingError
from ddpm.files import sha256_of
from ddpm.model import Model
from ddpm.model.guides import ClassifierGuide, guided_by_classifier, guided_by_worse
from ddpm.networks import build_network

Capture = pytest.CaptureFixture[str]

CODEC = PixelCodec(256, (0.0, 255.0), "uint8")
SHAPE = (8, 8, 1)
SCHEDULE = make_schedule("cosine", 50)
SMALL = NetworkConfig(base_channels=8, channel_multipliers=(1,), attention_levels=(), blocks_per_level=1, num_groups=4)
CLASSES = ConditionSpec(classes=("dark", "bright"), class_counts=(1, 1), dropout=0.1)


def random_weights(network: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        weight.data = 0.2 * torch.randn(weight.shape, generator=generator)
    return network.eval()


def saved_model(
    file: str, spec: ConditionSpec | None = None, seed: int = 0, shape: tuple[int, int, int] = SHAPE
) -> Model:
    conditions = spec or ConditionSpec()
    network = random_weights(build_network(SMALL, shape, conditions=conditions), seed)
    advice = SamplingConfig(steps=4)
    model = Model(network, SMALL, SCHEDULE, "v", CODEC, shape, conditions=conditions, sampling=advice)
    model.save(file)
    return Model.load(file)


def saved_classifier(
    file: str = "c.safetensors",
    classes: tuple[str, ...] = ("dark", "bright"),
    schedule: NoiseSchedule | None = SCHEDULE,
) -> Path:
    config = ClassifierConfig(network=SMALL, features=8, noisy=schedule is not None)
    network = build_classifier_network(config, SHAPE, len(classes))
    random_weights(network, 3)
    Classifier(network, config, CODEC, classes, SHAPE, schedule).save(file)
    return Path(file)


class Brightness(nn.Module):
    """Logits that grow with the mean of x_t for the second class, and fall for the first."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(20.0))

    def forward(self, x_t: Tensor, t: Tensor, signal: Tensor) -> Tensor:
        mean = self.slope * x_t.flatten(1).mean(1)
        return torch.stack([-mean, mean], 1)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pixels(folder: str) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(Path(folder).glob("0*.png"))])


def by_brightness(model: Model, form: str = "score") -> Model:
    guided = guided_by_classifier(model, saved_classifier(), form)
    assert isinstance(guided.guide, ClassifierGuide)
    network: nn.Module = Brightness()
    return replace(guided, guide=replace(guided.guide, classifier=replace(guided.guide.classifier, network=network)))


@pytest.mark.parametrize("form", ["score", "mean"])
def test_a_classifier_moves_an_unconditional_model_to_its_class(form: str) -> None:
    sampler = {"sampler": "ddpm"} if form == "mean" else {}
    model = by_brightness(saved_model("m.safetensors").with_sampling(steps=10, **sampler), form)
    means = [
        float(model.sample(8, label=label, guidance=scale).mean())
        for label, scale in (("dark", 3.0), ("dark", 1.0), ("bright", 1.0), ("bright", 3.0))
    ]
    assert means == sorted(means)
    assert means[3] - means[0] > 10


def test_at_scale_zero_or_without_a_class_nothing_changes() -> None:
    plain = saved_model("m.safetensors")
    model = by_brightness(plain)
    wanted = plain.sample(4)
    assert np.array_equal(model.sample(4, label="bright", guidance=0.0), wanted)
    assert np.array_equal(model.sample(4, label="none"), wanted)
    assert not np.array_equal(model.sample(4, label="bright"), wanted)


def test_a_model_that_knows_the_class_is_at_scale_one_already() -> None:
    plain = saved_model("m.safetensors", CLASSES)
    model = by_brightness(plain)
    wanted = plain.sample(4, label="bright")
    assert np.array_equal(model.sample(4, label="bright", guidance=1.0), wanted)
    assert model.sample(4, label="bright", guidance=4.0).mean() > wanted.mean()
    with pytest.raises(SamplingError, match="expected at least 1"):
        model.sample(1, label="bright", guidance=0.5)


def test_classes_are_drawn_where_none_is_asked_for() -> None:
    model = by_brightness(saved_model("m.safetensors").with_sampling(steps=10))
    assert model.sample(16, guidance=5.0).astype(float).mean((1, 2, 3)).std() > 10


def test_autoguidance_is_a_line_through_two_models() -> None:
    good, _ = saved_model("m.safetensors", CLASSES), saved_model("worse.safetensors", CLASSES, seed=1)
    guided = guided_by_worse(good, "worse.safetensors")
    assert np.array_equal(guided.sample(4, label="dark", guidance=1.0), good.sample(4, label="dark"))
    assert not np.array_equal(guided.sample(4, label="dark", guidance=2.0), good.sample(4, label="dark"))
    itself = guided_by_worse(good, "m.safetensors").sample(4, label="dark", guidance=3.0)
    assert np.abs(itself.astype(int) - good.sample(4, label="dark")).max() <= 1


@pytest.mark.parametrize(
    "words",
    [
        ["--classifier", "c.safetensors", "--label", "bright", "--guidance", "2"],
        ["--classifier", "c.safetensors", "--label", "all", "--sampler", "ddpm", "--guidance-form", "mean"],
        ["--guide-by", "worse.safetensors", "--guidance", "2"],
        [
            "--guide-by",
            "worse.safetensors",
            "--guidance",
            "3",
            "--guidance-interval",
            "5,30",
            "--guidance-rescale",
            "0.7",
        ],
    ],
)
def test_a_guided_picture_is_made_again_from_its_recipe(words: list[str], capsys: Capture) -> None:
    saved_model("m.safetensors")
    saved_model("worse.safetensors", seed=1)
    saved_classifier()
    main(["sample", "m.safetensors", "-n", "3", "--device", "cpu", "--out", "drawn", *words])
    main(["sample", "m.safetensors", "-n", "3", "--device", "cpu", "--out", "plain"])
    assert not np.array_equal(pixels("drawn"), pixels("plain"))
    assert Path("drawn/labels.csv").is_file() is ("--label" in words)
    capsys.readouterr()
    main(["sample", "--from", "drawn/00002.png", "--device", "cpu", "--out", "again"])
    assert np.array_equal(pixels("again")[0], pixels("drawn")[2])
    Path(words[1]).unlink()
    with pytest.raises(SystemExit) as caught:
        main(["sample", "--from", "drawn/00002.png", "--device", "cpu"])
    assert caught.value.code == 2
    assert "the guide of 'drawn/00002.png'" in capsys.readouterr().err


def test_two_kinds_of_guidance_get_folders_of_their_own() -> None:
    saved_model("m.safetensors")
    saved_classifier()
    for extra in ([], ["--classifier", "c.safetensors", "--label", "dark"]):
        main(["sample", "m.safetensors", "-n", "1", "--device", "cpu", *extra])
    assert len(list(Path("samples").iterdir())) == 2


def test_guidance_that_is_switched_off_takes_its_interval_along() -> None:
    model = saved_model("m.safetensors", CLASSES)
    advised = model.with_sampling(guidance=3.0, guidance_interval=[5.0, 30.0], guidance_rescale=0.5)
    assert np.array_equal(advised.sample(2, label="dark", guidance=1.0), model.sample(2, label="dark"))
    with pytest.raises(SamplingError, match="guidance_interval without guidance"):
        model.sample(1, guidance=1.0, guidance_interval=(5.0, 30.0))


def test_a_classifier_at_scale_one_guides_within_an_interval() -> None:
    plain = saved_model("m.safetensors")
    model = by_brightness(plain)
    wanted, whole = plain.sample(4), model.sample(4, label="bright")
    never = model.sample(4, label="bright", guidance_interval=(48.2, 48.7))
    assert np.array_equal(never, wanted)
    assert np.array_equal(model.sample(4, label="bright", guidance=1.0, guidance_interval=(0.0, 49.0)), whole)
    part = model.sample(4, label="bright", guidance_interval=(0.0, 25.0))
    assert not np.array_equal(part, wanted)
    assert not np.array_equal(part, whole)


def test_sample_takes_interval_and_rescaling_as_with_sampling_does() -> None:
    model = saved_model("m.safetensors", CLASSES)
    whole = model.sample(4, label="dark", guidance=3.0)
    for made, options in (
        (model.sample(4, label="dark", guidance=3.0, guidance_interval=(20, 40)), {"guidance_interval": (20, 40)}),
        (model.sample(4, label="dark", guidance=3.0, guidance_rescale=0.7), {"guidance_rescale": 0.7}),
    ):
        assert np.array_equal(made, model.with_sampling(guidance=3.0, **options).sample(4, label="dark"))
        assert not np.array_equal(made, whole)
    with pytest.raises(SamplingError, match="guidance_rescale"):
        model.sample(1, guidance=2.0, guidance_rescale=1.5)


def test_the_flags_of_guidance_set_the_sampling_section() -> None:
    saved_model("m.safetensors", CLASSES)
    words = ["sample", "m.safetensors", "-n", "2", "--device", "cpu", "--label", "bright", "--guidance", "3"]
    main([*words, "--out", "all"])
    main([*words, "--guidance-interval", "48.2,48.7", "--out", "never"])
    main([*words[:-2], "--out", "plain"])
    main([*words, "--guidance-rescale", "1", "--out", "rescaled"])
    assert np.array_equal(pixels("never"), pixels("plain"))
    assert not np.array_equal(pixels("all"), pixels("plain"))
    assert not np.array_equal(pixels("rescaled"), pixels("all"))


def _no_xt() -> list[str]:
    saved_classifier(schedule=None)
    return ["--classifier", "c.safetensors"]


def _other_schedule() -> list[str]:
    saved_classifier(schedule=make_schedule("linear", 50))
    return ["--classifier", "c.safetensors"]


def _other_class() -> list[str]:
    saved_classifier()
    return ["--classifier", "c.safetensors", "--label", "brigt"]


def _mean_form() -> list[str]:
    saved_classifier()
    return ["--classifier", "c.safetensors", "--guidance-form", "mean"]


def _both() -> list[str]:
    return ["--classifier", "c.safetensors", "--guide-by", "m.safetensors"]


def _other_size() -> list[str]:
    saved_model("big.safetensors", shape=(16, 16, 1))
    return ["--guide-by", "big.safetensors", "--guidance", "2"]


def _other_conditions() -> list[str]:
    saved_model("labels.safetensors", CLASSES)
    return ["--guide-by", "labels.safetensors", "--guidance", "2"]


def _a_model() -> list[str]:
    return ["--classifier", "m.safetensors"]


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (_no_xt, "--noisy"),
        (_other_schedule, "another noise schedule"),
        (_other_class, "did you mean 'bright'"),
        (_mean_form, "--sampler ddpm"),
        (_both, "one guide"),
        (_other_size, "[16, 16, 1]"),
        (_other_conditions, "other conditions"),
        (_a_model, "m.safetensors"),
        (lambda: ["--guidance-form", "mean"], "without --classifier"),
        (lambda: ["--classifier", "absent.safetensors"], "does not exist"),
        (lambda: ["--label", "bright"], "trained without labels"),
        (lambda: ["--guidance", "2", "--guidance-interval", "5"], "two times t"),
        (lambda: ["--guidance", "2", "--guidance-interval", "9,5"], "smaller time first"),
        (lambda: ["--guidance", "2", "--guidance-interval", "10,50"], "from 0 to 49"),
        (lambda: ["--guidance", "2", "--guidance-rescale", "1.5"], "guidance_rescale"),
        (lambda: ["--guidance-rescale", "0.5"], "without guidance"),
    ],
)
def test_what_cannot_guide_is_refused(prepare: Callable[[], list[str]], said: str, capsys: Capture) -> None:
    saved_model("m.safetensors")
    with pytest.raises(SystemExit) as caught:
        main(["sample", "m.safetensors", "-n", "1", "--device", "cpu", "--out", "drawn", *prepare()])
    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert said in err
    assert len(err.splitlines()) == 1
    assert not Path("drawn").exists()


def test_a_classifier_of_other_classes_than_the_models_is_refused() -> None:
    model, other = saved_model("m.safetensors", CLASSES), saved_classifier(classes=("cat", "dog"))
    with pytest.raises(SamplingError, match="cat, dog, the model dark, bright"):
        guided_by_classifier(model, other)
    assert sha256_of(other)
