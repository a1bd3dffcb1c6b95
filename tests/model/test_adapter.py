"""Adapters: small files that fit one base, are trained on top of it, and go through sampling and merging."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ddpm.cli.main import main
from ddpm.errors import ConfigError, DdpmError, ModelFileError
from ddpm.model import Model
from ddpm.model.adapter import Adapter, parse_adapter, weights_sha256
from ddpm.training.fine_tune import FineTuningPlan, make_fine_tuning_plan
from ddpm.training.run import run
from tiny_runs import TINY_ADAPTER, differing, train_all

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("few_held_out")


def lora_plan(base: Path, out: Path, *, rank: int = 2, seed: int = 0, **training: Any) -> FineTuningPlan:
    tree = {"training": {**TINY_ADAPTER, **training}, "lora": {"rank": rank}, "seed": seed}
    return make_fine_tuning_plan(base, "digits", tree, out=out)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    train_all(folder, steps=3, schedule={"num_timesteps": 60}, network={"attention_levels": [1]})
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; read it, do not write to it."""
    folder = tmp_path_factory.mktemp("adapter") / "tuned"
    list(run(lora_plan(base, folder)))
    return folder


def changed(adapter: Path, target: Path, **description: Any) -> Path:
    """Write a copy of an adapter whose description was changed."""
    from safetensors import safe_open

    file = adapter / "adapter.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = dict(opened.metadata())
    tree = {**json.loads(metadata["description"]), **description}
    save_file(load_file(file), target, {**metadata, "description": json.dumps(tree)})
    return target


def test_a_run_makes_a_small_file_that_moves_its_base(base: Path, adapter: Path) -> None:
    assert not (adapter / "model.safetensors").exists()
    size, whole = ((f / n).stat().st_size for f, n in ((adapter, "adapter.safetensors"), (base, "model.safetensors")))
    assert size < whole / 2
    plain = Model.load(base)
    tuned = plain.with_adapter(adapter)
    assert (tuned.sample(2, steps=2) != plain.sample(2, steps=2)).any()
    assert tuned.num_parameters == plain.num_parameters
    held = Adapter.load(adapter)
    assert (held.kind, held.lora.rank) == ("lora", 2)
    assert held.base_sha256 == weights_sha256(plain.network)
    assert held.provenance["base"] == str(base / "model.safetensors")


def test_scale_0_leaves_the_base_bit_for_bit(base: Path, adapter: Path) -> None:
    plain = Model.load(base)
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 40.0])
    assert torch.equal(plain.with_adapter(adapter, 0).network(x_t, t), plain.network(x_t, t))
    before = plain.network(x_t, t)
    plain.with_adapter(adapter)
    assert torch.equal(plain.network(x_t, t), before)  # a copy was made


def test_the_scale_acts_on_the_update(base: Path, adapter: Path) -> None:
    weights = {
        scale: Model.load(base).with_adapter(adapter, scale).network.get_parameter("conv_in.weight").detach()
        for scale in (0.0, 0.5, 1.0)
    }
    assert (weights[1.0] - weights[0.0]).abs().max() > 1e-4
    torch.testing.assert_close(weights[0.5], (weights[0.0] + weights[1.0]) / 2)


def test_adapters_add_up_in_any_order_and_merge_into_a_model(base: Path, adapter: Path, tmp_path: Path) -> None:
    list(run(lora_plan(base, tmp_path / "other", seed=1, rank=3)))
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 40.0])
    plain = Model.load(base)
    both = plain.with_adapter(adapter, 0.5).with_adapter(tmp_path / "other")
    turned = plain.with_adapter(tmp_path / "other").with_adapter(adapter, 0.5)
    torch.testing.assert_close(both.network(x_t, t), turned.network(x_t, t))
    main(["merge", str(base), f"{adapter}:0.5", str(tmp_path / "other"), "--out", str(tmp_path / "m.safetensors")])
    merged = Model.load(tmp_path / "m.safetensors")
    assert torch.equal(merged.network(x_t, t), both.network(x_t, t))
    assert [each["scale"] for each in merged.provenance["adapters"]] == [0.5, 1.0]
    with pytest.raises(ModelFileError, match="load it on top of its own base"):
        merged.with_adapter(adapter)


