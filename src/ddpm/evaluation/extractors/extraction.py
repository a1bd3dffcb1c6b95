"""Running a network over pictures: what every extractor of features does in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpm.errors import DataError
from ddpm.evaluation.scores.checks import check_finite
from ddpm.words import counted

Array = NDArray[np.float32]

GRAY = "RGB; gray is repeated as red, green and blue"


@dataclass(frozen=True, eq=False)
class Features:
    """What an extractor says of pictures.

    Attributes:
        pooled: float32 [N, D]: of the Fréchet and kernel distances, precision, recall, and copies.
        spatial: float32 [N, S], or None: of sFID.
        probabilities: float32 [N, K], or None: p(y|x), of the inception score.
    """

    pooled: Array
    spatial: Array | None = None
    probabilities: Array | None = None


class Outputs(NamedTuple):
    """What a network says of one batch: as `Features`, on the network's device."""

    pooled: Tensor
    spatial: Tensor | None = None
    probabilities: Tensor | None = None


@dataclass(frozen=True, eq=False)
class NetworkExtractor:
    """A network over RGB pictures, in batches, without gradients, in evaluation mode and float32.

    Attributes:
        name: of the extractor.
        sha256: of the file of its weights, or None where there is no one file.
        network: the module; it is set to evaluation mode at every call.
        outputs: RGB pictures, float32 [B, 3, H, W] in [0, 1], to the network's outputs.
        details: what belongs to the recipe beside name and hash.
        device: where it runs.
        batch_size: pictures at a time.
    """

    name: str
    sha256: str | None
    network: nn.Module
    outputs: Callable[[Tensor], Outputs]
    details: dict[str, Any] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch_size: int = 64

    def recipe(self) -> dict[str, Any]:
        """Return what another must know to get the same features."""
        return {"name": self.name, "sha256": self.sha256, **self.details, "precision": "float32", "channels": GRAY}

    def __call__(self, pictures: NDArray[Any], value_range: tuple[float, float]) -> Features:
        """Return the features of pictures [N, H, W, C], whose values lie in `value_range`.

        Raises:
            DataError: if the pictures are no gray or RGB ones, or hold values that are not finite.
        """
        check_pictures(pictures, value_range)
        if pictures.shape[3] not in (1, 3):
            raise DataError(_channels_refused(self.name, pictures.shape[3]))
        self.network.eval()
        with exact(self.device):
            batches = [
                _to_numpy(self.outputs(_rgb(pictures[start : start + self.batch_size], value_range, self.device)))
                for start in range(0, len(pictures), self.batch_size)
            ]
        return joined(batches)


def check_pictures(pictures: NDArray[Any], value_range: tuple[float, float]) -> None:
    """Refuse what no extractor can read.

    Raises:
        DataError: for another shape, no pictures, values that are not finite, or an empty range.
    """
    if pictures.ndim != 4 or 0 in pictures.shape:
        raise DataError(f"pictures of shape {pictures.shape}; expected at least one, [N, height, width, channels]")
    if not value_range[0] < value_range[1]:
        raise DataError(f"value range {value_range[0]:g} to {value_range[1]:g}; expected a least and a larger value")
    if pictures.dtype.kind == "f":
        check_finite(pictures, "pictures")


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Compute without gradients and in plain float32: scores of another precision are not the published ones."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        products = torch.backends.cuda.matmul
        before, products.allow_tf32 = products.allow_tf32, False
        try:
            with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
                yield
        finally:
            products.allow_tf32 = before


def joined(batches: list[Features]) -> Features:
    """Return the features of all batches, in order."""
    spatial = [batch.spatial for batch in batches if batch.spatial is not None]
    probabilities = [batch.probabilities for batch in batches if batch.probabilities is not None]
    return Features(
        np.concatenate([batch.pooled for batch in batches]),
        np.concatenate(spatial) if spatial else None,
        np.concatenate(probabilities) if probabilities else None,
    )


def _rgb(pictures: NDArray[Any], value_range: tuple[float, float], device: torch.device) -> Tensor:
    """Return float32 [B, 3, H, W], `value_range` mapped to [0, 1]."""
    low, high = value_range
    values = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), dtype=np.float32))
    return ((values - low) / (high - low)).expand(-1, 3, -1, -1).to(device)


def _to_numpy(outputs: Outputs) -> Features:
    return Features(*(None if output is None else _array(output) for output in outputs))  # type: ignore[arg-type]


def _array(output: Tensor) -> Array:
    array: Array = output.detach().float().cpu().numpy()
    return array


def _channels_refused(name: str, channels: int) -> str:
    if channels == 4:
        return (
            f"pictures have 4 channels; {name} knows no transparency: composite them over a background first "
            "(for data, --data.alpha)"
        )
    return f"pictures have {counted(channels, 'channel')}; {name} expects 1 (gray) or 3 (RGB)"
