"""Low-rank updates: begin as the base, are what Hu et al. write, merge bit for bit, and add up."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ddpm.config import NetworkConfig
from ddpm.errors import ConfigError
from ddpm.networks import build_network
from ddpm.networks.lora import LoraLayers, LowRank, add_low_rank, low_rank_tensors, merge_low_rank

SMALL = NetworkConfig(base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1, num_groups=4)


def network(kind: str = "unet") -> nn.Module:
    shape = (6, 6, 3) if kind == "unet" else (1, 1, 2)
    made = build_network(SMALL.model_copy(update={"kind": kind}), shape)
    generator = torch.Generator().manual_seed(1)
    for weight in made.parameters():
        weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    return made


def run(made: nn.Module, kind: str = "unet") -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    shape = (2, 3, 6, 6) if kind == "unet" else (2, 2, 1, 1)
    output: torch.Tensor = made(torch.randn(shape, generator=generator), torch.tensor([3.0, 40.0]))
    return output


def stir(made: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Give all updates some random content, and return it."""
    generator = torch.Generator().manual_seed(seed)
    tensors = low_rank_tensors(made)
    for tensor in tensors.values():
        tensor.data = 0.3 * torch.randn(tensor.shape, generator=generator)
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("kind", ["unet", "mlp"])
@pytest.mark.parametrize("layers", ["linear", "all"])
def test_it_begins_as_the_base_and_trains_itself_alone(kind: str, layers: LoraLayers) -> None:
    made = network(kind)
    before = run(made, kind)
    add_low_rank(made, rank=2, alpha=2.0, layers=layers)
    assert torch.equal(run(made, kind), before)
    trained = {id(weight) for weight in made.parameters() if weight.requires_grad}
    assert trained == {id(tensor) for tensor in low_rank_tensors(made).values()}
    run(made, kind).square().sum().backward()
    ups = [tensor for name, tensor in low_rank_tensors(made).items() if name.endswith(".up")]
    assert any(bool(up.grad is not None and up.grad.abs().max() > 0) for up in ups)


def test_the_update_is_that_of_two_layers_in_a_row() -> None:
    torch.manual_seed(0)
    convolution, x = nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 5, 5)
    low = LowRank(convolution.weight, 2, 0.5)
    low.up.data = torch.randn(6, 2)
    inner = nn.functional.conv2d(x, low.down.view(2, 4, 3, 3), padding=1)
    branch = convolution(x) + 0.5 * nn.functional.conv2d(inner, low.up.view(6, 2, 1, 1))
    convolution.weight.data = low(convolution.weight)
    torch.testing.assert_close(convolution(x), branch, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["unet", "mlp"])
def test_merged_computes_what_unmerged_does(kind: str) -> None:
    made = network(kind)
    merged = copy.deepcopy(made)
    add_low_rank(made, rank=3, alpha=6.0, layers="all")
    merge_low_rank(merged, stir(made, 5), 6.0 / 3)
    assert merged.state_dict().keys() == network(kind).state_dict().keys()
    assert (run(made, kind) - run(network(kind), kind)).abs().max() > 0.1
    torch.testing.assert_close(run(merged, kind), run(made, kind), atol=1e-5, rtol=1e-5)


def test_updates_add_up_and_scale_0_changes_no_bit() -> None:
    base, trained = network(), network()
    add_low_rank(trained, rank=2, alpha=2.0, layers="all")
    one, other = stir(trained, 5), stir(trained, 6)
    both = copy.deepcopy(base)
    merge_low_rank(both, one, 1.0)
    merge_low_rank(both, other, 0.5)
    weight, name = dict(base.named_parameters())["conv_in.weight"], "conv_in"
    sum_ = sum(s * (t[f"{name}.up"] @ t[f"{name}.down"]) for s, t in ((1.0, one), (0.5, other)))
    torch.testing.assert_close(both.get_parameter("conv_in.weight"), weight + sum_.view(weight.shape))
    unmoved = copy.deepcopy(base)
    merge_low_rank(unmoved, one, 0.0)
    assert torch.equal(run(unmoved), run(base))


def test_layers_choose_the_weights() -> None:
    sizes = {}
    for layers in ("attention", "linear", "all"):
        made = network()
        add_low_rank(made, rank=2, alpha=2.0, layers=layers)  # type: ignore[arg-type]
        sizes[layers] = {name.rpartition(".")[0] for name in low_rank_tensors(made)}
    assert sizes["attention"] < sizes["linear"] < sizes["all"]
    assert {name.rpartition(".")[2] for name in sizes["attention"]} == {"qkv", "out"}
    assert "embedding_projection" in sizes["linear"]
    assert "conv_out" in sizes["all"]
    narrow = network()
    add_low_rank(narrow, rank=64, alpha=64.0, layers="all")
    assert low_rank_tensors(narrow)["conv_out.up"].shape == (3, 3)  # no rank above a side of the weight


def test_what_fits_no_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no such layers"):
        add_low_rank(network("mlp"), rank=2, alpha=2.0, layers="attention")
    up, down = torch.zeros(8, 2), torch.zeros(2, 27)
    for tensors in (
        {"absent.up": up, "absent.down": down},
        {"conv_in.up": up},
        {"conv_in.up": up, "conv_in.down": torch.zeros(3, 27)},
        {"conv_in.up": up, "conv_in.down": torch.zeros(2, 26)},
        {"norm_out.up": up, "norm_out.down": down},
    ):
        with pytest.raises(ConfigError, match="fits no layer"):
            merge_low_rank(network(), tensors, 1.0)
