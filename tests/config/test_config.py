from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.config import Config, from_tree, keys_of, merge, parse_assignments, read_file, to_tree
from ddpm.config.presets import NAMES, auto_preset, default_preset, preset_tree
from ddpm.errors import ConfigError
from ddpm.networks import build_network


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("1e-3", 1e-3),
        ("true", True),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ("cosine", "cosine"),
        ("a=b", "a=b"),
    ],
)
def test_an_assignment_is_json_or_else_text(text: str, value: object) -> None:
    assert parse_assignments([f"training.steps={text}"]) == {"training": {"steps": value}}


def test_assignments_add_up_and_the_last_one_wins() -> None:
    tree = parse_assignments(["training.steps=1", "seed=3", "training.batch_size=2", " training.steps = 4"])
    assert tree == {"training": {"steps": 4, "batch_size": 2}, "seed": 3}


@pytest.mark.parametrize("item", ["training.steps", "=5", ""])
def test_what_is_no_assignment_is_refused(item: str) -> None:
    with pytest.raises(ConfigError, match="is no assignment; expected KEY=VALUE"):
        parse_assignments([item])


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("learning_rate", "training.learning_rate"),
        ("trainig.steps", "training.steps"),
        ("network.base_chanels", "network.base_channels"),
        ("training.eta", "sampling.eta"),
        ("sede", "seed"),
    ],
)
def test_an_unknown_key_names_the_nearest_known(key: str, known: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown configuration key '{key}'; did you mean '{known}'"):
        parse_assignments([f"{key}=1"])
    tree: dict[str, Any] = {}
    for part in reversed(key.split(".")):
        tree = {part: tree or 1}
    with pytest.raises(ConfigError, match="unknown configuration key"):
        from_tree(tree)


def test_every_key_can_be_assigned_its_own_default() -> None:
    leaves = to_tree(Config())
    for key in keys_of():
        value: Any = leaves
        for part in key.split("."):
            value = value[part]
        assert from_tree(parse_assignments([f"{key}={json.dumps(value)}"])) == Config()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 1.5),
        ("data.size", [3, 8]),
        ("data.size", [8]),
        ("data.size", "8x8"),
        ("data.held_out", 0.0),
        ("data.held_out", 1.0),
        ("data.background", [0, 0, 256]),
        ("schedule.num_timesteps", 1),
        ("schedule.name", "cosin"),
        ("network.base_channels", 3),
        ("network.channel_multipliers", []),
        ("network.channel_multipliers", [1, 0]),
        ("network.channel_multipliers", [1, -2]),
        ("network.attention_levels", [4]),
        ("network.attention_levels", [-1]),
        ("network.dropout", 1.0),
        ("training.steps", 0),
        ("training.steps", True),
        ("training.steps", "10"),
        ("training.learning_rate", 0),
        ("training.learning_rate", float("nan")),
        ("training.learning_rate", float("inf")),
        ("training.adam_betas", [0.9, 1.0]),
        ("training.adam_betas", [-0.1, 0.9]),
        ("training.ema_decay", 1.0),
        ("sampling.sampler", "dpm"),
        ("sampling.eta", 1.1),
        ("sampling.steps", 1001),
        ("training", 5),
    ],
)
def test_a_value_out_of_range_is_refused_in_one_line_with_its_key(key: str, value: object) -> None:
    tree: Any = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    with pytest.raises(ConfigError, match=key.rsplit(".", 1)[-1]) as caught:
        from_tree(tree)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("parameterization", ["eps", "mu"])
def test_zero_terminal_snr_needs_a_target_that_is_defined_there(parameterization: str) -> None:
    tree = {"schedule": {"zero_terminal_snr": True}, "objective": {"parameterization": parameterization}}
    with pytest.raises(ConfigError, match="use 'v' or 'x_0'"):
        from_tree(tree)
    for possible in ("v", "x_0"):
        assert from_tree(merge(tree, {"objective": {"parameterization": possible}})).schedule.zero_terminal_snr


def test_merge_replaces_leaves_and_changes_neither_tree() -> None:
    base = {"training": {"steps": 1, "batch_size": 2}, "network": {"channel_multipliers": [1, 2]}}
    over = {"training": {"steps": 3}, "network": {"channel_multipliers": [4]}, "seed": 5}
    before = json.dumps([base, over])
    assert merge(base, over) == {
        "training": {"steps": 3, "batch_size": 2},
        "network": {"channel_multipliers": [4]},
        "seed": 5,
    }
    assert json.dumps([base, over]) == before


