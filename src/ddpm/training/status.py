"""How a run is doing, in plain language, and when it should stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["starting", "improving", "plateau", "overfitting", "diverging"]

_ENOUGH = 6  # evaluations before any verdict but "starting": fewer say nothing about a trend
_PLATEAU = 0.01  # relative change of the loss over half of the evaluations
_GAP = 0.10  # relative gap between held-out and training loss that more training widens
_BEYOND_REPAIR = 0.5  # held-out loss this much above its best: the average has forgotten the rest of the world
_DIVERGED = 1.5  # training loss, relative to its best


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The loss on fixed pictures with fixed noise and times, so that two evaluations differ by the weights alone.

    Attributes:
        step: steps made.
        held_out: mean loss of held-out pictures, averaged weights.
        train: the same on as many training pictures.
        by_noise: held-out loss in four ranges of t, from little noise to much.
        parts: what the held-out loss is made of, "simple" and "bound"; empty for L_simple alone. The bound lacks L_T,
            and is of few times: it tells the steps of one run apart, and is no likelihood.
    """

    step: int
    held_out: float
    train: float
    by_noise: tuple[float, ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Status:
    """A verdict and the sentence that explains it.

    Attributes:
        verdict: one word.
        sentence: for people.
        stop: whether going on would be a waste.
    """

    verdict: Verdict
    sentence: str
    stop: bool = False


def assess(history: Sequence[Evaluation]) -> Status:
    """Return how a run is doing, from all its evaluations so far."""
    if len(history) < _ENOUGH:
        return Status("starting", "just started: too early to tell")
    latest = history[-1]
    if min(min(evaluation.held_out, evaluation.train) for evaluation in history) <= 0:
        return _of_densities(history)
    best = min(history, key=lambda evaluation: evaluation.held_out)
    if latest.train > _DIVERGED * min(evaluation.train for evaluation in history):
        return Status("diverging", "diverging: the loss rises; a lower training.learning_rate should help", stop=True)
    gap = latest.held_out / latest.train - 1
    risen = latest.held_out / best.held_out - 1
    if gap > _GAP and risen > _PLATEAU:
        return _overfitting(latest, best, gap, risen)
    before = history[-1 - len(history) // 2]
    if abs(latest.held_out / before.held_out - 1) < _PLATEAU:
        return Status("plateau", "normal plateau: the loss hardly moves, but pictures still improve")
    return Status("improving", "improving: the held-out loss still falls")


def _of_densities(history: Sequence[Evaluation]) -> Status:
    """Return a verdict on losses of either sign, as the bound of continuous data has: their ratios mean nothing."""
    if history[-1].held_out < min(evaluation.held_out for evaluation in history[: len(history) // 2]):
        return Status("improving", "improving: the held-out loss still falls")
    return Status("plateau", "plateau: the held-out loss falls no further; look at the previews")


def _overfitting(latest: Evaluation, best: Evaluation, gap: float, risen: float) -> Status:
    sentence = (
        f"overfitting: held-out loss is {100 * gap:.0f} % above training loss, and {100 * risen:.0f} % above its best "
        f"(step {best.step}); more pictures, or network.dropout, would help"
    )
    return Status("overfitting", sentence, stop=risen > _BEYOND_REPAIR)


def evaluation_of(tree: dict[str, Any]) -> Evaluation:
    """Return the evaluation that its plain values describe."""
    return Evaluation(tree["step"], tree["held_out"], tree["train"], tuple(tree["by_noise"]), tree.get("parts", {}))
