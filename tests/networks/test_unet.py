from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddpm.conditions import Condition
from ddpm.config import NetworkConfig
from ddpm.errors import ConfigError
from ddpm.networks import UNet, build_unet
from ddpm.networks.blocks import Attention, ResBlock
from ddpm.networks.unet import level_frequencies, waves_of_places, with_waves

SMALL: dict[str, Any] = {
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "blocks_per_level": 1,
    "attention_levels": (1,),
    "num_groups": 4,
}


def randomize(network: nn.Module, seed: int = 0) -> None:
    """Fill every weight, also those that start as zero, so that nothing hides behind a zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        scale = 0.2 if weight.ndim == 1 else 1 / math.sqrt(weight[0].numel())
        weight.data = centre + scale * torch.randn(weight.shape, generator=generator).to(weight)


def small(*, in_channels: int = 3, dtype: torch.dtype = torch.float32, **options: Any) -> UNet:
    network = UNet(in_channels=in_channels, **(SMALL | options)).to(dtype)
    randomize(network)
    return network


def inputs(batch: int = 2, channels: int = 3, height: int = 8, width: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, channels, height, width, generator=generator)
    return x, torch.arange(batch) * 100.5


class TestStructure:
    def test_cifar10_of_the_paper_has_35_7_million_parameters(self) -> None:
        with torch.device("meta"):
            network = build_unet(NetworkConfig(dropout=0.1), in_channels=3)
        assert sum(p.numel() for p in network.parameters()) == 35_746_307  # "35.7 million", appendix B

    def test_adm_imagenet_64_has_296_million_parameters(self) -> None:
        """Dhariwal & Nichol 2021, table 9, ImageNet 64x64; its six output channels carry the learned variance."""
        config = NetworkConfig(
            base_channels=192,
            channel_multipliers=(1, 2, 3, 4),
            blocks_per_level=3,
            attention_levels=(1, 2, 3),
            head_channels=64,
            time_conditioning="scale_shift",
            resampling="residual",
        )
        with torch.device("meta"):
            network = build_unet(config, in_channels=3, out_channels=6, num_classes=1000)
        count = sum(p.numel() for p in network.parameters())
        assert abs(count - 295.9e6) < 0.2e6

    def test_a_new_network_returns_zeros_and_its_branches_are_closed(self) -> None:
        network = UNet(in_channels=3, **SMALL)
        assert torch.equal(network(*inputs()), torch.zeros(2, 3, 8, 8))
        for module in network.modules():
            if isinstance(module, ResBlock):
                assert not module.conv2.weight.any()
            if isinstance(module, Attention):
                assert not module.out.weight.any()

    def test_attention_stands_at_its_levels_only(self) -> None:
        network = UNet(in_channels=3, **(SMALL | {"channel_multipliers": (1, 1, 1), "attention_levels": (0, 2)}))
        assert [len(level.attention) for level in network.down] == [1, 0, 1]
        assert [len(level.attention) for level in network.up] == [2, 0, 2]

    def test_keys_are_stable(self) -> None:
        keys = set(UNet(in_channels=3, num_classes=2, **SMALL).state_dict())
        for key in (
            "conv_in.weight",
            "down.0.blocks.0.norm1.weight",
            "down.0.resample.conv.bias",
            "down.1.blocks.0.shortcut.weight",
            "down.1.attention.0.qkv.weight",
            "middle.1.out.bias",
            "up.1.blocks.1.conv2.weight",
            "norm_out.weight",
            "conv_out.bias",
            "time_mlp.0.weight",
            "label_embedding.weight",
            "embedding_projection.weight",
        ):
            assert key in keys
        assert not [key for key in keys if key.startswith("_")]

    @pytest.mark.parametrize("resampling", ["conv", "residual"])
    @pytest.mark.parametrize("conditioning", ["add", "scale_shift"])
    def test_every_weight_is_used(self, resampling: str, conditioning: str) -> None:
        network = small(num_classes=3, resampling=resampling, time_conditioning=conditioning, out_channels=5)
        x, t = inputs()
        output = network(x, t, Condition(torch.tensor([0, -1])))
        assert output.shape == (2, 5, 8, 8)
        output.square().sum().backward()
        for name, weight in network.named_parameters():
            assert weight.grad is not None, name
            assert weight.grad.isfinite().all(), name
            assert weight.grad.abs().max() > 0, name


class TestSizes:
    @pytest.mark.parametrize("size", [(4, 4), (5, 4), (8, 8), (28, 28), (97, 64), (7, 33), (4, 31)])
    @pytest.mark.parametrize("levels", [1, 4])
    def test_any_size(self, size: tuple[int, int], levels: int) -> None:
        network = small(channel_multipliers=(1,) * levels, attention_levels=(levels - 1,))
        output = network(*inputs(1, 3, *size))
        assert output.shape == (1, 3, *size)
        assert output.isfinite().all()
        assert output.std() > 0

    @pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
    def test_any_channels(self, channels: int) -> None:
        network = small(in_channels=channels, base_channels=5, num_groups=32)
        assert network(*inputs(2, channels)).shape == (2, channels, 8, 8)

    def test_padding_larger_than_the_picture(self) -> None:
        network = small(channel_multipliers=(1,) * 6, attention_levels=())
        output = network(*inputs(1, 3, 4, 5))  # to 32x32: 14 pixels each side of 4
        assert output.shape == (1, 3, 4, 5)
        assert output.isfinite().all()

    def test_padding_reflects_evenly_and_is_cropped_in_place(self) -> None:
        """The padded picture, put in by hand, gives the same output around the same pixels."""
        network = small(channel_multipliers=(1, 1, 1))
        x, t = inputs(2, 3, 6, 9)
        by_hand = x[:, :, [1, 0, 1, 2, 3, 4, 5, 4]][..., [1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 7, 6]]
        assert by_hand.shape == (2, 3, 8, 12)
        assert torch.equal(network(x, t), network(by_hand, t)[:, :, 1:7, 1:10])

    def test_no_copy_where_nothing_is_padded(self) -> None:
        network = small()
        x, _ = inputs()
        assert network._pad(x) is x
        assert network(*inputs()).is_contiguous()


class TestConditioning:
    def test_none_is_no_class(self) -> None:
        network = small(num_classes=3)
        x, t = inputs()
        none = network(x, t)
        assert torch.equal(network(x, t, Condition(torch.tensor([-1, -1]))), none)
        mixed = network(x, t, Condition(torch.tensor([-1, 1])))
        assert (mixed[0] - none[0]).abs().max() < 1e-5
        assert (mixed[1] - none[1]).abs().max() > 1e-3

    def test_no_class_is_the_last_row(self) -> None:
        network = small(num_classes=3)
        x, t = inputs()
        before = network(x, t)
        with torch.no_grad():
            network.label_embedding.weight[:3] += 1
        assert torch.equal(network(x, t), before)
        with torch.no_grad():
            network.label_embedding.weight[3] += 1
        assert (network(x, t) - before).abs().max() > 1e-3

    @pytest.mark.parametrize("num_classes", [None, 2])
    def test_pictures_do_not_see_each_other(self, num_classes: int | None) -> None:
        network = small(num_classes=num_classes, dropout=0.3, dtype=torch.float64)
        x, t = inputs(3)
        keys = torch.tensor([5, 6, 7])
        whole = network(x.double(), t, dropout_keys=keys)
        for i in range(3):
            one = network(x[i : i + 1].double(), t[i : i + 1], dropout_keys=keys[i : i + 1])
            assert (one - whole[i]).abs().max() < 1e-12

    def test_time_matters_off_the_grid_too(self) -> None:
        network = small()
        x, _ = inputs(1)
        outputs = [network(x, torch.tensor([t])) for t in (10.0, 10.5, 11.0)]
        assert (outputs[0] - outputs[1]).abs().max() > 1e-4
        assert (outputs[1] - outputs[2]).abs().max() > 1e-4
        assert torch.equal(network(x, torch.tensor([10])), outputs[0])


class TestDropout:
    def test_depends_on_keys_and_never_on_the_mode(self) -> None:
        network = small(dropout=0.3)
        x, t = inputs()
        keys = torch.tensor([1, 2])
        plain, dropped = network.eval()(x, t), network(x, t, dropout_keys=keys)
        assert (plain - dropped).abs().max() > 1e-3
        network.train()
        torch.manual_seed(5)
        assert torch.equal(network(x, t), plain)
        assert torch.equal(network(x, t, dropout_keys=keys), dropped)
        assert (network(x, t, dropout_keys=keys + 1) - dropped).abs().max() > 1e-3

    def test_no_share_no_dropout(self) -> None:
        network = small(dropout=0.0)
        x, t = inputs()
        assert torch.equal(network(x, t, dropout_keys=torch.tensor([1, 2])), network(x, t))

    def test_every_layer_has_its_own_mask(self) -> None:
        network = small()
        numbers = [module.number for module in network.modules() if isinstance(module, ResBlock)]
        assert numbers == list(range(len(network.embedding_widths)))


class TestPrecision:
    def test_bfloat16_autocast_is_close_and_returns_float32(self) -> None:
        network = small(dropout=0.1).to(memory_format=torch.channels_last)
        x, t = inputs()
        keys = torch.tensor([1, 2])
        exact = network(x, t, dropout_keys=keys)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = network(x, t, dropout_keys=keys)
        assert rough.dtype == torch.float32
        assert 0 < (rough - exact).abs().max() < 0.1 * exact.abs().max()
        rough.sum().backward()
        assert all(weight.grad.dtype == torch.float32 for weight in network.parameters())

    def test_blocks_stay_bfloat16_and_the_embedding_float32(self) -> None:
        network = small(dropout=0.1)
        seen: dict[str, set[torch.dtype]] = {"block": set(), "time": set()}
        for name, module in network.named_modules():
            if isinstance(module, ResBlock | Attention):
                module.register_forward_hook(lambda m, i, o: seen["block"].add(o.dtype))
            if name in ("time_mlp", "embedding_projection"):
                module.register_forward_hook(lambda m, i, o: seen["time"].add(o.dtype))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            network(*inputs(), dropout_keys=torch.tensor([1, 2]))
        assert seen == {"block": {torch.bfloat16}, "time": {torch.float32}}

    def test_dtypes_in_and_out(self) -> None:
        x, t = inputs()
        single, double = small(), small(dtype=torch.float64)
        assert single(x.double(), t).dtype == torch.float64
        assert single(x.to(torch.bfloat16), t).dtype == torch.float32
        assert (double(x.double(), t) - single(x, t)).abs().max() < 1e-4

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("resampling", ["conv", "residual"])
    def test_channels_last_all_the_way(self, channels: int, resampling: str) -> None:
        network = small(in_channels=channels, dropout=0.1, resampling=resampling)
        x, t = inputs(2, channels)
        keys = torch.tensor([1, 2])
        reference = network(x, t, dropout_keys=keys)
        network = network.to(memory_format=torch.channels_last)
        visited = 0

        def check(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            nonlocal visited
            outputs = output if isinstance(output, list) else [output]
            for tensor in [args[0], *outputs]:
                if tensor.ndim == 4:
                    visited += 1
                    assert tensor.is_contiguous(memory_format=torch.channels_last), type(module)

        for name, module in network.named_modules():
            if name and name != "conv_in":  # its input is the caller's
                module.register_forward_hook(check)
        got = network(x, t, dropout_keys=keys)
        assert visited > 50
        assert (got - reference).abs().max() < 1e-4

    def test_no_convolution_is_fed_a_reordered_copy(self) -> None:
        """Reordering shows as `contiguous` or `clone` among the operators of a channels_last forward pass."""
        network = small(dropout=0.1).to(memory_format=torch.channels_last)
        x, t = inputs()
        with torch.profiler.profile() as profile, torch.no_grad():
            network(x.to(memory_format=torch.channels_last), t, dropout_keys=torch.tensor([1, 2]))
        names = {event.key for event in profile.key_averages()}
        assert "aten::conv2d" in names
        assert not names & {"aten::contiguous", "aten::clone"}

    def test_compiles_in_one_graph(self) -> None:
        network = small(dropout=0.1, num_classes=2)
        x, t = inputs(2, 3, 7, 8)
        condition, keys = Condition(torch.tensor([0, -1])), torch.tensor([1, 2])
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x, t, condition, dropout_keys=keys), network(x, t, condition, dropout_keys=keys))


class TestRefusals:
    @pytest.mark.parametrize("size", [(3, 8), (8, 3), (1, 1)])
    def test_sides_under_four(self, size: tuple[int, int]) -> None:
        with pytest.raises(ConfigError, match=f"{size[0]}x{size[1]} pixels.*at least 4"):
            small()(*inputs(1, 3, *size))

    @pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 8, 8), (2, 8, 8, 3)])
    def test_another_shape(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ConfigError, match=r"x_t has shape .*expects \[B, 3, H, W\]"):
            small()(torch.zeros(shape), torch.zeros(shape[0]))

    def test_a_condition_without_classes(self) -> None:
        with pytest.raises(ConfigError, match="without classes"):
            small()(*inputs(), Condition(torch.tensor([0, 0])))

    def test_another_number_of_times_labels_or_keys(self) -> None:
        network = small(num_classes=2)
        x, t = inputs()
        with pytest.raises(ConfigError, match=r"t has shape \[1\]; expected \[2\]"):
            network(x, t[:1])
        with pytest.raises(ConfigError, match=r"condition.label has shape \[3\]; expected \[2\]"):
            network(x, t, Condition(torch.zeros(3, dtype=torch.int64)))
        with pytest.raises(ConfigError, match=r"dropout_keys has shape \[\]; expected \[2\]"):
            network(x, t, dropout_keys=torch.tensor(1))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"head_channels": 5}, "head_channels is 5, .* 16 channels .* nearest divisor is 4"),
            ({"dropout": 1.0}, "dropout is 1.0"),
            ({"resampling": "pool"}, "resampling is 'pool'; expected one of conv, residual"),
            ({"time_conditioning": "film"}, "time_conditioning is 'film'; expected one of add, scale_shift"),
            ({"num_classes": 0}, "num_classes is 0"),
            ({"in_channels": 0}, "in_channels is 0"),
        ],
    )
    def test_options_out_of_range(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            small(**options)


def test_the_output_is_not_rounded_to_bfloat16() -> None:
    """An error of mu grows up to 157 times in eps: its last bits matter, wherever the rest is computed."""
    network = UNet(in_channels=1, base_channels=8, channel_multipliers=(1,), num_groups=4)
    nn.init.normal_(network.conv_out.weight)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8), torch.zeros(1))
    assert output.dtype == torch.float32
    assert not torch.equal(output, output.bfloat16().float())


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_waves_are_one_and_two_levels_long(levels: int) -> None:
    places = torch.linspace(-1, 1, levels, dtype=torch.float64).reshape(1, 1, 1, -1)
    x, long_sine, long_cosine, sine, cosine = with_waves(places, level_frequencies(levels)).unbind(1)
    assert torch.equal(x, places[:, 0])
    assert sine.abs().max() < 1e-9
    assert (cosine - cosine[..., :1]).abs().max() < 1e-9  # the same at every level
    assert (long_sine[..., 1:] + long_sine[..., :-1]).abs().max() < 1e-9  # opposite at neighbours
    assert (long_cosine[..., 1:] + long_cosine[..., :-1]).abs().max() < 1e-9
    assert (long_sine.square() + long_cosine.square() - 1).abs().max() < 1e-9


def test_a_network_with_waves_reads_five_channels_for_one_and_returns_one() -> None:
    network = UNet(in_channels=1, base_channels=8, channel_multipliers=(1,), attention_levels=(), fourier_levels=17)
    assert network.conv_in.in_channels == 5
    x = torch.randn(2, 1, 8, 8)
    assert network(x, torch.zeros(2)).shape == x.shape


def test_waves_of_places_are_other_ones_for_every_pixel() -> None:
    waves = waves_of_places(torch.zeros(2, 3, 5, 8), 3)
    assert waves.shape == (5, 8, 12)
    row, column = (2 + 0.5) / 5, (6 + 0.5) / 8
    angles = [math.pi * frequency * place for place in (row, column) for frequency in (1, 2, 4)]
    wanted = [wave(angle) for axis in (angles[:3], angles[3:]) for wave in (math.sin, math.cos) for angle in axis]
    assert (waves[2, 6] - torch.tensor(wanted)).abs().max() < 1e-6
    distances = torch.cdist(waves.flatten(0, 1), waves.flatten(0, 1)) + 10 * torch.eye(40)
    assert distances.min() > 0.3


def test_the_network_is_told_of_places_and_learns_from_them() -> None:
    torch.manual_seed(0)
    network = UNet(in_channels=1, base_channels=8, channel_multipliers=(1,), attention_levels=(), place_waves=2)
    nn.init.normal_(network.conv_out.weight, std=0.1)
    x_t, t = torch.zeros(1, 1, 12, 12), torch.tensor([5.0])
    assert network.place is not None
    before = network(x_t, t)
    nn.init.zeros_(network.place.weight)
    without = network(x_t, t)
    assert (before - without).abs().max() > 1e-2
    inner = slice(5, 7)  # further from the border than its padding is felt; attention and norms see it all
    assert without[..., inner, inner].std() < 0.2 * before[..., inner, inner].std()
    network(x_t, t).sum().backward()
    assert network.place.weight.grad is not None
    assert network.place.weight.grad.abs().max() > 0
