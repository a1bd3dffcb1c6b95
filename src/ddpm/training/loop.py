"""The training loop: a generator over optimizer steps (Ho et al. 2020, Alg. 1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpm.conditions import Condition
from ddpm.config import ObjectiveConfig, TrainingConfig
from ddpm.diffusion import process
from ddpm.diffusion.denoiser import to_prediction, with_estimate
from ddpm.diffusion.objectives import Losses, Noised, concatenated, training_losses
from ddpm.diffusion.schedules import NoiseSchedule
from ddpm.engine import Engine
from ddpm.errors import TrainingError
from ddpm.memory import give_back, is_shortage
from ddpm.processes import ALONE, Group
from ddpm.processes.replicas import Replicas
from ddpm.training.batches import Batch
from ddpm.training.ema import Average, Ema, PowerAverage
from ddpm.training.importance import LossHistory

MAX_SKIPPED_IN_A_ROW = 10
"""Steps with a non-finite loss or gradient, one after another, at which training stops."""


@dataclass(eq=False)
class TrainState:
    """All that changes while training, and all that a checkpoint holds.

    Attributes:
        network: the weights that the optimizer moves.
        ema: their average.
        optimizer: AdamW.
        step: optimizer steps made, skipped ones included.
        skipped: steps whose update was skipped because a number was not finite.
        skipped_in_a_row: how many of them were the latest.
        micro_batch_size: pictures in memory at once; halved when memory runs out.
        history: the losses by which times are drawn; none: times are uniform.
        scaler: of losses, in float16; else none.
        kept: averages of fixed widths, from which others are made after the training.
    """

    network: nn.Module
    ema: Ema
    optimizer: torch.optim.AdamW
    micro_batch_size: int
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    history: LossHistory | None = None
    scaler: torch.amp.GradScaler | None = None
    kept: tuple[PowerAverage, ...] = ()

    @property
    def averages(self) -> Iterator[tuple[str, Average]]:
        """Every average, by the name it has in a checkpoint."""
        yield "ema", self.ema
        yield from ((f"average {each.width:g}", each) for each in self.kept)


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step, after it was made.

    Attributes:
        step: steps made so far, this one included.
        loss: mean over the batch; with importance-sampled times, weighted to estimate that of uniform ones.
        losses: float32 [B], of each picture, without that weight.
        parts: float32 [B] each, what `losses` are made of: "simple", "bound"; empty for L_simple alone.
        batch: what the step saw; of several processes, the part of this one.
        rows: int64 [B], the rows of the data set.
        t: int64 [B].
        weights: float32 [B], of each loss in the mean.
        gradient_norm: before clipping.
        learning_rate: of this step.
        skipped: whether the update was left out because a number was not finite.
        notices: sentences for the user: what was changed to go on.
    """

    step: int
    loss: float
    losses: NDArray[np.float32]
    parts: Mapping[str, NDArray[np.float32]]
    batch: Batch
    rows: NDArray[np.int64]
    t: NDArray[np.int64]
    weights: NDArray[np.float32]
    gradient_norm: float
    learning_rate: float
    skipped: bool
    notices: tuple[str, ...] = field(default=())


