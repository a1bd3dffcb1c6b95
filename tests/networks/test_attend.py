from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from ddpm.networks import attend as module
from ddpm.networks.attend import attend


@pytest.mark.parametrize("most", [2**22, 0])  # written out, and by the framework's kernel
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_attention_and_its_gradients_are_those_of_the_definition(
    most: int, biased: bool, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_SCORES", most)
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, n, 4, dtype=torch.float64, requires_grad=True) for n in (5, 7, 7))
    there = torch.rand(3, 7) > 0.4
    there[:, 0] = True
    bias = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True) if biased else None
    result = attend(q, k, v, there if padded else None, bias)
    weights = (torch.einsum("bhnd,bhmd->bhnm", q, k) / 2 + (0 if bias is None else bias)).exp()
    if padded:
        weights = weights * there[:, None, None]
    wanted = torch.einsum("bhnm,bhmd->bhnd", weights / weights.sum(3, keepdim=True), v)
    assert (result - wanted).abs().max() < 1e-12
    direction = torch.randn_like(wanted)
    of = (q, k, v) if bias is None else (q, k, v, bias)
    found = torch.autograd.grad(result, of, direction)
    right = torch.autograd.grad(wanted, of, direction)
    assert max(float((a - b).abs().max()) for a, b in zip(found, right, strict=True)) < 1e-12


def test_bfloat16_is_as_near_as_the_kernel() -> None:
    torch.manual_seed(0)
    exact = [torch.randn(2, 4, n, 32) for n in (64, 14, 14)]
    wanted = functional.scaled_dot_product_attention(*exact)
    rough = [x.bfloat16() for x in exact]
    ours = (attend(*rough).float() - wanted).abs().max()
    theirs = (functional.scaled_dot_product_attention(*rough).float() - wanted).abs().max()
    assert ours < 2 * theirs + 1e-3
