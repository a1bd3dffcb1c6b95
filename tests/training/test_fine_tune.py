"""Fine-tuning: a run begins as its base, keeps what the base decides, and goes on without the base's file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ddpm
from ddpm.cli.main import main
from ddpm.conditions import Condition
from ddpm.config import NetworkConfig, merge
from ddpm.engine import choose_engine
from ddpm.errors import ConfigError, DataError, DdpmError, ModelFileError, RunError
from ddpm.files import sha256_of
from ddpm.model import Model
from ddpm.networks.carry import carry_weights
from ddpm.networks.text import TextInput
from ddpm.networks.unet import build_unet
from ddpm.training.fine_tune import FineTuningPlan, make_fine_tuning_plan
from ddpm.training.run import run
from tiny_runs import differing, metric_lines, train_all

pytestmark = pytest.mark.usefixtures("few_held_out")
SHORT: dict[str, Any] = {
    "steps": 6,
    "batch_size": 8,
    "checkpoint_every": 2,
    "evaluate_every": 3,
    "preview_every": 1000,
    "log_every": 2,
    "previews": 1,
    "milestones": 0,
    "decay": "constant",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "first"
    train_all(folder, steps=3, schedule={"name": "sigmoid", "num_timesteps": 60}, data={"flip": True})
    return folder


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colour")
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def plan_from(base: Path, out: Path, pictures: str | Path = "digits", **training: Any) -> FineTuningPlan:
    """Return a plan; keywords are fields of the training section, or sections of their own."""
    sections = {key: training.pop(key) for key in list(training) if isinstance(training[key], dict)}
    return make_fine_tuning_plan(base, pictures, merge({"training": {**SHORT, **training}}, sections), out=out)


def weights(model: Model) -> dict[str, torch.Tensor]:
    return dict(model.network.state_dict())


def test_a_run_begins_as_its_base_and_moves_on(base: Path, tmp_path: Path) -> None:
    plan, taught = plan_from(base, tmp_path / "on"), Model.load(base)
    network, objective = plan.start(choose_engine("cpu", "float32"))
    assert all(torch.equal(tensor, weights(taught)[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(objective.schedule.betas, taught.schedule.betas)
    list(run(plan))
    tuned = Model.load(tmp_path / "on")
    assert not torch.equal(weights(tuned)["conv_in.weight"], weights(taught)["conv_in.weight"])
    assert (tuned.parameterization, tuned.codec, tuned.picture_shape) == (
        taught.parameterization,
        taught.codec,
        taught.picture_shape,
    )
    assert torch.equal(tuned.schedule.betas, taught.schedule.betas)


def test_provenance_names_the_base_and_its_hash(base: Path, tmp_path: Path) -> None:
    list(run(plan_from(base, tmp_path / "on", steps=1)))
    origin = Model.load(tmp_path / "on").provenance["initialized_from"]
    file = base / "model.safetensors"
    assert (origin["base"], origin["base_sha256"], origin["step"]) == (str(file), sha256_of(file), 3)


def test_the_defaults_are_gentle(base: Path, tmp_path: Path) -> None:
    gentle = make_fine_tuning_plan(base, "digits", {}, out=tmp_path / "on").config
    first = Model.load(base).provenance["config"]["training"]
    assert gentle.training.learning_rate == first["learning_rate"] / 4
    assert (gentle.training.decay, gentle.training.steps) == ("cosine", 10 * 1437)
    assert gentle.training.warmup_steps == 100
    assert gentle.data.flip  # pictures are read as the base's were
    short = make_fine_tuning_plan(base, "digits", {"training": {"steps": 50}}, out=tmp_path / "on").config
    assert (short.training.warmup_steps, short.training.evaluate_every) == (5, 5)


def test_it_goes_on_without_the_base_bit_for_bit(base: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    list(run(plan_from(moved, tmp_path / "whole")))
    list(run(plan_from(moved, tmp_path / "halves", steps=4)))
    shutil.rmtree(moved)
    resumed = plan_from(moved, tmp_path / "halves")
    list(run(resumed))
    for name in ("model.safetensors", "checkpoint.safetensors"):
        assert differing(tmp_path / "whole" / name, tmp_path / "halves" / name) == []
    assert metric_lines(tmp_path / "whole")[-1] == metric_lines(tmp_path / "halves")[-1]
    of_both = [Model.load(tmp_path / name).provenance["initialized_from"] for name in ("whole", "halves")]
    assert of_both[0] == of_both[1]


def test_another_picture_size_is_taken(base: Path, tmp_path: Path) -> None:
    list(run(plan_from(base, tmp_path / "large", steps=1, data={"size": [11, 12]})))
    assert Model.load(tmp_path / "large").sample(1, steps=2).shape == (1, 11, 12, 1)


def test_another_base_at_the_same_place_is_refused_on_resume(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(base, other)
    list(run(plan_from(other, tmp_path / "on", steps=2)))
    Model.load(base).with_sampling(steps=7).save(other / "model.safetensors")
    with pytest.raises(RunError, match=r"fine_tuning\.base_sha256"):
        list(run(plan_from(other, tmp_path / "on", steps=4)))


def test_what_the_base_decides_is_refused_with_the_reason(base: Path, tmp_path: Path) -> None:
    for sections, said in (
        ({"schedule": {"name": "linear"}}, r"schedule\.name: sigmoid -> linear: it comes from the base"),
        ({"network": {"base_channels": 16}}, r"network\.base_channels: 8 -> 16"),
        ({"objective": {"parameterization": "eps"}}, r"objective\.parameterization: v -> eps"),
        ({"objective": {"variance": "learned", "loss": "hybrid"}}, r"objective\.variance"),
    ):
        with pytest.raises(ConfigError, match=said):
            plan_from(base, tmp_path / "on", **sections)
    same = plan_from(base, tmp_path / "on", schedule={"name": "sigmoid"}, network={"dropout": 0.3})
    assert same.config.network.dropout == 0.3
    assert list(tmp_path.iterdir()) == []


def test_pictures_of_another_kind_are_refused(base: Path, colour: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"are rgb, those of the base .* are gray; .*data\.channels=gray"):
        plan_from(base, tmp_path / "on", colour, data={"channels": "rgb"})
    with pytest.raises(DataError, match=r"are of 2 channels, those of the base .* are gray$"):
        plan_from(base, tmp_path / "on", "moons", data={"size": None})
    as_gray = plan_from(base, tmp_path / "on", colour, data={"channels": "gray"})
    assert (as_gray.picture_shape, as_gray.codec.levels) == ((8, 8, 1), 256)


def test_a_base_that_knows_its_levels_is_not_given_others(colour: Path, tmp_path: Path) -> None:
    train_all(tmp_path / "base", steps=1, network={"fourier_levels": 17})
    with pytest.raises(DataError, match=r"has 256 levels, the base .* 17, and its network knows no others"):
        plan_from(tmp_path / "base", tmp_path / "on", colour, data={"channels": "gray"})


def test_presets_missing_bases_and_distilled_ones_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="preset 'digits' with --init"):
        make_fine_tuning_plan(base, "digits", {}, preset="digits")
    with pytest.raises(ModelFileError, match="no model"):
        plan_from(tmp_path / "none", tmp_path / "on")
    few = Model.load(base)
    few.provenance["distilled_from"] = {}
    few.save(tmp_path / "few.safetensors")
    with pytest.raises(ConfigError, match="is distilled"):
        plan_from(tmp_path / "few.safetensors", tmp_path / "on")


def test_a_model_without_a_record_is_a_base_too(base: Path, tmp_path: Path) -> None:
    bare = Model.load(base)
    bare.provenance.clear()
    bare.save(tmp_path / "bare.safetensors")
    plan = plan_from(tmp_path / "bare.safetensors", tmp_path / "on", steps=1)
    list(run(plan))
    assert torch.equal(Model.load(tmp_path / "on").schedule.betas, bare.schedule.betas)


def test_new_conditions_begin_with_no_effect_and_are_learned(base: Path, tmp_path: Path) -> None:
    plan = plan_from(base, tmp_path / "on", learning_rate=0.02, conditions={"label": True, "dropout": 0.1})
    engine = choose_engine("cpu", "float32")
    network, _ = plan.start(engine)
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 40.0])
    before = engine.place(Model.load(base).network)(x_t, t)
    for label in ([-1, -1], [2, 9]):
        assert torch.equal(network(x_t, t, Condition(label=torch.tensor(label))), before)
    list(run(plan))
    tuned = Model.load(tmp_path / "on")
    assert len(tuned.conditions.classes) == 10
    two, three = (tuned.network(x_t, t, Condition(label=torch.tensor([n, n]))) for n in (2, 3))
    assert not torch.equal(two, three)
    with pytest.raises(ConfigError, match=r"conditions\.label: True -> False: it comes from the base"):
        plan_from(tmp_path / "on", tmp_path / "more", conditions={"label": False})
    with pytest.raises(ConfigError, match="has no place for them"):
        plan_from(base, tmp_path / "more", conditions={"label": True}, lora={"rank": 2})


def test_a_paired_picture_and_numbers_begin_with_no_effect() -> None:
    plain, text = NetworkConfig(base_channels=8, channel_multipliers=(1, 2), num_groups=4), TextInput(10, vocabulary=9)
    torch.manual_seed(0)
    source = build_unet(plain, 3)
    for weight in source.parameters():
        weight.data = 0.3 * torch.randn(weight.shape)
    target = build_unet(plain, 3, num_numbers=2, picture_channels=4, text=text)
    carry_weights(source, target)
    x_t, t = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 40.0])
    condition = Condition(
        numbers=torch.randn(2, 2), picture=torch.randn(2, 4, 8, 8), tokens=torch.tensor([[1, 2], [3, 0]])
    )
    torch.testing.assert_close(target(x_t, t, condition), source(x_t, t), atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="has no place in the new network"):
        carry_weights(target, build_unet(plain, 3, picture_channels=4))
    with pytest.raises(ConfigError, match="is expected"):
        carry_weights(source, build_unet(plain.model_copy(update={"base_channels": 16}), 3))


def test_the_command_and_the_call(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"training.{key}={value}" for key, value in SHORT.items() if key not in ("steps", "batch_size")]
    flags = [flag for word in words for flag in ("--set", word)]
    command = ["train", "digits", "--init", str(base), "--steps", "2", "--batch-size", "8", *flags]
    main([*command, "--out", str(tmp_path / "cli")])
    called = ddpm.train(
        "digits",
        init=base,
        steps=2,
        batch_size=8,
        out=tmp_path / "api",
        overrides={"training": {key: value for key, value in SHORT.items() if key not in ("steps", "batch_size")}},
        quiet=True,
    )
    assert differing(tmp_path / "cli" / "model.safetensors", tmp_path / "api" / "model.safetensors") == []
    assert called.provenance["step"] == 2
    capsys.readouterr()
    main(["inspect", str(tmp_path / "cli")])
    assert f"begun with: {base / 'model.safetensors'} (SHA-256 " in capsys.readouterr().out
    main([*command, "--dry-run", "--out", str(tmp_path / "dry")])
    recipe = tmp_path / "recipe.json"
    recipe.write_text(capsys.readouterr().out)
    assert json.loads(recipe.read_text())["fine_tuning"]["base"] == str(base / "model.safetensors")
    main(["train", "digits", "--init", str(base), "--config", str(recipe)])
    assert differing(tmp_path / "cli" / "model.safetensors", tmp_path / "dry" / "model.safetensors") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--init", "BASE", "--set", "schedule.name=linear"], "it comes from the base"),
        (["--init", "absent"], "no model at 'absent'"),
        (["--init", "BASE", "--preset", "mnist"], "leave the preset out"),
        (["--set", "lora.rank=4"], "there is no base to update; add --init MODEL"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    words: list[str], said: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "digits", *(str(base) if w == "BASE" else w for w in words), "--out", str(tmp_path / "on")])
    out, err = capsys.readouterr()
    assert (caught.value.code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_of_a_fine_tuning_asks_for_its_base(base: Path, tmp_path: Path) -> None:
    tree = {"fine_tuning": {"base": str(base), "base_sha256": "0"}}
    with pytest.raises(DdpmError, match=f"add --init {base}"):
        ddpm.train("digits", overrides=tree, out=tmp_path / "on", quiet=True)
