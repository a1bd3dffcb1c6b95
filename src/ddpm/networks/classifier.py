"""The classifier p(y | x_t): the down path of the U-Net with attention pooling (Dhariwal & Nichol 2021, Sec. 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddpm.config import NetworkConfig
from ddpm.errors import ConfigError
from ddpm.networks.blocks import BlockInputs, time_embedding
from ddpm.networks.dropout import dropout_states
from ddpm.networks.levels import DownLevel, Parts, number_blocks
from ddpm.networks.norm import GroupNorm


class AttentionPool(nn.Module):
    """One vector from all pixels, as the answer to one question (Radford et al. 2021, Sec. 2.4).

    The question is the mean pixel; it attends to itself and to all pixels, each with a learned embedding of its place.
    """

    def __init__(self, channels: int, *, pixels: int, heads: int, num_features: int) -> None:
        super().__init__()
        self.heads = heads
        self.places = nn.Parameter(torch.randn(pixels + 1, channels) / channels**0.5)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, num_features)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, num_features] of x [B, C, H, W]."""
        batch, channels = x.shape[:2]
        tokens = x.flatten(2).transpose(1, 2)  # [B, HW, C]
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)  # [B, 1 + HW, C]
        tokens = tokens + self.places.to(tokens.dtype)
        q = self.query(tokens[:, 0]).view(batch, 1, self.heads, -1).transpose(1, 2)  # [B, heads, 1, D]
        k, v = self.key_value(tokens).view(batch, -1, 2, self.heads, q.shape[-1]).transpose(1, 3).unbind(2)
        # One question makes one row of weights: torch's fused kernel is several times slower here, backward on a CPU.
        scores = (q @ k.transpose(2, 3)) / q.shape[-1] ** 0.5  # [B, heads, 1, 1 + HW]
        h = (
            scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(dim=-1).to(v.dtype) @ v
        )  # [B, heads, 1, D]
        pooled: Tensor = self.out(h.reshape(batch, channels))  # [B, num_features]
        return pooled


