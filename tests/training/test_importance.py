"""Importance-sampled times: unbiased, of lower variance, and uniform until there is something to go by."""

from __future__ import annotations

import numpy as np
import torch

from ddpm.training.importance import LOSSES_KEPT, UNIFORM_SHARE, LossHistory, uniform_times

T = 20


def warm_history(seed: int = 0) -> tuple[LossHistory, np.ndarray]:
    """Return a history whose losses fall steeply with t, as those of the bound do, and their scale at each t."""
    scale = 10.0 ** -np.linspace(0, 3, T)
    random = np.random.default_rng(seed)
    history = LossHistory.empty(T)
    for _ in range(LOSSES_KEPT):
        history.update(torch.arange(T), torch.from_numpy(scale * random.gamma(4.0, 0.25, T)))
    return history, scale


def test_times_are_uniform_until_every_t_has_ten_losses() -> None:
    history = LossHistory.empty(T)
    u = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for k in range(LOSSES_KEPT):
        t, weights = history.times(u)
        assert torch.equal(t, uniform_times(u, T)), k
        assert bool((weights == 1).all())
        history.update(torch.arange(T - (k == LOSSES_KEPT - 1)), torch.arange(1.0, T + 1 - (k == LOSSES_KEPT - 1)))
    assert not history.warm
    history.update(torch.tensor([T - 1]), torch.tensor([float(T)]))
    assert history.warm
    assert not torch.equal(history.times(u)[0], uniform_times(u, T))


def test_probabilities_are_the_root_mean_squares_of_the_last_ten() -> None:
    history, _ = warm_history()
    for value in range(12):  # t = 3 keeps 2, 3, ..., 11 of these
        history.update(torch.tensor([3]), torch.tensor([float(value)]))
    sizes = history.losses.numpy().copy()
    sizes[3] = np.arange(2, 12)
    roots = np.sqrt((sizes**2).mean(1))
    expected = (1 - UNIFORM_SHARE) * roots / roots.sum() + UNIFORM_SHARE / T
    np.testing.assert_allclose(history.probabilities().numpy(), expected, rtol=1e-12)
    assert abs(float(history.probabilities().sum()) - 1) < 1e-12


def test_times_come_as_often_as_their_probability_says() -> None:
    history, _ = warm_history()
    count = 200_000
    t, weights = history.times((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    share = torch.bincount(t, minlength=T).double() / count
    assert float((share - history.probabilities()).abs().max()) < 1.1 / count
    torch.testing.assert_close(weights, (1 / (T * history.probabilities()))[t].float())


def test_the_ends_of_the_uniform_numbers_are_times() -> None:
    history, _ = warm_history()
    ends = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    for t in (history.times(ends)[0], uniform_times(ends, T)):
        assert t.tolist() == [0, T - 1]


def test_the_estimate_is_unbiased_and_its_variance_lower() -> None:
    """Over all t exactly, and over noisy losses by their first two moments: E[L] = scale, E[L^2] = 1.25 scale^2."""
    history, scale = warm_history()
    p = history.probabilities().numpy()
    weights = history.times(torch.from_numpy(np.cumsum(p) - p / 2))[1].double().numpy()
    mean = scale.mean()
    assert abs((p * weights * scale).sum() - mean) < 1e-6 * mean
    second = 1.25 * scale**2
    importance = (p * weights**2 * second).sum() - mean**2
    uniform = second.mean() - mean**2
    assert 0 < importance < 0.2 * uniform


def test_losses_that_are_all_zero_leave_times_uniform() -> None:
    history = LossHistory.empty(3)
    for _ in range(LOSSES_KEPT):
        history.update(torch.arange(3), torch.zeros(3))
    assert history.warm
    assert history.probabilities().tolist() == [1 / 3] * 3
