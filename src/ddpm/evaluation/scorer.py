"""The score of samples by which training keeps its best model: a `ddpm.training.scoring.Scorer`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data import ProgressFactory, Store
from ddpm.data.progress import silent
from ddpm.engine import choose_engine
from ddpm.errors import DataError
from ddpm.estimate import Estimate
from ddpm.evaluation.extractors.features import Extractor, load_extractor
from ddpm.evaluation.metrics import FEATURE_METRICS, Values
from ddpm.evaluation.plan import MOST_REFERENCE, default_features
from ddpm.evaluation.scores.spread import spread
from ddpm.evaluation.shards import Job, work_root
from ddpm.evaluation.subject import Stored, scale_of
from ddpm.evaluation.workers import run_jobs
from ddpm.model import Model
from ddpm.training.plan import Plan
from ddpm.training.scoring import Scorer

_METRICS = {"frechet": "fid", "kernel": "kid"}
_MOST_STEPS = 50  # of the sampler: a score tells two models apart, and must not cost more than the training between


@dataclass(frozen=True, eq=False)
class DistanceScorer:
    """The distance between features of fixed samples and of the training split.

    Attributes:
        name: "frechet" or "kernel".
        samples: how many.
        seed: of their noise.
        extractor: of the features.
        value_range: of the pictures.
        distance: features [N, D] -> the score by its name and its error, against the training split.
    """

    name: str
    samples: int
    seed: int
    extractor: Extractor
    value_range: tuple[float, float]
    distance: Callable[[NDArray[Any]], Values]

    @property
    def words(self) -> str:
        """What is scored how."""
        return f"the {self.name} distance of {self.samples:,} samples to the training split (features: " + (
            f"{self.extractor.name}); what a score takes is said beside it"
        )

    def recipe(self, model: Model) -> str:
        """Return the number of samples, their sampler, and the extractor with its hash."""
        advice = json.dumps(json.loads(model.within(_MOST_STEPS).sampling.model_dump_json()), sort_keys=True)
        features = f"{self.extractor.name} {(self.extractor.sha256 or '')[:12]}".strip()
        return f"{self.samples} samples, {advice}, {features}"

    def __call__(self, model: Model) -> Estimate:
        """Sample the model and return the distance; see `Scorer`."""
        pictures = model.within(_MOST_STEPS).sample(self.samples, seed=self.seed)
        values = self.distance(self.extractor(pictures, self.value_range).pooled)
        value, error = values[_METRICS[self.name]]
        return Estimate(value, error or 0.0)


def scorer_for(plan: Plan, *, progress: ProgressFactory = silent) -> Scorer | None:
    """Return what scores the samples of a run, or None where its best model is chosen by held-out loss.

    Features of the training split are made once and kept, as for `ddpm evaluate`.

    Args:
        plan: of the run.
        progress: told of every training picture whose features are made.

    Raises:
        DdpmError: as `extractor_for`; DataError if the extractor cannot read the pictures.
    """
    extractor = extractor_for(plan)
    if extractor is None:
        return None
    training = plan.config.training
    device = choose_engine(training.device, training.precision).device
    reference = _training_features(plan.store, extractor, device, progress)
    return DistanceScorer(
        name=training.score,
        samples=training.score_samples,
        seed=plan.config.seed,
        extractor=extractor,
        value_range=plan.store.value_range,
        distance=FEATURE_METRICS[_METRICS[training.score]].prepare(reference),
    )


def extractor_for(plan: Plan) -> Extractor | None:
    """Return the extractor that a run is scored with, or None where its best model is chosen by held-out loss.

    Raises:
        ConfigError: for an extractor that is not known.
        ModelFileError: for a file of an extractor that is not what it should be.
        DataError: if there are too few pictures.
    """
    training = plan.config.training
    if training.score == "loss":
        return None
    least = FEATURE_METRICS[_METRICS[training.score]].least
    if len(plan.store.train) < least:
        raise DataError(
            f"training.score is '{training.score}', but there are {len(plan.store.train):,} training pictures; "
            f"it needs at least {least}"
        )
    device = choose_engine(training.device, training.precision).device
    return load_extractor(training.score_features or default_features(plan.store), device=device)


def _training_features(
    store: Store, extractor: Extractor, device: str, progress: ProgressFactory
) -> NDArray[np.float32]:
    rows = spread(store.train, MOST_REFERENCE)
    job = Job(
        source=Stored(store, store.fingerprint, rows, scale_of(store)),
        count=len(rows),
        scale=store.value_range,
        extractor=extractor,
        extractor_key={"sha256": extractor.sha256, **extractor.recipe()},
        with_spatial=False,
        keeps_pictures=False,
        device=device,
        root=work_root(),
    )
    run_jobs({"features of training pictures": job}, processes=1, progress=progress)
    return job.features()["pooled"]
