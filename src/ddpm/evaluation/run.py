"""From a plan to a report: samples, features of both sides, scores, and the pictures that show what they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.codec import Pictures
from ddpm.conditions.asked import draw
from ddpm.data import ProgressFactory
from ddpm.data.progress import silent
from ddpm.errors import DataError
from ddpm.evaluation.copies import copies
from ddpm.evaluation.likelihood.scores import bound_scores, histogram_scores, ode_scores
from ddpm.evaluation.metrics import FEATURE_METRICS, HEADLINE, Evidence, Score, feature_scores
from ddpm.evaluation.plan import Plan
from ddpm.evaluation.report.exhibits import Exhibits
from ddpm.evaluation.report.report import Report
from ddpm.evaluation.scores.agreement import Agreement, agreement
from ddpm.evaluation.scores.colour import ColourDrift, colour_drift
from ddpm.evaluation.scores.pixel_scores import PixelScores, pixel_scores
from ddpm.evaluation.scores.spread import spread
from ddpm.evaluation.shards import Job, KeptRows, clean, digest
from ddpm.evaluation.workers import run_jobs
from ddpm.model import Model
from ddpm.words import counted

_WORST = 3  # classes that a note names
_MOST_VALUES = 2**28  # of pictures in memory at once, a side


def run(plan: Plan, *, progress: ProgressFactory = silent) -> Report:
    """Do what a plan says; what an earlier call has done, whole shards, is not done again.

    Args:
        plan: what to do.
        progress: told of every picture.

    Raises:
        DdpmError: if pictures or features are broken, or a process was killed.
    """
    jobs = {"samples": plan.samples} if plan.needs_samples else {}
    if plan.samples.extractor is not None:
        jobs |= {"training pictures": plan.train, "held-out pictures": plan.held_out}
    clean(plan.samples.root, [folder for job in jobs.values() for folder in job.folders()])
    run_jobs(jobs, processes=plan.processes, progress=progress)
    return _Scoring(plan, progress).report()


class _Scoring:
    """The scores of a plan whose shards are there."""

    def __init__(self, plan: Plan, progress: ProgressFactory) -> None:
        self.plan = plan
        self.progress = progress
        self.pictures = np.empty((0, *plan.store.pictures.shape[1:]), plan.store.pictures.dtype)
        self.notes = list(plan.notes)
        if plan.needs_samples:
            self.pictures, constant = _gather(plan.samples)
            self.notes = [*_health(constant, plan), *self.notes]
        self.scores: list[Score] = []
        self.details: dict[str, Any] = {}
        self.left_out = dict(plan.left_out)
        self.exhibits = Exhibits.of(self.pictures, plan.store)

    def report(self) -> Report:
        """Compute every group of scores in the order of the report; one that has no value is left out, with why."""
        others: Mapping[str, Callable[[Evidence | None], None]] = {
            "agreement": self._agreement,
            "memorization": self._memorization,
            "colour": self._colour,
            "pixels": self._pixels,
            "bits": self._bits,
            "ode": self._ode,
        }
        evidence = self._evidence()
        for name in _order(self.plan):
            try:
                if name in FEATURE_METRICS:
                    assert evidence is not None  # no plan has such a metric without an extractor
                    self.scores += feature_scores(name, evidence)
                else:
                    others[name](evidence)
            except DataError as error:
                if self.plan.is_demand:
                    raise DataError(f"no {name} here: {error}") from error
                self.left_out[name] = str(error)
        if not self.scores:
            reasons = "; ".join(dict.fromkeys(self.left_out.values()))
            raise DataError(f"no score is to be had of these pictures: {reasons}")
        return Report(
            title=self.plan.title,
            recipe=self.plan.recipe,
            scores=tuple(self.scores),
            details=self.details,
            notes=tuple(self.notes),
            left_out=self.left_out,
            exhibits=self.exhibits,
        )

    def _evidence(self) -> Evidence | None:
        plan = self.plan
        if plan.samples.extractor is None:
            return None
        return Evidence(plan.samples.features(), plan.train.features(), plan.held_out.features())

    def _agreement(self, evidence: Evidence | None) -> None:
        plan, classes = self.plan, self.plan.classes
        assert evidence is not None  # no plan has it without a classifier
        asks = ask_again(self._model(), plan.count, plan.recipe["samples"]["seed"])
        asked = np.asarray([classes.index(name) for name in asks], dtype=np.int64)
        found = agreement(evidence.samples["probabilities"], asked, classes)
        labels, names = plan.store.labels, plan.store.classes
        floor: Agreement | None = None
        if labels is not None and set(names) <= set(classes):
            real = np.asarray([classes.index(names[label]) for label in labels[plan.store.held_out]], dtype=np.int64)
            floor = agreement(evidence.held_out["probabilities"], real, classes)
        self.scores.append(
            Score(
                name="agreement",
                label="classifier agrees with the label",
                value=found.share.value,
                n=plan.count,
                meaning="share of samples; higher is better",
                error=found.share.error,
                floor=floor.share.value if floor else None,
                floor_error=floor.share.error if floor else None,
                floor_n=len(plan.store.held_out) if floor else None,
            )
        )
        self.details["agreement"] = found.as_tree()
        worst = sorted(found.by_class.items(), key=lambda item: item[1][0])[:_WORST]
        told = ", ".join(f"'{name}' {share:.1%} of {count:,}" for name, (share, count) in worst)
        self.notes.append(f"the classifier agrees least with the labels {told}")

    def _memorization(self, evidence: Evidence | None) -> None:
        plan = self.plan
        rows = spread(plan.store.train, plan.train.count)
        features = plan.recipe["measure"]["features"]
        self.details["memorization"] = {}
        for found in copies(self.pictures, plan.store, rows, features["name"] if features else None, evidence):
            self.scores.append(found.score)
            self.details["memorization"][found.measure] = found.details
            self.exhibits.pairs[found.measure] = found.pairs

    def _colour(self, evidence: Evidence | None) -> None:
        store = self.plan.store
        train = _some(store.pictures, spread(store.train, self.plan.train.count))
        held_out = _some(store.pictures, store.held_out)
        found = colour_drift(self.pictures, train, store.value_range)
        floor = colour_drift(held_out, train, store.value_range) if len(held_out) > 1 else None
        channel, shift = _largest_shift(found)
        self.scores.append(
            Score(
                name="colour",
                label="colour shift, largest of a channel",
                value=shift,
                n=len(self.pictures),
                meaning="share of the range; 0 is perfect",
                error=found.mean_error[channel],
                floor=_largest_shift(floor)[1] if floor else None,
                floor_error=floor.mean_error[_largest_shift(floor)[0]] if floor else None,
                floor_n=len(held_out) if floor else None,
            )
        )
        self.details["colour"] = asdict(found)
        self.exhibits.add_histograms(self.pictures, train, store.value_range)

    def _pixels(self, evidence: Evidence | None) -> None:
        found = pixel_scores(self.pictures, self.plan.store)
        self.scores += _scores_of_pixels(found)
        self.details["pixels"] = found.as_tree()

    def _bits(self, evidence: Evidence | None) -> None:
        plan = self.plan
        keeper = KeptRows(plan.samples.root / f"bits-{digest(plan.samples.source.key())}")
        scores, found = bound_scores(self._model(), plan.store, self._unseen(), keeper, self.progress)
        self.scores += scores
        self.details["bits"] = found.as_tree()
        self.exhibits.bits = found

    def _ode(self, evidence: Evidence | None) -> None:
        scores, found = ode_scores(self._model(), self.plan.store, self._unseen(), self.progress)
        self.scores += scores if "bits" in self.plan.metrics else [*scores, *histogram_scores(self.plan.store)]
        self.details["ode"] = found.as_tree()

    def _model(self) -> Model:
        assert self.plan.model is not None  # no plan asks a likelihood of pictures
        return self.plan.model.to(self.plan.samples.device)

    def _unseen(self) -> int:
        return min(self.plan.count, len(self.plan.store.held_out))


def ask_again(model: Model, count: int, seed: int) -> list[str]:
    """Return the class of each sample that a model has drawn for itself."""
    return [each.label for each in draw(model.conditions, range(count), seed) if each.label is not None]


def _order(plan: Plan) -> list[str]:
    """Return the groups of a plan: KID leads where there are too few samples for FID."""
    if plan.count < HEADLINE or "fid" not in plan.metrics:
        return list(plan.metrics)
    return ["fid", *(name for name in plan.metrics if name != "fid")]


def _gather(job: Job) -> tuple[Pictures, NDArray[np.bool_]]:
    """Return the pictures of a job, as many as memory should hold, and for all of them whether they are constant."""
    kept: list[Pictures] = []
    constant: list[NDArray[np.bool_]] = []
    values = 0
    for pictures in job.pictures():
        flat = pictures.reshape(len(pictures), -1)
        if flat.dtype.kind == "f" and not np.isfinite(flat).all():
            raise DataError("pictures hold values that are not finite; what made them is broken: no score is computed")
        constant.append((flat == flat[:, :1]).all(1))
        if values < _MOST_VALUES:
            kept.append(pictures)
            values += pictures.size
    return np.concatenate(kept), np.concatenate(constant)


def _health(constant: NDArray[np.bool_], plan: Plan) -> list[str]:
    """Return what must be known before any score.

    Raises:
        DataError: if every picture is of a single colour.
    """
    if constant.all() and plan.store.pictures.shape[1:3] != (1, 1):
        raise DataError(
            f"all {len(constant):,} pictures are of a single colour: the model, or what wrote them, is broken; "
            "no score is computed"
        )
    notes = []
    if constant.any() and plan.store.pictures.shape[1:3] != (1, 1):
        first = int(constant.argmax())
        notes.append(
            f"{counted(int(constant.sum()), 'picture is', 'pictures are')} of a single colour, the first is number "
            f"{first}"
        )
    if plan.count < HEADLINE and {"fid", "sfid"} & set(plan.metrics):
        notes.append(
            f"{counted(plan.count, 'picture is', 'pictures are')} too few for FID as a headline ({HEADLINE:,} at "
            "least): it is too large by an "
            "amount that depends on their number and on the model; KID has no such bias and comes with its error"
        )
    extractor = (plan.recipe["measure"]["features"] or {}).get("name")
    if extractor == "inception" and plan.store.pictures.shape[3] == 1:
        notes.append("gray pictures are shown to Inception as RGB; it knows photographs, so compare only among these")
    return notes


def _scores_of_pixels(found: PixelScores) -> list[Score]:
    samples, perfect = found.samples, "1 is perfect"
    scores = [
        Score("frechet_ratio", "pixels: Fréchet, to held-out's", found.frechet_ratio, samples, perfect),
        Score(
            "two_sample_accuracy",
            "pixels: 1-neighbour accuracy",
            found.two_sample_accuracy,
            min(samples, found.held_out),
            "0.5 is perfect, 1 is worst",
        ),
        Score(
            "copying_ratio", "pixels: distance to training", found.copying_ratio, samples, f"{perfect}, 0 is copying"
        ),
    ]
    if found.sure_ratio is not None:
        scores.append(Score("sure_ratio", "pixels: classifier is sure", found.sure_ratio, samples, perfect))
    return scores


def _largest_shift(drift: ColourDrift) -> tuple[int, float]:
    shifts = [abs(mean - real) for mean, real in zip(drift.mean, drift.mean_real, strict=True)]
    channel = int(np.argmax(shifts))
    return channel, shifts[channel]


def _some(pictures: Pictures, rows: NDArray[np.int64]) -> Pictures:
    """Return rows of pictures, evenly spread where all would not fit into memory."""
    most = max(2, _MOST_VALUES // int(np.prod(pictures.shape[1:])))
    chosen: Pictures = pictures[spread(rows, most)]
    return chosen