def test_what_training_saw_is_what_is_loaded(base: Path, tmp_path: Path) -> None:
    plan = lora_plan(base, tmp_path / "on")
    list(run(plan))
    network, _ = plan.start(_engine())
    from ddpm.training.checkpoint import load_checkpoint
    from ddpm.training.ema import Ema
    from ddpm.training.loop import TrainState, make_optimizer

    state = TrainState(network, Ema(network, 0.5), make_optimizer(network, plan.config.training), 8)
    load_checkpoint(tmp_path / "on" / "checkpoint.safetensors", state)
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 40.0])
    loaded = Model.load(base).with_adapter(tmp_path / "on").network(x_t, t)
    torch.testing.assert_close(loaded, state.ema.network(x_t, t), atol=1e-5, rtol=1e-5)


def _engine() -> Any:
    from ddpm.engine import choose_engine

    return choose_engine("cpu", "float32")


def test_it_resumes_bit_for_bit_from_a_checkpoint_of_its_own_weights(base: Path, adapter: Path, tmp_path: Path) -> None:
    list(run(lora_plan(base, tmp_path / "halves", steps=4)))
    list(run(lora_plan(base, tmp_path / "halves")))
    for name in ("adapter.safetensors", "checkpoint.safetensors"):
        assert differing(adapter / name, tmp_path / "halves" / name) == []
    held = set(load_file(adapter / "checkpoint.safetensors"))
    assert all(name.endswith((".up", ".down")) for name in held if name.startswith(("network.", "ema.")))


def test_sampling_and_the_recipe(base: Path, adapter: Path, tmp_path: Path, capsys: Capture) -> None:
    drawn = tmp_path / "drawn"
    words = ["sample", str(base), "-n", "2", "--steps", "2", "--adapter", f"{adapter}:0.5", "--out", str(drawn)]
    main(words)
    expected = Model.load(base).with_adapter(adapter, 0.5).sample(2, steps=2)[1, :, :, 0]
    with Image.open(drawn / "00001.png") as picture:
        recipe = json.loads(picture.text["ddpm"])
        np.testing.assert_allclose(np.asarray(picture, dtype=float) / 255 * 16, expected, atol=1.1)
    assert [each["scale"] for each in recipe["adapters"]] == [0.5]
    main(["sample", "--from", str(drawn / "00001.png")])
    assert "equal bit for bit" in capsys.readouterr().err
    main([*words[:-2], "--out", str(tmp_path / "plain"), "--adapter", f"{adapter}:-0.5"])  # the two cancel
    main(["sample", str(base), "-n", "2", "--steps", "2", "--out", str(tmp_path / "base")])
    one, other = (np.asarray(Image.open(tmp_path / name / "00000.png")).astype(int) for name in ("plain", "base"))
    assert np.abs(one - other).max() <= 16  # one of 17 levels, by rounding
    capsys.readouterr()
    main(["inspect", str(adapter)])
    out = capsys.readouterr().out
    assert "an adapter (lora)" in out
    assert f"use it: ddpm sample {base}/model.safetensors --adapter {adapter}" in out