@dataclass(frozen=True, eq=False)
class Objective:
    """What is minimised, where (`ddpm.diffusion.objectives` has the mathematics).

    Attributes:
        schedule: the noise schedule.
        config: the choice of loss.
        engine: where and in which precision.
        levels: gray levels of the data; none: continuous.
        x_0_range: of the data, to which estimates for self-conditioning are clamped; none: unbounded.
        self_conditioning: whether the network reads an estimate of x_0 beside x_t.
    """

    schedule: NoiseSchedule
    config: ObjectiveConfig
    engine: Engine
    levels: int | None = None
    x_0_range: tuple[float, float] | None = (-1.0, 1.0)
    self_conditioning: bool = False

    def losses(self, network: nn.Module, batch: Batch, *, dropout: bool = True) -> Losses:
        """Return the losses of each picture of a batch, without its weights, float32 [B] on the device."""
        device = self.engine.device
        x_t = process.q_sample(batch.x_0, batch.t, batch.eps, self.schedule)
        noised = Noised(batch.x_0.to(device), batch.eps.to(device), x_t.to(device), batch.t)
        condition = None if batch.condition is None else batch.condition.to(device)
        seen = noised.x_t
        if self.self_conditioning:
            seen = self._with_estimates(network, noised, condition, batch.conditioned)
        output = self._run(network, seen, batch.t, condition, batch.dropout_keys if dropout else None)
        return training_losses(output, noised, self.schedule, self.config, self.levels)

    @torch.no_grad()
    def _with_estimates(
        self, network: nn.Module, noised: Noised, condition: Condition | None, conditioned: Tensor
    ) -> Tensor:
        """Return x_t beside zeros, or where `conditioned` beside what the network makes of them (Chen et al. 2022).

        The first pass has no gradient and, as in sampling, no dropout; it costs a forward for half of the pictures.
        """
        seen = with_estimate(noised.x_t, None, self.x_0_range)
        rows = conditioned.nonzero().squeeze(1)
        if len(rows) == 0:
            return seen
        there, t = rows.to(seen.device), noised.t[rows]
        output = self._run(network, seen[there], t, None if condition is None else condition.select(there), None)
        estimate = to_prediction(output, noised.x_t[there], t, self.schedule, self.config.parameterization).x_0
        return seen.index_copy(0, there, with_estimate(noised.x_t[there], estimate, self.x_0_range))

    def _run(
        self, network: nn.Module, seen: Tensor, t: Tensor, condition: Condition | None, dropout_keys: Tensor | None
    ) -> Tensor:
        device = self.engine.device
        memory_format = torch.channels_last if self.engine.channels_last else torch.contiguous_format
        seen = seen.to(memory_format=memory_format)
        keys = None if dropout_keys is None else dropout_keys.to(device)
        with self.engine.autocast():
            output: Tensor = network(seen, t.to(device, torch.float32), condition, dropout_keys=keys)
        return output


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0: linear warm-up, then the decay."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.decay == "constant":
        return config.learning_rate * warm
    share = min(1.0, max(0, step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    shape = 1 - share if config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * share))
    return config.learning_rate * warm * shape


def make_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW over all weights that are not frozen; with weight_decay = 0 it is Adam."""
    return torch.optim.AdamW(
        [weight for weight in network.parameters() if weight.requires_grad],
        lr=config.learning_rate,
        betas=config.adam_betas,
        weight_decay=config.weight_decay,
        fused=next(network.parameters()).device.type in ("cpu", "cuda"),
    )


def train_steps(
    state: TrainState,
    batches: Iterable[Batch],
    objective: Objective,
    config: TrainingConfig,
    group: Group = ALONE,
) -> Iterator[StepReport]:
    """Make one optimizer step a batch, and yield after each.

    A step whose loss or gradient is not finite changes no weight: it is skipped and counted. When memory runs out, the
    micro-batch is halved and the step made again; the effective batch stays. In float16 a gradient may be too large for
    the scale of the loss: such a step is skipped too, and the scale halved, but it says nothing of the training. All
    processes of a group decide alike: each is given its part of the batch, and all see the losses of the whole.

    Args:
        state: what moves; the same in every process.
        batches: of this process.
        objective: what is minimised.
        config: how.
        group: who trains together.

    Raises:
        TrainingError: after `MAX_SKIPPED_IN_A_ROW` skipped steps, or when memory runs out with one picture.
    """
    replicas = Replicas(state.network, group)
    for drawn in batches:
        batch = _with_times(drawn, state.history)
        count = len(batch) if group.is_alone else config.batch_size
        rate = learning_rate(state.step, config)
        for each in state.optimizer.param_groups:
            each["lr"] = rate
        losses, notices = _backward_within_memory(state, batch, objective, replicas, count)
        seen = _Seen.of(batch, losses, group, count)
        scale = _unscale(state)
        norm = replicas.clip(config.gradient_clip)
        loss = float((seen.total * seen.weights).mean())
        finite = math.isfinite(loss) and math.isfinite(norm)
        state.step += 1
        if finite:
            state.optimizer.step()
            for _, average in state.averages:
                average.update(state.network, state.step - state.skipped)
            state.skipped_in_a_row = 0
            if state.history is not None:
                state.history.update(seen.t, seen.total)
        else:
            state.skipped += 1
            if scale > 1 and math.isfinite(loss):
                notices.append(f"float16: a gradient overflowed at a loss scale of {scale:g}, which is halved")
            else:
                state.skipped_in_a_row += 1
        state.optimizer.zero_grad(set_to_none=True)
        yield StepReport(
            step=state.step,
            loss=loss,
            losses=seen.total.numpy(),
            parts={name: part.numpy() for name, part in seen.parts.items()},
            batch=batch,
            rows=seen.rows.numpy(),
            t=seen.t.numpy(),
            weights=seen.weights.numpy(),
            gradient_norm=norm,
            learning_rate=rate,
            skipped=not finite,
            notices=tuple(notices),
        )
        if state.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"{state.skipped_in_a_row} steps in a row had a loss or gradient that is not finite (the last at step "
                f"{state.step}); the weights are still those before them. Start anew with another --out and a "
                f"lower training.learning_rate (now {config.learning_rate:g}), or training.precision=float32"
            )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What all processes together have seen in a step: tensors [B] on the CPU, in the order of the batch."""

    rows: Tensor
    t: Tensor
    weights: Tensor
    total: Tensor
    parts: dict[str, Tensor]

    @staticmethod
    def of(batch: Batch, losses: Losses, group: Group, count: int) -> _Seen:
        parts = losses.parts()
        own = (torch.from_numpy(batch.rows), batch.t, batch.weights, losses.total, *parts.values())
        if group.is_alone:
            columns = own
        else:  # float64 holds all of it exactly, so that it travels as one
            whole = group.rows(torch.stack([column.double() for column in own], 1), count)
            columns = tuple(column.to(kind.dtype) for column, kind in zip(whole.unbind(1), own, strict=True))
        rows, t, weights, total, *others = columns
        return _Seen(rows, t, weights, total, dict(zip(parts, others, strict=True)))


