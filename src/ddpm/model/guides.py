"""Guides: what steers a model's samples from outside, each of a file: a classifier of x_t, a worse model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from ddpm.classifier import Classifier
from ddpm.conditions import Condition
from ddpm.config.conditions import ConditionSpec
from ddpm.diffusion.denoiser import Denoiser, bound
from ddpm.diffusion.guidance import Guidance, LogProbability, autoguided, classifier_guided, mean_shift
from ddpm.diffusion.samplers.ancestral import MeanShift
from ddpm.diffusion.schedules import NoiseSchedule
from ddpm.errors import SamplingError, nearest
from ddpm.files import sha256_of

if TYPE_CHECKING:
    from ddpm.model import Model

Form = Literal["score", "mean"]

_SAME_SCHEDULE = 1e-9  # largest difference of alpha-bar


@dataclass(frozen=True, eq=False)
class Guide(ABC):
    """What steers a model.

    Attributes:
        file: that it was read from.
        sha256: of the file.
    """

    file: Path
    sha256: str

    @property
    @abstractmethod
    def spec(self) -> ConditionSpec | None:
        """What can be asked of pictures because of it; None: what the model itself knows."""

    @abstractmethod
    def denoiser(self, model: Model, condition: Condition | None, guidance: Guidance) -> Denoiser:
        """Return the model's denoiser under its guidance; x_0 may leave the range of the data."""

    def mean_shift(self, model: Model, condition: Condition, guidance: Guidance) -> MeanShift | None:
        """Return what moves the means of the sampler `ddpm`; None: nothing."""
        return None

    @abstractmethod
    def as_tree(self) -> dict[str, Any]:
        """Return its kind and options as JSON values."""


@dataclass(frozen=True, eq=False)
class ClassifierGuide(Guide):
    """Classifier guidance (Dhariwal & Nichol 2021).

    Attributes:
        classifier: of x_t.
        form: "score" for any sampler (Alg. 2), or "mean" for `ddpm` (Alg. 1).
    """

    classifier: Classifier
    form: Form

    @property
    def spec(self) -> ConditionSpec:
        """Its classes, each as often as the others."""
        classes = self.classifier.classes
        return ConditionSpec(classes=classes, class_counts=(1,) * len(classes), dropout=0.5)

    def denoiser(self, model: Model, condition: Condition | None, guidance: Guidance) -> Denoiser:
        """Return the model's denoiser, in the score form under guidance; see `Guide`."""
        plain = bound(model.conditional_denoiser(), condition if model.conditions.any else None)
        if condition is None or self.form == "mean":
            return plain
        return classifier_guided(plain, self._log_probability(condition), _added(model, guidance), model.schedule)

    def mean_shift(self, model: Model, condition: Condition, guidance: Guidance) -> MeanShift | None:
        """Return the shift of the mean form; None in the score form."""
        if self.form == "score":
            return None
        return mean_shift(self._log_probability(condition), _added(model, guidance))

    def as_tree(self) -> dict[str, Any]:
        """Return kind and form."""
        return {"kind": "classifier", "form": self.form}

    def _log_probability(self, condition: Condition) -> LogProbability:
        assert condition.label is not None  # `ClassifierGuide.spec` has classes, so whoever asks has a label
        labels = condition.label

        def log_probability(x_t: Tensor, t: Tensor) -> Tensor:
            with torch.autocast(x_t.device.type, enabled=False):
                every = self.classifier.log_probability(x_t.float(), t.to(x_t.device))
            of_label = every.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
            return torch.where(labels >= 0, of_label, torch.zeros_like(of_label))

        return log_probability


@dataclass(frozen=True, eq=False)
class WorseModel(Guide):
    """Autoguidance (Karras et al. 2024a): away from a smaller or earlier model.

    Attributes:
        worse: that model.
    """

    worse: Model

    @property
    def spec(self) -> None:
        """None: it knows what the model knows."""
        return

    def denoiser(self, model: Model, condition: Condition | None, guidance: Guidance) -> Denoiser:
        """Return the model's denoiser away from the worse one; see `Guide`."""
        good, bad = (bound(each.conditional_denoiser(), condition) for each in (model, self.worse))
        return autoguided(good, bad, guidance, model.schedule)

    def as_tree(self) -> dict[str, Any]:
        """Return the kind."""
        return {"kind": "worse_model"}


