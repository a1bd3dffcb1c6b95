from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ddpm.errors import ConfigError
from ddpm.networks.blocks import (
    Attention,
    BlockInputs,
    Downsample,
    ResBlock,
    Upsample,
    time_embedding,
)
from ddpm.networks.dropout import dropout, dropout_states
from ddpm.networks.norm import GroupNorm


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def mask(keys: Tensor, layer: int, shape: tuple[int, int, int], p: float, layers: int = 4) -> Tensor:
    """Return which elements stay, 0 or 1, float64 [B, C, H, W]."""
    x = torch.ones(len(keys), *shape)
    return (dropout(x, dropout_states(keys, layers)[layer], p) > 0).double()


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


class TestTimeEmbedding:
    def test_is_the_formula(self) -> None:
        t = torch.tensor([0.0, 1.0, 3.5, 999.0], dtype=torch.float64)
        got = time_embedding(t, 8)
        for row, time in enumerate(t.tolist()):
            for i in range(4):
                angle = time * 10_000 ** (-i / 3)
                assert got[row, i].item() == pytest.approx(math.sin(angle), abs=1e-12)
                assert got[row, 4 + i].item() == pytest.approx(math.cos(angle), abs=1e-12)

    def test_float32_for_all_but_float64(self) -> None:
        reference = time_embedding(torch.tensor([500.0], dtype=torch.float64), 32)
        for dtype in (torch.int64, torch.float32, torch.bfloat16):
            got = time_embedding(torch.tensor([500], dtype=dtype), 32)
            assert got.dtype == torch.float32
            assert (got.double() - reference).abs().max() < 1e-4  # bfloat16 holds 500 exactly

    @pytest.mark.parametrize("width", [4, 5, 7])
    def test_any_width(self, width: int) -> None:
        got = time_embedding(torch.tensor([1.0, 2.0]), width)
        assert got.shape == (2, width)
        assert got.isfinite().all()
        assert (got[:, -1] == 0).all() == bool(width % 2)

    def test_times_off_the_grid_lie_between(self) -> None:
        low, middle, high = time_embedding(torch.tensor([10.0, 10.5, 11.0]), 64)
        assert (middle - low).abs().max() > 0.1
        assert (middle - high).abs().max() > 0.1