def test_the_default_folder_tells_adapters_apart(base: Path, adapter: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(base, own)
    for text in (str(adapter), f"{adapter}:0.5"):
        main(["sample", str(own), "-n", "1", "--sampler", "ddim", "--steps", "1", "--adapter", text])
    assert sorted(folder.name for folder in (own / "samples").iterdir()) == [
        "ddim-1-tuned-0.5-seed0",
        "ddim-1-tuned-1-seed0",
    ]


def test_an_adapter_of_another_base_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    train_all(tmp_path / "else", steps=1, schedule={"num_timesteps": 60}, network={"attention_levels": [1]})
    with pytest.raises(ModelFileError, match=r"was trained on '.*base.*', whose weights have the SHA-256"):
        Model.load(tmp_path / "else").with_adapter(adapter)
    advised = Model.load(base).with_sampling(steps=3)  # the same weights in another file are the same base
    advised.save(tmp_path / "advised.safetensors")
    Model.load(tmp_path / "advised.safetensors").with_adapter(adapter)


def test_what_is_no_whole_adapter_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    plain, target = Model.load(base), tmp_path / "bad.safetensors"
    whole = (adapter / "adapter.safetensors").read_bytes()

    def refusal(path: Path, scale: float = 1.0) -> str:
        with pytest.raises(DdpmError) as caught:
            plain.with_adapter(path, scale)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    target.write_bytes(whole[:-8])
    assert "not a whole safetensors file" in refusal(target)
    assert "kind" in refusal(changed(adapter, target, kind="other"))
    assert "rank" in refusal(changed(adapter, target, settings={"rank": 0}))
    assert "rank" in refusal(changed(adapter, target, settings={"rank": "two"}))
    assert "expected 'ddpm-adapter'" in refusal(base / "model.safetensors")
    assert "no adapter at" in refusal(tmp_path / "absent")
    assert "no adapter in" in refusal(base)
    assert "finite number" in refusal(adapter, float("nan"))
    tensors = load_file(adapter / "adapter.safetensors")
    held = Adapter.load(adapter)
    for harm, said in (
        ({"conv_in.up": tensors["conv_in.up"][:-1]}, "fits no layer"),
        ({"conv_in.up": tensors["conv_in.up"] * float("inf")}, "other than finite numbers"),
    ):
        Adapter(held.kind, held.base_sha256, held.settings, {**tensors, **harm}, held.provenance).save(target)
        assert said in refusal(target)
    with pytest.raises(ModelFileError, match="needs its base: ddpm sample BASE --adapter FILE"):
        Model.load(adapter / "adapter.safetensors")
    with pytest.raises(ModelFileError, match=r"holds an adapter; name its base"):
        Model.load(adapter)


def test_a_run_that_cannot_be_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="for pictures of its base's size"):
        make_fine_tuning_plan(base, "digits", {"lora": {"rank": 2}, "data": {"size": [12, 12]}}, out=tmp_path / "on")
    with pytest.raises(ConfigError, match=r"lora\.rank"):
        make_fine_tuning_plan(base, "digits", {"lora": {"rank": -1}}, out=tmp_path / "on")
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    list(run(lora_plan(moved, tmp_path / "on", steps=1)))
    shutil.rmtree(moved)
    with pytest.raises(ModelFileError, match="no model"):
        lora_plan(moved, tmp_path / "on", steps=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sample", "BASE", "--adapter", "absent"], "no adapter at 'absent'"),
        (["sample", "BASE", "--adapter", "ADAPTER:nan"], "expected a finite number"),
        (["sample", "ADAPTER"], "holds an adapter; name its base"),
        (["merge", "BASE", "--out", "m.safetensors"], "no adapter to merge"),
        (["merge", "BASE", "ADAPTER", "--out", "m.pt"], "expected the name of a .safetensors file"),
        (["merge", "BASE", "ADAPTER", "--out", "there.safetensors"], "exists already; add --overwrite"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    words: list[str],
    said: str,
    base: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.safetensors").write_text("kept")
    with pytest.raises(SystemExit) as caught:
        main([word.replace("BASE", str(base)).replace("ADAPTER", str(adapter)) for word in words])
    out, err = capsys.readouterr()
    assert (caught.value.code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err
    assert [path.name for path in Path().iterdir()] == ["there.safetensors"]


def test_a_scale_stands_behind_a_colon(tmp_path: Path) -> None:
    assert parse_adapter("a.safetensors") == (Path("a.safetensors"), 1.0)
    assert parse_adapter("runs/a:0.5") == (Path("runs/a"), 0.5)
    assert parse_adapter("C:/runs/a") == (Path("C:/runs/a"), 1.0)
    (tmp_path / "a:1").touch()
    assert parse_adapter(f"{tmp_path}/a:1") == (tmp_path / "a:1", 1.0)
