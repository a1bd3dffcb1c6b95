"""Decoupled cross-attention: what Ye et al. write, nothing at scale 0 or without a prompt, and itself alone trained."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddpm.conditions import Condition
from ddpm.config import NetworkConfig
from ddpm.errors import ConfigError
from ddpm.networks import build_network
from ddpm.networks.blocks import Attention, Context, Prompt
from ddpm.networks.cross_attention import CrossAttention
from ddpm.networks.image_adapter import (
    PromptAttention,
    add_image_adapter,
    image_adapter_tensors,
    is_adapters,
    load_image_adapter,
)
from ddpm.networks.prompt import PromptInput, PromptProjection
from ddpm.networks.text import TextInput
from ddpm.networks.unet import UNet, build_unet

SMALL = NetworkConfig(
    base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1, attention_levels=(1,), num_groups=4
)
PROMPT = PromptInput(given=1, features=6, tokens=3, width=10)


def stirred(made: nn.Module, seed: int = 1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for weight in made.parameters():
        weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    return made


def network(kind: str = "none") -> UNet:
    """Return a network that reads a text, classes, or nothing."""
    text = TextInput(width=10, vocabulary=9) if kind == "text" else None
    made = stirred(build_unet(SMALL, 3, num_classes=4 if kind == "label" else None, text=text))
    assert isinstance(made, UNet)
    return made


def own(kind: str) -> dict[str, Any]:
    known = {"text": {"tokens": torch.tensor([[1, 2], [3, 0]])}, "label": {"label": torch.tensor([1, 2])}, "none": {}}
    return known[kind]


def run(made: UNet, **condition: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x_t = torch.randn(2, 3, 6, 6, generator=generator)
    output: Tensor = made(x_t, torch.tensor([3.0, 40.0]), Condition(**condition) if condition else None)
    return output


def adapted(kind: str, scale: float = 1.0) -> UNet:
    made = network(kind)
    add_image_adapter(made, PROMPT)
    tensors = image_adapter_tensors(stirred(made, 3))
    made = network(kind)
    load_image_adapter(made, PROMPT, tensors, scale)
    return made


PICTURE = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("kind", ["text", "label", "none"])
def test_scale_0_and_no_prompt_leave_every_bit(kind: str) -> None:
    base = run(network(kind), **own(kind))
    assert torch.equal(run(adapted(kind, 0.0), **own(kind), prompt=PICTURE), base)
    assert torch.equal(run(adapted(kind), **own(kind)), base)
    assert torch.equal(run(adapted(kind), **own(kind), prompt=torch.zeros_like(PICTURE)), base)
    first = PICTURE.clone()
    first[1] = 0  # the second picture has no prompt
    moved = run(adapted(kind), **own(kind), prompt=first)
    assert (moved[0] - base[0]).abs().max() > 0.01
    assert torch.equal(moved[1], base[1])


@pytest.mark.parametrize("kind", ["text", "label", "none"])
def test_a_new_adapter_begins_as_its_base_and_trains_itself_alone(kind: str) -> None:
    made, base = network(kind), run(network(kind), **own(kind))
    add_image_adapter(made, PROMPT)
    assert torch.equal(run(made, **own(kind), prompt=PICTURE), base)
    trained = {name for name, weight in made.named_parameters() if weight.requires_grad}
    assert trained == {name for name, _ in made.named_parameters() if is_adapters(name)}
    run(made, **own(kind), prompt=PICTURE).square().sum().backward()
    gradients = {name: weight.grad for name, weight in made.named_parameters() if weight.grad is not None}
    assert gradients.keys() == trained
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 0


def test_it_stands_beside_the_text_or_else_beside_self_attention() -> None:
    for kind, where in (("text", CrossAttention), ("label", Attention), ("none", Attention)):
        made = adapted(kind)
        carrying = {type(module) for module in made.modules() if getattr(module, "prompted", None) is not None}
        assert carrying == {where}


@pytest.mark.parametrize("given", [1, 4])
def test_cross_attention_adds_the_scaled_attention_over_the_prompt(given: int) -> None:
    """O(softmax(Q K^T / sqrt d) V) + scale O'(softmax(Q K'^T / sqrt d - s |p - p'|^2) V') (Ye et al. 2023, Eq. 5)."""
    torch.manual_seed(0)
    attention = stirred(CrossAttention(8, 10, num_groups=4, head_channels=4))
    tokens_of = PromptInput(given=given, features=6, tokens=4, width=5)
    attention.prompted = stirred(PromptAttention(8, 2, tokens_of), 6)
    x, tokens, image = torch.randn(2, 8, 3, 2), torch.randn(2, 4, 10), torch.randn(2, 4, 5)
    context = Context(tokens, torch.ones(2, 4, dtype=torch.bool))
    prompt = Prompt(image, torch.tensor([True, True]), 0.7)
    pixels = attention.norm(x).flatten(2).transpose(1, 2)

    def heads(rows: Tensor) -> Tensor:
        return rows.view(2, -1, 2, 4).transpose(1, 2)

    q = heads(attention.q(pixels))
    k, v = (heads(part) for part in attention.kv(tokens).chunk(2, dim=2))
    own_k, own_v = (heads(part) for part in attention.prompted.kv(image).chunk(2, dim=2))
    apart = torch.zeros(2, 6, 4)
    if given == 4:  # 3x2 pixels over 2x2 places, a place being 1 wide
        for pixel, place in itertools.product(range(6), range(4)):
            rows = (pixel // 2 + 0.5) * 2 / 3 - (place // 2 + 0.5)
            columns = (pixel % 2 + 0.5) - (place % 2 + 0.5)
            apart[:, pixel, place] = rows**2 + columns**2
        apart = apart * attention.prompted.log_sharpness.exp()[:, None, None]
    plain = attention.out(merged((q @ k.mT / 2).softmax(-1) @ v))
    prompted = attention.prompted.out(merged((q @ own_k.mT / 2 - apart).softmax(-1) @ own_v))
    expected = x + (plain + 0.7 * prompted).transpose(1, 2).view(2, 8, 3, 2)
    torch.testing.assert_close(attention(x, context, prompt), expected, atol=1e-5, rtol=1e-5)


def merged(h: Tensor) -> Tensor:
    return h.transpose(1, 2).reshape(2, 6, 8)


def test_a_pixel_begins_with_the_tokens_of_its_own_place() -> None:
    """Of a new adapter: two prompts that differ in one place move the pixels there, the more so the sharper it is."""
    torch.manual_seed(0)
    prompted = PromptAttention(8, 2, PromptInput(given=16, features=6, tokens=16, width=5))
    nn.init.normal_(prompted.out.weight)
    q, tokens = torch.randn(1, 2, 64, 4), torch.randn(1, 16, 5)
    other = tokens.clone()
    other[0, 0] += 1  # the upper left place

    def moved(sharpness: float) -> Tensor:
        nn.init.constant_(prompted.log_sharpness, math.log(sharpness))
        first, second = (prompted(q, (8, 8), Prompt(each, torch.tensor([True]), 1.0)) for each in (tokens, other))
        return (first - second).norm(dim=2).view(8, 8).detach()

    flat, born, sharp = (moved(sharpness) for sharpness in (1e-6, 1.0, 8.0))
    assert born[:2, :2].mean() > 5 * born[4:, 4:].mean()
    assert flat[:2, :2].mean() < 3 * flat[4:, 4:].mean()
    assert sharp[4:, 4:].max() < 1e-6 < sharp[:2, :2].min()


def test_one_vector_becomes_many_tokens_and_many_one_each() -> None:
    one = PromptProjection(PROMPT)
    assert one(torch.randn(2, 1, 6)).shape == (2, 3, 10)
    many = PromptProjection(PromptInput(given=4, features=6, tokens=4, width=10))
    assert many(torch.randn(2, 4, 6)).shape == (2, 4, 10)
    with pytest.raises(ConfigError, match="expected as many"):
        PromptInput(given=4, features=6, tokens=3, width=10)
    with pytest.raises(ConfigError, match="square grid"):
        PromptInput(given=6, features=6, tokens=6, width=10)


def test_a_smaller_scale_acts_less() -> None:
    base = run(network())
    apart = [
        float((run(adapted("none", scale), prompt=PICTURE) - base).abs().mean().detach()) for scale in (0.1, 0.5, 1.0)
    ]
    assert 0 < apart[0] < apart[1] < apart[2]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no image adapter"):
        run(network(), prompt=PICTURE)
    with pytest.raises(ConfigError, match=r"condition.prompt has shape \[2, 2, 6\]; expected \[2, 1, 6\]"):
        run(adapted("none"), prompt=torch.ones(2, 2, 6))
    with pytest.raises(ConfigError, match="mlp"):
        add_image_adapter(build_network(SMALL.model_copy(update={"kind": "mlp"}), (1, 1, 2)), PROMPT)
    with pytest.raises(ConfigError, match="already"):
        add_image_adapter(adapted("none"), PROMPT)
    tensors = image_adapter_tensors(adapted("none"))
    with pytest.raises(ConfigError, match="does not fit this network"):
        load_image_adapter(network("text"), PROMPT, tensors, 1.0)
