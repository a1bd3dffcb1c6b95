from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ddpm.conditions import Condition
from ddpm.errors import ConfigError
from ddpm.networks import UNet
from ddpm.networks.blocks import Context
from ddpm.networks.cross_attention import CrossAttention
from ddpm.networks.text import FeatureReader, TextEncoder, TextInput
from networks.test_unet import SMALL, inputs, randomize

OWN = TextInput(16, vocabulary=50)
FROZEN = TextInput(16, features=12)
IDS = torch.tensor([[7, 3, 20, 0, 0], [0, 0, 0, 0, 0]])


def unet(text: TextInput = OWN, **options: Any) -> UNet:
    network = UNet(in_channels=3, text=text, **(SMALL | options)).double()
    randomize(network)
    return network


def features_of(ids: Tensor) -> Tensor:
    table = torch.randn(50, 12, generator=torch.Generator().manual_seed(3)).double()
    table[0] = 0
    return table[ids]


def largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


class TestCrossAttention:
    def test_it_starts_as_the_identity(self) -> None:
        block = CrossAttention(8, 16, num_groups=4, head_channels=4)
        x = torch.randn(2, 8, 4, 4)
        context = Context(torch.randn(2, 3, 16), torch.ones(2, 3, dtype=torch.bool))
        assert torch.equal(block(x, context), x)

    def test_it_is_softmax_attention_written_out(self) -> None:
        block = CrossAttention(8, 16, num_groups=4, head_channels=4).double()
        randomize(block)
        x, tokens = torch.randn(1, 8, 2, 2).double(), torch.randn(1, 3, 16).double()
        there = torch.tensor([[True, False, True]])
        pixels = block.norm(x)[0].flatten(1).T  # [4, 8]
        k, v = block.kv(tokens[0, there[0]]).chunk(2, dim=1)  # [2, 8] each: padding is left out by hand
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            weights = torch.softmax(block.q(pixels)[:, part] @ k[:, part].T / 2, dim=1)  # sqrt(4 channels a head)
            heads.append(weights @ v[:, part])
        expected = x + block.out(torch.cat(heads, dim=1)).T.reshape(1, 8, 2, 2)
        assert largest(block(x, Context(tokens, there)), expected) < 1e-12

    def test_heads_must_divide_the_channels(self) -> None:
        with pytest.raises(ConfigError, match="head_channels is 3"):
            CrossAttention(8, 16, num_groups=4, head_channels=3)


class TestEncoders:
    @pytest.mark.parametrize("width", [16, 200])  # of which 3 heads of 64 would leave a rest
    def test_padding_changes_nothing(self, width: int) -> None:
        encoder = TextEncoder(50, width=width, layers=2).double()
        randomize(encoder)
        short, long = encoder(IDS[:1]), encoder(functional.pad(IDS[:1], (0, 9)))
        assert largest(short.tokens[:, :4], long.tokens[:, :4]) < 1e-12
        assert largest(short.mean(), long.mean()) < 1e-12

    def test_what_is_there_is_a_first_token_and_the_text(self) -> None:
        for context in (
            TextEncoder(50, width=16, layers=1)(IDS),
            FeatureReader(12, width=16).double()(features_of(IDS)),
        ):
            assert context.there.tolist() == [[True] * 4 + [False] * 2, [True] + [False] * 5]

    def test_order_counts(self) -> None:
        encoder = TextEncoder(50, width=16, layers=1).double()
        randomize(encoder)
        forth, back = encoder(IDS[:1, :3]), encoder(IDS[:1, :3].flip(1))
        assert largest(forth.mean(), back.mean()) > 1e-3