class TestDropout:
    @pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
    def test_mean_and_variance(self, p: float) -> None:
        n = 64 * 32 * 32 * 16
        x = torch.ones(64, 16, 32, 32, dtype=torch.float64)
        y = dropout(x, dropout_states(torch.arange(64), 1)[0], p)
        assert y.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=2e-4)
        kept = (y > 0).double().mean().item()
        assert abs(kept - (1 - p)) < 5 * math.sqrt(p * (1 - p) / n) + 2**-17
        assert y.mean().item() == pytest.approx(1, abs=5 * math.sqrt(p / (1 - p) / n))
        assert y.var().item() == pytest.approx(p / (1 - p), rel=0.02)

    def test_counts_per_picture_and_channel_are_binomial(self) -> None:
        kept = mask(torch.arange(500), 0, (8, 8, 8), 0.3)
        for sums, n in ((kept.sum((1, 2, 3)), 512), (kept.sum((0, 2, 3)), 500 * 64), (kept.sum(0), 500)):
            z = (sums - 0.7 * n) / math.sqrt(n * 0.3 * 0.7)
            assert abs(z.mean().item()) < 5 / math.sqrt(z.numel())
            assert z.square().mean().item() == pytest.approx(1, abs=5 * math.sqrt(2 / z.numel()))

    def test_neighbours_in_key_layer_and_position_are_independent(self) -> None:
        shape = (8, 32, 32)
        bound = 5 / math.sqrt(64 * 8192)
        keys = torch.arange(1000, 1064)
        a = mask(keys, 1, shape, 0.5)
        assert abs(correlation(a, mask(keys + 64, 1, shape, 0.5))) < bound
        assert abs(correlation(a, mask(keys, 2, shape, 0.5))) < bound
        flat = a.permute(0, 2, 3, 1).flatten(1)
        for lag in (1, 2, 3, 4, 8, 16, 256):  # 1, 2, 3: within the four elements of a hash
            assert abs(correlation(flat[:, lag:], flat[:, :-lag])) < bound

    @pytest.mark.parametrize("stride", [1, 2**16, 2**32, 2**48, 2**62])
    def test_no_pair_of_pictures_is_correlated(self, stride: int) -> None:
        """The largest of 2016 correlations of 8192 fair coins each is about 3.9 standard deviations."""
        signs = mask(torch.arange(64) * stride, 0, (8, 32, 32), 0.5).flatten(1) * 2 - 1
        if stride == 2**62:  # 64 multiples of 2^62 wrap round to four keys
            signs = signs[:4]
        gram = signs @ signs.T / signs.shape[1] - torch.eye(len(signs))
        assert gram.abs().max().item() < 5.5 / math.sqrt(8192)

    def test_no_pair_of_layers_is_correlated(self) -> None:
        states = dropout_states(torch.tensor([7]), 64)[:, 0]
        signs = (dropout(torch.ones(64, 8, 32, 32), states, 0.5) > 0).double().flatten(1) * 2 - 1
        gram = signs @ signs.T / signs.shape[1] - torch.eye(64)
        assert gram.abs().max().item() < 5.5 / math.sqrt(8192)

    def test_does_not_depend_on_the_batch_or_its_order(self) -> None:
        x = torch.randn(5, 3, 7, 5)  # 105 elements a picture: no multiple of 4
        keys = torch.tensor([3, -9, 2**62, 0, 5])
        whole = dropout(x, dropout_states(keys, 3)[2], 0.4)
        order = torch.tensor([4, 0, 2, 1, 3])
        assert torch.equal(dropout(x[order], dropout_states(keys[order], 3)[2], 0.4), whole[order])
        for i in range(5):
            assert torch.equal(dropout(x[i : i + 1], dropout_states(keys[i : i + 1], 3)[2], 0.4), whole[i : i + 1])

    def test_does_not_depend_on_the_global_generator(self) -> None:
        x, state = torch.ones(2, 4, 8, 8), dropout_states(torch.tensor([1, 2]), 1)[0]
        before = torch.get_rng_state()
        first = dropout(x, state, 0.5)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(123)
        assert torch.equal(dropout(x, state, 0.5), first)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_does_not_depend_on_memory_format_or_dtype(self, dtype: torch.dtype) -> None:
        x, state = torch.randn(2, 6, 5, 3), dropout_states(torch.tensor([1, 2]), 1)[0]
        reference = dropout(x, state, 0.5)
        last = dropout(x.to(dtype).to(memory_format=torch.channels_last), state, 0.5)
        assert last.dtype == dtype
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(last != 0, reference != 0)

    def test_gradient_is_the_mask(self) -> None:
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
        state = dropout_states(torch.tensor([1, 2]), 1)[0]
        (gradient,) = torch.autograd.grad(dropout(x, state, 0.25).sum(), x)
        assert torch.equal(gradient, dropout(torch.ones_like(x), state, 0.25))
        assert torch.autograd.gradcheck(lambda x: dropout(x, state, 0.25), x)

    def test_is_the_hash_of_the_docstrings(self) -> None:
        """Written out in unsigned integers: a resumed run must find the masks that it was started with."""
        word, golden, first, second = 2**64, 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

        def mix(z: int) -> int:
            z = (z ^ z >> 30) * first % word
            z = (z ^ z >> 27) * second % word
            return z ^ z >> 31

        def shift_with_sign(z: int) -> int:
            return (z - word * (z >= 2**63) >> 32) % word

        def remix(z: int) -> int:
            z = z * first % word
            z = (z ^ shift_with_sign(z)) * second % word
            return (z + shift_with_sign(z)) % word

        state = mix((mix(12) + 2 * golden) % word)  # key 12, second layer
        kept = []
        for i in range(16):
            bits = remix(mix(i * golden % word) ^ state)
            for lane in range(4):
                value = (bits >> 16 * lane) % 2**16
                signed = value - 2**16 * (value >= 2**15)
                kept.append(signed >= 0.25 * 2**16 - 2**15)
        got = mask(torch.tensor([12]), 1, (4, 4, 4), 0.25)
        assert got.permute(0, 2, 3, 1).flatten().bool().tolist() == kept


