"""Any network that the user has as TorchScript, as an extractor of features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.errors import ModelFileError
from ddpm.evaluation.extractors.extraction import NetworkExtractor, Outputs
from ddpm.files import sha256_of
from ddpm.words import counted


def script_extractor(place: Path, device: torch.device) -> NetworkExtractor:
    """Return the extractor of a TorchScript file, which runs whatever code its author put in.

    It is called with RGB pictures, float32 [B, 3, H, W] in [0, 1], in the size of the data, and returns features
    [B, ...], which are flattened, or a tuple of features [B, D] and probabilities [B, K]. Scaling and normalization are
    its own business.

    Raises:
        ModelFileError: if the file is no TorchScript program.
    """
    try:
        network = torch.jit.load(str(place), map_location=device)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelFileError(
            f"'{place}' is no TorchScript program ({str(error).strip().splitlines()[0][:200]}); expected what "
            "torch.jit.save writes"
        ) from error
    return NetworkExtractor(
        name=place.stem,
        sha256=sha256_of(place),
        network=network,
        outputs=lambda pictures: _outputs(network(pictures), len(pictures), place),
        details={"network": "TorchScript", "input_size": "of the data", "resize": "by the program", "range": [0, 1]},
        device=device,
    )


def _outputs(output: Any, count: int, place: Path) -> Outputs:
    parts = output if isinstance(output, tuple) else (output,)
    shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
    right = all(isinstance(part, Tensor) and part.ndim >= 2 and len(part) == count for part in parts)
    if not right or len(parts) > 2:
        raise ModelFileError(
            f"'{place}' returned {shapes} for {counted(count, 'picture')}; expected features [{count}, D], or a "
            "tuple of them and "
            f"probabilities [{count}, K]"
        )
    return Outputs(parts[0].flatten(1), None, parts[1] if len(parts) == 2 else None)