@pytest.mark.parametrize("text", [OWN, FROZEN], ids=["own", "frozen"])
class TestUNet:
    def condition(self, text: TextInput, ids: Tensor = IDS) -> Condition:
        return Condition(tokens=ids if text.features is None else features_of(ids))

    def test_a_new_network_listens_to_no_text_yet(self, text: TextInput) -> None:
        network = UNet(in_channels=3, text=text, **SMALL)
        nn.init.normal_(network.conv_out.weight)
        x, t = inputs()
        condition = self.condition(text)
        assert torch.equal(network(x, t, condition), network(x, t, condition.dropped()))

    def test_the_text_changes_the_output_of_its_own_picture_only(self, text: TextInput) -> None:
        network, (x, t) = unet(text), inputs()
        x = x.double()
        other = IDS.clone()
        other[0, 2] = 21
        before, after = network(x, t, self.condition(text)), network(x, t, self.condition(text, other))
        assert largest(before[0], after[0]) > 1e-4
        assert largest(before[1], after[1]) < 1e-12

    def test_no_condition_is_none_for_all(self, text: TextInput) -> None:
        network, (x, t) = unet(text), inputs()
        assert largest(network(x.double(), t), network(x.double(), t, self.condition(text).dropped())) < 1e-12

    def test_longer_padding_changes_nothing(self, text: TextInput) -> None:
        network, (x, t) = unet(text), inputs()
        x = x.double()
        short, long = self.condition(text), self.condition(text, functional.pad(IDS, (0, 30)))
        assert largest(network(x, t, short), network(x, t, long)) < 1e-12

    def test_a_picture_does_not_depend_on_its_batch(self, text: TextInput) -> None:
        network, (x, t) = unet(text, attention_levels=(0, 1)), inputs(3)
        x, ids = x.double(), torch.cat([IDS, IDS[:1] + 1])
        whole = network(x, t, self.condition(text, ids))
        single = [network(x[i : i + 1], t[i : i + 1], self.condition(text, ids[i : i + 1])) for i in range(3)]
        assert largest(whole, torch.cat(single)) < 1e-12

    def test_bfloat16_in_channels_last_is_near(self, text: TextInput) -> None:
        network, (x, t) = unet(text).float().to(memory_format=torch.channels_last), inputs()  # type: ignore[call-overload]
        condition = Condition(tokens=self.condition(text).tokens.to(torch.float32 if text.features else torch.int64))
        exact = network(x, t, condition)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = network(x, t, condition)
        assert rounded.dtype == torch.float32
        assert largest(rounded, exact) < 0.03 * float(exact.detach().abs().max())

    def test_tokens_of_another_kind_are_refused(self, text: TextInput) -> None:
        network, (x, t) = unet(text), inputs()
        wrong = torch.zeros(2, 5, 11) if text.features else torch.zeros(2, 5, 12)
        for tokens in (wrong, IDS[:1], torch.zeros(2, 0, dtype=torch.int64)):
            with pytest.raises(ConfigError, match="condition"):
                network(x.double(), t, Condition(tokens=tokens))


def test_tokens_without_a_text_encoder_are_refused() -> None:
    network = UNet(in_channels=3, **SMALL)
    with pytest.raises(ConfigError, match="without text"):
        network(*inputs(), Condition(tokens=IDS))


class TestPatches:
    @pytest.mark.parametrize("size", [(8, 8), (9, 13)])
    def test_any_size_comes_out_as_it_went_in(self, size: tuple[int, int]) -> None:
        network = UNet(in_channels=3, patch_size=2, **SMALL)
        randomize(network)
        x, t = inputs(height=size[0], width=size[1])
        assert network(x, t).shape == x.shape

    def test_patches_are_a_convolution_of_that_stride(self) -> None:
        """The first convolution over patches equals, on x itself, one whose kernel reaches over 3x3 patches."""
        network = UNet(in_channels=1, patch_size=2, **SMALL)
        randomize(network)
        kernel = network.conv_in.weight  # [8, 4, 3, 3], channels are (row, column) in the patch
        wide = kernel.view(8, 2, 2, 3, 3).permute(0, 3, 1, 4, 2).reshape(8, 1, 6, 6)
        x = torch.randn(1, 1, 8, 8)
        seen: list[Tensor] = []
        network.conv_in.register_forward_hook(lambda module, given, output: seen.append(output))
        network(x, torch.zeros(1))
        expected = functional.conv2d(functional.pad(x, (2, 2, 2, 2)), wide, network.conv_in.bias, stride=2)
        assert largest(seen[0], expected) < 1e-5