class HalfUNet(nn.Module):
    """The logits of p(y | x_t): the way down of the U-Net, attention pooling, and a linear layer.

    Args:
        config: widths, depths, dropout and attention, as of the denoising U-Net.
        picture_shape: (H, W, C); the pooling knows each place, so the size is fixed.
        num_classes: K.
        num_features: D, width of the pooled layer before the logits.
        stem_stride: of the first convolution.
        timed: whether it is told t and the signal; without, it classifies clean pictures.

    Raises:
        ConfigError: if the picture is too small for the levels, or `head_channels` does not divide what attends.
    """

    def __init__(
        self,
        config: NetworkConfig,
        picture_shape: tuple[int, int, int],
        *,
        num_classes: int,
        num_features: int,
        stem_stride: int = 1,
        timed: bool = False,
    ) -> None:
        super().__init__()
        base, levels = config.base_channels, len(config.channel_multipliers)
        height, width, self.in_channels = picture_shape
        rows, columns = (-(-side // stem_stride) >> (levels - 1) for side in (height, width))
        if min(rows, columns) < 1:
            raise ConfigError(
                f"network.channel_multipliers has {levels} levels, too many for pictures of {height}x{width} behind a "
                f"stem_stride of {stem_stride}: each but the last halves them"
            )
        self.base_channels = base
        self.conv_in = nn.Conv2d(self.in_channels, base, 2 * stem_stride + 1, stride=stem_stride, padding=stem_stride)
        self.down = _way_down(config)
        channels = base * config.channel_multipliers[-1]
        self.norm_out = GroupNorm(channels, config.num_groups)
        heads = 1 if config.head_channels is None else max(1, channels // config.head_channels)
        self.pool = AttentionPool(channels, pixels=rows * columns, heads=heads, num_features=num_features)
        self.logits = nn.Linear(num_features, num_classes)
        self.embedding_widths = number_blocks(self)
        embedding = 4 * base
        self.time_mlp = (
            nn.Sequential(
                nn.Linear(base, embedding),
                nn.SiLU(),
                nn.Linear(embedding, embedding),
                nn.SiLU(),
                nn.Linear(embedding, sum(self.embedding_widths)),
            )
            if timed
            else None
        )

    def forward(
        self,
        x_t: Tensor,
        t: Tensor | None = None,
        signal: Tensor | None = None,
        *,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        """Return the logits at (x_t, t), at least float32 [B, K]; see `pooled` and `classes_of`."""
        return self.classes_of(self.pooled(x_t, t, dropout_keys=dropout_keys), signal)

    def classes_of(self, pooled: Tensor, signal: Tensor | None = None) -> Tensor:
        """Return the logits of pooled features, at least float32 [B, K].

        Of x_t = signal x_0 + noise eps, log p(y | x_t) is log p(y) and a part that vanishes with the signal, in
        proportion to it. So does this one, by construction: guidance divides its gradient by the signal, and what a
        free network gets wrong in nearly pure noise would become a thousand times what the exact gradient does.

        Args:
            pooled: [B, num_features].
            signal: sqrt(alpha-bar_t) [B]; none for a network that is not timed.

        Raises:
            ConfigError: for a signal that a network expects and does not get, or the other way round.
        """
        if (signal is None) == (self.time_mlp is not None):
            raise ConfigError("a classifier is told the signal of each x_t if and only if it is told its time")
        evidence = functional.linear(pooled, self.logits.weight)
        evidence = evidence.to(torch.promote_types(evidence.dtype, torch.float32))
        scaled = evidence if signal is None else signal.to(evidence.dtype).unsqueeze(1) * evidence
        return scaled + self.logits.bias

    def pooled(self, x_t: Tensor, t: Tensor | None = None, *, dropout_keys: Tensor | None = None) -> Tensor:
        """Return the features before the logits.

        Args:
            x_t: [B, C, H, W] of `picture_shape`, floating point.
            t: [B], of any real type; none for a network that is not timed.
            dropout_keys: int64 [B], one key a picture; none: no dropout.

        Returns:
            [B, num_features], in the dtype of the weights, or of autocast.

        Raises:
            ConfigError: for times that a network expects and does not get, or the other way round.
        """
        h = self.conv_in(x_t.to(self.conv_in.weight.dtype))  # [B, base_channels, H', W']
        embeddings = torch.split_with_sizes(self._embed(t, h), self.embedding_widths, dim=1)
        states = None if dropout_keys is None else dropout_states(dropout_keys, len(embeddings)).unbind()
        inputs = BlockInputs(embeddings, states)
        for level in self.down:
            h = level(h, inputs)[-1]
        pooled: Tensor = self.pool(self.norm_out(h, silu=True))  # [B, num_features]
        return pooled

    def _embed(self, t: Tensor | None, h: Tensor) -> Tensor:
        """Return the embedding of time for all blocks, [B, sum of widths]; zeros without time."""
        if self.time_mlp is None:
            if t is not None:
                raise ConfigError("this classifier knows clean pictures only, but got times; expected none")
            return h.new_zeros(len(h), sum(self.embedding_widths))
        if t is None:
            raise ConfigError("this classifier is told the time of each x_t, but got none; expected t [B]")
        with torch.autocast(h.device.type, enabled=False):
            embedding = time_embedding(t, self.base_channels).to(self.conv_in.weight.dtype)
            projected: Tensor = self.time_mlp(embedding)
            return projected.to(h.dtype)


def _way_down(config: NetworkConfig) -> nn.ModuleList:
    parts = Parts(config.num_groups, config.head_channels, config.dropout, config.time_conditioning, config.resampling)
    last = len(config.channel_multipliers) - 1
    levels, below = nn.ModuleList(), config.base_channels
    for k, multiplier in enumerate(config.channel_multipliers):
        channels = config.base_channels * multiplier
        widths_in = [below] + [channels] * (config.blocks_per_level - 1)
        attends = k in config.attention_levels
        levels.append(DownLevel(parts, widths_in, channels, attends=attends, resample="down" if k < last else None))
        below = channels
    return levels
