"""Exercises for learners, with checkers that say what is wrong, not only that something is.

A checker compares an answer with what the usual mistakes, alone or together, would have given: where one of them gives
the learner's numbers, it names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_ABSOLUTE, _RELATIVE = 1e-6, 3e-4  # what float32 may lose, and less than any mistake changes
_MOST_MISTAKES = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a checker says.

    Attributes:
        right: whether the answer is right.
        remarks: what was found, one sentence or two each.
    """

    right: bool
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        """Return the verdict and its remarks, a line each."""
        return "\n".join(["Right." if self.right else "Not yet.", *(f"- {remark}" for remark in self.remarks)])


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A way to compute the cosine schedule; as it stands, the right one."""

    squared: bool = True
    half: bool = True
    offset: float = 0.008
    stretched: bool = True
    normalized: bool = True
    first: int = 1
    grid: int = 0
    max_beta: float = 0.999
    returned: Literal["betas", "alphas", "alphas_cumprod"] = "betas"

    def __call__(self, num_timesteps: int) -> Values:
        """Return what it gives for T timesteps, float64 [T]."""
        before_first = self._f(np.array([float(self.first - 1)]), num_timesteps)
        f = self._f(self.first + np.arange(num_timesteps, dtype=np.float64), num_timesteps)
        before = np.concatenate([before_first if self.normalized else np.ones(1), f[:-1]])
        if self.first == 0:
            before[0] = f[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            betas: Values = np.minimum(1 - f / before, self.max_beta)
        if self.returned == "betas":
            return betas
        return 1 - betas if self.returned == "alphas" else np.cumprod(1 - betas, dtype=np.float64)

    def _f(self, t: Values, num_timesteps: int) -> Values:
        share = t / (num_timesteps + self.grid) + self.offset
        angle = share / (1 + self.offset if self.stretched else 1.0) * math.pi / (2 if self.half else 1)
        f: Values = np.cos(angle)
        return f * f if self.squared else f


_MISTAKES: dict[str, dict[str, Any]] = {
    "These are alphas, 1 - beta: return betas.": {"returned": "alphas"},
    "This is alpha_bar, the share of the signal that is left after t steps: a step's beta_t is "
    "1 - alpha_bar_t / alpha_bar_{t-1}.": {"returned": "alphas_cumprod"},
    "The cosine is not squared: alpha_bar is a share of variance, its root a share of amplitude.": {"squared": False},
    "The angle should end at pi / 2, where the cosine is 0; yours ends at pi.": {"half": False},
    "The offset s = 0.008 is missing: without it the first betas are too small to see.": {"offset": 0.0},
    "(t / T + s) is not divided by (1 + s): the angle ends beyond pi / 2, and alpha_bar rises again.": {
        "stretched": False
    },
    "alpha_bar is f(t) / f(0), so that alpha_bar_0 = 1; without the division by f(0), beta_1 is too large by "
    "1 - f(0) = 0.00016.": {"normalized": False},
    "Off by one: your t runs from 0 to T - 1. Then beta_1 = 0, a step that does nothing, and the last is missing; "
    "beta_t compares f(t) with f(t - 1) for t = 1 .. T.": {"first": 0},
    "Off by one: your first beta is the second. beta_t compares f(t) with f(t - 1), from t = 1 on.": {"first": 2},
    "t is divided by T - 1: it runs over T + 1 values 0 .. T, so t / T ends at 1.": {"grid": -1},
    "t is divided by T + 1: it runs over T + 1 values 0 .. T, so t / T ends at 1.": {"grid": 1},
    "beta is not clipped: at the end alpha_bar is 0 and beta_T = 1, a step that keeps nothing of x, and whose reverse "
    "divides by 0; the authors cut at 0.999.": {"max_beta": math.inf},
    "beta is clipped, but not at 0.999: 0.9999 is another common value.": {"max_beta": 0.9999},
    "beta is clipped, but at 0.99 and not at 0.999.": {"max_beta": 0.99},
    "beta is clipped at 0.02, the end of the linear schedule: much noise is missing; the limit is 0.999.": {
        "max_beta": 0.02
    },
}
"""What each mistake changes in `_Attempt`."""


def check_cosine_schedule(solution: Callable[[int], Any], *, num_timesteps: Sequence[int] = (10, 100, 1000)) -> Verdict:
    """Check a learner's cosine schedule (Nichol & Dhariwal 2021, Eq. 17), and say what is wrong with it.

    alpha_bar_t = f(t) / f(0) with f(t) = cos^2((t / T + s) / (1 + s) pi / 2) and s = 0.008; beta_t = 1 - alpha_bar_t /
    alpha_bar_{t-1}, at most 0.999.

    Args:
        solution: ``T -> betas``, T numbers for t = 1 .. T: a tensor, an array or a list.
        num_timesteps: the T at which it is tried.

    Returns:
        Whether it is right to what float32 can hold, and remarks for the learner. Nothing that `solution` does raises.
    """
    answers = {}
    for count in num_timesteps:
        answer = _values(solution, count)
        if isinstance(answer, str):
            return Verdict(False, (answer,))
        answers[count] = answer
    if _agrees(_Attempt(), answers):
        return Verdict(True, ("beta_t = 1 - f(t) / f(t - 1), clipped at 0.999.", *_on_precision(answers)))
    for number in range(1, _MOST_MISTAKES + 1):
        for mistakes in combinations(_MISTAKES.items(), number):
            changes = [change for _, change in mistakes]
            distinct = {key for change in changes for key in change}
            if len(distinct) == number and _agrees(_with(changes), answers):
                return Verdict(False, tuple(remark for remark, _ in mistakes))
    return Verdict(False, _at_large(answers))


def _with(changes: Sequence[dict[str, Any]]) -> _Attempt:
    attempt = _Attempt()
    for change in changes:
        attempt = replace(attempt, **change)
    return attempt


def _values(solution: Callable[[int], Any], count: int) -> Values | str:
    """Return the answer for T = `count`, float64 [T], or what is wrong with its form."""
    try:
        answer = np.asarray(solution(count), dtype=np.float64)
    except Exception as error:  # whatever a learner's function does is for the learner to read
        return f"Your function fails for T = {count}: {type(error).__name__}: {error}"
    if answer.shape == (count + 1,):
        return (
            f"{count + 1} values for T = {count}: f has T + 1 of them, t = 0 .. T, but a beta stands between two "
            "neighbours; there are T."
        )
    if answer.shape == (count - 1,):
        return (
            f"{count - 1} values for T = {count}: between T values of f there are T - 1 betas; f needs T + 1 of them, "
            "t = 0 .. T."
        )
    if answer.shape != (count,):
        return f"The shape is {answer.shape} for T = {count}; expected ({count},)."
    if not np.isfinite(answer).all():
        where = int(np.flatnonzero(~np.isfinite(answer))[0]) + 1
        return f"beta_{where} is {answer[where - 1]} for T = {count}: is something divided by 0?"
    return answer


def _agrees(attempt: _Attempt, answers: dict[int, Values]) -> bool:
    return all(not _differs(answer, attempt(count)).any() for count, answer in answers.items())


def _differs(answer: Values, expected: Values) -> NDArray[np.bool_]:
    """Return where an answer is wrong; NaN, where an attempt has no value, is near to nothing."""
    answer, expected = np.maximum(answer, -1), np.maximum(expected, -1)  # beyond t = T, betas are huge and random
    near = np.abs(answer - expected) <= _ABSOLUTE + _RELATIVE * np.abs(expected * (1 - expected))
    differs: NDArray[np.bool_] = ~near
    return differs


def _on_precision(answers: dict[int, Values]) -> tuple[str, ...]:
    worst = max(float(np.abs(answer - _Attempt()(count)).max()) for count, answer in answers.items())
    if worst < 1e-9:
        return ()
    return (f"It is off by up to {worst:.1e}: compute in float64. At the end f is nearly 0, and float32 loses digits.",)


def _at_large(answers: dict[int, Values]) -> tuple[str, ...]:
    """Return what can be said of an answer that no known mistake explains."""
    count, answer = list(answers.items())[-1]
    expected = _Attempt()(count)
    wrong = np.flatnonzero(_differs(answer, expected))
    remarks = []
    if answer.min() <= 0 or answer.max() >= 1:
        remarks.append(f"betas lie between {answer.min():.4g} and {answer.max():.4g}; each must be in (0, 1).")
    if len(wrong):
        first = int(wrong[0])
        remarks.append(
            f"For T = {count}, {len(wrong)} of the betas differ; the first is beta_{first + 1} = {answer[first]:.6g}, "
            f"expected {expected[first]:.6g}."
        )
    else:
        remarks.append(f"For T = {count} all is right, but not for each of T = {', '.join(map(str, answers))}.")
    return tuple(remarks)
