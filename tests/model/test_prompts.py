"""Image prompts: three encoders, an adapter trained on top of a base, pictures that are like another one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.cli.main import main
from ddpm.conditions import Condition
from ddpm.conditions.asked import ask
from ddpm.data import open_store
from ddpm.data.progress import silent
from ddpm.diffusion.process import q_sample
from ddpm.errors import ConfigError, DdpmError, ModelFileError, SamplingError
from ddpm.model import Model
from ddpm.model.adapter import Adapter
from ddpm.model.prompts import kept_prompts, load_prompt_encoder, read_prompt
from ddpm.training.image_adapter import ImageAdapterPlan, make_image_adapter_plan
from ddpm.training.run import run
from tiny_runs import TINY_ADAPTER, differing, train_all

Capture = pytest.CaptureFixture[str]
NETWORK = {"channel_multipliers": [1, 2], "attention_levels": [1]}
TRAINING: dict[str, Any] = {**TINY_ADAPTER, "learning_rate": 0.01, "previews": 2}
pytestmark = pytest.mark.usefixtures("few_held_out")


def image_plan(base: Path, out: Path, *, encoder: str = "base", **training: Any) -> ImageAdapterPlan:
    tree = {"training": {**TRAINING, **training}, "image_adapter": {"width": 16}}
    return make_image_adapter_plan(base, "digits", tree, encoder=encoder, out=out, cache_dir=out.parent / "cache")


@pytest.fixture(scope="module", params=["none", "label"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base without conditions, and one that knows classes."""
    folder = tmp_path_factory.mktemp("base") / "base"
    conditions = {} if request.param == "none" else {"label": True}
    train_all(folder, steps=3, schedule={"num_timesteps": 60}, network=NETWORK, conditions=conditions)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "prompted"
    list(run(image_plan(base, folder)))
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A colour picture of another size than the model's."""
    path = tmp_path_factory.mktemp("picture") / "prompt.png"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def last_x(model: Model, condition: Condition | None = None) -> torch.Tensor:
    *_, step = model.with_sampling(sampler="ddim", steps=3).sample_steps(range(2), condition=condition)
    return step.x


def test_scale_0_leaves_the_base_bit_for_bit(base: Path, adapter: Path, picture: Path) -> None:
    plain = Model.load(base)
    own = plain.encode(ask(plain.conditions, range(2), 0))
    silent_one = plain.with_adapter(adapter, 0.0)
    given = np.repeat(read_prompt(picture, plain), 2, axis=0)
    prompted = silent_one.with_prompt(own, given)
    assert torch.equal(last_x(silent_one, prompted), last_x(plain, own))
    loud = plain.with_adapter(adapter)
    assert torch.equal(last_x(loud, own), last_x(plain, own))  # without a prompt, too
    assert not torch.equal(last_x(loud, prompted), last_x(plain, own))


def test_the_features_are_those_of_training(base: Path, adapter: Path) -> None:
    plan = image_plan(base, adapter.parent / "again")
    rows = plan.store.held_out[:3]
    x_0 = plan.codec.encode(plan.store.pictures[rows])
    seen = plan.prompted.of(rows, x_0, seed=0, pictures=range(3)).prompt
    model = Model.load(base).with_adapter(adapter)
    read = model.with_prompt(None, np.array(plan.store.pictures[rows])).prompt
    assert seen is not None
    assert read is not None
    torch.testing.assert_close(read, seen, atol=1e-4, rtol=1e-4)
    every = torch.from_numpy(np.array(plan.prompted.prompts[plan.store.train]))
    standard = (every - plan.prompted.reader.mean) / plan.prompted.reader.std
    assert standard.mean((0, 1)).abs().max() < 1e-3
    assert (standard.std((0, 1)) - 1).abs().max() < 1e-2


def test_features_are_computed_once(base: Path, tmp_path: Path) -> None:
    encoder = load_prompt_encoder("base", Model.load(base))
    calls = []
    counted = replace(encoder, run=lambda pictures: (calls.append(len(pictures)), encoder.run(pictures))[1])
    pictures = np.array(open_store("digits", image_plan(base, tmp_path / "x").config.data).pictures[:40])
    first = kept_prompts(counted, pictures, "fingerprint", "base", tmp_path, silent)
    again = kept_prompts(counted, pictures, "fingerprint", "base", tmp_path, silent)
    assert calls == [32, 8]
    np.testing.assert_array_equal(first, again)
    kept_prompts(counted, pictures, "other pictures", "base", tmp_path, silent)
    assert len(calls) == 4