class TestGroupNorm:
    @pytest.mark.parametrize(
        ("channels", "asked", "expected"), [(64, 32, 32), (48, 32, 24), (7, 4, 1), (9, 6, 3), (4, 32, 4)]
    )
    def test_groups_are_the_largest_divisor(self, channels: int, asked: int, expected: int) -> None:
        assert GroupNorm(channels, asked).num_groups == expected

    @pytest.mark.parametrize("groups", [2, 8])  # 16 and 4 channels a group: either way through the kernels
    def test_bfloat16_statistics_are_float32(self, groups: int) -> None:
        norm = GroupNorm(32, groups)
        x = (torch.randn(2, 32, 8, 8) + 4).to(torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = norm(x)
        exact = functional.group_norm(x.double(), groups, eps=1e-6)
        assert got.dtype == torch.bfloat16
        assert ((got.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all()  # the rounding of the result alone

    def test_one_value_a_group(self) -> None:
        """It is its own mean, so only rounding over the root of epsilon is left; functional.group_norm raises here."""
        assert GroupNorm(4, 4)(torch.randn(1, 4, 1, 1)).abs().max() < 1e-3


class TestResBlock:
    @staticmethod
    def block(**options: object) -> ResBlock:
        defaults: dict[str, object] = {"num_groups": 4, "dropout": 0.0, "time_conditioning": "add"}
        return ResBlock(8, 12, **(defaults | options))  # type: ignore[arg-type]

    def test_starts_as_its_shortcut(self) -> None:
        block, x = self.block(dropout=0.3), torch.randn(2, 8, 4, 4)
        inputs = BlockInputs([torch.randn(2, 12)], dropout_states(torch.arange(2), 1).unbind())
        assert torch.equal(block(x, inputs), block.shortcut(x))

    @pytest.mark.parametrize(("resample", "side"), [("up", 12), ("down", 3), (None, 6)])
    @pytest.mark.parametrize("conditioning", ["add", "scale_shift"])
    def test_is_the_formula(self, resample: str | None, side: int, conditioning: str) -> None:
        block = self.block(resample=resample, time_conditioning=conditioning).double()
        torch.nn.init.normal_(block.conv2.weight)
        x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
        e = torch.randn(2, block.embedding_width, dtype=torch.float64)

        def resized(x: Tensor) -> Tensor:
            if resample == "up":
                return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            return x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)) if resample == "down" else x

        h = block.conv1(resized(functional.silu(block.norm1(x))))
        if conditioning == "add":
            h = block.norm2(h + e[:, :, None, None])
        else:
            h = block.norm2(h) * (1 + e[:, :12, None, None]) + e[:, 12:, None, None]
        expected = block.shortcut(resized(x)) + block.conv2(functional.silu(h))
        got = block(x, BlockInputs([e], None))
        assert got.shape == (2, 12, side, side)
        assert (got - expected).abs().max() < 1e-12


class TestAttention:
    def test_starts_as_the_identity(self) -> None:
        x = torch.randn(2, 8, 3, 5)
        assert torch.equal(Attention(8, num_groups=4, head_channels=None)(x), x)

    @pytest.mark.parametrize("head_channels", [None, 4, 2])
    def test_is_the_formula(self, head_channels: int | None) -> None:
        layer = Attention(8, num_groups=4, head_channels=head_channels).double()
        torch.nn.init.normal_(layer.out.weight)
        x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
        width = head_channels or 8
        q, k, v = layer.qkv(layer.norm(x).flatten(2).mT).split(8, dim=-1)
        heads = []
        for i in range(0, 8, width):
            qi, ki, vi = (part[..., i : i + width] for part in (q, k, v))
            heads.append(torch.softmax(qi @ ki.mT / math.sqrt(width), dim=-1) @ vi)
        expected = x + layer.out(torch.cat(heads, dim=-1)).mT.reshape(x.shape)
        assert (layer(x) - expected).abs().max() < 1e-12

    def test_refuses_heads_that_do_not_divide(self) -> None:
        with pytest.raises(ConfigError, match=r"is 5, .* 12 channels .* nearest divisor is (4|6)"):
            Attention(12, num_groups=4, head_channels=5)


class TestResampling:
    def test_downsample_pads_right_and_bottom_only(self) -> None:
        layer = Downsample(1)
        torch.nn.init.ones_(layer.conv.weight)
        torch.nn.init.zeros_(layer.conv.bias)
        got = layer(torch.ones(1, 1, 4, 4), BlockInputs([], None))
        assert got.flatten().tolist() == [9, 6, 6, 4]

    def test_upsample_repeats_pixels(self) -> None:
        layer = Upsample(1)
        with torch.no_grad():
            layer.conv.weight.zero_()[0, 0, 1, 1] = 1
            layer.conv.bias.zero_()
        got = layer(torch.tensor([[[[1.0, 2.0]]]]), BlockInputs([], None))
        assert got[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]
