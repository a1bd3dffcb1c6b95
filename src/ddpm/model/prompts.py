"""What is read of an image prompt: features of a picture by the frozen base itself, a classifier, or CLIP.

The base needs no second network, no download and no training: the activations on its way down, at little noise, say
where in the picture there is what, in which colours (Baranchuk et al. 2022 take them for segmentation).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ddpm.classifier import Classifier
from ddpm.codec import Pictures, PixelCodec
from ddpm.conditions import Condition
from ddpm.conditions.asked import ask
from ddpm.data.decode import BadPictureError, read_pixels
from ddpm.data.progress import ProgressFactory, silent
from ddpm.data.transform import ChannelKind, Transform
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.process import q_sample
from ddpm.errors import ConfigError, SamplingError
from ddpm.files import sha256_of, write_atomically
from ddpm.hub import first_line, folder_of, hash_of
from ddpm.networks.unet import UNet
from ddpm.words import counted

if TYPE_CHECKING:
    from ddpm.model import Model

BASE = "base"
"""The name of the encoder that is the base itself."""

_GRID = 4  # places a side of the base's features: 16 vectors say where things are, and cost attention little
_TIME = 0.05  # of the timesteps: at so little noise the network still sees the whole picture
_BATCH = 32
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training pictures (Radford et al. 2021)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, eq=False)
class PromptEncoder:
    """A frozen network that reads pictures.

    Attributes:
        name: "base", a file, or a folder or name of CLIP.
        sha256: of its files; none for the base, whose weights the adapter knows.
        given: P', vectors of a picture.
        features: D', their width.
        run: pictures [N, H, W, C] -> features float32 [N, P', D'] on the CPU.
    """

    name: str
    sha256: str | None
    given: int
    features: int
    run: Callable[[Pictures], Tensor]


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """A picture that others are to be like.

    Attributes:
        file: of the picture.
        sha256: of the file.
        features: float32 [1, P', D'], what the network reads of it.
    """

    file: str
    sha256: str
    features: Tensor


@dataclass(frozen=True, eq=False)
class PromptReader:
    """An encoder whose features are standardised by those of the training pictures.

    Attributes:
        encoder: of the features.
        mean: float32 [D'].
        std: float32 [D'], above 0.
    """

    encoder: PromptEncoder
    mean: Tensor
    std: Tensor

    def __call__(self, pictures: Pictures) -> Tensor:
        """Return what the network reads of pictures [N, H, W, C]: float32 [N, P', D']."""
        parts = [self.encoder.run(pictures[i : i + _BATCH]) for i in range(0, len(pictures), _BATCH)]
        return (torch.cat(parts) - self.mean) / self.std


def load_prompt_encoder(name: str, base: Model, *, sha256: str | None = None) -> PromptEncoder:
    """Return the encoder of that name.

    Args:
        name: "base", the file of a classifier, or a folder or name of a CLIP vision encoder.
        base: the model that the adapter is for, without any adapter.
        sha256: of the files that are expected; none: any.

    Raises:
        ConfigError: if there is none, it is another one, or it reads pictures of another kind.
    """
    if name == BASE:
        return _base_encoder(base)
    path = Path(name).expanduser()
    encoder = _classifier_encoder(path, base) if path.is_file() else _clip_encoder(name, base.codec)
    if sha256 not in (None, encoder.sha256):
        raise ConfigError(
            f"the image encoder '{name}' has the SHA-256 {str(encoder.sha256)[:12]}..., the adapter was trained with "
            f"{str(sha256)[:12]}...; use the same files"
        )
    return encoder


def kept_prompts(
    encoder: PromptEncoder,
    pictures: Pictures,
    fingerprint: str,
    base_sha256: str,
    root: Path,
    progress: ProgressFactory = silent,
) -> NDArray[np.float32]:
    """Return the features of all pictures [N, P', D'], computed the first time and mapped from the disk later.

    Args:
        encoder: of the features.
        pictures: [N, H, W, C].
        fingerprint: of the pictures.
        base_sha256: of the base's weights, which are an encoder's too.
        root: folder of kept features.
        progress: shows the computation.
    """
    key = hashlib.sha256(f"{encoder.name} {encoder.sha256} {base_sha256} {fingerprint}".encode()).hexdigest()
    path = root / f"{key[:32]}.npy"
    if not path.is_file():
        write_atomically(path, lambda part: _write(part, encoder, pictures, progress))
    kept: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return kept


def read_prompt(path: Path, model: Model) -> Pictures:
    """Return a picture of any size and kind as the model's pictures are, [1, H, W, C].

    Raises:
        SamplingError: if there is none that can be read.
    """
    height, width, channels = model.picture_shape
    kinds: dict[int, ChannelKind] = {1: "gray", 3: "rgb", 4: "rgba"}
    transform = Transform(height, width, kinds[channels], "uint8", "crop", "lanczos", (255, 255, 255))
    try:
        with path.open("rb") as file:
            values, _ = transform(read_pixels(file).values)
    except FileNotFoundError as error:
        raise SamplingError(f"no picture at '{path}' to be the prompt") from error
    except (BadPictureError, OSError) as error:
        raise SamplingError(f"the prompt '{path}' is no picture that can be read: {error}") from error
    x_0 = PixelCodec(256, (0.0, 255.0), "uint8").encode(values[None])
    return model.codec.decode(x_0)


def prompted(model: Model, condition: Condition | None, pictures: Pictures) -> Condition:
    """Return conditions with an image prompt; see `Model.with_prompt`.

    Raises:
        SamplingError: if the model carries no image adapter.
    """
    if model.prompt_reader is None:
        raise SamplingError(
            "an image prompt needs an image adapter of this model: --adapter FILE; 'ddpm train-adapter' trains one"
        )
    features = model.prompt_reader(pictures).to(model.device)
    if condition is None:
        return Condition(prompt=features)
    return replace(condition, prompt=features.expand(len(condition), -1, -1))


def placed_condition(model: Model, condition: Condition | None, pictures: Sequence[int], seed: int) -> Condition | None:
    """Return the conditions of pictures on the model's device, beside its image prompt; drawn where none are given.

    Raises:
        SamplingError: for conditions or a prompt that the model does not know, or of another number of pictures.
    """
    if model.prompt is not None and len(pictures):
        features = model.prompt.features.expand(len(pictures), -1, -1)
        condition = Condition(prompt=features) if condition is None else replace(condition, prompt=features)
    if condition is None:
        return model.encode(ask(model.spec, pictures, seed)) if len(pictures) else None
    if not model.spec.any and condition.fields().keys() != {"prompt"}:
        raise SamplingError("this model was trained without conditions, but is given some; leave them out")
    if condition.prompt is not None and model.prompt_reader is None:
        raise SamplingError("an image prompt needs an image adapter of this model; add one, or leave it out")
    if len(condition) != len(pictures):
        raise SamplingError(
            f"{counted(len(condition), 'condition')} for {counted(len(pictures), 'picture')}; expected one for each"
        )
    return condition.to(model.device)


def _write(path: Path, encoder: PromptEncoder, pictures: Pictures, progress: ProgressFactory) -> None:
    shape = (len(pictures), encoder.given, encoder.features)
    made = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    with progress(len(pictures), "reading pictures") as shown:
        for start in range(0, len(pictures), _BATCH):
            part = np.array(pictures[start : start + _BATCH])
            made[start : start + len(part)] = encoder.run(part).numpy()
            shown.update(len(part))
    made.flush()


def _base_encoder(base: Model) -> PromptEncoder:
    network = base.network
    if not isinstance(network, UNet):
        raise ConfigError("the image encoder 'base' reads the activations of a U-Net, and this base is an mlp")
    t = torch.tensor([math.floor(_TIME * len(base.schedule))])

    @torch.no_grad()
    def run(pictures: Pictures) -> Tensor:
        x_0 = base.codec.encode(pictures)
        # The same noise for every picture: what it adds to the features is nearly the same, and goes with their mean.
        eps = NoiseSource(0, [0], tuple(x_0.shape[1:])).normal(0, "prompt").expand_as(x_0)
        times = t.expand(len(x_0))
        x_t = q_sample(x_0, times, eps, base.schedule).to(base.device)
        return _activations(network, x_t, times.to(base.device, torch.float32), base)

    trial = run(np.zeros((1, *base.picture_shape), dtype=base.codec.dtype))
    return PromptEncoder(BASE, None, trial.shape[1], trial.shape[2], run)


def _activations(network: UNet, x_t: Tensor, t: Tensor, base: Model) -> Tensor:
    """Return what the levels on the way down make, averaged over a grid of places, [B, places, channels]."""
    made: list[Tensor] = []

    def keep(level: nn.Module, inputs: object, output: list[Tensor]) -> None:
        last = output[-2] if getattr(level, "resample", None) is not None else output[-1]
        made.append(functional.adaptive_avg_pool2d(last.float(), _GRID).flatten(2))

    handles = [level.register_forward_hook(keep) for level in network.down]
    channels = x_t.shape[1] * (2 if base.network_config.self_conditioning else 1)
    seen = functional.pad(x_t, (0, 0, 0, 0, 0, channels - x_t.shape[1]))
    try:
        network(seen, t)
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(made, dim=1).transpose(1, 2).cpu()


def _classifier_encoder(path: Path, base: Model) -> PromptEncoder:
    classifier = Classifier.load(path)
    if classifier.picture_shape != base.picture_shape or classifier.codec != base.codec:
        raise ConfigError(
            f"the classifier '{path}' reads pictures of {classifier.picture_shape}, the model makes "
            f"{base.picture_shape}; train one on the model's own data"
        )

    def run(pictures: Pictures) -> Tensor:
        return torch.from_numpy(classifier.features(pictures)[0])[:, None]

    return PromptEncoder(str(path), sha256_of(path), 1, classifier.config.features, run)


def _clip_encoder(name: str, codec: PixelCodec) -> PromptEncoder:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"the image encoder '{name}' is no file, and CLIP needs transformers: pip install 'ddpm[transformers]'; or "
            "use 'base'"
        ) from error
    folder = folder_of(name, "image encoder", "'base'")
    try:
        network: Any = transformers.CLIPVisionModelWithProjection.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"'{name}' is no CLIP vision encoder that transformers can load: {first_line(error)}"
        ) from error
    network.eval().requires_grad_(False)
    side = int(network.config.image_size)

    @torch.no_grad()
    def run(pictures: Pictures) -> Tensor:
        x = (codec.encode(pictures) + 1) / 2
        x = x[:, :3].expand(-1, 3, -1, -1)
        x = functional.interpolate(x, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        x = (x - _column(_CLIP_MEAN)) / _column(_CLIP_STD)
        embeds: Tensor = network(pixel_values=x).image_embeds
        return embeds[:, None].float()

    return PromptEncoder(name, hash_of(folder), 1, int(network.config.projection_dim), run)


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)