def guided_by_classifier(model: Model, path: str | Path, form: str = "score") -> Model:
    """Return the model under a classifier of x_t: classes can be asked for, by the scale `sampling.guidance` (or 1).

    An unconditional model at scale 1 samples the class; one that knows the classes does so itself, and the classifier
    adds what is over 1: the scale means the same in all kinds of guidance.

    Args:
        model: unconditional, or conditioned on the same classes.
        path: of the classifier.
        form: "score", or "mean" for the sampler `ddpm`.

    Raises:
        ModelFileError: if there is no classifier.
        SamplingError: if it knows no x_t, or those of another schedule or of other pictures, or other classes.
    """
    if form not in get_args(Form):
        raise SamplingError(f"guidance form '{form}'{nearest(form, get_args(Form))}; expected score or mean")
    file = Path(path)
    classifier = Classifier.load(file, device=str(model.device))
    if classifier.schedule is None:
        raise SamplingError(
            f"'{file}' classifies clean pictures, and guidance needs p(y | x_t); train one with "
            "'ddpm train-classifier DATA --noisy --schedule-of MODEL'"
        )
    _check_same(file, model, classifier.schedule, classifier.picture_shape, classifier.codec)
    if model.conditions.any and tuple(classifier.classes) != tuple(model.conditions.classes):
        raise SamplingError(
            f"'{file}' knows the classes {_listed(classifier.classes)}, the model {_listed(model.conditions.classes)}; "
            "expected the same, or a model without conditions"
        )
    if form == "mean" and model.sampling.sampler != "ddpm":
        raise SamplingError(
            f"the mean form moves the means of the sampler 'ddpm', but the sampler is '{model.sampling.sampler}'; use "
            "the score form, or --sampler ddpm"
        )
    return replace(model, guide=ClassifierGuide(file, sha256_of(file), classifier, _form(form)))


def guided_by_worse(model: Model, path: str | Path) -> Model:
    """Return the model under autoguidance, at the scale `sampling.guidance`; 1 is none.

    Args:
        model: the good one.
        path: of the worse one, its file or its run folder.

    Raises:
        ModelFileError: if there is none.
        SamplingError: if it is of another schedule, of other pictures or of other conditions.
    """
    from ddpm.model import Model
    from ddpm.model_file import locate

    file = locate(Path(path))
    worse = Model.load(file, device=str(model.device))
    _check_same(file, model, worse.schedule, worse.picture_shape, worse.codec)
    ours, theirs = (each.conditions.model_copy(update={"dropout": 0.0}) for each in (model, worse))
    if ours != theirs:
        raise SamplingError(f"'{file}' was trained with other conditions than the model; expected the same")
    return replace(model, guide=WorseModel(file, sha256_of(file), worse))


def _added(model: Model, guidance: Guidance) -> Guidance:
    """Return what a classifier has to add: a model that knows the class is at scale 1 already."""
    if not model.conditions.any:
        return guidance
    if guidance.scale < 1:
        raise SamplingError(
            f"guidance {guidance.scale:g} by a classifier, of a model that knows the class; expected at least 1"
        )
    return replace(guidance, scale=guidance.scale - 1)


def _check_same(
    file: Path, model: Model, schedule: NoiseSchedule, picture_shape: tuple[int, int, int], codec: object
) -> None:
    ours = model.schedule.alphas_cumprod
    theirs = schedule.alphas_cumprod
    if len(ours) != len(theirs) or float((ours - theirs).abs().max()) > _SAME_SCHEDULE:
        raise SamplingError(
            f"'{file}' was trained on x_t of another noise schedule than the model's; expected the same: "
            "--schedule-of MODEL takes it from a model"
        )
    if picture_shape != model.picture_shape or codec != model.codec:
        raise SamplingError(
            f"'{file}' is for pictures of {list(picture_shape)} in {codec}, the model's are "
            f"{list(model.picture_shape)} in {model.codec}; expected the same"
        )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "none"


def _form(name: str) -> Form:
    return "mean" if name == "mean" else "score"
