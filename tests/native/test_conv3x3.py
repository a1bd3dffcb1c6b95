from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ddpm import native
from ddpm.networks.conv import Conv3x3
from ddpm.training.ema import Ema

here = native.available() and native.has("winograd", torch.float32)
needs_kernel = pytest.mark.skipif(not here, reason="no kernel for convolutions here")
DTYPES = [(torch.float32, 2e-6), (torch.bfloat16, 1.5e-2)]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)
    return drawn.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else drawn


def written_out(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, doubled: bool) -> Tensor:
    """The definition: a sum of nine shifted products."""
    x = x.repeat_interleave(2, 2).repeat_interleave(2, 3) if doubled else x
    height, width = x.shape[2:]
    padded = functional.pad(x, (1, 1, 1, 1))
    shifted = [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    products = [torch.einsum("bchw,kc->bkhw", s, weight[:, :, n // 3, n % 3]) for n, s in enumerate(shifted)]
    return torch.stack(products).sum(0) + bias[:, None, None] + residual


def worst(ours: Tensor | None, exact: Tensor | None) -> float:
    assert ours is not None
    assert exact is not None
    return float(((ours.double() - exact).abs().max() / exact.abs().max()).detach())


@needs_kernel
@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("sizes", [(2, 32, 64, 6, 8), (1, 64, 32, 7, 5), (3, 96, 32, 1, 2), (1, 32, 32, 24, 18)])
def test_values_and_gradients_equal_the_definition(
    sizes: tuple[int, int, int, int, int], dtype: torch.dtype, tolerance: float, doubled: bool
) -> None:
    if not native.has("winograd", dtype):
        pytest.skip("not in this dtype here")
    batch, in_, out, height, width = sizes
    times = 2 if doubled else 1
    given = [
        normal(batch, in_, height, width, dtype=dtype),
        normal(out, in_, 3, 3),
        normal(out),
        normal(batch, out, times * height, times * width, dtype=dtype),
    ]
    exact = [tensor.double().requires_grad_() for tensor in given]
    expected = written_out(*exact, doubled)
    upstream = normal(*expected.shape, dtype=dtype)
    expected.backward(upstream.double())

    x, weight, bias, residual = (tensor.requires_grad_() for tensor in given)
    assert native.convolves(x, weight)
    got = native.conv3x3(x, weight, bias, residual=residual, doubled=doubled)
    got.backward(upstream)

    assert got.dtype == dtype
    assert worst(got, expected) < tolerance
    for ours, theirs in zip(given, exact, strict=True):
        assert worst(ours.grad, theirs.grad) < tolerance


@needs_kernel
def test_in_bfloat16_it_errs_little_more_than_a_plain_convolution() -> None:
    if not native.has("winograd", torch.bfloat16):
        pytest.skip("not in bfloat16 here")
    x, weight = normal(2, 128, 16, 16, dtype=torch.bfloat16), normal(64, 128, 3, 3)
    exact = functional.conv2d(x.double(), weight.double(), padding=1)
    plain = functional.conv2d(x, weight.bfloat16(), padding=1)
    ours = native.conv3x3(x, weight, None)
    errors = [(result - exact).square().mean().sqrt() for result in (ours, plain)]
    assert errors[0] < 2 * errors[1]


@needs_kernel
def test_a_picture_depends_on_neither_its_batch_nor_the_threads() -> None:
    x, weight = normal(5, 32, 10, 6), normal(32, 32, 3, 3)
    whole = native.conv3x3(x, weight, None)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(native.conv3x3(x[3:4], weight, None), whole[3:4])
        assert torch.equal(native.conv3x3(x, weight, None), whole)
    finally:
        torch.set_num_threads(before)


@needs_kernel
@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_gradients_of_weights_are_exact_over_many_tiles_and_equal_for_any_threads(
    dtype: torch.dtype, tolerance: float, doubled: bool
) -> None:
    if not native.has("winograd", dtype):
        pytest.skip("not in this dtype here")
    side = 24 if doubled else 48  # 1728 tiles: two blocks of them in bfloat16, three in float32
    x, dy = normal(3, 32, side, side, dtype=dtype), normal(3, 64, 48, 48, dtype=dtype)
    weight, bias = normal(64, 32, 3, 3).requires_grad_(), normal(64).requires_grad_()
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        try:
            made = native.conv3x3(x, weight, bias, doubled=doubled)
            found.append(torch.autograd.grad(made, (weight, bias), dy))
        finally:
            torch.set_num_threads(before)
    seen = x.double().repeat_interleave(2, 2).repeat_interleave(2, 3) if doubled else x.double()
    exact = torch.nn.grad.conv2d_weight(seen, weight.shape, dy.double(), padding=1)
    assert worst(found[0][0], exact) < 2 * tolerance  # a plain sum of as many float32 errs by 2.4e-6
    assert worst(found[0][1], dy.double().sum((0, 2, 3))) < 1e-5
    for d_weight, d_bias in found[1:]:
        assert torch.equal(d_weight, found[0][0])
        assert torch.equal(d_bias, found[0][1])


@needs_kernel
def test_nan_stays_in_its_picture() -> None:
    x = normal(2, 32, 4, 4)
    x[0, 5, 2, 2] = float("nan")
    got = native.conv3x3(x, normal(32, 32, 3, 3), None)
    assert bool(got[0].isnan().any())
    assert bool(got[1].isfinite().all())


@needs_kernel
def test_another_shape_is_refused() -> None:
    x, weight = normal(2, 32, 4, 4), normal(64, 32, 3, 3)
    with pytest.raises(RuntimeError):
        native.conv3x3(x, weight, torch.zeros(32))
    with pytest.raises(RuntimeError):
        native.conv3x3(x, weight, None, residual=torch.zeros(2, 64, 8, 8))
    with pytest.raises(RuntimeError):
        native.conv3x3(x, normal(64, 64, 3, 3), None)


def test_other_inputs_are_left_to_torch() -> None:
    x, weight = normal(2, 32, 4, 4), normal(64, 32, 3, 3)
    assert not native.convolves(x.contiguous(), weight)
    assert not native.convolves(x.double(), weight)
    assert not native.convolves(x, weight.bfloat16())
    assert not native.convolves(normal(2, 20, 4, 4), normal(64, 20, 3, 3))


@pytest.mark.parametrize("doubled", [False, True])
def test_the_module_is_the_same_function_with_and_without(doubled: bool) -> None:
    conv = Conv3x3(32, 64).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = normal(2, 32, 6, 6)
    residual = normal(2, 64, 12, 12) if doubled else normal(2, 64, 6, 6)
    plain = conv(x, residual=residual, doubled=doubled)
    conv.fused = True
    assert float((conv(x, residual=residual, doubled=doubled) - plain).detach().abs().max()) < 1e-5
    assert torch.equal(conv(x, doubled=doubled), conv(x, residual=torch.zeros_like(residual), doubled=doubled))


def test_weights_that_change_are_transformed_anew() -> None:
    conv = Conv3x3(32, 32).requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    conv.fused = True
    x = normal(1, 32, 4, 4)

    def check(module: Conv3x3) -> None:
        expected = functional.conv2d(x, module.weight, module.bias, padding=1)
        assert float((module(x) - expected).abs().max()) < 1e-5

    check(conv)
    conv.weight.mul_(2)
    check(conv)
    conv.load_state_dict(Conv3x3(32, 32).state_dict())
    check(conv)
    conv.load_state_dict(Conv3x3(32, 32).state_dict(), assign=True)
    check(conv.requires_grad_(False))  # type: ignore[arg-type]
    average = Ema(conv, decay=0.5)
    check(average.network)  # type: ignore[arg-type]
    average.update(Conv3x3(32, 32), step=1)
    check(average.network)  # type: ignore[arg-type]
    other = copy.deepcopy(conv)
    other.weight.add_(0.1)
    check(other)
    check(conv)
