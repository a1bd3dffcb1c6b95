"""Classifier: a network that knows the classes of a data set, in one self-describing file.

It gives the features of Fréchet distances and their kind where no published network fits or can be fetched, and, if it
was trained on x_t, the gradient of classifier guidance.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.codec import Pictures, PixelCodec
from ddpm.config import MIN_SIZE, ClassifierConfig
from ddpm.diffusion.noise import NoiseSource, stream
from ddpm.diffusion.process import q_sample
from ddpm.diffusion.schedules import NoiseSchedule
from ddpm.errors import ConfigError, DataError, DdpmError, ModelFileError
from ddpm.model_file import CLASSIFIER_FORMAT, read_model_file, write_model_file
from ddpm.networks.classifier import HalfUNet

OnBatch = Callable[[int], object]

_VALUES_A_BATCH = 2**18
"""Pixel values classified at once by default: 334 pictures of 28x28."""

_MOST_VALUES = 2**28
"""Most values of a picture that a file may announce: 1 GiB of float32."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A share of pictures whose class was found.

    Attributes:
        correct: how many.
        n: of how many.
    """

    correct: int
    n: int

    @property
    def share(self) -> float:
        """The accuracy, 0 to 1; not a number without pictures."""
        return self.correct / self.n if self.n else math.nan

    @property
    def standard_error(self) -> float:
        """Of a share of n independent pictures: sqrt(p (1 - p) / n)."""
        return math.sqrt(self.share * (1 - self.share) / self.n) if self.n else math.nan

    def __str__(self) -> str:
        return f"{self.share:.2%} (n = {self.n:,}, standard error {self.standard_error:.2%})"


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained classifier p(y | x), or p(y | x_t) if it has a schedule.

    Attributes:
        network: (x_t [B, C, H, W], t [B] or none, sqrt(alpha-bar_t) [B] or none) -> logits [B, K].
        config: what it was built from and trained with.
        codec: pictures <-> x_0.
        classes: names of the K classes.
        picture_shape: (H, W, C).
        schedule: of the x_t that it was trained on; none: clean pictures.
        provenance: plain JSON values: what it was trained on and how well.
    """

    network: HalfUNet
    config: ClassifierConfig
    codec: PixelCodec
    classes: tuple[str, ...]
    picture_shape: tuple[int, int, int]
    schedule: NoiseSchedule | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def num_parameters(self) -> int:
        """How many numbers the network holds."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def to(self, device: torch.device | str) -> Classifier:
        """Move the network to a device, and return the classifier."""
        self.network.to(device)
        return self

    def features(
        self, pictures: Pictures, *, batch_size: int | None = None, on_batch: OnBatch | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the pooled layer [N, D] and the probabilities of the classes [N, K] of pictures [N, H, W, C].

        Always in float32, whatever autocast is on, so that scores do not depend on a machine's fast path. A classifier
        of x_t sees the pictures as they are, at t = 0, whose noise is the least.

        Args:
            pictures: in the dtype, shape and range of values of the training data.
            batch_size: pictures at once; none: what fits in a few hundred MiB.
            on_batch: told after each batch how many pictures it had, for a progress bar.

        Raises:
            DataError: for pictures of another kind than those of the training.
        """
        self._check_pictures(pictures)
        pooled = [np.empty((0, self.config.features), np.float32)]
        probabilities = [np.empty((0, len(self.classes)), np.float32)]
        with torch.no_grad(), _exact(self.device):
            for rows in self._batches(len(pictures), batch_size):
                x_0 = self.codec.encode(pictures[rows]).to(self.device)
                t = None if self.schedule is None else torch.zeros(len(x_0), device=self.device)
                h = self.network.pooled(x_0, t)
                pooled.append(h.cpu().numpy())
                logits = self.network.classes_of(h, signal_at(t, self.schedule))
                probabilities.append(logits.softmax(dim=1).cpu().numpy())
                if on_batch is not None:
                    on_batch(len(x_0))
        return np.concatenate(pooled), np.concatenate(probabilities)

    def accuracy(self, pictures: Pictures, labels: NDArray[np.int64], *, on_batch: OnBatch | None = None) -> Accuracy:
        """Return how many of the pictures [N, H, W, C] are given their class, an index into `classes`.

        Raises:
            DataError: for pictures of another kind than those of the training.
        """
        probabilities = self.features(pictures, on_batch=on_batch)[1]
        return Accuracy(int((probabilities.argmax(axis=1) == labels).sum()), len(labels))

    def accuracy_by_noise(
        self, pictures: Pictures, labels: NDArray[np.int64], *, parts: int = 5, seed: int = 0
    ) -> tuple[Accuracy, ...]:
        """Return the accuracy on x_t in equal parts of [0, T), least noise first.

        Each picture is noised once; its time and noise are a function of (seed, its place among the pictures).

        Raises:
            ConfigError: if the classifier knows clean pictures only.
            DataError: for pictures of another kind than those of the training.
        """
        schedule = self._noisy_schedule()
        self._check_pictures(pictures)
        times = stream(seed, "classifier-t").integers(0, len(schedule), size=len(pictures))
        found = np.zeros(len(pictures), dtype=bool)
        with torch.no_grad(), _exact(self.device):
            for rows in self._batches(len(pictures), None):
                x_0 = self.codec.encode(pictures[rows])
                numbers = range(rows.start, rows.start + len(x_0))
                eps = NoiseSource(seed, numbers, x_0.shape[1:]).normal(0, "classifier-eps")
                t = torch.from_numpy(times[rows])
                x_t = q_sample(x_0, t, eps, schedule).to(self.device)
                found[rows] = self.log_probability(x_t, t).argmax(dim=1).cpu().numpy() == labels[rows]
        part = times * parts // len(schedule)
        return tuple(Accuracy(int(found[part == k].sum()), int((part == k).sum())) for k in range(parts))

    def log_probability(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return log p(y | x_t) of every class, whose gradient guides sampling (Dhariwal & Nichol 2021, Sec. 4.1).

        Gradients reach `x_t` if it asks for them, also where the caller has switched them off; the weights get none.

        Args:
            x_t: [B, C, H, W], at least float32.
            t: [B], of any real type.

        Returns:
            float32 [B, K], natural logarithm; float64 if the weights are float64.

        Raises:
            ConfigError: if the classifier knows clean pictures only.
        """
        schedule = self._noisy_schedule()
        t = t.to(x_t.device)
        with torch.enable_grad():
            found: Tensor = self.network(x_t, t, signal_at(t, schedule)).log_softmax(dim=1)
        return found

    def save(self, path: str | Path) -> None:
        """Write the classifier as one safetensors file, atomically."""
        description = {
            "config": json.loads(self.config.model_dump_json()),
            "codec": {
                "levels": self.codec.levels,
                "value_range": list(self.codec.value_range),
                "dtype": self.codec.dtype,
            },
            "classes": list(self.classes),
            "picture_shape": list(self.picture_shape),
            "provenance": self.provenance,
        }
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        if self.schedule is not None:
            tensors["schedule.betas"] = self.schedule.betas
        write_model_file(Path(path), description, tensors, CLASSIFIER_FORMAT)

    @staticmethod
    def load(path: str | Path, *, device: str = "cpu") -> Classifier:
        """Read a classifier from its file.

        Raises:
            ModelFileError: if there is none, or it is truncated, a pickle, or of another kind.
        """
        path = Path(path)
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise ModelFileError(
                f"'{path}' {what}; expected the file of a classifier, which 'ddpm train-classifier DATA' writes"
            )
        description, tensors = read_model_file(path, CLASSIFIER_FORMAT)
        try:
            classifier = _from_parts(description, tensors)
        except (DdpmError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelFileError(f"'{path}' describes no valid classifier: {type(error).__name__}: {reason}") from error
        return classifier.to(device)

    def _noisy_schedule(self) -> NoiseSchedule:
        if self.schedule is None:
            raise ConfigError(
                "this classifier was trained on clean pictures and knows nothing of x_t; train one with "
                "'ddpm train-classifier DATA --noisy'"
            )
        return self.schedule

    def _batches(self, count: int, batch_size: int | None) -> Iterator[slice]:
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch size {batch_size}; expected at least 1")
        size = batch_size or max(1, _VALUES_A_BATCH // math.prod(self.picture_shape))
        return (slice(start, start + size) for start in range(0, count, size))

    def _check_pictures(self, pictures: Pictures) -> None:
        height, width, channels = self.picture_shape
        if pictures.ndim != 4 or pictures.shape[1:] != self.picture_shape:
            raise DataError(
                f"pictures of shape {list(pictures.shape)}; this classifier expects [N, {height}, {width}, "
                f"{channels}]: use data of this size, or train one on yours with 'ddpm train-classifier'"
            )
        if pictures.dtype.name != self.codec.dtype:
            raise DataError(f"pictures of {pictures.dtype.name}; this classifier expects {self.codec.dtype}")
        if pictures.dtype.kind == "f":
            if not np.isfinite(pictures).all():
                raise DataError("some pictures hold values that are not finite; expected none")
        elif (
            pictures.size
            and not self.codec.value_range[0] <= pictures.min() <= pictures.max() <= (self.codec.value_range[1])
        ):
            low, high = self.codec.value_range
            raise DataError(
                f"pictures with values from {pictures.min()} to {pictures.max()}; this classifier's go from {low:g} to "
                f"{high:g}"
            )


def signal_at(t: Tensor | None, schedule: NoiseSchedule | None) -> Tensor | None:
    """Return sqrt(alpha-bar_t), float32 [B] where t [B] is; None of clean pictures, which have neither."""
    if t is None or schedule is None:
        return None
    return schedule.signal_and_noise(t)[0].float().to(t.device)


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Compute in float32: neither autocast nor the ten-bit products of TF32."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            flags = torch.backends.cudnn.flags
            stack.enter_context(flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False))
        yield


def build_classifier_network(
    config: ClassifierConfig, picture_shape: tuple[int, int, int], num_classes: int
) -> HalfUNet:
    """Return the network that `config` describes, with float32 weights drawn from torch's global generator.

    Raises:
        ConfigError: if the description contradicts itself or the shape.
    """
    return HalfUNet(
        config.network,
        picture_shape,
        num_classes=num_classes,
        num_features=config.features,
        stem_stride=config.stem_stride,
        timed=config.noisy,
    )


def _from_parts(description: dict[str, Any], tensors: dict[str, Tensor]) -> Classifier:
    config = ClassifierConfig.model_validate_json(json.dumps(description["config"]))
    height, width, channels = description["picture_shape"]
    shape = (height, width, channels)
    if not all(type(side) is int for side in shape) or min(height, width) < MIN_SIZE or channels < 1:
        raise ValueError(f"picture_shape is {shape}; expected height and width from {MIN_SIZE}, and a channel")
    if math.prod(shape) > _MOST_VALUES:
        raise ValueError(f"picture_shape is {shape}; expected at most {_MOST_VALUES:,} values")
    classes = tuple(str(name) for name in description["classes"])
    weights = {name.removeprefix("network."): tensor for name, tensor in tensors.items() if name.startswith("network.")}
    for name, tensor in weights.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"weight '{name}' is {tensor.dtype}, expected torch.float32")
    with torch.device("meta"):  # so that a wrong description is refused before it takes any memory
        network = build_classifier_network(config, shape, len(classes))
    network.load_state_dict(weights, strict=True, assign=True)
    network.eval().requires_grad_(False)
    codec, provenance = description["codec"], description["provenance"]
    low, high = codec["value_range"]
    if not isinstance(provenance, dict):
        raise TypeError(f"provenance is {provenance!r}; expected an object")
    return Classifier(
        network=network,
        config=config,
        codec=PixelCodec(codec["levels"], (float(low), float(high)), codec["dtype"]),
        classes=classes,
        picture_shape=shape,
        schedule=NoiseSchedule(tensors["schedule.betas"]) if config.noisy else None,
        provenance=provenance,
    )
