"""Distillation: a run whose network begins as a trained one, and learns to do many of its steps in one.

What differs from other runs is here: where the network begins, what it is trained towards, and what is decided before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.conditions import Condition
from ddpm.conditions.of_data import conditions_of
from ddpm.config import Config, DistillationConfig, from_tree, merge, to_tree
from ddpm.data import ProgressFactory, Store, open_store
from ddpm.diffusion import process
from ddpm.diffusion.denoiser import Denoiser, clipped, network_denoiser
from ddpm.diffusion.distillation import (
    consistency_target,
    progressive_target,
    student_loss,
    student_parameterization,
)
from ddpm.diffusion.objectives import Losses
from ddpm.diffusion.samplers import CLEAN, spaced_timesteps
from ddpm.diffusion.schedules import NoiseSchedule
from ddpm.engine import Engine, choose_engine
from ddpm.errors import ConfigError, DataError
from ddpm.files import sha256_of
from ddpm.model import Model
from ddpm.model_file import MODEL_NAME, locate
from ddpm.networks import build_network
from ddpm.networks.levels import recompute_activations
from ddpm.training.batches import Batch
from ddpm.training.loop import Objective
from ddpm.training.plan import Plan
from ddpm.training.run_folder import RunFolder
from ddpm.words import counted

TEACHER_STEPS = {"progressive": 5, "consistency": 8}
"""Steps of the teacher that one of the student's is worth, by method, where the schedule has so many."""

_SETTABLE = {"data", "sampling", "seed", "training"}  # sections of the configuration
_BACKWARD = 2.0  # cost of a backward pass, in forward passes
_SHARE = 0.9  # of the teacher's training: evaluations and previews cost something too


