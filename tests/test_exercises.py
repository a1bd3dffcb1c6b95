from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.diffusion.schedules import cosine_betas
from ddpm.exercises import check_cosine_schedule

S = 0.008


def f(num_timesteps: int, t: Tensor | None = None) -> Tensor:
    t = torch.arange(num_timesteps + 1, dtype=torch.float64) if t is None else t
    return torch.cos((t / num_timesteps + S) / (1 + S) * math.pi / 2) ** 2


def betas_of(alphas_cumprod: Tensor) -> Tensor:
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999)


def with_one_before(alphas_cumprod: Tensor) -> Tensor:
    return betas_of(torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod]))


def cumprod(num_timesteps: int) -> Tensor:
    return (1 - cosine_betas(num_timesteps)).cumprod(0)


def from_zero(num_timesteps: int) -> Tensor:
    """t = 0 .. T - 1, with alpha_bar = 1 before the first."""
    return with_one_before(f(num_timesteps, torch.arange(num_timesteps)) / f(num_timesteps)[0])


def over_t_minus_1(num_timesteps: int) -> Tensor:
    share = torch.arange(num_timesteps + 1, dtype=torch.float64) / (num_timesteps - 1)
    return betas_of(torch.cos((share + S) / (1 + S) * math.pi / 2) ** 2)


def without_square(num_timesteps: int) -> Tensor:
    return betas_of(f(num_timesteps).sqrt())


def without_square_or_clipping(num_timesteps: int) -> Tensor:
    root = f(num_timesteps).sqrt()
    return 1 - root[1:] / root[:-1]


WRONG: dict[str, tuple[Callable[[int], object], tuple[str, ...]]] = {
    "not clipped": (lambda n: 1 - f(n)[1:] / f(n)[:-1], ("not clipped",)),
    "clipped elsewhere": (lambda n: (1 - f(n)[1:] / f(n)[:-1]).clamp(max=0.9999), ("not at 0.999",)),
    "clipped at 0.02": (lambda n: (1 - f(n)[1:] / f(n)[:-1]).clamp(max=0.02), ("clipped at 0.02",)),
    "t from 0": (from_zero, ("Off by one: your t runs from 0",)),
    "t from 2": (lambda n: betas_of(f(n, 1 + torch.arange(n + 1))), ("Off by one: your first beta is the second",)),
    "t / (T - 1)": (over_t_minus_1, ("divided by T - 1",)),
    "not divided by f(0)": (lambda n: with_one_before(f(n)[1:]), ("without the division by f(0)",)),
    "not squared": (without_square, ("not squared",)),
    "neither squared nor clipped": (without_square_or_clipping, ("not squared", "not clipped")),
    "alpha_bar": (cumprod, ("This is alpha_bar",)),
    "alphas": (lambda n: 1 - cosine_betas(n), ("These are alphas",)),
    "alpha_bar, t from 0": (
        lambda n: torch.cumprod(1 - from_zero(n), 0),
        ("This is alpha_bar", "Off by one: your t runs from 0"),
    ),
    "no offset": (lambda n: cosine_betas(n, offset=0.0), ("offset",)),
    "T + 1 values": (lambda n: f(n) / f(n)[0], ("there are T.",)),
    "T - 1 values": (lambda n: betas_of(f(n)[1:]), ("f needs T + 1",)),
    "a matrix": (lambda n: torch.ones(n, 2), ("expected (10,)",)),
    "fails": (lambda n: 1 / 0, ("ZeroDivisionError",)),
    "nothing": (lambda n: None, ("fails for T = 10", "beta_1 is nan", "shape")),
    "not a number": (lambda n: torch.full((n,), math.nan), ("divided by 0",)),
    "linear": (lambda n: torch.linspace(1e-4, 0.02, n), ("the first is beta_1 = 0.0001",)),
    "out of range": (lambda n: torch.linspace(-1, 2, n), ("must be in (0, 1)",)),
}


@pytest.mark.parametrize(
    "solution",
    [
        cosine_betas,
        lambda n: cosine_betas(n).tolist(),
        lambda n: np.asarray(cosine_betas(n)),
        lambda n: betas_of(f(n) / f(n)[0]),  # with f(0) and without: it cancels in the ratio
    ],
)
def test_right_answers_pass(solution: Callable[[int], object]) -> None:
    verdict = check_cosine_schedule(solution)
    assert verdict.right
    assert str(verdict).startswith("Right.")


def test_float32_passes_with_a_remark() -> None:
    def solution(count: int) -> Tensor:
        t = torch.arange(count + 1, dtype=torch.float32)
        g = torch.cos((t / count + S) / (1 + S) * math.pi / 2) ** 2
        return (1 - g[1:] / g[:-1]).clamp(max=0.999)

    verdict = check_cosine_schedule(solution)
    assert verdict.right
    assert "float64" in verdict.remarks[-1]


@pytest.mark.parametrize("name", WRONG)
def test_each_mistake_is_named(name: str) -> None:
    solution, expected = WRONG[name]
    verdict = check_cosine_schedule(solution)
    assert not verdict.right
    text = str(verdict)
    if name == "nothing":
        assert any(words in text for words in expected)
    else:
        assert [words for words in expected if words not in text] == []
        if len(expected) > 1:
            assert len(verdict.remarks) == len(expected)


def test_a_mistake_at_one_length_only_is_found() -> None:
    verdict = check_cosine_schedule(lambda n: cosine_betas(n) if n == 1000 else cosine_betas(1000)[:n])
    assert not verdict.right
    assert "but not for each of T = 10, 100, 1000" in str(verdict)