def test_files_in_json_and_toml_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"training": {"steps": 7, "adam_betas": [0.5, 0.9]}, "data": {"fit": "pad"}}')
    (tmp_path / "a.toml").write_text('[training]\nsteps = 7\nadam_betas = [0.5, 0.9]\n[data]\nfit = "pad"\n')
    config = from_tree(read_file(tmp_path / "a.json"))
    assert config == from_tree(read_file(tmp_path / "a.toml"))
    assert (config.training.steps, config.training.adam_betas, config.data.fit) == (7, (0.5, 0.9), "pad")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b"{"),
        ("a.json", b"[1]"),
        ("a.json", b"\xff\xfe"),
        ("a.json", b"[" * 100_000),
        ("a.toml", b"steps ="),
        ("plain", b"x"),
        ("absent.json", None),
    ],
)
def test_a_bad_configuration_file_is_refused_by_name(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=name) as caught:
        read_file(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_is_valid_and_survives_its_tree(name: str) -> None:
    config = from_tree(preset_tree(name, size=(32, 32), count=5000))
    assert from_tree(json.loads(json.dumps(to_tree(config)))) == config
    assert config != Config()


def test_presets_belong_to_data_and_unknown_ones_are_refused() -> None:
    sources = ("digits", "some/mnist/", "hf:somebody/cifar10", "photos", "emoji")
    assert [default_preset(data) for data in sources] == ["digits", "mnist", "cifar10", "auto", "auto"]
    assert default_preset("cifar10", known=("mnist", "auto")) == "auto"  # as for classifiers, which have none for it
    with pytest.raises(ConfigError, match="unknown preset 'digit'; did you mean 'digits'"):
        preset_tree("digit", size=(8, 8), count=1)


@given(
    height=st.integers(4, 512),
    width=st.integers(4, 512),
    count=st.one_of(st.integers(1, 5000), st.integers(1, 10**8)),
)
@settings(max_examples=25, deadline=None)
def test_auto_fits_any_pictures(height: int, width: int, count: int) -> None:
    config = from_tree(auto_preset((height, width), count))
    assert config.network.kind == "unet"
    smallest = max(height, width) / 2 ** (len(config.network.channel_multipliers) - 1)
    assert smallest <= 8
    assert 2000 <= config.training.steps <= 100_000
    with torch.device("meta"):
        build_network(config.network, (height, width, 3))


@pytest.mark.parametrize("side", [1024, 1025, 4096])
def test_auto_fits_very_large_pictures_too(side: int) -> None:
    assert len(from_tree(auto_preset((side, 8), 100)).network.channel_multipliers) == 8


def test_auto_for_points_is_an_mlp() -> None:
    assert from_tree(auto_preset((1, 1), 1000)).network.kind == "mlp"


def test_the_papers_network_has_its_number_of_parameters() -> None:
    config = from_tree(preset_tree("cifar10-paper", size=(32, 32), count=50_000))
    with torch.device("meta"):
        network = build_network(config.network, (32, 32, 3))
    assert round(sum(weight.numel() for weight in network.parameters()) / 1e6, 1) == 35.7  # Ho et al. 2020, App. B


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"loss": "hybrid"}, "objective: loss 'hybrid' .* variance is 'fixed_large'; set objective.variance=learned"),
        ({"variance": "learned"}, "nothing would train the variance; set objective.loss=hybrid"),
        ({"loss": "bound", "weighting": "p2"}, "the bound has its own weights"),
        ({"min_snr_gamma": 0.0}, "objective.min_snr_gamma' is 0.0"),
        ({"p2_k": 0.0}, "objective.p2_k' is 0.0"),
        ({"p2_gamma": -1.0}, "objective.p2_gamma' is -1.0"),
        ({"edm_sigma_data": 0.0}, "objective.edm_sigma_data' is 0.0"),
        ({"bound_weight": 0.0}, "objective.bound_weight' is 0.0"),
        ({"loss": "elbo"}, "objective.loss' is 'elbo'"),
    ],
)
def test_objectives_that_make_no_sense_are_refused(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_tree({"objective": choices})


def test_sampling_with_a_variance_that_is_not_learned_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"is 'learned', but objective\.variance is 'fixed_large'; set"):
        from_tree({"sampling": {"variance": "learned"}})
    learned = {"objective": {"loss": "hybrid", "variance": "learned"}, "sampling": {"variance": "learned"}}
    assert from_tree(learned).sampling.variance == "learned"


@pytest.mark.parametrize("kind", ["unet", "mlp"])
@pytest.mark.parametrize("self_conditioning", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_every_network_takes_an_estimate_and_gives_a_variance(
    kind: str, self_conditioning: bool, learned: bool
) -> None:
    tree = {"kind": kind, "base_channels": 8, "num_groups": 4, "self_conditioning": self_conditioning}
    network = build_network(from_tree({"network": tree}).network, (6, 5, 3), learned_variance=learned)
    x = torch.zeros(2, 6 if self_conditioning else 3, 6, 5)
    assert network(x, torch.zeros(2)).shape == (2, 6 if learned else 3, 6, 5)
