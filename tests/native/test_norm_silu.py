from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ddpm import native
from ddpm.networks import UNet
from ddpm.networks.dropout import dropout, dropout_states
from ddpm.networks.kernels import use_kernels
from ddpm.networks.norm import GroupNorm

needs_kernels = pytest.mark.skipif(not native.available(), reason=f"no kernels here: {native.why_unavailable()}")

NAMES = ("x", "gain", "bias", "offset", "scale", "shift")


def written_out(x: Tensor, groups: int, tables: dict[str, Tensor], silu: bool) -> Tensor:
    """The definition, one operation after another."""

    def wide(table: Tensor) -> Tensor:
        return table[..., None, None]

    grouped = (x + wide(tables["offset"])).unflatten(1, (groups, -1))
    mean = grouped.mean((2, 3, 4), keepdim=True)
    variance = (grouped - mean).square().mean((2, 3, 4), keepdim=True)
    normed = ((grouped - mean) / (variance + 1e-6).sqrt()).flatten(1, 2)
    scaled = (normed * wide(tables["gain"]) + wide(tables["bias"])) * (1 + wide(tables["scale"]))
    z = scaled + wide(tables["shift"])
    return z * torch.sigmoid(z) if silu else z


def inputs(batch: int, channels: int, height: int, width: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch * channels)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    drawn = {"x": 2 * normal(batch, channels, height, width) + 3, "gain": normal(channels), "bias": normal(channels)}
    return drawn | {name: normal(batch, channels) for name in NAMES[3:]}


def channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.detach().to(dtype).contiguous(memory_format=torch.channels_last)


@needs_kernels
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1.5e-2)])
@pytest.mark.parametrize("shape", [(3, 24, 7, 9, 4), (2, 32, 12, 12, 8), (1, 6, 1, 1, 2), (2, 5, 16, 5, 1)])
def test_values_and_gradients_equal_the_definition(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, tolerance: float, silu: bool
) -> None:
    *sizes, groups = shape
    exact = inputs(*sizes)
    exact["x"] = exact["x"].to(dtype).double()  # what both see
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in exact.items()}
    expected = written_out(leaves["x"], groups, leaves, silu)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected.backward(upstream.double())

    given = {name: tensor.float().requires_grad_() for name, tensor in exact.items() if name != "x"}
    x = channels_last(exact["x"], dtype).requires_grad_()
    got = native.norm_silu(x, groups, given["gain"], given["bias"], 1e-6, **optional(given), silu=silu)
    got.backward(channels_last(upstream, dtype))

    assert got.dtype == dtype
    for name, ours, theirs in [
        ("value", got.detach(), expected.detach()),
        *((n, given.get(n, x).grad, leaves[n].grad) for n in NAMES),
    ]:
        assert ours is not None
        assert theirs is not None
        worst = float((ours.double() - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))
        assert worst < (tolerance if name in ("value", "x") else 1e-4), name


def optional(tables: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tables[name] for name in NAMES[3:]}


@needs_kernels
def test_without_tables_it_is_torchs_group_norm_and_silu() -> None:
    x = channels_last(torch.randn(4, 16, 10, 10), torch.float32)
    gain, bias = torch.rand(16), torch.rand(16)
    expected = functional.silu(functional.group_norm(x, 4, gain, bias, 1e-6))
    assert (native.norm_silu(x, 4, gain, bias, 1e-6) - expected).abs().max() < 1e-5


@needs_kernels
def test_a_large_mean_does_not_cancel() -> None:
    x = channels_last(torch.randn(2, 8, 32, 32, dtype=torch.float64) + 1000, torch.float32)
    exact = functional.group_norm(x.double(), 2, eps=1e-6)
    got = native.norm_silu(x, 2, torch.ones(8), torch.zeros(8), 1e-6, silu=False)
    assert (got - exact).abs().max() < 1e-3  # x itself is rounded to 6e-5


@needs_kernels
def test_extreme_inputs_stay_finite_and_nan_stays_nan() -> None:
    x = channels_last(torch.randn(2, 8, 4, 4) * 1e4, torch.float32)
    table = torch.full((8,), 1e3)
    assert bool(native.norm_silu(x, 2, table, table, 1e-6).isfinite().all())
    for dtype in (torch.float32, torch.bfloat16):
        broken = x.to(dtype).clone(memory_format=torch.preserve_format)
        broken[0, 0, 0, 0] = float("nan")
        got = native.norm_silu(broken, 2, table, table, 1e-6)
        assert bool(got[0, :4].isnan().all())
        assert bool(got[1].isfinite().all())


@needs_kernels
def test_a_picture_depends_on_neither_its_batch_nor_the_threads() -> None:
    x = channels_last(torch.randn(6, 16, 9, 9), torch.bfloat16)
    gain = torch.rand(16)
    whole = native.norm_silu(x, 4, gain, torch.zeros(16), 1e-6)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        alone = native.norm_silu(x[4:5], 4, gain, torch.zeros(16), 1e-6)
        assert torch.equal(alone, whole[4:5])
        assert torch.equal(native.norm_silu(x, 4, gain, torch.zeros(16), 1e-6), whole)
    finally:
        torch.set_num_threads(before)


