"""The scores by name: what each needs, what it means, and its value beside that of held-out pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from ddpm.errors import ConfigError, DataError, nearest
from ddpm.estimate import Estimate
from ddpm.evaluation.scores.coverage import coverage
from ddpm.evaluation.scores.energy import LEAST as ENERGY_LEAST
from ddpm.evaluation.scores.energy import energy_distance
from ddpm.evaluation.scores.frechet import frechet_distance, frechet_estimate, moments_of
from ddpm.evaluation.scores.inception_score import inception_score
from ddpm.evaluation.scores.kernel import LEAST, kernel_distance
from ddpm.evaluation.scores.spread import thinned
from ddpm.evaluation.shards import Arrays
from ddpm.words import counted

HEADLINE = 2048
"""Fewest samples from which on FID is a headline: with fewer, its bias is larger than what it should tell."""

SEED = 0
"""Of random subsets: the same in every report, whatever the seed of the samples."""

SPLITS = 10
NEIGHBOURS = 5
_MOST_NEIGHBOURS = 10_000  # rows a side of precision and recall, as in their papers: time grows with the product
_MOST_BOOTSTRAPPED = 2**24  # values of features, beyond which the error of a Fréchet distance takes minutes

Values = dict[str, tuple[float, float | None]]
"""Name of a score -> value and standard error."""


@dataclass(frozen=True, slots=True)
class Score:
    """One number, beside what held-out pictures reach.

    Attributes:
        name: its key in JSON.
        label: its name for people.
        value: of the samples.
        n: how many samples it is of.
        meaning: what is good, in few words.
        error: its standard error; None where none is known.
        floor: what held-out pictures of the data reach in the samples' place; None where there is no such number.
        floor_error: the standard error of that.
        floor_n: how many held-out pictures that is of.
        at_floor_n: the value of as many samples, evenly spread: scores of different numbers do not compare.
    """

    name: str
    label: str
    value: float
    n: int
    meaning: str
    error: float | None = None
    floor: float | None = None
    floor_error: float | None = None
    floor_n: int | None = None
    at_floor_n: float | None = None

    def as_tree(self) -> dict[str, Any]:
        """Return plain JSON values, without the name."""
        tree = asdict(self)
        del tree["name"]
        return tree


@dataclass(frozen=True, eq=False)
class Evidence:
    """The features that scores are made of: "pooled" [N, D], perhaps "spatial" and "probabilities".

    Attributes:
        samples: of what is scored.
        train: of the reference, pictures of the training split.
        held_out: of the held-out split.
    """

    samples: Arrays
    train: Arrays
    held_out: Arrays


@dataclass(frozen=True)
class FeatureMetric:
    """A group of scores over features, named as ``--metrics`` names it.

    Attributes:
        needs: the part of the features that it is made of.
        least: fewest pictures a side.
        prepare: what is the same for samples and held-out pictures: reference -> scores of features.
        labels: score -> (name for people, what is good).
    """

    needs: str
    least: int
    prepare: Callable[[NDArray[Any]], Callable[[NDArray[Any]], Values]]
    labels: dict[str, tuple[str, str]]


def _frechet(name: str) -> Callable[[NDArray[Any]], Callable[[NDArray[Any]], Values]]:
    def prepare(reference: NDArray[Any]) -> Callable[[NDArray[Any]], Values]:
        of_reference = moments_of(reference)

        def score(features: NDArray[Any]) -> Values:
            if features.size > _MOST_BOOTSTRAPPED:
                return {name: (frechet_distance(moments_of(features), of_reference), None)}
            return {name: _pair(frechet_estimate(features, of_reference, seed=SEED))}

        return score

    return prepare


def _kernel(reference: NDArray[Any]) -> Callable[[NDArray[Any]], Values]:
    return lambda features: {"kid": _pair(kernel_distance(features, reference, seed=SEED))}


def _inception(reference: NDArray[Any]) -> Callable[[NDArray[Any]], Values]:
    return lambda probabilities: {"is": _pair(inception_score(probabilities, splits=SPLITS))}


def _coverage(reference: NDArray[Any]) -> Callable[[NDArray[Any]], Values]:
    real = thinned(reference, _MOST_NEIGHBOURS)

    def score(features: NDArray[Any]) -> Values:
        found = coverage(real, thinned(features, _MOST_NEIGHBOURS), k=NEIGHBOURS)
        values = {
            "precision": found.precision,
            "recall": found.recall,
            "density": found.density,
            "coverage": found.coverage,
        }
        return {name: (value, None) for name, value in values.items()}

    return score


def _energy(reference: NDArray[Any]) -> Callable[[NDArray[Any]], Values]:
    real = thinned(reference, _MOST_NEIGHBOURS)
    return lambda features: {"energy": (energy_distance(thinned(features, _MOST_NEIGHBOURS), real), None)}


def _pair(estimate: Estimate) -> tuple[float, float | None]:
    return float(estimate.value), float(estimate.error)


FEATURE_METRICS: dict[str, FeatureMetric] = {
    "energy": FeatureMetric("pooled", ENERGY_LEAST, _energy, {"energy": ("energy distance", "0 is perfect")}),
    "kid": FeatureMetric("pooled", LEAST, _kernel, {"kid": ("KID, kernel distance", "0 is perfect")}),
    "fid": FeatureMetric("pooled", LEAST, _frechet("fid"), {"fid": ("FID, Fréchet distance", "lower is better")}),
    "sfid": FeatureMetric(
        "spatial", LEAST, _frechet("sfid"), {"sfid": ("sFID, of spatial features", "lower is better")}
    ),
    "is": FeatureMetric(
        "probabilities", 2 * SPLITS, _inception, {"is": ("IS, inception score", "higher: sure and varied")}
    ),
    "prdc": FeatureMetric(
        "pooled",
        NEIGHBOURS + 1,
        _coverage,
        {
            "precision": ("precision", "share of samples among the data"),
            "recall": ("recall", "share of the data among samples"),
            "density": ("density", "1 is the data's own"),
            "coverage": ("coverage", "share of the data near a sample"),
        },
    ),
}

LIKELIHOODS = ("bits", "ode")
"""Scores of a model itself, for which nothing is sampled."""

OTHER_METRICS = ("agreement", "memorization", "colour", "pixels", *LIKELIHOODS)
"""Scores that are made of more than features."""

METRICS = (*FEATURE_METRICS, *OTHER_METRICS)
"""All groups of scores, in the order of the report."""

ALIASES = {"precision": "prdc", "recall": "prdc", "density": "prdc", "coverage": "prdc", "memorisation": "memorization"}


def parse_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """Return the groups that names stand for, in the order of the report; "all" stands for every one.

    Raises:
        ConfigError: for a name that is not known; the nearest is named.
    """
    wanted = set()
    for name in names:
        plain = ALIASES.get(name.strip().lower(), name.strip().lower())
        if plain != "all" and plain not in METRICS:
            known = ", ".join((*METRICS, "all"))
            raise ConfigError(f"unknown metric '{name}'{nearest(plain, (*METRICS, 'all'))}; known are {known}")
        wanted |= set(METRICS) if plain == "all" else {plain}
    if not wanted:
        raise ConfigError(f"no metric is asked for; known are {', '.join((*METRICS, 'all'))}")
    return tuple(name for name in METRICS if name in wanted)


def feature_scores(name: str, evidence: Evidence) -> list[Score]:
    """Return the scores of one group over features, with the floor that held-out pictures set.

    Raises:
        DataError: if there are too few pictures, or their features are all the same.
    """
    metric = FEATURE_METRICS[name]
    samples, held_out = evidence.samples[metric.needs], evidence.held_out[metric.needs]
    if min(len(samples), len(evidence.train[metric.needs])) < metric.least:
        raise DataError(f"{counted(len(samples), 'picture')}; it needs at least {metric.least} a side")
    score = metric.prepare(evidence.train[metric.needs])
    values = score(samples)
    equal = min(len(samples), len(held_out))
    floor = score(thinned(held_out, equal)) if equal >= metric.least else {}
    at_floor = values if equal == len(samples) else score(thinned(samples, equal)) if floor else {}
    return [
        Score(
            name=part,
            label=label,
            value=values[part][0],
            n=len(samples),
            meaning=meaning,
            error=values[part][1],
            floor=floor[part][0] if floor else None,
            floor_error=floor[part][1] if floor else None,
            floor_n=equal if floor else None,
            at_floor_n=at_floor[part][0] if floor else None,
        )
        for part, (label, meaning) in metric.labels.items()
    ]