@dataclass(frozen=True, eq=False, kw_only=True)
class DistillationObjective(Objective):
    """The error of a student's step against its teacher's steps.

    A batch's t, uniform over the T timesteps, chooses which of the student's equally likely steps a picture trains.

    Attributes:
        teacher: what the student learns from, of pictures with these conditions.
        distillation: how.
        timesteps: the times of the student, decreasing.
    """

    teacher: Callable[[Condition | None], Denoiser]
    distillation: DistillationConfig
    timesteps: Sequence[float]

    def losses(self, network: nn.Module, batch: Batch, *, dropout: bool = True) -> Losses:
        """Return the loss of each picture, float32 [B] on the device; without dropout, as the target has no noise."""
        step, start, arrival, end = self._times(batch.t)
        x_t = process.q_sample(batch.x_0, start, batch.eps, self.schedule).to(self.engine.device)
        if self.engine.channels_last:
            x_t = x_t.to(memory_format=torch.channels_last)
        condition = None if batch.condition is None else batch.condition.to(self.engine.device)
        with self.engine.autocast():
            if self.distillation.method == "consistency":
                teacher, student = self.teacher(condition), self._clipped(network, condition)
                target = consistency_target(teacher, student, x_t, start, arrival, end, self.schedule)
            else:
                target = self._progressive_targets(x_t, step, condition)
        output = self._run(network, x_t, start, condition, None)
        loss = student_loss(output, target, x_t, start, self.schedule, self.config.parameterization)
        return Losses(loss)

    def _progressive_targets(self, x_t: Tensor, step: Tensor, condition: Condition | None) -> Tensor:
        """Return the targets of pictures that train these steps of the student: one walk of the teacher for each."""
        how, bounds = self.distillation, [*self.timesteps, CLEAN]
        targets = torch.empty_like(x_t)
        for number in sorted(set(step.tolist())):
            rows = (step == number).nonzero().squeeze(1).to(x_t.device)
            teacher = self.teacher(None if condition is None else condition.select(rows))
            walk = (x_t[rows], bounds[number], bounds[number + 1], how.teacher_steps)
            targets[rows] = progressive_target(teacher, *walk, self.schedule, how.teacher_solver).to(x_t)
        return targets

    def _times(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return which step a picture trains, when its part begins, where the teacher's first step arrives, its end.

        A progressive student is only trained where its steps begin; a consistent one, all along them.
        """
        times = torch.tensor([*self.timesteps, CLEAN], dtype=torch.float64)
        count, parts = len(self.timesteps), self.distillation.teacher_steps
        place = count - (t.double() + 0.5) * count / len(self.schedule)  # 0 to count, from noise to data
        step = place.floor().long()
        begin, end = times[step], times[step + 1]
        made = (parts * (place - step)).floor()
        if self.distillation.method == "progressive":
            made = torch.zeros_like(made)
        arrival = (begin + (end - begin) * ((made + 1) / parts)).where(made + 1 < parts, end)
        return step, begin + (end - begin) * (made / parts), arrival, end

    def _clipped(self, network: nn.Module, condition: Condition | None) -> Denoiser:
        def run(seen: Tensor, t: Tensor) -> Tensor:
            output: Tensor = network(seen, t, condition)
            return output

        denoiser = network_denoiser(run, self.schedule, self.config.parameterization)
        return denoiser if self.x_0_range is None else clipped(denoiser, self.schedule, *self.x_0_range)


@dataclass(frozen=True, eq=False)
class DistillationPlan(Plan):
    """What will be distilled, where.

    Attributes:
        teacher: the model to learn from.
    """

    teacher: Model

    def start(self, engine: Engine) -> tuple[nn.Module, Objective]:
        """Return the student, which begins with its teacher's weights, and what is minimised."""
        engine.place(self.teacher.network)
        advice = self.config.sampling
        objective = DistillationObjective(
            schedule=self.teacher.schedule,
            config=self.config.objective,
            engine=engine,
            levels=self.codec.levels,
            x_0_range=self.codec.clip_range if advice.clip else None,
            teacher=lambda condition: self.teacher.denoiser(clip=advice.clip, condition=condition),
            distillation=distillation_of(self.config),
            timesteps=timesteps_of(self.config),
        )
        student = engine.place(student_network(self.teacher, self.config))
        recompute_activations(student, self.config.training.gradient_checkpointing)
        return student, objective

    def lineage(self) -> dict[str, Any]:
        """Return from which file the model was distilled, how, and what its teacher had seen."""
        known = self.teacher.provenance
        taught = {key: known[key] for key in ("step", "pictures_seen", "weights") if key in known}
        return {"distilled_from": {**distillation_of(self.config).model_dump(), **taught}}

    def shown_beside(self) -> list[Model]:
        """Return the teacher: previews show what both make of the same noise."""
        return [self.teacher]


def student_network(teacher: Model, config: Config) -> nn.Module:
    """Return a network with the teacher's weights, without its outputs for a variance and inputs for an estimate.

    What is left is the teacher as it is in its first step: its mean, given an estimate of zeros. Where the student
    predicts something else than its teacher (v for eps), the weights are only where it begins.
    """
    with torch.device("meta"):
        network = build_network(config.network, teacher.picture_shape, conditions=teacher.conditions)
    wanted, weights = network.state_dict(), teacher.network.state_dict()
    cut = {name: weights[name][tuple(slice(n) for n in tensor.shape)].clone() for name, tensor in wanted.items()}
    network.load_state_dict(cut, strict=True, assign=True)
    return network


def make_distillation_plan(
    model: str | Path,
    overrides: Mapping[str, Any],
    *,
    steps: int = 4,
    method: str = "progressive",
    teacher_steps: int | None = None,
    teacher_solver: str = "unipc",
    data: str | None = None,
    out: str | Path | None = None,
    cache_dir: Path | None = None,
    progress: ProgressFactory | None = None,
) -> DistillationPlan:
    """Open teacher and data, and decide everything about the run; nothing is written but the data cache.

    Unless overridden, the student trains for no longer than its teacher did: from the pictures that the teacher has
    seen, and the passes through a network that a picture costs here and cost there.

    Args:
        model: the teacher: a model file, or the run folder that holds one.
        overrides: tree of configuration values over those chosen here.
        steps: sampling steps of the student.
        method: "progressive" or "consistency".
        teacher_steps: of the teacher in one of the student's; none: 5 or 8 by method, if the schedule has so many.
        teacher_solver: "unipc", "dpm_solver_pp" or "ddim", for those steps.
        data: to train on; none: the teacher's.
        out: the run folder; none: beside the teacher's, named after it and the steps.
        cache_dir: of decoded pictures.
        progress: shows the decoding.

    Raises:
        ModelFileError: if there is no model.
        ConfigError: for values that are not valid, or a teacher that cannot be distilled.
        DataError: if the data cannot be used, or are not of the teacher's kind.
    """
    for foreign in sorted(overrides.keys() - _SETTABLE):
        raise ConfigError(f"'{foreign}' comes from the teacher; what can be set are {', '.join(sorted(_SETTABLE))}")
    file = locate(Path(model))
    folder = RunFolder(Path(out) if out is not None else default_out(file, steps))
    teacher = Model.load(file)
    _refuse_distilled(file, teacher)
    chosen = _student_tree(teacher, _student_times(steps, teacher.schedule))
    known = {**_base_tree(teacher), "objective": {}, "training": {}, "sampling": {}}
    config = from_tree(merge(merge(known, chosen), overrides))
    if config.sampling.options() != {"eta": 0.0}:
        raise ConfigError(
            f"sampling.sampler is '{config.sampling.sampler}' with eta {config.sampling.eta}; a distilled model learns "
            "the steps of ddim at eta 0, and is right with no others"
        )
    section = {
        "method": method,
        "teacher": str(file),
        "teacher_sha256": sha256_of(file),
        "teacher_steps": _teacher_steps(teacher_steps, method, config),
        "teacher_solver": teacher_solver,
    }
    config = from_tree({**to_tree(config), "distillation": section})
    config = _with_budget(config, teacher, overrides)
    choose_engine(config.training.device, config.training.precision)
    folder.check_usable()
    source = data or teacher.provenance.get("data")
    if source is None:
        raise ConfigError(f"'{file}' does not say what it was trained on; name the data with --data")
    store = open_store(source, config.data, cache_dir=cache_dir, progress=progress)
    _check_data(store, teacher)
    conditions = conditions_of(store, teacher.conditions, config.conditions, config.data, cache_dir=cache_dir)
    preset = str(teacher.provenance.get("preset", "none"))
    return DistillationPlan(config, preset, store, folder.path, conditions, teacher)


def distillation_of(config: Config) -> DistillationConfig:
    """Return the section that every distillation has."""
    assert config.distillation is not None  # `make_distillation_plan` writes it
    return config.distillation


def timesteps_of(config: Config) -> tuple[float, ...]:
    """Return the times of the student.

    Raises:
        ConfigError: if they were taken out of the configuration.
    """
    if config.sampling.timesteps is None:
        raise ConfigError("sampling.timesteps is none; a distilled model needs the times that it is trained for")
    return config.sampling.timesteps


def default_out(file: Path, steps: int) -> Path:
    """Return a run folder beside the teacher, with the number of steps in its name."""
    own = file.parent if file.name == MODEL_NAME else file.with_suffix("")
    own = own.absolute() if own.name in ("", "..") else own
    return own.with_name(f"{own.name}-{steps}-steps")


def _student_times(steps: int, schedule: NoiseSchedule) -> list[float]:
    num_timesteps = len(schedule)
    if not 1 <= steps <= num_timesteps // 2:
        raise ConfigError(
            f"{steps} steps of the student; expected 1 to {num_timesteps // 2}, half of the teacher's timesteps"
        )
    return spaced_timesteps(steps, schedule)


def _refuse_distilled(file: Path, teacher: Model) -> None:
    if teacher.is_distilled:
        raise ConfigError(
            f"'{file}' is itself distilled, to {counted(teacher.sampling.steps, 'step')}, and is right at no other "
            "times; "
            "distill the model that it comes from"
        )


def _teacher_steps(wanted: int | None, method: str, config: Config) -> int:
    """Return how many steps of the teacher are one of the student's: no shorter than a timestep of training."""
    most = int(min(t - s for t, s in pairwise([*timesteps_of(config), CLEAN])))
    if wanted is None:
        return min(TEACHER_STEPS.get(method, 1), most)
    if not 1 <= wanted <= most:
        raise ConfigError(f"{wanted} steps of the teacher in one of the student's; expected 1 to {most}")
    return wanted


def _base_tree(teacher: Model) -> dict[str, Any]:
    """Return the configuration that the teacher was trained with, or what is known of that of an imported one."""
    known = teacher.provenance.get("config")
    if isinstance(known, dict):
        return dict(known)
    height, width, _ = teacher.picture_shape
    size = {} if (height, width) == (1, 1) else {"data": {"size": [height, width]}}
    return {"schedule": {"num_timesteps": len(teacher.schedule)}, **size}


def _student_tree(teacher: Model, timesteps: list[float]) -> dict[str, Any]:
    return {
        "network": {**teacher.network_config.model_dump(mode="json"), "self_conditioning": False},
        "objective": {"parameterization": student_parameterization(teacher.parameterization)},
        "training": {
            "learning_rate": _taught(teacher, "learning_rate", 4e-4) / 2,
            "batch_size": _taught(teacher, "batch_size", 128),
            "decay": "cosine",
            "ema_decay": 0.999,
            "milestones": 0,
        },
        "sampling": {
            "sampler": "ddim",
            "steps": len(timesteps),
            "timesteps": timesteps,
            "clip": teacher.sampling.clip,
        },
    }


def _taught(teacher: Model, key: str, otherwise: Any) -> Any:
    return teacher.provenance.get("config", {}).get("training", {}).get(key, otherwise)


def _with_budget(config: Config, teacher: Model, overrides: Mapping[str, Any]) -> Config:
    """Return the configuration with a number of steps, if none was given, and intervals that go with it."""
    asked = overrides.get("training", {})
    steps = asked.get("steps") or default_train_steps(config, int(teacher.provenance.get("pictures_seen", 0)))
    every = max(1, steps // 10)
    chosen = {
        "steps": steps,
        "warmup_steps": min(100, steps // 10),
        "checkpoint_every": max(1, min(100, steps // 10)),
        "evaluate_every": every,
        "preview_every": every,
        "log_every": max(1, min(50, steps // 20)),
    }
    return from_tree(merge(to_tree(config), {"training": {**chosen, **asked}}))


def default_train_steps(config: Config, pictures_seen: int) -> int:
    """Return the optimizer steps that take no longer than the teacher's training on `pictures_seen` pictures.

    Raises:
        ConfigError: if that is unknown, or not enough for ten.
    """
    distillation = distillation_of(config)
    targets = 2 if distillation.method == "consistency" else distillation.teacher_steps
    affordable = _SHARE * pictures_seen * (1 + _BACKWARD) / (1 + _BACKWARD + targets)
    steps = int(affordable / config.training.batch_size)
    if steps < 10:
        raise ConfigError(
            f"the teacher has seen {counted(pictures_seen, 'picture')}, which makes {counted(steps, 'step')} of "
            f"{counted(config.training.batch_size, 'picture')} in the time that it took; say how many with "
            "--train-steps"
        )
    return steps


def _check_data(store: Store, teacher: Model) -> None:
    codec, shape = teacher.codec, tuple(store.pictures.shape[1:])
    if (store.levels, store.value_range, shape) != (codec.levels, codec.value_range, teacher.picture_shape):
        raise DataError(
            f"'{store.source}' has pictures of {shape} with {store.levels} levels in {store.value_range}, those of the "
            f"teacher are {teacher.picture_shape} with {codec.levels} in {codec.value_range}; expected the same"
        )