def test_other_conditions_are_hidden_for_a_share_of_pictures(base: Path, tmp_path: Path) -> None:
    plan = image_plan(base, tmp_path / "x")
    rows = np.resize(plan.store.train, 400)
    condition = plan.prompted.of(rows, torch.zeros(400, 1, 8, 8), seed=0, pictures=range(400))
    assert condition.prompt is not None
    assert bool((condition.prompt != 0).flatten(1).any(1).all())  # prompts never are
    if condition.label is not None:
        assert 0.4 < float((condition.label == -1).float().mean()) < 0.6


def test_the_base_is_never_moved_and_a_run_resumes_bit_for_bit(base: Path, adapter: Path, tmp_path: Path) -> None:
    list(run(image_plan(base, tmp_path / "halves", steps=4)))
    list(run(image_plan(base, tmp_path / "halves")))
    for name in ("adapter.safetensors", "checkpoint.safetensors"):
        assert differing(adapter / name, tmp_path / "halves" / name) == []
    held = Adapter.load(adapter)
    assert all("prompt" in name for name in held.tensors)
    assert held.image.encoder == "base"
    assert (adapter / "previews" / "00000006.png").exists()


def test_sampling_with_a_picture_and_making_it_again(
    base: Path, adapter: Path, picture: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["sample", str(base), "-n", "2", "--steps", "2", "--adapter", f"{adapter}:0.5"]
    main([*words, "--prompt-image", str(picture), "--out", str(tmp_path / "like")])
    with Image.open(tmp_path / "like" / "00001.png") as made:
        recipe = json.loads(made.text["ddpm"])
    assert recipe["prompt"].keys() == {"file", "sha256"}
    main(["sample", "--from", str(tmp_path / "like" / "00001.png")])
    assert "equal bit for bit" in capsys.readouterr().err
    main(["inspect", str(adapter)])
    assert "an adapter (image)" in capsys.readouterr().out


def test_it_adds_to_low_rank_updates_but_not_to_another_image_adapter(
    base: Path, adapter: Path, picture: Path, tmp_path: Path
) -> None:
    from ddpm.training.fine_tune import make_fine_tuning_plan

    tree = {"training": {**TRAINING, "steps": 2}, "lora": {"rank": 2}}
    list(run(make_fine_tuning_plan(base, "digits", tree, out=tmp_path / "lora")))
    plain = Model.load(base)
    one = plain.with_adapter(adapter).with_adapter(tmp_path / "lora").with_prompt_picture(picture)
    other = plain.with_adapter(tmp_path / "lora").with_adapter(adapter).with_prompt_picture(picture)
    assert torch.equal(last_x(one), last_x(other))
    with pytest.raises(ModelFileError, match="already"):
        one.with_adapter(adapter)
    with pytest.raises(ModelFileError, match="cannot be merged"):
        one.save(tmp_path / "m.safetensors")


def test_what_cannot_be_is_refused(base: Path, adapter: Path, picture: Path, tmp_path: Path, capsys: Capture) -> None:
    def said(call: Any) -> str:
        with pytest.raises(DdpmError) as caught:
            call()
        return str(caught.value)

    plain = Model.load(base)
    assert "needs an image adapter" in said(lambda: plain.with_prompt_picture(picture))
    prompted = plain.with_adapter(adapter)
    assert "no picture at" in said(lambda: prompted.with_prompt_picture(tmp_path / "absent.png"))
    (tmp_path / "bad.png").write_text("no picture")
    assert "no picture that can be read" in said(lambda: prompted.with_prompt_picture(tmp_path / "bad.png"))
    assert "image encoder 'absent'" in said(lambda: image_plan(base, tmp_path / "x", encoder="absent"))
    assert "gives 16" in said(lambda: make_image_adapter_plan(base, "digits", {}, tokens=3, out=tmp_path / "x"))
    assert "flip" in said(lambda: make_image_adapter_plan(base, "digits", {"data": {"flip": True}}))
    held = Adapter.load(adapter)
    tensors = {name: tensor for name, tensor in held.tensors.items() if name != "prompt.mean"}
    replace(held, tensors=tensors).save(tmp_path / "bad.safetensors")
    assert "lacks the statistics" in said(lambda: plain.with_adapter(tmp_path / "bad.safetensors"))
    with pytest.raises(SystemExit) as caught:
        main(["sample", str(base), "--prompt-image", str(picture), "--out", str(tmp_path / "none")])
    assert caught.value.code == 2
    assert "ddpm train-adapter" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_guidance_needs_a_prompt_or_conditions_of_the_base(base: Path, adapter: Path, picture: Path) -> None:
    plain = Model.load(base)
    guided = plain.with_adapter(adapter).with_sampling(guidance=2.0, sampler="ddim", steps=2)
    given = guided.with_prompt(None, np.repeat(read_prompt(picture, plain), 2, axis=0))
    assert not np.array_equal(
        guided.sample(2, condition=given), guided.with_sampling(guidance=1.0).sample(2, condition=given)
    )
    assert np.array_equal(guided.with_prompt_picture(picture).sample(2), guided.sample(2, condition=given)) or (
        plain.conditions.any  # then a label is drawn beside the prompt
    )
    if plain.conditions.any:  # without a prompt, guidance is the base's own
        own = plain.with_sampling(guidance=2.0, sampler="ddim", steps=2)
        assert np.array_equal(guided.sample(2), own.sample(2))
        without = replace(guided, conditions=plain.conditions.model_copy(update={"dropout": 0.0}))
        with pytest.raises(SamplingError, match="dropout=0"):
            without.sample(2, condition=given)
    else:
        with pytest.raises(SamplingError, match=r"is given no image prompt.*--prompt-image"):
            guided.sample(2)


def test_the_learning_rate_is_thrice_the_bases_unless_asked(base: Path, tmp_path: Path) -> None:
    rate = Model.load(base).provenance["config"]["training"]["learning_rate"]
    training = {key: value for key, value in TRAINING.items() if key != "learning_rate"}
    plan = make_image_adapter_plan(base, "digits", {"training": training}, out=tmp_path / "x")
    assert plan.config.training.learning_rate == pytest.approx(3 * rate)
    assert image_plan(base, tmp_path / "y").config.training.learning_rate == TRAINING["learning_rate"]


@pytest.mark.slow
def test_pictures_are_denoised_better_beside_unseen_prompts(tmp_path: Path) -> None:
    """The adapter has to say what noise hides: without a prompt, nothing does."""
    training = {"steps": 50, "batch_size": 32, "micro_batch_size": 32}
    rate = {"learning_rate": 0.01, "schedule": {"num_timesteps": 60}}
    train_all(tmp_path / "base", **training, **rate, network=NETWORK, evaluate_every=50)
    plan = image_plan(
        tmp_path / "base", tmp_path / "like", **training, decay="cosine", evaluate_every=50, checkpoint_every=50
    )
    list(run(plan))
    model = Model.load(tmp_path / "base").with_adapter(tmp_path / "like")
    pictures = np.array(plan.store.pictures[plan.store.held_out[:48]])
    x_0 = model.codec.encode(pictures)
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    t = torch.full((len(x_0),), 54)
    x_t = q_sample(x_0, t, eps, model.schedule)
    own, others = (model.with_prompt(None, each) for each in (pictures, np.roll(pictures, 7, axis=0)))
    with torch.no_grad():
        wrong = [
            float((model.denoiser(condition=condition)(x_t, t).x_0 - x_0).square().mean())
            for condition in (own, None, others)
        ]
    assert wrong[0] < 0.9 * wrong[1]
    assert wrong[0] < 0.8 * wrong[2]


def test_a_base_of_points_is_refused(tmp_path: Path) -> None:
    train_all(tmp_path / "mlp", steps=1, network={"kind": "mlp"})
    with pytest.raises(ConfigError, match="mlp"):
        image_plan(tmp_path / "mlp", tmp_path / "x")


def test_a_classifier_reads_prompts(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "classifier.safetensors"
    main(["train-classifier", "digits", "--steps", "2", "--set", "training.batch_size=8", "--out", str(file)])
    plan = image_plan(base, tmp_path / "x", encoder=str(file), steps=2)
    assert (plan.config.image_adapter.given, plan.config.image_adapter.tokens) == (1, 4)
    list(run(plan))
    model = Model.load(base).with_adapter(tmp_path / "x")
    assert model.with_prompt(None, np.array(plan.store.pictures[:2])).prompt.shape[:2] == (2, 1)
    file.unlink()
    with pytest.raises(ModelFileError, match=f"image encoder '{file}'"):
        Model.load(base).with_adapter(tmp_path / "x")


def test_clip_reads_prompts(base: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        projection_dim=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    torch.manual_seed(0)
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    plain = Model.load(base)
    encoder = load_prompt_encoder(str(tmp_path / "clip"), plain)
    pictures = np.array(open_store("digits", image_plan(base, tmp_path / "x").config.data).pictures[:3])
    assert encoder.run(pictures).shape == (3, 1, 12)
    assert (encoder.given, encoder.features) == (1, 12)
    with pytest.raises(ConfigError, match="use the same files"):
        load_prompt_encoder(str(tmp_path / "clip"), plain, sha256="0" * 64)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="is no CLIP vision encoder"):
        load_prompt_encoder(str(tmp_path / "empty"), plain)
