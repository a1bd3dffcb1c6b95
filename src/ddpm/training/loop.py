"""The training loop: a generator over optimizer steps (Ho et al. 2020, Alg. 1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpm.config import TrainingConfig
from ddpm.diffusion import objectives, process
from ddpm.diffusion.denoiser import Parameterization
from ddpm.diffusion.schedules import NoiseSchedule
from ddpm.errors import TrainingError
from ddpm.training.batches import Batch
from ddpm.training.ema import Ema
from ddpm.training.engine import Engine

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
    """

    network: nn.Module
    ema: Ema
    optimizer: torch.optim.AdamW
    micro_batch_size: int
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step, after it was made.

    Attributes:
        step: steps made so far, this one included.
        loss: mean over the batch.
        losses: float32 [B], of each picture.
        batch: what the step saw.
        gradient_norm: before clipping.
        learning_rate: of this step.
        skipped: whether the update was left out because a number was not finite.
        notices: sentences for the user: what was changed to go on.
    """

    step: int
    loss: float
    losses: NDArray[np.float32]
    batch: Batch
    gradient_norm: float
    learning_rate: float
    skipped: bool
    notices: tuple[str, ...] = field(default=())


@dataclass(frozen=True, eq=False)
class Objective:
    """What is minimised: L_simple of a parameterization under a schedule (Ho et al. 2020, Eq. 14).

    Attributes:
        schedule: the noise schedule.
        parameterization: what the network outputs.
        engine: where and in which precision.
    """

    schedule: NoiseSchedule
    parameterization: Parameterization
    engine: Engine

    def losses(self, network: nn.Module, batch: Batch, *, dropout: bool = True) -> Tensor:
        """Return the loss of each picture of a batch, float32 [B] on the device."""
        x_t = process.q_sample(batch.x_0, batch.t, batch.eps, self.schedule)
        wanted = objectives.target(batch.x_0, batch.eps, x_t, batch.t, self.schedule, self.parameterization)
        device = self.engine.device
        memory_format = torch.channels_last if self.engine.channels_last else torch.contiguous_format
        x_t = x_t.to(device, memory_format=memory_format)
        times = batch.t.to(device, torch.float32)
        with self.engine.autocast():
            output = network(x_t, times, dropout_keys=batch.dropout_keys.to(device) if dropout else None)
        return objectives.squared_error(output, wanted.to(device))


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0: linear warm-up, then the decay."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.decay == "constant":
        return config.learning_rate * warm
    share = min(1.0, max(0, step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    shape = 1 - share if config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * share))
    return config.learning_rate * warm * shape


def make_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW over all weights; with weight_decay = 0 it is Adam."""
    return torch.optim.AdamW(
        network.parameters(),
        lr=config.learning_rate,
        betas=config.adam_betas,
        weight_decay=config.weight_decay,
        fused=next(network.parameters()).device.type in ("cpu", "cuda"),
    )


def train_steps(
    state: TrainState, batches: Iterable[Batch], objective: Objective, config: TrainingConfig
) -> Iterator[StepReport]:
    """Make one optimizer step a batch, and yield after each.

    A step whose loss or gradient is not finite changes no weight: it is skipped and counted. When memory runs out, the
    micro-batch is halved and the step made again; the effective batch stays.

    Raises:
        TrainingError: after `MAX_SKIPPED_IN_A_ROW` skipped steps, or when memory runs out with one picture.
    """
    for batch in batches:
        rate = learning_rate(state.step, config)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        losses, notices = _backward_within_memory(state, batch, objective)
        norm = float(nn.utils.clip_grad_norm_(state.network.parameters(), config.gradient_clip))
        loss = float(losses.mean())
        finite = math.isfinite(loss) and math.isfinite(norm)
        state.step += 1
        if finite:
            state.optimizer.step()
            state.ema.update(state.network, state.step - state.skipped)
            state.skipped_in_a_row = 0
        else:
            state.skipped += 1
            state.skipped_in_a_row += 1
        state.optimizer.zero_grad(set_to_none=True)
        yield StepReport(state.step, loss, losses.numpy(), batch, norm, rate, not finite, tuple(notices))
        if state.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"{state.skipped_in_a_row} steps in a row had a loss or gradient that is not finite (the last at step "
                f"{state.step}); the weights are still those before them. Start anew with another --out and a "
                f"lower training.learning_rate (now {config.learning_rate:g}), or training.precision=float32"
            )


def _backward_within_memory(state: TrainState, batch: Batch, objective: Objective) -> tuple[Tensor, list[str]]:
    notices: list[str] = []
    while True:
        try:
            return _backward(state, batch, objective), notices
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if state.micro_batch_size == 1:
                raise TrainingError(
                    "not enough memory for one picture; use a smaller --size or network.base_channels"
                ) from error
        # Outside of the except clause: the exception holds the frames, and they hold the memory.
        state.micro_batch_size = max(1, min(state.micro_batch_size, len(batch.t)) // 2)
        state.optimizer.zero_grad(set_to_none=True)
        notices.append(f"out of memory: going on with micro-batches of {state.micro_batch_size}, the same batch size")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _backward(state: TrainState, batch: Batch, objective: Objective) -> Tensor:
    """Accumulate the gradient of the mean loss over micro-batches; return the losses, float32 [B] on the CPU."""
    count = len(batch.t)
    collected = []
    for start in range(0, count, state.micro_batch_size):
        part = slice(start, start + state.micro_batch_size)
        micro = Batch(batch.rows[part], batch.x_0[part], batch.t[part], batch.eps[part], batch.dropout_keys[part])
        losses = objective.losses(state.network, micro)
        (losses.sum() / count).backward()  # type: ignore[no-untyped-call]
        collected.append(losses.detach())
    return torch.cat(collected).float().cpu()


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
