"""The U-Net of Ho et al. 2020 and, by configuration, of Dhariwal & Nichol 2021."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddpm.conditions import Condition
from ddpm.config import MIN_SIZE, NetworkConfig
from ddpm.errors import ConfigError
from ddpm.networks.blocks import (
    BlockInputs,
    Context,
    Prompt,
    Resample,
    TimeConditioning,
    time_embedding,
    zero_init,
)
from ddpm.networks.conditioning import NumberEmbedding, check_condition, label_rows, number_rows, with_picture
from ddpm.networks.dropout import dropout_states
from ddpm.networks.levels import DownLevel, Parts, Resampling, UpLevel, number_blocks
from ddpm.networks.norm import GroupNorm
from ddpm.networks.prompt import PromptProjection
from ddpm.networks.text import TextInput

_STEADY_ROWS = 8
"""Least rows in the embedding's products: with fewer, matrix libraries add in another order, and the last bits of a
row, which bfloat16 then enlarges, would depend on how many pictures share the batch. It costs nothing to speak of."""


class UNet(nn.Module):
    """eps_theta(x_t, t, y): a U-Net over pictures of any size from 4x4 pixels (Ho et al. 2020, appendix B).

    Sizes that the levels do not divide are padded inside, by reflection, and cropped on output. The last convolution
    is zero at the start, so a new network returns zeros.

    Args:
        in_channels: channels of x_t.
        out_channels: channels of the output; none: as many as `in_channels`.
        num_classes: number of classes of y; none: no labels.
        num_numbers: numeric columns of y.
        picture_channels: channels of a paired picture, with the one that says where it is known; 0: there is none.
        text: how the texts of y are read; none: it has no text. They enter through cross-attention behind each
            attention, and their mean through the time embedding.
        base_channels: channels at the first level; the time embedding is four times as wide.
        channel_multipliers: of each level, its channels in units of `base_channels`.
        blocks_per_level: residual blocks a level on the way down; one more on the way up.
        attention_levels: levels with attention behind each block; level k works at size / 2^k.
        head_channels: channels of an attention head; none: a single head.
        dropout: share of activations dropped before the second convolution of each block, if keys are given.
        time_conditioning: whether the embedding is added, or scales and shifts the second norm of a block.
        resampling: strided and nearest-neighbour convolutions, or BigGAN residual blocks.
        num_groups: groups of GroupNorm, reduced where they do not divide.
        patch_size: side of the squares of pixels that the first convolution reads as channels, and the last writes.
        fourier_levels: gray levels of the data, whose places between -1 and 1 the network is to know exactly
            (Kingma et al. 2021, App. C); none: it reads its input alone.
        place_waves: of each axis, whose sines and cosines tell the first level where in the picture a pixel is; 0: only
            the padding of the convolutions tells.

    Raises:
        ConfigError: for a value out of its range, or if `head_channels` does not divide the channels that attend.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        num_classes: int | None = None,
        num_numbers: int = 0,
        picture_channels: int = 0,
        text: TextInput | None = None,
        base_channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks_per_level: int = 2,
        attention_levels: Sequence[int] = (1,),
        head_channels: int | None = None,
        dropout: float = 0.0,
        time_conditioning: TimeConditioning = "add",
        resampling: Resampling = "conv",
        num_groups: int = 32,
        patch_size: int = 1,
        fourier_levels: int | None = None,
        place_waves: int = 0,
    ) -> None:
        super().__init__()
        if in_channels < 1:
            raise ConfigError(f"in_channels is {in_channels}; expected at least 1")
        if num_classes is not None and num_classes < 1:
            raise ConfigError(f"num_classes is {num_classes}; expected at least 1, or none for no classes")
        context_width = None if text is None else text.width
        parts = Parts(num_groups, head_channels, dropout, time_conditioning, resampling, context_width)
        levels = [(k, base_channels * multiplier) for k, multiplier in enumerate(channel_multipliers)]
        last = len(levels) - 1
        self.in_channels = in_channels
        self.num_classes, self.num_numbers, self.picture_channels = num_classes, num_numbers, picture_channels
        self.base_channels = base_channels
        self.patch_size = patch_size
        self.stride = patch_size * 2**last

        self.frequencies = () if fourier_levels is None else level_frequencies(fourier_levels)
        seen = in_channels * (1 + 2 * len(self.frequencies)) + picture_channels
        self.conv_in = nn.Conv2d(seen * patch_size**2, base_channels, 3, padding=1)
        self.place = nn.Linear(4 * place_waves, base_channels, bias=False) if place_waves else None
        skips = [base_channels]
        self.down = nn.ModuleList()
        for k, width in levels:
            widths_in = [skips[-1]] + [width] * (blocks_per_level - 1)
            resample: Resample | None = "down" if k < last else None
            self.down.append(DownLevel(parts, widths_in, width, attends=k in attention_levels, resample=resample))
            skips += [width] * (blocks_per_level + (k < last))

        width = skips[-1]
        self.middle = nn.ModuleList([parts.block(width, width), parts.attention(width), parts.block(width, width)])
        self.middle_cross_attention = parts.cross_attention(width)

        self.up = nn.ModuleList()
        below = width
        for k, width in reversed(levels):
            widths_in = [below + skips.pop()] + [width + skips.pop() for _ in range(blocks_per_level)]
            resample = "up" if k > 0 else None
            self.up.append(UpLevel(parts, widths_in, width, attends=k in attention_levels, resample=resample))
            below = width

        self.norm_out = GroupNorm(below, num_groups)
        returned = in_channels if out_channels is None else out_channels
        self.conv_out = nn.Conv2d(below, returned * patch_size**2, 3, padding=1)
        zero_init(self.conv_out)

        embedding = 4 * base_channels
        self.embedding_widths = number_blocks(self)
        self.time_mlp = nn.Sequential(nn.Linear(base_channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label_embedding = None if num_classes is None else nn.Embedding(num_classes + 1, embedding)
        self.number_embedding = NumberEmbedding(num_numbers, embedding) if num_numbers else None
        self.text_input = text
        self.text = None if text is None else text.build()
        self.text_mean = None if text is None else nn.Linear(text.width, embedding)
        if self.text_mean is not None:
            zero_init(self.text_mean)
        self.prompt_projection: PromptProjection | None = None
        self.prompt_scale = 1.0
        self.embedding_projection = nn.Linear(embedding, sum(self.embedding_widths))

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Condition | None = None,
        *,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        """Return the network's output at (x_t, t, y).

        Args:
            x_t: [B, in_channels, H, W], floating point; H and W at least 4.
            t: [B], of any real type; 0-based, may lie off the integer grid.
            condition: labels below `num_classes`, numbers [B, num_numbers], a paired picture [B, picture_channels, H,
                W], tokens [B, L] or [B, L, D'] of the kind that `text` reads, the prompt [B, P', D'] that an image
                adapter reads; none, or a field that is none: "none" for all.
            dropout_keys: int64 [B], one key a picture, another for each training step; none: no dropout. Neither
                train() nor eval() nor a global generator has a say in it.

        Returns:
            [B, out_channels, H, W]; float64 if `x_t` is float64, else float32.

        Raises:
            ConfigError: for another shape, a side under 4 pixels, or a condition that the network does not have.
        """
        self._check_inputs(x_t, t, condition, dropout_keys)
        height, width = x_t.shape[-2:]
        seen = with_picture(with_waves(x_t, self.frequencies), condition, self.picture_channels)
        seen = self._pad(seen.to(self.conv_in.weight.dtype))
        h = self.conv_in(functional.pixel_unshuffle(seen, self.patch_size))  # [B, base_channels, H', W']
        if self.place is not None:
            h = h + self.place(waves_of_places(h, self.place.in_features // 4)).to(h.dtype).permute(2, 0, 1)
        context = self._read(condition, len(t))
        embedding = self._embed(t, condition, context).to(h.dtype)  # [B, sum of widths]
        embeddings = torch.split_with_sizes(embedding, self.embedding_widths, dim=1)
        states = None if dropout_keys is None else dropout_states(dropout_keys, len(embeddings)).unbind()
        inputs = BlockInputs(embeddings, states, context, self._prompt(condition))
        skips = [h]
        for level in self.down:
            skips += level(skips[-1], inputs)
        before, attention, after = self.middle
        h = attention(before(skips[-1], inputs), inputs.prompt)  # [B, C, H / stride, W / stride]
        h = h if self.middle_cross_attention is None else self.middle_cross_attention(h, context, inputs.prompt)
        h = after(h, inputs)
        for level in self.up:
            h = level(h, inputs, skips)
        h = self._leave(self.norm_out(h, silu=True))  # [B, out_channels patch_size^2, H', W']
        h = functional.pixel_shuffle(h, self.patch_size)  # both sides padded
        top, left = (h.shape[-2] - height) // 2, (h.shape[-1] - width) // 2
        h = h[:, :, top : top + height, left : left + width]  # [B, out_channels, H, W]
        output: Tensor = h.to(torch.float64 if x_t.dtype == torch.float64 else torch.float32)
        return output

    def _leave(self, h: Tensor) -> Tensor:
        """Return the last convolution, in float32: half a unit of bfloat16 near 1, as an error of mu, is 0.6 in eps.

        It costs 0 to 3 % of a step.
        """
        with torch.autocast(h.device.type, enabled=False):
            output: Tensor = self.conv_out(h.to(self.conv_out.weight.dtype))
            return output

    def _read(self, condition: Condition | None, batch: int) -> Context | None:
        """Return what cross-attention looks at, where the network reads texts."""
        if self.text is None:
            return None
        tokens = None if condition is None else condition.tokens
        if tokens is None:
            tokens = self.text.none(batch)
        few = max(0, _STEADY_ROWS - 1 - tokens.shape[1])
        context: Context = self.text(functional.pad(tokens, (0, 0) * (tokens.ndim - 2) + (0, few)))
        return context

    def _prompt(self, condition: Condition | None) -> Prompt | None:
        """Return the image prompts, where an adapter reads some; none at scale 0, so that nothing is added to a bit."""
        features = None if condition is None else condition.prompt
        if self.prompt_projection is None or features is None or self.prompt_scale == 0:
            return None
        there = (features != 0).flatten(1).any(1)
        return Prompt(self.prompt_projection(features), there, self.prompt_scale) if bool(there.any()) else None

    def _embed(self, t: Tensor, condition: Condition | None, context: Context | None) -> Tensor:
        """Return the embedding of time and conditions, projected for all blocks in one product: [B, sum of widths]."""
        batch, few = len(t), max(0, _STEADY_ROWS - len(t))
        t = functional.pad(t, (0, few))
        with torch.autocast(t.device.type, enabled=False):
            embedding = self.time_mlp(time_embedding(t, self.base_channels).to(self.conv_in.weight.dtype))
            if self.label_embedding is not None:
                label = _longer(None if condition is None else condition.label, few)
                embedding = embedding + label_rows(label, self.label_embedding, len(t))
            if self.number_embedding is not None:
                numbers = _longer(None if condition is None else condition.numbers, few)
                embedding = embedding + number_rows(numbers, self.number_embedding, len(t))
            if self.text_mean is not None and context is not None:
                mean = functional.pad(context.mean(), (0, 0, 0, few))
                embedding = embedding + self.text_mean(mean.to(embedding.dtype))
            # All blocks read the SiLU of the same embedding: one small product in place of one a block.
            projected: Tensor = self.embedding_projection(functional.silu(embedding))
            return projected[:batch]

    def _pad(self, x: Tensor) -> Tensor:
        """Pad both sides up to multiples of the stride; `x` itself where they are."""
        rows, columns = -x.shape[-2] % self.stride, -x.shape[-1] % self.stride
        if rows == columns == 0:
            return x
        pads = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        # Reflected noise is still noise, while a replicated edge is streaks. But torch reflects no further than the
        # picture is wide, which pictures of a few pixels under many levels ask for.
        reflects = pads[1] < x.shape[-1] and pads[3] < x.shape[-2]
        return functional.pad(x, pads, mode="reflect" if reflects else "replicate")

    def _check_inputs(self, x_t: Tensor, t: Tensor, condition: Condition | None, dropout_keys: Tensor | None) -> None:
        if x_t.ndim != 4 or x_t.shape[1] != self.in_channels:
            expected = f"[B, {self.in_channels}, H, W]"
            raise ConfigError(f"x_t has shape {list(x_t.shape)}; this network expects {expected}")
        batch, _, height, width = x_t.shape
        if min(height, width) < MIN_SIZE:
            raise ConfigError(f"x_t is {height}x{width} pixels; both sides must be at least {MIN_SIZE}")
        for name, value in (("t", t), ("dropout_keys", dropout_keys)):
            if value is not None and value.shape != (batch,):
                raise ConfigError(f"{name} has shape {list(value.shape)}; expected [{batch}], one for each picture")
        check_condition(
            condition,
            x_t,
            num_classes=self.num_classes,
            num_numbers=self.num_numbers,
            picture_channels=self.picture_channels,
            text=self.text_input,
            prompt=None if self.prompt_projection is None else self.prompt_projection.prompt,
        )


def _longer(rows: Tensor | None, more: int) -> Tensor | None:
    """Return rows [B, ...] with `more` rows of zeros behind them."""
    return None if rows is None else functional.pad(rows, (0, 0) * (rows.ndim - 1) + (0, more))


def level_frequencies(levels: int) -> tuple[float, float]:
    """Return the frequencies, in radians a unit, of waves two levels and one level long, for levels from -1 to 1."""
    return math.pi * (levels - 1) / 2, math.pi * (levels - 1)


def with_waves(x: Tensor, frequencies: Sequence[float]) -> Tensor:
    """Return x [B, C, H, W] with its sine and cosine at each frequency, [B, C (1 + 2 F), H, W] (Kingma et al. 2021).

    Where there is less noise than the levels are apart, they say where between two levels a value lies: a function of
    many steep steps, which a network would need long to learn. Without frequencies it is `x` itself.
    """
    waves = [wave(frequency * x) for frequency in frequencies for wave in (torch.sin, torch.cos)]
    return torch.cat([x, *waves], dim=1) if waves else x


def waves_of_places(h: Tensor, count: int) -> Tensor:
    """Return sines and cosines of where each pixel of h [B, C, H, W] is, from half a wave an axis on: [H, W, 4 count].

    The weights and the padding of a convolution are the same everywhere but at the border; with this a network can say
    what lies where before anything is to be seen, in pure noise (Liu et al. 2018, "CoordConv").
    """
    frequencies = math.pi * 2.0 ** torch.arange(count, device=h.device)  # [count]
    axes = []
    for side in h.shape[-2:]:
        angles = (torch.arange(side, device=h.device)[:, None] + 0.5) / side * frequencies  # [side, count]
        axes.append(torch.cat([angles.sin(), angles.cos()], dim=1))  # [side, 2 count]
    rows, columns = (axis.to(torch.promote_types(h.dtype, torch.float32)) for axis in axes)
    height, width = h.shape[-2:]
    return torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=2)


def build_unet(
    config: NetworkConfig,
    in_channels: int,
    out_channels: int | None = None,
    num_classes: int | None = None,
    *,
    num_numbers: int = 0,
    picture_channels: int = 0,
    text: TextInput | None = None,
) -> UNet:
    """Return the U-Net that `config` describes, with float32 weights drawn from torch's global generator.

    Raises:
        ConfigError: if `config.head_channels` does not divide the channels that attend.
    """
    return UNet(
        in_channels=in_channels,
        out_channels=out_channels,
        num_classes=num_classes,
        num_numbers=num_numbers,
        picture_channels=picture_channels,
        text=text,
        base_channels=config.base_channels,
        channel_multipliers=config.channel_multipliers,
        blocks_per_level=config.blocks_per_level,
        attention_levels=config.attention_levels,
        head_channels=config.head_channels,
        dropout=config.dropout,
        time_conditioning=config.time_conditioning,
        resampling=config.resampling,
        num_groups=config.num_groups,
        patch_size=config.patch_size,
        fourier_levels=config.fourier_levels,
        place_waves=config.place_waves,
    )
