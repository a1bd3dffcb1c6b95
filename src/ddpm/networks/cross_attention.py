"""Cross-attention: every pixel looks at every token of a text (Rombach et al. 2022, Sec. 3.3)."""

from __future__ import annotations

from torch import Tensor, nn

from ddpm.networks.attend import attend
from ddpm.networks.blocks import Context, Prompt, count_heads, zero_init
from ddpm.networks.norm import GroupNorm


class CrossAttention(nn.Module):
    """Attention of pixels over the tokens of a context.

    Starts as the identity: the output projection is zero.

    Args:
        channels: of the pixels.
        context_width: D, of the tokens.
        num_groups: groups of GroupNorm, reduced where they do not divide.
        head_channels: channels of an attention head; none: a single head.

    Attributes:
        prompted: what an image adapter adds under the same queries; none: there is no adapter.

    Raises:
        ConfigError: if `head_channels` does not divide `channels`.
    """

    def __init__(self, channels: int, context_width: int, *, num_groups: int, head_channels: int | None) -> None:
        super().__init__()
        self.prompted: nn.Module | None = None
        self.heads = count_heads(channels, head_channels)
        self.norm = GroupNorm(channels, num_groups)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(context_width, 2 * channels)
        self.out = nn.Linear(channels, channels)
        zero_init(self.out)

    def forward(self, x: Tensor, context: Context, prompt: Prompt | None = None) -> Tensor:
        """Return [B, C, H, W]; tokens that are padding have no part in it."""
        batch, channels, height, width = x.shape
        pixels = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)  # [B, N, C]
        q = self.q(pixels).view(batch, height * width, self.heads, -1).transpose(1, 2)  # [B, heads, N, C / heads]
        kv = self.kv(context.tokens).view(batch, -1, 2, self.heads, channels // self.heads)
        k, v = kv.transpose(1, 3).unbind(2)  # [B, heads, M, C / heads]
        h = attend(q, k, v, context.there)
        h = self.out(h.transpose(1, 2).reshape(batch, height * width, channels))  # [B, N, C]
        if self.prompted is not None and prompt is not None:
            h = h + self.prompted(q, (height, width), prompt)
        result: Tensor = x + h.view(batch, height, width, channels).permute(0, 3, 1, 2)  # [B, C, H, W]
        return result
