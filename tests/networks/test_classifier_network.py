from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddpm.config import NetworkConfig
from ddpm.errors import ConfigError
from ddpm.networks.classifier import AttentionPool, HalfUNet

SMALL = NetworkConfig(
    base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1, attention_levels=(1,), num_groups=4, dropout=0.3
)


def network(shape: tuple[int, int, int] = (9, 7, 3), *, timed: bool = False, stem_stride: int = 1) -> HalfUNet:
    torch.manual_seed(0)
    return HalfUNet(SMALL, shape, num_classes=5, num_features=6, timed=timed, stem_stride=stem_stride)


def pooled_by_hand(pool: AttentionPool, x: Tensor) -> Tensor:
    """Attention pooling of one head, one picture and one query at a time."""
    results = []
    for picture in x:
        pixels = picture.flatten(1).T
        tokens = torch.cat([pixels.mean(0, keepdim=True), pixels]) + pool.places
        q, (k, v) = pool.query(tokens[0]), pool.key_value(tokens).chunk(2, dim=1)
        width = len(q) // pool.heads
        heads = [slice(h * width, (h + 1) * width) for h in range(pool.heads)]
        results.append(torch.cat([(k[:, h] @ q[h] / width**0.5).softmax(0) @ v[:, h] for h in heads]))
    return pool.out(torch.stack(results))


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_pooling_is_softmax_attention_of_the_mean_pixel(heads: int) -> None:
    torch.manual_seed(1)
    pool = AttentionPool(8, pixels=6, heads=heads, num_features=5).double()
    x = torch.randn(3, 8, 2, 3, dtype=torch.float64)
    assert (pool(x) - pooled_by_hand(pool, x)).abs().max() < 1e-12


@pytest.mark.parametrize("stem_stride", [1, 2])
def test_shapes(stem_stride: int) -> None:
    x = torch.randn(2, 3, 9, 7)
    made = network(stem_stride=stem_stride)
    assert made.pooled(x).shape == (2, 6)
    assert made(x).shape == (2, 5)


def test_time_matters_where_it_is_told_and_is_refused_where_not() -> None:
    x, t, signal = torch.randn(2, 3, 9, 7), torch.tensor([0.0, 40.0]), torch.tensor([1.0, 0.3])
    timed = network(timed=True)
    torch.nn.init.normal_(timed.down[0].blocks[0].conv2.weight)  # zero at the start, which hides the embedding
    assert (timed(x, t, signal) - timed(x, t + 7, signal)).abs().max() > 1e-4
    with pytest.raises(ConfigError, match="expected t"):
        timed(x)
    with pytest.raises(ConfigError, match="clean pictures only"):
        network()(x, t)
    with pytest.raises(ConfigError, match="told the signal"):
        timed(x, t)
    with pytest.raises(ConfigError, match="told the signal"):
        network()(x, None, signal)


def test_what_x_t_says_of_the_class_vanishes_in_proportion_to_the_signal() -> None:
    timed, t = network(timed=True).double(), torch.full((3,), 40.0)
    x = torch.randn(3, 3, 9, 7, dtype=torch.float64, requires_grad=True)
    gradients = []
    for signal in (1.0, 2**-10, 0.0):
        logits = timed(x, t, torch.full((3,), signal))
        gradients.append(torch.autograd.grad(logits[:, 2].sum(), x)[0])
    assert (logits - timed.logits.bias).abs().max() == 0  # the prior alone
    assert gradients[0].abs().max() > 1e-6
    assert (gradients[1] - 2**-10 * gradients[0]).abs().max() < 1e-12 * gradients[0].abs().max()
    assert gradients[2].abs().max() == 0


def test_dropout_acts_if_and_only_if_keys_are_given() -> None:
    made, x = network(), torch.randn(2, 3, 9, 7)
    torch.nn.init.normal_(made.down[0].blocks[0].conv2.weight)
    keys = torch.tensor([1, 2])
    assert torch.equal(made(x), made(x))
    assert torch.equal(made(x, dropout_keys=keys), made(x, dropout_keys=keys))
    assert (made(x, dropout_keys=keys) - made(x)).abs().max() > 1e-4


def test_pictures_too_small_for_the_levels_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 levels, too many for pictures of 4x4 behind a stem_stride of 4"):
        network((4, 4, 1), stem_stride=4)
