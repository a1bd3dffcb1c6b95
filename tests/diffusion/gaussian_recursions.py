"""Every sampler on Gaussian data, written out in numpy from the formulas of its paper.

A random vector is a matrix [2, 1 + K]: its mean in column 0, and what each of K independent standard normals adds to it
in the others. For a Gaussian E[x_0 | x_t] is affine in x_t, so every fixed-step sampler is arithmetic on such matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import exp, expm1, factorial, inf, log, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad

from ddpm.diffusion.schedules import NoiseSchedule

Affine = NDArray[np.float64]
MEAN = np.array([0.4, -0.2])
COVARIANCE = np.array([[0.5, 0.3], [0.3, 0.4]])


@dataclass
class World:
    """A schedule's alpha-bar at any time, the Gaussian's exact denoiser, and fresh noise."""

    schedule: NoiseSchedule
    times: list[float]
    columns: int = 1 + 2 + 2 * 900
    used: int = 3

    def at(self, t: float) -> tuple[float, float]:
        """sqrt(alpha-bar) and sqrt(1 - alpha-bar); log SNR is linear between training times."""
        if t == -1:
            return 1.0, 0.0
        bars = np.cumprod(1 - self.schedule.betas.numpy())
        snr = exp(np.interp(t, np.arange(len(bars)), np.log(bars / (1 - bars))))
        return sqrt(snr / (1 + snr)), sqrt(1 / (1 + snr))

    def pairs(self) -> Iterator[tuple[float, float]]:
        return zip(self.times, [*self.times[1:], -1.0], strict=True)

    def start(self) -> Affine:
        x = np.zeros((2, self.columns))
        x[:, 1:3] = np.eye(2)
        return x

    def x_0(self, x: Affine, a: float, n: float) -> Affine:
        gain = a * COVARIANCE @ np.linalg.inv(a * a * COVARIANCE + n * n * np.eye(2))
        belief = gain @ x
        belief[:, 0] += MEAN - a * gain @ MEAN
        return belief

    def eps(self, x: Affine, a: float, n: float) -> Affine:
        return (x - a * self.x_0(x, a, n)) / n

    def fresh(self) -> Affine:
        z = np.zeros((2, self.columns))
        z[:, self.used : self.used + 2] = np.eye(2)
        self.used += 2
        return z


def ddpm(world: World, large: bool) -> Affine:
    """Ho et al. 2020, Eq. 7."""
    x = world.start()
    for t, s in world.pairs():
        (a, n), (b, m) = world.at(t), world.at(s)
        beta = 1 - a * a / (b * b)
        x = b * beta / n**2 * world.x_0(x, a, n) + a / b * m**2 / n**2 * x
        if s != -1:
            x = x + sqrt(beta if large else m**2 / n**2 * beta) * world.fresh()
    return x


def ddim(world: World, eta: float) -> Affine:
    """Song et al. 2021, Eq. 12 and 16."""
    x = world.start()
    for t, s in world.pairs():
        (a, n), (b, m) = world.at(t), world.at(s)
        sigma = eta * m / n * sqrt(1 - a * a / (b * b))
        x = b * world.x_0(x, a, n) + sqrt(max(m * m - sigma * sigma, 0)) * world.eps(x, a, n)
        if s != -1 and eta > 0:
            x = x + sigma * world.fresh()
    return x


def dpm_solver_pp(world: World, order: int, stochastic: bool = False) -> Affine:
    """Lu et al. 2022b, Alg. 2; the third order with phi-functions and the full second derivative of the parabola."""
    x, known = world.start(), list[tuple[float, Affine]]()
    for index, (t, s) in enumerate(world.pairs()):
        (a, n), (b, m) = world.at(t), world.at(s)
        known.insert(0, (log(a / n), world.x_0(x, a, n)))
        if s == -1:
            return known[0][1]
        p = min(order, len(known), len(world.times) - index)
        h, x_0 = log(b / m) - known[0][0], known[0][1]
        if p == 1:
            d1 = d2 = np.zeros_like(x)
        else:
            r0 = (known[0][0] - known[1][0]) / h
            d1, d2 = (x_0 - known[1][1]) / r0, np.zeros_like(x)
        if stochastic:
            x = m / n * exp(-h) * x - b * expm1(-2 * h) * (x_0 + d1 / 2) + m * sqrt(-expm1(-2 * h)) * world.fresh()
            continue
        if p == 2 and order == 2:
            x = m / n * x - b * expm1(-h) * (x_0 + d1 / 2)
            continue
        if p == 3:
            r1 = (known[1][0] - known[2][0]) / h
            older = (known[1][1] - known[2][1]) / r1
            d1, d2 = d1 + r0 / (r0 + r1) * (d1 - older), 2 * (d1 - older) / (r0 + r1)
        x = m / n * x - b * expm1(-h) * x_0 + b * (expm1(-h) / h + 1) * d1 - b * ((expm1(-h) + h) / h**2 - 0.5) * d2
    raise AssertionError("the last step returns")


def dpm_solver_pp_2s(world: World) -> Affine:
    """Lu et al. 2022b, Alg. 1, r = 1/2."""
    x = world.start()
    for t, s in world.pairs():
        (a, n), (b, m) = world.at(t), world.at(s)
        x_0 = world.x_0(x, a, n)
        if s == -1:
            return x_0
        start, h = log(a / n), log(b / m) - log(a / n)
        snr = exp(2 * start + h)
        c, k = sqrt(snr / (1 + snr)), sqrt(1 / (1 + snr))
        u = k / n * x - c * expm1(-h / 2) * x_0
        x = m / n * x - b * expm1(-h) * world.x_0(u, c, k)
    raise AssertionError("the last step returns")


def unipc(world: World, order: int, variant: str) -> Affine:
    """Zhao et al. 2023, Alg. 5 to 8, with R_p and b_p of Sec. 3.1 written out."""
    x, known, before = world.start(), list[tuple[float, Affine]](), None

    def update(
        x: Affine, a: float, n: float, b: float, m: float, x_0: Affine, others: list[tuple[float, Affine]], p: int
    ) -> Affine:
        hh = -(log(b / m) - log(a / n))
        scale = hh if variant == "bh1" else expm1(hh)
        result = m / n * x - b * expm1(hh) * x_0
        if not others:
            return result
        ratios = np.array([(place - log(a / n)) / -hh for place, _ in others])
        phi, right = expm1(hh) / hh - 1, []
        for i in range(1, p + 1):
            right.append(phi * factorial(i) / scale)
            phi = phi / hh - 1 / factorial(i + 1)
        matrix = np.stack([ratios**i for i in range(p)])
        weights = np.array([0.5]) if p == 1 else np.linalg.solve(matrix, np.array(right))
        for weight, ratio, (_, other) in zip(weights, ratios, others, strict=True):
            result = result - b * scale * weight * (other - x_0) / ratio
        return result

    for index, (t, s) in enumerate(world.pairs()):
        (a, n), (b, m) = world.at(t), world.at(s)
        x_0 = world.x_0(x, a, n)
        if before is not None:
            others = [*before[-1], (log(a / n), x_0)]
            x = update(*before[:-1], others, len(others))
        known.insert(0, (log(a / n), x_0))
        if s == -1:
            return x_0
        p = min(order, len(known), len(world.times) - index)
        others = known[1:p]
        before = (x, a, n, b, m, x_0, others)
        x = update(x, a, n, b, m, x_0, others, p - 1)
    raise AssertionError("the last step returns")


def _adams(world: World, order: int, weights: Callable[[list[float], float], list[float]]) -> Affine:
    """x_s / b = x_t / a + a weighted sum of the last eps."""
    x, known = world.start(), list[tuple[float, Affine]]()
    for index, (t, s) in enumerate(world.pairs()):
        (a, n), (b, _) = world.at(t), world.at(s)
        known.insert(0, (t, world.eps(x, a, n)))
        p = 1 if s == -1 else min(order, len(known), len(world.times) - index)
        used = known[:p]
        x = b / a * x + b * sum(
            w * eps for w, (_, eps) in zip(weights([place for place, _ in used], s), used, strict=True)
        )
    return x


def lms(world: World, order: int) -> Affine:
    """The integral over sigma of each Lagrange polynomial, from its coefficients."""

    def sigma(t: float) -> float:
        a, n = world.at(t)
        return n / a

    def weights(times: list[float], s: float) -> list[float]:
        places, found = [sigma(t) for t in times], []
        for j, place in enumerate(places):
            basis = np.poly1d([1.0])
            for other in places[:j] + places[j + 1 :]:
                basis = basis * np.poly1d([1.0, -other]) / (place - other)
            area = basis.integ()
            found.append(float(area(sigma(s)) - area(places[0])))
        return found

    return _adams(world, order, weights)


def deis(world: World, order: int) -> Affine:
    """Zhang & Chen 2023, Eq. 15: Lagrange polynomials in t against d sigma, piece by piece with quad."""

    def weights(times: list[float], s: float) -> list[float]:
        if len(times) == 1:
            (a, n), (b, m) = world.at(times[0]), world.at(s)
            return [m / b - n / a]
        edges = sorted({s, times[0], *(float(k) for k in range(int(s) + 1, int(np.ceil(times[0]))))})
        return [sum(piece(times, j, low, high) for low, high in pairwise(edges)) for j in range(len(times))]

    def piece(times: list[float], j: int, low: float, high: float) -> float:
        (a, n), (b, m) = world.at(low), world.at(high)
        slope = (log(m / b) - log(n / a)) / (high - low)  # of log sigma

        def integrand(t: float) -> float:
            basis = 1.0
            for k, other in enumerate(times):
                basis *= (t - other) / (times[j] - other) if k != j else 1.0
            return basis * slope * n / a * exp(slope * (t - low))

        return -float(quad(integrand, low, high, epsabs=1e-13, epsrel=1e-12)[0])

    return _adams(world, order, weights)


def karras(
    world: World, second_order: bool, churn: float = 0, low: float = 0, high: float = inf, spread: float = 1
) -> Affine:
    """Karras et al. 2022, Alg. 2, on y = x / a, whose noise is sigma."""
    a, n = world.at(world.times[0])
    top, top_noise = world.at(len(world.schedule) - 1)
    y, largest = world.start() / a, top_noise / top

    def slope(y: Affine, sigma: float) -> Affine:
        a = 1 / sqrt(1 + sigma**2)
        return (y - world.x_0(a * y, a, sigma * a)) / sigma

    for t, s in world.pairs():
        (a, n), (b, m) = world.at(t), world.at(s)
        sigma, target = n / a, m / b
        gamma = min(churn / len(world.times), sqrt(2) - 1) if low <= sigma <= high else 0
        raised = min(sigma * (1 + gamma), largest)
        if raised > sigma:
            y = y + sqrt(raised**2 - sigma**2) * spread * world.fresh()
        d = slope(y, raised)
        moved = y + (target - raised) * d
        if second_order and s != -1:
            moved = y + (target - raised) * (d + slope(moved, target)) / 2
        y = moved
    return y


def pndm(world: World) -> Affine:
    """Liu et al. 2022, Eq. 11 to 13, Alg. 2."""

    def phi(x: Affine, eps: Affine, t: float, s: float) -> Affine:
        (a, n), (b, m) = world.at(t), world.at(s)
        return b * (x - n * eps) / a + m * eps

    def eps_at(x: Affine, t: float) -> Affine:
        return world.eps(x, *world.at(t))

    x, known = world.start(), list[Affine]()
    for t, s in world.pairs():
        e = eps_at(x, t)
        known.insert(0, e)
        if s != -1 and len(known) >= 4:
            e = (55 * known[0] - 59 * known[1] + 37 * known[2] - 9 * known[3]) / 24
        elif s != -1:
            middle = (t + s) / 2
            e2 = eps_at(phi(x, e, t, middle), middle)
            e3 = eps_at(phi(x, e2, t, middle), middle)
            e4 = eps_at(phi(x, e3, t, s), s)
            e = (e + 2 * e2 + 2 * e3 + e4) / 6
        x = phi(x, e, t, s)
    return x


def langevin(world: World, inner_steps: int, step_size: float) -> Affine:
    """Song & Ermon 2019, Alg. 1: x + alpha / 2 score + sqrt(alpha) z, alpha = 2 step_size (1 - alpha-bar)."""
    x = world.start()
    for t, s in world.pairs():
        (a, n), (b, _) = world.at(t), world.at(s)
        for _ in range(inner_steps):
            alpha = 2 * step_size * n**2
            x = x - alpha / 2 * world.eps(x, a, n) / n + sqrt(alpha) * world.fresh()
        x = world.x_0(x, a, n) if s == -1 else b / a * x
    return x


def predictor_corrector(world: World, snr: float) -> Affine:
    """Song et al. 2021, Alg. 3 and 5, the ratio of the norms squared at its expectation, 1 - alpha-bar."""
    x = world.start()
    for t, s in world.pairs():
        (a, n), (b, m) = world.at(t), world.at(s)
        beta = 1 - a * a / (b * b)
        x = b * beta / n**2 * world.x_0(x, a, n) + a / b * m**2 / n**2 * x
        if s != -1:
            x = x + m / n * sqrt(beta) * world.fresh()
            step = 2 * snr**2 * m**2
            x = x - step * world.eps(x, b, m) / m + sqrt(2 * step) * world.fresh()
    return x


RECURSIONS: dict[str, Callable[[World], Affine]] = {
    "ddpm fixed_large": lambda w: ddpm(w, True),
    "ddpm fixed_small": lambda w: ddpm(w, False),
    "ddim eta 0": lambda w: ddim(w, 0),
    "ddim eta 0.5": lambda w: ddim(w, 0.5),
    "ddim eta 1": lambda w: ddim(w, 1),
    "dpm_solver_pp": lambda w: dpm_solver_pp(w, 2),
    "dpm_solver_pp_2s": dpm_solver_pp_2s,
    "dpm_solver_pp_3m": lambda w: dpm_solver_pp(w, 3),
    "dpm_solver_pp_sde": lambda w: dpm_solver_pp(w, 2, stochastic=True),
    "unipc 1 bh2": lambda w: unipc(w, 1, "bh2"),
    "unipc 2 bh1": lambda w: unipc(w, 2, "bh1"),
    "unipc 2 bh2": lambda w: unipc(w, 2, "bh2"),
    "unipc 3 bh2": lambda w: unipc(w, 3, "bh2"),
    "deis 2": lambda w: deis(w, 2),
    "deis 3": lambda w: deis(w, 3),
    "euler": lambda w: karras(w, False),
    "euler churn": lambda w: karras(w, False, 2.0, 0.05, 50.0, 1.003),
    "heun": lambda w: karras(w, True),
    "heun churn": lambda w: karras(w, True, 2.0, 0.05, 50.0, 1.003),
    "pndm": pndm,
    "lms 3": lambda w: lms(w, 3),
    "lms 4": lambda w: lms(w, 4),
    "langevin": lambda w: langevin(w, 5, 0.2),
    "predictor_corrector": lambda w: predictor_corrector(w, 0.16),
}
