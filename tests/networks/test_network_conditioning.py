from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ddpm.conditions import Condition
from ddpm.config import NetworkConfig
from ddpm.config.conditions import ConditionSpec, NumberColumn, PairedPicture
from ddpm.errors import ConfigError
from ddpm.networks import build_network

SPEC = ConditionSpec(
    classes=("a", "b", "c"),
    class_counts=(1, 1, 1),
    numbers=tuple(NumberColumn(name=name, mean=0.0, std=1.0, low=0.0, high=1.0) for name in "xy"),
    examples=((0.0, 0.0, 0.0),),
)
PICTURE = SPEC.model_copy(update={"picture": PairedPicture(kind="gray", channels=1)})
UNET = NetworkConfig(base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1, num_groups=4)
MLP = NetworkConfig(kind="mlp", base_channels=8, blocks_per_level=1)


def network_of(kind: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a network without the zeros of a new one, in float64, and pictures for it."""
    unet = kind == "unet"
    shape = (8, 8, 3) if unet else (1, 1, 2)
    network = build_network(UNET if unet else MLP, shape, conditions=PICTURE if unet else SPEC).double()
    generator = torch.Generator().manual_seed(1)
    for weight in network.parameters():
        weight.data = 0.2 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return network, torch.randn(4, shape[2], shape[0], shape[1], generator=generator, dtype=torch.float64)


def condition_of(kind: str) -> Condition:
    generator = torch.Generator().manual_seed(2)
    picture = torch.cat([torch.randn(4, 1, 8, 8, generator=generator), torch.ones(4, 1, 8, 8)], 1)
    return Condition(
        label=torch.tensor([0, 1, 2, 0]),
        numbers=torch.randn(4, 2, generator=generator),
        picture=picture if kind == "unet" else None,
    )


@pytest.mark.parametrize("kind", ["unet", "mlp"])
class TestBothNetworks:
    def test_no_condition_is_a_dropped_one_bit_for_bit(self, kind: str) -> None:
        network, x_t = network_of(kind)
        t, condition = torch.arange(4), condition_of(kind)
        none = network(x_t, t)
        assert torch.equal(network(x_t, t, condition.dropped()), none)
        assert bool(((network(x_t, t, condition) - none).abs().flatten(1).amax(1) > 1e-4).all())

    def test_each_kind_of_condition_says_something(self, kind: str) -> None:
        network, x_t = network_of(kind)
        t, condition = torch.arange(4), condition_of(kind)
        whole = network(x_t, t, condition)
        for name, value in condition.fields().items():
            less = replace(condition, **{name: condition.dropped().fields()[name]})
            assert bool(((network(x_t, t, less) - whole).abs().flatten(1).amax(1) > 1e-4).all()), name
            left_out = replace(condition, **{name: None})
            assert torch.equal(network(x_t, t, left_out), network(x_t, t, less)), name
            assert value.shape == less.fields()[name].shape

    def test_a_picture_sees_its_own_condition_alone(self, kind: str) -> None:
        network, x_t = network_of(kind)
        t, condition = torch.arange(4), condition_of(kind)
        together = network(x_t, t, condition)
        alone = [network(x_t[i : i + 1], t[i : i + 1], condition.select(slice(i, i + 1))) for i in range(4)]
        torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)

    def test_one_number_can_be_missing(self, kind: str) -> None:
        network, x_t = network_of(kind)
        t, condition = torch.arange(4), condition_of(kind)
        assert condition.numbers is not None
        numbers = condition.numbers.clone()
        numbers[:, 1] = torch.nan
        output = network(x_t, t, replace(condition, numbers=numbers))
        assert bool(output.isfinite().all())
        assert not torch.allclose(output, network(x_t, t, condition))

    def test_every_weight_is_used(self, kind: str) -> None:
        network, x_t = network_of(kind)
        condition = condition_of(kind).drop(torch.tensor([False, False, False, True]))
        network(x_t, torch.arange(4), condition).square().sum().backward()
        for name, weight in network.named_parameters():
            assert weight.grad is not None, name
            assert bool(weight.grad.any()), name

    def test_other_shapes_are_refused(self, kind: str) -> None:
        network, x_t = network_of(kind)
        with pytest.raises(ConfigError, match=r"condition.label has shape \[3\]; expected \[4\]"):
            network(x_t, torch.arange(4), Condition(label=torch.zeros(3, dtype=torch.int64)))
        with pytest.raises(ConfigError, match=r"condition.numbers has shape \[4, 3\]; expected \[4, 2\]"):
            network(x_t, torch.arange(4), Condition(numbers=torch.zeros(4, 3)))


@pytest.mark.parametrize(
    "condition",
    [
        Condition(label=torch.zeros(1, dtype=torch.int64)),
        Condition(numbers=torch.zeros(1, 1)),
        Condition(picture=torch.zeros(1, 2, 8, 8)),
    ],
)
def test_an_unconditional_network_refuses_every_condition(condition: Condition) -> None:
    network = build_network(UNET, (8, 8, 3))
    with pytest.raises(ConfigError, match="was built without"):
        network(torch.zeros(1, 3, 8, 8), torch.zeros(1), condition)


def test_an_unconditional_network_has_the_weights_that_it_always_had() -> None:
    names = set(build_network(UNET, (8, 8, 3)).state_dict())
    assert not [name for name in names if "label" in name or "number" in name]


def test_an_mlp_reads_no_picture() -> None:
    with pytest.raises(ConfigError, match="reads no paired picture"):
        build_network(MLP, (1, 1, 2), conditions=PICTURE)
