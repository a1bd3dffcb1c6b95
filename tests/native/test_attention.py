from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddpm import native
from ddpm.networks.blocks import Attention

here = native.available() and native.has("attention", torch.float32)
needs_kernel = pytest.mark.skipif(not here, reason="no kernel for attention here")


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))).to(dtype)


def written_out(qkv: Tensor) -> Tensor:
    q, k, v = qkv.unbind(2)  # [B, N, heads, D]
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)


@needs_kernel
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("sizes", [(2, 49, 1, 64), (1, 64, 3, 32), (3, 1, 2, 96), (1, 16, 1, 32)])
def test_values_and_gradients_equal_the_definition(
    sizes: tuple[int, int, int, int], dtype: torch.dtype, tolerance: float
) -> None:
    if not native.has("attention", dtype):
        pytest.skip("not in this dtype here")
    batch, pixels, heads, width = sizes
    qkv = drawn(batch, pixels, 3, heads, width, dtype=dtype)
    qkv[:, :, 2] += 3  # what values have in common must not drown the gradient
    exact = qkv.double().requires_grad_()
    expected = written_out(exact)
    upstream = drawn(*expected.shape, dtype=dtype)
    expected.backward(upstream.double())
    qkv.requires_grad_()
    assert native.attends(qkv)
    got = native.attention(qkv)
    got.backward(upstream)
    assert got.dtype == dtype
    assert exact.grad is not None
    assert qkv.grad is not None
    assert float((got.detach().double() - expected.detach()).abs().max() / expected.detach().abs().max()) < tolerance
    assert float((qkv.grad.double() - exact.grad).abs().max() / exact.grad.abs().max()) < tolerance


@needs_kernel
def test_large_scores_stay_finite_and_pictures_do_not_mix() -> None:
    qkv = drawn(3, 40, 3, 2, 32) * 100
    got = native.attention(qkv)
    assert bool(got.isfinite().all())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(native.attention(qkv[1:2].contiguous()), got[1:2])
    finally:
        torch.set_num_threads(before)


def test_other_inputs_are_left_to_torch() -> None:
    assert not native.attends(drawn(1, 4, 3, 1, 32).double())
    assert not native.attends(drawn(1, 4, 3, 1, 20))
    assert not native.attends(drawn(1, 3, 4, 1, 32).transpose(1, 2))
    assert not native.attends(drawn(1, 2048, 3, 1, 32).requires_grad_())


def test_the_module_is_the_same_function_with_and_without() -> None:
    attention = Attention(64, num_groups=4, head_channels=32)
    torch.nn.init.normal_(attention.out.weight)
    x = drawn(2, 64, 5, 7)
    plain = attention(x)
    attention.fused = True
    assert float((attention(x) - plain).detach().abs().max()) < 1e-4
