"""Model: networks, schedule, parameterization, codec and sampling advice, in one self-describing file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ddpm.codec import Pictures, PixelCodec
from ddpm.conditions import Condition
from ddpm.conditions.asked import Asked, Image, Label, ask, encode
from ddpm.config import NetworkConfig, explain
from ddpm.config.conditions import ConditionSpec
from ddpm.config.sampling import SamplingConfig, Variance
from ddpm.diffusion.denoiser import (
    ConditionalDenoiser,
    Denoiser,
    Parameterization,
    bound,
    clipped,
    conditional_denoiser,
)
from ddpm.diffusion.guidance import Guidance, classifier_free
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers import SAMPLERS, SampleStep, spaced_timesteps
from ddpm.diffusion.schedules import NoiseSchedule
from ddpm.errors import ConfigError, ModelFileError, SamplingError
from ddpm.files import sha256_of
from ddpm.model.adapter import AppliedAdapter, with_adapter
from ddpm.model.advice import changed_advice
from ddpm.model.guidance import advised_guidance, negative_condition, refuse_guidance
from ddpm.model.guides import Guide
from ddpm.model.prompts import ImagePrompt, PromptReader, placed_condition, prompted, read_prompt
from ddpm.model.storing import fields_from, parts_of
from ddpm.model_file import read_model_file, write_model_file

OnStep = Callable[[SampleStep], object]

_VALUES_A_BATCH = 2**18
"""Pixel values sampled at once by default: 64 pictures of 3x32x32 and a bit; keeps activations under about 2 GiB."""


@dataclass(frozen=True, eq=False)
class Model:
    """A trained model: everything that sampling needs.

    Attributes:
        network: (x_t [B, C, H, W], t [B]) -> output [B, C, H, W]; 2 C channels in with self-conditioning, and out
            with a learned variance.
        network_config: what `network` was built from.
        schedule: the noise schedule of training.
        parameterization: what the network outputs.
        variance: of the reverse process in training.
        conditions: what `network` is conditioned on; empty for an unconditional model.
        codec: pictures <-> x_0.
        picture_shape: (H, W, C).
        sampling: the recommended sampler, steps and options.
        provenance: plain JSON values: what the model was trained on and how (data fingerprint, step, configuration).
        adapters: what was added to the model.
        bare: the model without its adapters; none: it has none.
        prompt_reader: of image prompts, where an image adapter was added.
        guide: a classifier or a worse model that steers the samples; none: conditions alone.
        prompt: the picture that all others are to be like; none: there is none, or conditions have their own.
    """

    network: nn.Module
    network_config: NetworkConfig
    schedule: NoiseSchedule
    parameterization: Parameterization
    codec: PixelCodec
    picture_shape: tuple[int, int, int]
    variance: Variance = "fixed_large"
    conditions: ConditionSpec = field(default_factory=ConditionSpec)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    provenance: dict[str, Any] = field(default_factory=dict)
    adapters: tuple[AppliedAdapter, ...] = ()
    bare: Model | None = None
    prompt_reader: PromptReader | None = None
    guide: Guide | None = None
    prompt: ImagePrompt | None = None

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def num_parameters(self) -> int:
        """How many numbers the network holds."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def is_distilled(self) -> bool:
        """Whether it was made for its own few times, and is right at no others."""
        return "distilled_from" in self.provenance

    def to(self, device: torch.device | str) -> Model:
        """Move the network to a device, and return the model."""
        self.network.to(device)
        return self

    def conditional_denoiser(self) -> ConditionalDenoiser:
        """Return what guidance composes: x_0 may leave the range of the data, as clipping comes last."""
        network = self.network if self.conditions.any or self.prompt_reader else _unconditional(self.network)
        return conditional_denoiser(
            network,
            self.schedule,
            self.parameterization,
            self_conditioning=self.network_config.self_conditioning,
            x_0_range=self.codec.clip_range,
        )

    def denoiser(
        self, *, clip: bool = True, condition: Condition | None = None, guidance: Guidance | None = None
    ) -> Denoiser:
        """Return what samplers see; with `clip`, x_0 is kept in the range of the data.

        Args:
            clip: whether it is.
            condition: of the pictures, on the model's device; none: the model's pictures in general.
            guidance: by the guide, or away from pictures without condition, or from the text that the sampling advice
                has as negative; none: there is none.
        """
        if self.guide is not None and guidance is not None:
            denoiser = self.guide.denoiser(self, condition, guidance)
        elif condition is None or guidance is None:
            denoiser = bound(self.conditional_denoiser(), condition)
        else:
            denoiser = classifier_free(
                self.conditional_denoiser(),
                condition,
                guidance,
                self.schedule,
                against=negative_condition(self, condition),
            )
        if clip and self.codec.clip_range is not None:
            return clipped(denoiser, self.schedule, *self.codec.clip_range)
        return denoiser

    @property
    def guidance(self) -> Guidance | None:
        """Guidance as the sampling advice has it; None where it has none. A guide's is 1 if nothing is said."""
        return advised_guidance(self)

    @property
    def spec(self) -> ConditionSpec:
        """What can be asked of its pictures: what the network is conditioned on, or a guide's classes."""
        if self.conditions.any or self.guide is None or self.guide.spec is None:
            return self.conditions
        return self.guide.spec

    def encode(self, asks: Sequence[Asked]) -> Condition | None:
        """Return the condition of pictures, on the model's device; None for an unconditional model.

        Raises:
            SamplingError: for a picture to begin with that cannot be read, or does not fit.
        """
        if not self.spec.any:
            return None
        return encode(self.spec, asks, self.picture_shape[:2]).to(self.device)

    def with_prompt(self, condition: Condition | None, pictures: Pictures) -> Condition:
        """Return conditions with an image prompt, which an image adapter reads.

        Args:
            condition: of B pictures; none: nothing else is asked of them.
            pictures: [B, H, W, C], as the model's own; or one, for all B.

        Raises:
            SamplingError: if the model carries no image adapter.
        """
        return prompted(self, condition, pictures)

    def with_prompt_picture(self, path: str | Path) -> Model:
        """Return the model with an image prompt for all its pictures, beside whatever else is asked of them.

        Raises:
            SamplingError: if the model carries no image adapter, or there is no picture that can be read.
        """
        features = self.with_prompt(None, read_prompt(Path(path), self)).prompt
        assert features is not None  # `with_prompt` has put it there
        return replace(self, prompt=ImagePrompt(str(path), sha256_of(Path(path)), features))

    def with_sampling(self, **changes: Any) -> Model:
        """Return the model with some fields of its sampling advice replaced; a value of None changes nothing.

        Another sampler begins with its own spacing and options; another number of steps, without explicit times;
        guidance of 1, without interval and rescaling.

        Raises:
            SamplingError: for a field or a value that is not valid, or an option that the sampler does not take.
        """
        return replace(self, sampling=changed_advice(self.sampling, changes))

    def with_adapter(self, path: str | Path, scale: float = 1.0) -> Model:
        """Return a copy of the model with an adapter added: low-rank updates of its weights, or an image adapter.

        Several add up. At scale 0 the outputs are bit-equal to those without it.

        Args:
            path: of the adapter, or the folder of the run that trained it.
            scale: by which it acts; 1 is as it was trained.

        Raises:
            ModelFileError: if there is no whole adapter, or its base is another model.
            SamplingError: for a scale that is not finite.
        """
        return with_adapter(self, Path(path), scale)

    def within(self, most: int) -> Model:
        """Return the model as it is sampled in at most `most` steps, for a look or a score on the way.

        A sampler that adds noise cannot be cut short, for each step takes away what the one before has added: the
        default one stands in for it, which comes nearest in so few steps.
        """
        if self.sampling.steps <= most:
            return self
        steps = min(most, len(self.schedule))
        if SAMPLERS[self.sampling.sampler].deterministic:
            return self.with_sampling(steps=steps)
        return self.with_sampling(sampler=SamplingConfig().sampler, steps=steps)

    def sample_steps(
        self, pictures: Sequence[int], *, seed: int = 0, condition: Condition | None = None
    ) -> Iterator[SampleStep]:
        """Sample the pictures of these numbers as one batch, yielding after each step; x is x_s [B, C, H, W].

        The noise of picture i is a function of (seed, i): the same in any batch, in any order. So is its condition
        where none is given to a conditional model: it is drawn as often as the training data have it.

        Raises:
            SamplingError: for guidance of a model that knows no pictures without condition, or no others; or if a model
                that makes pictures from pictures is given none.
        """
        refuse_guidance(self, condition)
        height, width, channels = self.picture_shape
        noise = NoiseSource(seed, pictures, (channels, height, width), device=self.device)
        advice = self.sampling
        sampler, options = SAMPLERS[advice.sampler], advice.options()
        if "variance" in sampler.options:
            options = {"variance": self.variance, **options}
        if options.get("variance") == "learned" != self.variance:
            raise SamplingError(
                f"variance 'learned', but this model's variance is {self.variance}; use 'fixed_large' or 'fixed_small'"
            )
        placed, guidance = placed_condition(self, condition, pictures, seed), self.guidance
        if self.guide is not None and guidance is not None and placed is not None:
            shift = self.guide.mean_shift(self, placed, guidance)
            options = options if shift is None else {**options, "mean_shift": shift}
        return sampler.run(
            self.denoiser(clip=advice.clip, condition=placed, guidance=guidance),
            self.schedule,
            noise.normal(0, "x_T"),
            noise,
            timesteps=advice.timesteps
            or spaced_timesteps(advice.steps, self.schedule, advice.spacing or sampler.spacing),
            **options,
        )

    def sample(
        self,
        n: int = 1,
        *,
        steps: int | None = None,
        seed: int = 0,
        sampler: str | None = None,
        label: Label | Sequence[Label] | None = None,
        numbers: Mapping[str, float] | None = None,
        text: str | Sequence[str] | None = None,
        negative: str | None = None,
        image: Image | Sequence[Image] | None = None,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float | None = None,
        condition: Condition | None = None,
        batch_size: int | None = None,
        on_step: OnStep | None = None,
    ) -> Pictures:
        """Return `n` pictures [n, H, W, C] in the dtype of the training data.

        Args:
            n: how many.
            steps: sampling steps; none: the model's recommendation.
            seed: with the number of a picture, it decides the picture.
            sampler: its name in `SAMPLERS`; none: the model's recommendation.
            label: class of the pictures, by name or number; several: picture i has number i mod K; "all": all classes.
            numbers: values of numeric columns. What is not said of a picture is drawn as often as the training data
                have it.
            text: what the pictures show; several: picture i shows number i mod K.
            negative: what they are not to show: guidance leads away from it.
            image: a picture to begin with, its file or an array; several: picture i has number i mod K.
            guidance: scale of classifier-free guidance; 1 is off; none: the model's recommendation.
            guidance_interval: least and largest t of the guided steps, within 0 to T - 1; none: the recommendation.
            guidance_rescale: share of the contrast that guidance adds, taken back, 0 to 1; none: the recommendation.
            condition: of the n pictures, as tensors, in place of label, numbers, text and image.
            batch_size: pictures at once; none: what fits in about 2 GiB.
            on_step: called after each step of each batch, for a progress bar.

        Raises:
            SamplingError: for a number, a seed, a sampler or steps that are not valid, or if the network returns
                numbers that are not finite.
        """
        model = self.with_sampling(
            steps=steps,
            sampler=sampler,
            guidance=guidance,
            guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale,
            negative=negative,
        )
        if any(value is not None for value in (label, numbers, text, image)):
            if condition is not None:
                raise SamplingError("a condition beside label, numbers, text or image; expected one or the others")
            asks = ask(self.spec, range(n), seed, label=label, numbers=numbers, text=text, image=image)
            condition = model.encode(asks)
        batches = model.sampling_batches(n, seed=seed, batch_size=batch_size, condition=condition)
        made = []
        for batch in batches:
            part = None if condition is None else condition.select(slice(batch.start, batch.stop))
            made.append(model.sample_numbers(batch, seed=seed, condition=part, on_step=on_step))
        return np.concatenate(made)

    def sampling_batches(
        self, n: int, *, seed: int = 0, batch_size: int | None = None, condition: Condition | None = None
    ) -> list[range]:
        """Return the numbers of the pictures in each batch that `sample` will make.

        Raises:
            SamplingError: for what `sample` refuses, before any work is done.
        """
        if n < 1:
            raise SamplingError(f"{n} pictures; expected at least 1")
        if not 0 <= seed < 2**64:
            raise SamplingError(f"seed {seed}; expected 0 to 2^64 - 1")
        if batch_size is not None and batch_size < 1:
            raise SamplingError(f"batch size {batch_size}; expected at least 1")
        nothing = None if condition is None else condition.select(slice(0))
        self.sample_steps([], condition=nothing)  # no picture, and no step: it refuses steps, times and options
        size = batch_size or max(1, _VALUES_A_BATCH // math.prod(self.picture_shape))
        return [range(start, min(start + size, n)) for start in range(0, n, size)]

    def sample_numbers(
        self,
        pictures: Sequence[int],
        *,
        seed: int = 0,
        condition: Condition | None = None,
        on_step: OnStep | None = None,
    ) -> Pictures:
        """Return the pictures of these numbers [n, H, W, C], made as one batch; see `sample_steps`.

        Raises:
            SamplingError: if the network returns numbers that are not finite.
        """
        x_0: Tensor | None = None
        for step in self.sample_steps(pictures, seed=seed, condition=condition):
            x_0 = step.x
            if on_step is not None:
                on_step(step)
        assert x_0 is not None  # every sampler makes at least one step
        if not bool(x_0.isfinite().all()):
            raise SamplingError(
                f"the network returned numbers that are not finite for pictures {pictures[0]} to {pictures[-1]}; "
                "its weights are damaged, or diverged while training"
            )
        return self.codec.decode(x_0)

    def save(self, path: str | Path) -> None:
        """Write the model as one safetensors file, atomically; adapters of its weights are merged into them.

        Raises:
            ModelFileError: if the model carries an image adapter, which is a part of its own.
        """
        if self.prompt_reader is not None:
            raise ModelFileError(
                "an image adapter has layers of its own, and cannot be merged into a model; keep it as the file it is"
            )
        write_model_file(Path(path), *parts_of(self))

    @staticmethod
    def load(path: str | Path, *, device: str = "cpu") -> Model:
        """Read a model from its file, or from the folder of the run that trained it.

        Raises:
            ModelFileError: if there is none, or it is truncated, a pickle, or of another kind.
        """
        path = Path(path)
        description, tensors = read_model_file(path)
        try:
            model = Model(**fields_from(description, tensors))
        except (ConfigError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            first = explain(error) if isinstance(error, ValidationError) else str(error)
            reason = first.splitlines()[0] if first else type(error).__name__
            raise ModelFileError(f"'{path}' describes no valid model: {type(error).__name__}: {reason}") from error
        return model.to(device)


def _unconditional(network: nn.Module) -> Callable[[Tensor, Tensor, Condition | None], Tensor]:
    def run(seen: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        output: Tensor = network(seen, t)
        return output

    return run
