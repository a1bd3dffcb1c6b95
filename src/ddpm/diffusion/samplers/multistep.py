"""Linear multistep rules: the DDIM step, plus weighted changes of x_0 or eps since earlier steps.

Between two noise levels the probability flow has two exact forms (lambda = half log SNR, sigma = e^-lambda):

    x_s = (noise_s / noise_t) x_t + noise_s * integral of e^lambda x_0 d lambda      (Lu et al. 2022b, Eq. 8)
    x_s = (signal_s / signal_t) x_t + signal_s * integral of eps d sigma            (Song et al. 2021, Eq. 14)

A multistep sampler puts a polynomial through the last x_0 or eps in place of the unknown function. What is remembered
are the predictions made at the x_t that were visited, never the x_t themselves: an `after_step` that moves x is seen
by the next prediction, and leaves the older ones as good as they were.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from ddpm.diffusion.denoiser import Prediction
from ddpm.diffusion.samplers.step import CLEAN, Evaluator, Interval, Level, Rule, transfer
from ddpm.errors import SamplingError

Weigh = Callable[[Sequence[Level], Level], list[float]]
"""``(levels, end) -> weights``: of the values at the levels, newest first, in x_s."""


def multistep(quantity: Literal["x_0", "eps"], order: int, weigh: Weigh) -> Rule:
    """Return a rule that uses the last `order` predictions; fewer in the first steps, and in the last ones.

    The very last step has order 1 and so returns x_0. Levels without any signal, where lambda is -inf, are not used.
    """
    past: deque[tuple[Level, Tensor]] = deque(maxlen=order)

    def rule(interval: Interval, x_t: Tensor, evaluate: Evaluator) -> tuple[Tensor, Prediction]:
        prediction = evaluate(x_t, interval.start.t)
        past.appendleft((interval.start, prediction.x_0 if quantity == "x_0" else prediction.eps))
        used = usable(past, min(order, interval.remaining), interval.end)
        x_s = transfer(prediction, interval.end)
        return add_changes(x_s, weigh([level for level, _ in used], interval.end), used), prediction

    return rule


def usable(past: Sequence[tuple[Level, Tensor]], order: int, end: Level) -> list[tuple[Level, Tensor]]:
    """Return the newest values of `past`, at most `order`, that a polynomial can go through."""
    if end.t == CLEAN:
        return [past[0]]
    newest = list(past)[:order]
    finite = [entry for entry in newest if math.isfinite(entry[0].half_log_snr)]
    return finite if len(finite) and finite[0] is newest[0] else newest[:1]


def add_changes(x_s: Tensor, weights: Sequence[float], values: Sequence[tuple[Level, Tensor]]) -> Tensor:
    """Return x_s plus each weight times its value's difference from the newest."""
    newest = values[0][1]
    for weight, (_, value) in zip(weights[1:], values[1:], strict=True):
        x_s = x_s + weight * (value - newest)
    return x_s


def polynomial_weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Return w with sum_j w_j p(nodes_j) = the integral of p, for every polynomial p of lower degree than nodes.

    Args:
        nodes: n distinct places.
        moments: the integrals of 1, u, ..., u^(n-1).
    """
    powers = np.vander(np.asarray(nodes), increasing=True).T
    weights: list[float] = np.linalg.solve(powers, np.asarray(moments)).tolist()
    return weights


_PLACES, _MASSES = np.polynomial.legendre.leggauss(48)
_PLACES, _MASSES = (_PLACES + 1) / 2, _MASSES / 2  # on [0, 1]; exact to rounding for steps of lambda up to 50


def exponential_weights(levels: Sequence[Level], end: Level) -> list[float]:
    """Return the weights of x_0 in x_s for the polynomial in lambda through all `levels`.

    noise_s * integral of e^lambda (lambda - lambda_t)^k; the sources write it in phi-functions (Lu et al. 2022b, App.
    A), whose recursion cancels at small steps: quadrature does not.
    """
    if len(levels) == 1:
        return [0.0]
    start = levels[0].half_log_snr
    h = end.half_log_snr - start
    nodes = [(level.half_log_snr - start) / h for level in levels]
    decay = end.signal * h * np.exp(-h * (1 - _PLACES))
    return polynomial_weights(nodes, [float(_MASSES @ (decay * _PLACES**k)) for k in range(len(nodes))])


def check_order(order: int, largest: int) -> None:
    """Refuse an order that a sampler does not have.

    Raises:
        SamplingError: if `order` is not 1 to `largest`.
    """
    if type(order) is not int or not 1 <= order <= largest:
        raise SamplingError(f"order is {order}; expected 1 to {largest}")