@needs_kernels
@pytest.mark.parametrize("time_conditioning", ["add", "scale_shift"])
def test_a_network_is_the_same_function_with_and_without(time_conditioning: str) -> None:
    torch.manual_seed(0)
    network = UNet(
        in_channels=3,
        base_channels=32,
        channel_multipliers=(1, 2),
        attention_levels=(1,),
        num_groups=4,
        time_conditioning=time_conditioning,  # type: ignore[arg-type]
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parameter in network.parameters():  # zero convolutions would hide what lies before them
        torch.nn.init.normal_(parameter, std=0.1)
    x, t = channels_last(torch.randn(2, 3, 12, 12), torch.float32), torch.tensor([3.0, 700.0])
    results = []
    for fused in (False, True):
        use_kernels(network, fused)
        network.zero_grad()
        output = network(x, t)
        output.square().mean().backward()
        results.append([output, *(parameter.grad.clone() for parameter in network.parameters())])
    for plain, fused_result in zip(*results, strict=True):
        assert float((plain - fused_result).abs().max()) < 2e-4 * max(1.0, float(plain.abs().max()))


@needs_kernels
def test_one_table_serves_all_pictures_and_another_shape_is_refused() -> None:
    x = channels_last(torch.randn(3, 8, 5, 5), torch.float32)
    gain, bias, offset = torch.rand(8), torch.rand(8), torch.randn(1, 8, requires_grad=True)
    got = native.norm_silu(x, 2, gain, bias, 1e-6, offset=offset)
    assert torch.equal(got, native.norm_silu(x, 2, gain, bias, 1e-6, offset=offset.expand(3, 8)))
    got.sum().backward()
    assert offset.grad is not None
    assert offset.grad.shape == (1, 8)
    with pytest.raises(RuntimeError):
        native.norm_silu(x, 2, gain, bias, 1e-6, offset=torch.zeros(2, 8))
    with pytest.raises(RuntimeError):
        native.norm_silu(x, 2, gain[:4], bias, 1e-6)


def test_other_inputs_are_left_to_torch() -> None:
    x = torch.randn(2, 8, 6, 6)
    assert not native.takes(x)  # not channels_last
    assert not native.takes(channels_last(x, torch.float64))
    assert not native.takes(channels_last(x, torch.float16))


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"DDPM_NATIVE": "0"}, "DDPM_NATIVE is 0"),
        ({"PATH": "/nowhere"}, r"there is no C\+\+ compiler"),
        ({"CXX": "false"}, "'.*false' failed"),
    ],
)
def test_without_a_compiler_there_is_a_reason_and_no_error(
    environment: dict[str, str], reason: str, tmp_path: Path
) -> None:
    code = (
        "import re, sys; from ddpm.native import build; "
        "assert not build.available(); assert re.fullmatch(sys.argv[1], build.why_unavailable().split(' (')[0])"
    )
    everything = {**os.environ, "DDPM_CACHE": str(tmp_path), **environment}
    subprocess.run([sys.executable, "-c", code, reason], env=everything, check=True)
    assert not list(tmp_path.rglob("*.so"))
    assert not list(tmp_path.rglob("*.part"))


@needs_kernels
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("channels", [24, 6])  # inside of the kernel; and behind it, where four do not divide them
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1.5e-2)])
def test_dropout_inside_equals_dropout_behind_it(
    channels: int, silu: bool, dtype: torch.dtype, tolerance: float
) -> None:
    x = channels_last(inputs(3, channels, 7, 9)["x"], dtype).requires_grad_()
    dy = channels_last(inputs(5, channels, 7, 9)["x"][:3], dtype)
    norm, state = GroupNorm(channels, 6), dropout_states(torch.tensor([4, 9, -1]), 3)[1]
    norm.fused = True
    inside = norm(x, silu=silu, dropout_state=state, dropped=0.3)
    behind = dropout(norm(x, silu=silu), state, 0.3)
    assert torch.equal(inside == 0, behind == 0)
    assert 0.2 < float((inside == 0).double().mean()) < 0.4
    leaves = (x, norm.weight, norm.bias)
    pairs = zip(torch.autograd.grad(inside, leaves, dy), torch.autograd.grad(behind, leaves, dy), strict=True)
    for got, expected in ((inside, behind), *pairs):
        assert float((got - expected).abs().max()) <= tolerance * float(expected.abs().max())
    norm.fused = False
    plain = norm(x, silu=silu, dropout_state=state, dropped=0.3)
    assert torch.equal(plain == 0, inside == 0)


@needs_kernels
def test_dropout_of_another_shape_is_refused() -> None:
    x = channels_last(inputs(2, 8, 3, 3)["x"], torch.float32)
    words = torch.zeros(18, dtype=torch.int64)
    for positions, states in ((words[:17], words[:2]), (words, words[:1])):
        with pytest.raises(RuntimeError, match="dropout of"):
            native.norm_silu(x, 2, torch.ones(8), torch.zeros(8), 1e-6, dropout=native.Dropout(positions, states, 100))
