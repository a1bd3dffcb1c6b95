"""DINOv2 features, through `transformers`: for pictures of any kind (Oquab et al. 2023; Stein et al. 2023)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ddpm.errors import ConfigError, DataError, ModelFileError
from ddpm.evaluation.extractors.extraction import NetworkExtractor, Outputs
from ddpm.files import sha256_of

DEFAULT = "facebook/dinov2-large"
"""ViT-L/14, the network of published "FD DINOv2" scores."""

SIDE = 224
_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, per channel, in [0, 1]
_STD = (0.229, 0.224, 0.225)


def dinov2_extractor(name_or_folder: str | None, device: torch.device) -> NetworkExtractor:
    """Return the extractor of the class token after the last normalization, [N, 1024] for the default network.

    Pictures are scaled to 224 x 224 with an antialiased bicubic filter, without a crop, and normalized by ImageNet's
    statistics (Stein et al. 2023).

    Args:
        name_or_folder: a name on the Hugging Face Hub, or a folder with `config.json` and `model.safetensors`; none
            for ViT-L/14.
        device: where it runs.

    Raises:
        ConfigError: if `transformers` is not installed.
        ModelFileError: if the folder holds no DINOv2 network.
        DataError: if the network cannot be fetched.
    """
    name = name_or_folder or DEFAULT
    try:
        from transformers import Dinov2Model
    except ImportError as error:
        raise ConfigError("DINOv2 features need transformers: pip install 'ddpm[transformers]'") from error
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder)
    try:
        network = Dinov2Model.from_pretrained(str(folder) if folder.is_dir() else name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"the network '{name}' cannot be loaded ({reason}); download it on another machine and give its folder"
        ) from error
    network.to(device, torch.float32)
    weights = folder / "model.safetensors"
    return NetworkExtractor(
        name="dinov2",
        sha256=sha256_of(weights) if weights.is_file() else None,
        network=network,
        outputs=lambda pictures: Outputs(network(pixel_values=normalized(pictures)).last_hidden_state[:, 0]),
        details={
            "network": name,
            "revision": getattr(network.config, "_commit_hash", None),
            "input_size": [SIDE, SIDE],
            "resize": "bicubic, antialiased, no crop",
            "range": "ImageNet mean and deviation",
            "pooled": f"{network.config.hidden_size}, class token",
        },
        device=device,
        batch_size=32,
    )


def normalized(pictures: Tensor) -> Tensor:
    """Return RGB pictures [B, 3, H, W] in [0, 1] as the network expects them, [B, 3, 224, 224]."""
    scaled = functional.interpolate(pictures, size=(SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True)
    mean, std = (torch.tensor(values, device=pictures.device).reshape(1, 3, 1, 1) for values in (_MEAN, _STD))
    return (scaled.clamp(0, 1) - mean) / std  # a bicubic filter overshoots


def _check_folder(folder: Path) -> None:
    from transformers import AutoConfig

    try:
        kind = AutoConfig.from_pretrained(str(folder)).model_type
    except (OSError, ValueError) as error:
        raise ModelFileError(f"the folder '{folder}' holds no network: {str(error).strip().splitlines()[0]}") from error
    if kind != "dinov2":
        raise ModelFileError(f"the folder '{folder}' holds a network of the kind '{kind}'; expected 'dinov2'")