def _with_times(batch: Batch, history: LossHistory | None) -> Batch:
    """Return the batch with its times and weights as importance sampling wants them now."""
    if history is None:
        return batch
    t, weights = history.times(batch.u)
    return replace(batch, t=t, weights=weights)


def _backward_within_memory(
    state: TrainState, batch: Batch, objective: Objective, replicas: Replicas, count: int
) -> tuple[Losses, list[str]]:
    """Make the gradient of the whole batch of `count` pictures; return the losses of this part, and notices."""
    notices: list[str] = []
    while True:
        losses = _backward_if_it_fits(state, batch, objective, replicas, count)
        if replicas.all_have(losses):
            replicas.finish_step()
            return losses, notices
        if state.micro_batch_size == 1:
            raise TrainingError(no_room_for_one())
        state.micro_batch_size = max(1, min(state.micro_batch_size, replicas.group.largest_part(count)) // 2)
        state.optimizer.zero_grad(set_to_none=True)
        replicas.be_cautious()
        notices.append(f"out of memory: going on with micro-batches of {state.micro_batch_size}, the same batch size")
        give_back()


def _backward_if_it_fits(
    state: TrainState, batch: Batch, objective: Objective, replicas: Replicas, count: int
) -> Losses | None:
    try:
        return _backward(state, batch, objective, replicas, count)
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error) or replicas.overlaps:  # the others wait for a gradient, and cannot be told
            raise
        return None  # not from here: the exception holds the frames, and they hold the memory


def _backward(state: TrainState, batch: Batch, objective: Objective, replicas: Replicas, count: int) -> Losses:
    """Accumulate the gradient of the mean weighted loss over micro-batches; return losses, float32 [B] on the CPU."""
    collected = []
    for start in range(0, len(batch), state.micro_batch_size):
        micro = batch.part(start, state.micro_batch_size)
        with replicas.accumulating(last=start + state.micro_batch_size >= len(batch)):
            losses = objective.losses(replicas.network, micro)
            weighted = losses.total * micro.weights.to(losses.total.device)
            loss = weighted.sum() * replicas.scale / count
            (loss if state.scaler is None else state.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        collected.append(losses.map(lambda part: part.detach().float().cpu()))
    return concatenated(collected)


def _unscale(state: TrainState) -> float:
    """Divide the gradients by the scale of the losses, choose that of the next step, and return this one's; 1: none."""
    if state.scaler is None:
        return 1.0
    scale = float(state.scaler.get_scale())
    state.scaler.unscale_(state.optimizer)
    state.scaler.update()
    return scale


def no_room_for_one() -> str:
    """Return what to do where not even one picture fits."""
    return (
        "not enough memory for one picture; use training.gradient_checkpointing=true, a smaller --size or "
        "network.base_channels"
    )
