"""The typed configuration tree: frozen, strictly validated, and stored inside every model file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ddpm.config.adapters import FineTuningConfig, ImageAdapterConfig, LoraConfig
from ddpm.config.conditions import ConditionsConfig
from ddpm.config.sampling import SamplingConfig, Variance
from ddpm.config.section import Section

ScheduleName = Literal["linear", "cosine", "exponential", "quadratic", "sigmoid", "constant"]
Parameterization = Literal["eps", "x_0", "v", "mu"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Score = Literal["loss", "frechet", "kernel"]
Channels = Literal["auto", "gray", "rgb", "rgba"]
Fit = Literal["crop", "pad", "stretch"]

MIN_SIZE = 4
"""Smallest height or width, in pixels, of a picture that a network can be trained on."""


class ScheduleConfig(Section):
    """The noise schedule: which betas, how many."""

    name: ScheduleName = Field("linear", description="shape of beta_t over t")
    num_timesteps: int = Field(1000, ge=2, le=100_000, description="T, the number of training timesteps")
    zero_terminal_snr: bool = Field(False, description="rescale so that x_T is pure noise (needs v or x_0)")


class NetworkConfig(Section):
    """The network: a U-Net for pictures, with widths, depths and attention; or an MLP for points."""

    kind: Literal["unet", "mlp"] = Field(
        "unet", description="mlp takes from this section only base_channels, its width, and blocks_per_level, its depth"
    )
    base_channels: int = Field(128, ge=4, le=4096, description="channels at the first level")
    channel_multipliers: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        (1, 2, 2, 2), min_length=1, max_length=8
    )
    blocks_per_level: int = Field(2, ge=1, le=8, description="ResNet blocks a level on the way down")
    attention_levels: tuple[int, ...] = Field((1,), description="levels with attention; level k is at size / 2^k")
    head_channels: int | None = Field(None, ge=1, description="channels an attention head; none: a single head")
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    time_conditioning: Literal["add", "scale_shift"] = Field(
        "add", description="how the time embedding enters a block; scale_shift is adaptive group norm"
    )
    resampling: Literal["conv", "residual"] = Field(
        "conv", description="between levels: strided convolution, or BigGAN residual blocks"
    )
    num_groups: int = Field(32, ge=1, description="groups of GroupNorm, reduced where they do not divide")
    patch_size: int = Field(
        1,
        ge=1,
        le=16,
        description="side of the squares of pixels that the U-Net reads as channels; 2 is 4 times as fast",
    )
    text_width: int = Field(256, ge=8, le=4096, description="of the tokens that cross-attention looks at")
    text_layers: int = Field(2, ge=1, le=24, description="of the text encoder that is trained along")
    self_conditioning: bool = Field(False, description="the network also reads its previous estimate of x_0")
    place_waves: int = Field(
        0, ge=0, le=16, description="waves of each axis that tell the network where in the picture a pixel is; 0: none"
    )
    fourier_levels: int | None = Field(
        None,
        ge=2,
        le=65_536,
        description="gray levels of the data, for likelihood: the U-Net also reads waves over its input that are one "
        "and two levels long",
    )

    @model_validator(mode="after")
    def _attention_levels_exist(self) -> NetworkConfig:
        levels = len(self.channel_multipliers)
        for level in self.attention_levels:
            if not 0 <= level < levels:
                raise ValueError(f"attention_levels has {level}, but the levels are 0 to {levels - 1}")
        if self.kind == "mlp" and self.patch_size != 1:
            raise ValueError(f"patch_size is {self.patch_size}, but an mlp has no use for it; leave it out")
        if self.kind == "mlp" and self.place_waves:
            raise ValueError(f"place_waves is {self.place_waves}, but an mlp has no use for it; leave it out")
        if self.kind == "mlp" and self.fourier_levels is not None:
            raise ValueError(f"fourier_levels is {self.fourier_levels}, but an mlp has no use for it; leave it out")
        return self


class DataConfig(Section):
    """How pictures are read: nothing is augmented unless asked for."""

    size: tuple[int, int] | None = Field(None, description="height and width in pixels; none: decided from the data")
    channels: Channels = Field("auto", description="auto: decided from the data")
    fit: Fit = Field("crop", description="what happens to pictures of another shape")
    filter: Literal["lanczos", "bicubic", "bilinear", "box", "nearest"] = "lanczos"
    background: tuple[int, int, int] = Field((255, 255, 255), description="colour under transparent pixels, 0 to 255")
    flip: bool = Field(False, description="mirror half of the training pictures")
    held_out: float = Field(0.05, gt=0.0, lt=1.0, description="share kept for the held-out loss, if data have no split")
    on_bad_file: Literal["skip", "fail"] = Field("skip", description="what to do with files that cannot be read")
    max_bad_share: float = Field(0.2, ge=0.0, le=1.0, description="with skip: stop above this share of bad files")
    label_column: str | None = Field(None, description="column of a table with the class; none: found by its name")
    picture_column: str | None = Field(None, description="column of a table with the pictures; none: found")
    text_column: str | None = Field(None, description="column of a table with the captions; none: found by its name")
    classes: tuple[str, ...] = Field((), description="of streamed shards, in order; none: those of the first shard")
    shards_at_once: int = Field(4, ge=1, le=10_000, description="streamed shards whose pictures are mixed")

    @model_validator(mode="after")
    def _values_in_range(self) -> DataConfig:
        if self.size is not None and min(self.size) < MIN_SIZE:
            raise ValueError(f"size is {self.size[0]}x{self.size[1]}; both sides must be at least {MIN_SIZE} pixels")
        if not all(0 <= value <= 255 for value in self.background):
            raise ValueError(f"background is {self.background}; each value must be 0 to 255")
        return self


class ObjectiveConfig(Section):
    """What the network predicts and how its error is weighted."""

    parameterization: Parameterization = Field("eps", description="what the network outputs")
    loss: Literal["simple", "bound", "hybrid"] = Field(
        "simple", description="squared error; the variational bound; or both, which trains a learned variance"
    )
    variance: Variance = Field(
        "fixed_large", description="of the reverse process; learned: the network has outputs for it (bound or hybrid)"
    )
    weighting: Literal["none", "min_snr", "p2", "edm"] = Field(
        "none", description="of the squared error over noise levels (simple or hybrid)"
    )
    min_snr_gamma: float = Field(5.0, gt=0.0, description="largest weight of a squared error of x_0, for min_snr")
    p2_gamma: float = Field(1.0, ge=0.0, description="exponent of p2; 0 weights nothing")
    p2_k: float = Field(1.0, gt=0.0, description="added to the signal-to-noise ratio in p2")
    edm_sigma_data: float = Field(0.5, gt=0.0, description="standard deviation of the data in [-1, 1], for edm")
    bound_weight: float = Field(1e-3, gt=0.0, description="lambda: share of the bound, in bits/dim, in hybrid")
    timesteps: Literal["uniform", "importance"] = Field(
        "uniform", description="how t is drawn in training; importance: in proportion to the size of its losses"
    )

    @model_validator(mode="after")
    def _choices_agree(self) -> ObjectiveConfig:
        if self.loss == "hybrid" and self.variance != "learned":
            raise ValueError(
                f"loss 'hybrid' is there to train a learned variance, but variance is '{self.variance}'; set "
                "objective.variance=learned, or use loss 'simple' or 'bound'"
            )
        if self.loss == "simple" and self.variance == "learned":
            raise ValueError(
                "variance 'learned' with loss 'simple': nothing would train the variance; set objective.loss=hybrid, "
                "or 'bound'"
            )
        if self.loss == "bound" and self.weighting != "none":
            raise ValueError(
                f"weighting '{self.weighting}' with loss 'bound': the bound has its own weights; use loss 'simple' or "
                "'hybrid', or weighting 'none'"
            )
        return self


class TrainingConfig(Section):
    """Optimisation: budget, batch, learning rate, averaging, and how often things are written."""

    steps: int = Field(10_000, ge=1, description="optimizer steps in all")
    batch_size: int = Field(128, ge=1, description="pictures an optimizer step, over all micro-batches")
    micro_batch_size: int | None = Field(None, ge=1, description="pictures in memory at once; none: the whole batch")
    gradient_checkpointing: bool = Field(
        False, description="compute activations twice instead of keeping them: less memory, a third more time"
    )
    learning_rate: float = Field(2e-4, gt=0.0)
    warmup_steps: int = Field(500, ge=0, description="steps over which the learning rate rises from 0")
    decay: Literal["constant", "linear", "cosine"] = Field("constant", description="learning rate after the warm-up")
    weight_decay: float = Field(0.0, ge=0.0)
    adam_betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.9, 0.999)
    gradient_clip: float = Field(1.0, gt=0.0, description="largest norm of the gradient")
    ema_decay: float = Field(0.9999, ge=0.0, lt=1.0, description="decay of the averaged weights after their warm-up")
    sharding: Literal["none", "full"] = Field(
        "none",
        description="full: each of several processes holds a piece of the weights, for networks that do not fit",
    )
    precision: Precision = Field("auto", description="auto: what the device multiplies fast; float16 scales losses")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    checkpoint_every: int = Field(1000, ge=1, description="steps between checkpoints")
    preview_every: int = Field(1000, ge=1, description="steps between preview grids")
    evaluate_every: int = Field(500, ge=1, description="steps between held-out losses")
    score: Score = Field(
        "loss",
        description="what the best model is chosen by: held-out loss, or a distance of its samples to the data",
    )
    score_every: int = Field(2000, ge=1, description="steps between scores of samples (frechet or kernel)")
    score_samples: int = Field(500, ge=20, le=1_000_000, description="samples a score; the error falls with its root")
    score_features: str | None = Field(
        None, description="extractor's name or file; none: pixels of small pictures, else inception"
    )
    log_every: int = Field(50, ge=1, description="steps between lines of metrics.jsonl")
    previews: int = Field(36, ge=1, le=10_000, description="pictures in a preview grid")
    milestones: int = Field(
        4, ge=0, description="models kept on the way, equally spaced; 0: only the last and the best"
    )
    snapshots: int = Field(
        0,
        ge=0,
        description="times that two averages of the weights are kept, from which 'ddpm average' makes one of any width",
    )
    disk_limit_gib: float | None = Field(
        None, gt=0.0, description="most the run folder may take; milestones give way, oldest first"
    )
    stop: Literal["budget", "auto"] = Field(
        "auto", description="auto: also stop when training diverges or overfits beyond repair"
    )
    tensorboard: bool = Field(False, description="write TensorBoard events beside metrics.jsonl")


class DistillationConfig(Section):
    """What a distilled model learns from; `ddpm distill` fills it in."""

    method: Literal["progressive", "consistency"] = Field("progressive", description="what the student's target is")
    teacher: str = Field(description="file of the teacher")
    teacher_sha256: str = Field(description="of that file")
    teacher_steps: int = Field(ge=1, description="steps of the teacher that one of the student's is worth")
    teacher_solver: Literal["unipc", "dpm_solver_pp", "ddim"] = Field(
        "unipc", description="of those steps, for progressive; a consistent student learns from ddim"
    )


class Config(Section):
    """The whole tree."""

    seed: int = Field(0, ge=0, lt=2**63, description="key of every random number of the run")
    data: DataConfig = DataConfig()
    conditions: ConditionsConfig = ConditionsConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    network: NetworkConfig = NetworkConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()
    distillation: DistillationConfig | None = None
    lora: LoraConfig = LoraConfig()
    image_adapter: ImageAdapterConfig | None = None
    fine_tuning: FineTuningConfig | None = None

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        if self.schedule.zero_terminal_snr and self.objective.parameterization in ("eps", "mu"):
            raise ValueError(
                f"schedule.zero_terminal_snr with objective.parameterization '{self.objective.parameterization}': "
                "at zero signal the noise says nothing about the picture; use 'v' or 'x_0'"
            )
        if self.sampling.variance == "learned" and self.objective.variance != "learned":
            raise ValueError(
                f"sampling.variance is 'learned', but objective.variance is '{self.objective.variance}'; set "
                "objective.variance=learned and objective.loss=hybrid to learn one"
            )
        if self.sampling.steps > self.schedule.num_timesteps:
            raise ValueError(
                f"sampling.steps is {self.sampling.steps}, more than schedule.num_timesteps "
                f"({self.schedule.num_timesteps})"
            )
        times = self.sampling.timesteps
        if times is not None and times[0] > self.schedule.num_timesteps - 1:
            raise ValueError(
                f"sampling.timesteps begins at {times[0]:g}; expected at most {self.schedule.num_timesteps - 1}, the "
                "last timestep of training"
            )
        self._check_guidance()
        if self.training.snapshots and (self.lora.rank or self.image_adapter is not None):
            raise ValueError(
                f"training.snapshots is {self.training.snapshots}, but an adapter is trained, of which no averages are "
                "kept; leave it out"
            )
        if self.lora.rank and self.fine_tuning is None:
            raise ValueError(f"lora.rank is {self.lora.rank}, but there is no base to update; add --init MODEL")
        return self

    def _check_guidance(self) -> None:
        sampling, conditions = self.sampling, self.conditions
        if sampling.idle_option is not None:
            raise ValueError(f"sampling.{sampling.idle_option} without guidance; set sampling.guidance, such as to 2")
        if not sampling.is_guided or self.image_adapter is not None:  # which guides away from no prompt
            return
        if not conditions.any:
            raise ValueError(
                f"sampling.guidance is {sampling.guidance:g}, but there are no conditions to guide to; add one, such "
                "as --condition label, or leave it out"
            )
        if conditions.dropout == 0:
            raise ValueError(
                f"sampling.guidance is {sampling.guidance:g}, but conditions.dropout is 0: guidance leads away from "
                "pictures without condition, of which there are none; set it to 0.1 or so"
            )
        if sampling.negative is not None and conditions.text is None:
            raise ValueError(f"sampling.negative is '{sampling.negative}', but there are no texts; leave it out")

    def with_guidance(self) -> Config:
        """Return the tree with the guidance that suits its conditions, where nothing is said of it."""
        scale = self.conditions.guidance
        if scale is None or "guidance" in self.sampling.model_fields_set:
            return self
        return self.model_copy(update={"sampling": self.sampling.model_copy(update={"guidance": scale})})


class ClassifierConfig(Section):
    """The tree of a classifier: its half U-Net, what it is trained on, and how."""

    seed: int = Field(0, ge=0, lt=2**63, description="key of every random number of the training")
    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    stem_stride: int = Field(1, ge=1, le=4, description="of the first convolution: 2 is three times as fast")
    features: int = Field(
        128, ge=2, le=4096, description="width of the pooled layer, whose Fréchet distances are taken"
    )
    training: TrainingConfig = TrainingConfig()
    shift: int = Field(0, ge=0, le=64, description="training pictures are moved by up to so many pixels each way")
    label_smoothing: float = Field(0.1, ge=0.0, lt=1.0, description="share of each target spread over all classes")
    balanced: bool = Field(False, description="draw all classes equally often, however many pictures each has")
    noisy: bool = Field(False, description="classify x_t, and be told t: for classifier guidance")
    schedule: ScheduleConfig = Field(ScheduleConfig(name="cosine"), description="of x_t, where noisy")

    @model_validator(mode="after")
    def _network_is_a_unet(self) -> ClassifierConfig:
        if self.network.kind != "unet":
            raise ValueError(f"network.kind is '{self.network.kind}'; a classifier is the half of a 'unet'")
        if self.network.patch_size != 1:
            raise ValueError(f"network.patch_size is {self.network.patch_size}; a classifier has stem_stride instead")
        if self.training.score != "loss":
            raise ValueError(f"training.score is '{self.training.score}'; a classifier has no samples, expected 'loss'")
        return self
