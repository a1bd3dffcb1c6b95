"""What a run will take of the machine's memory, found out by a pass over one and over two pictures before it begins."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddpm.config import TrainingConfig
from ddpm.errors import TrainingError
from ddpm.memory import free_memory, give_back, is_shortage
from ddpm.model.averaging import KEPT_WIDTHS
from ddpm.processes import ALONE, Group
from ddpm.terminal import in_bytes, in_time
from ddpm.training.batches import Batch
from ddpm.training.evaluate import HeldOut
from ddpm.training.loop import Objective, no_room_for_one
from ddpm.training.plan import Plan

_SHARE = 0.9  # of the free memory: other programs want some too, and libraries take workspaces that nobody counts
_UNSEEN = 1.55  # on a CPU: what operations take inside themselves, and holes; measured, see docs/memory.md
_UNSEEN_RECOMPUTING = 2.4  # the same with gradient checkpointing: less is kept, what a block takes is the same
_VALUES_TIMED = 2**16  # pixel values of a pass that is timed: 21 pictures of 32x32
_MOMENTS = 2  # numbers that Adam keeps for each weight that it moves


@dataclass(frozen=True, slots=True)
class MemoryForecast:
    """What training takes, in bytes.

    Attributes:
        weights: of the network.
        average: of the moving averages of the weights.
        gradients: of the weights that are trained.
        optimizer: of its moments.
        step: what a pass takes whatever the micro-batch: weights cast for it, a gradient before it is added.
        picture: what each picture of a micro-batch takes: its activations.
        free: what there is beside the weights, once the libraries are loaded.
        batch_size: pictures of an optimizer step.
        micro_batch_size: pictures at once.
        unseen: how many times more activations take than their tensors: inside operations, and in holes between them.
        chosen: whether that number of pictures was chosen by the memory.
    """

    weights: int
    average: int
    gradients: int
    optimizer: int
    step: int
    picture: int
    free: int
    batch_size: int
    micro_batch_size: int
    unseen: float = 1.0
    chosen: bool = True

    @property
    def fixed(self) -> int:
        """What stays from step to step."""
        return self.weights + self.average + self.optimizer

    def total(self, micro_batch_size: int) -> int:
        """Return the peak with so many pictures at once.

        Gradients come as activations go, but seldom fit into the holes that these leave: both count.
        """
        return self.fixed + self.gradients + self.step + int(micro_batch_size * self.picture * self.unseen)

    def fits(self, micro_batch_size: int) -> bool:
        """Whether so many pictures at once leave a tenth of the free memory free."""
        return self.total(micro_batch_size) - self.weights <= _SHARE * self.free

    def largest_fitting(self) -> int:
        """Return the most pictures at once that fit, in parts as even as can be; 1 where not even one fits."""
        if self.fits(self.batch_size):
            return self.batch_size
        left = _SHARE * self.free + self.weights - self.total(0)
        most = max(1, min(int(left // (self.picture * self.unseen)), self.batch_size))
        parts = -(-self.batch_size // most)
        return -(-self.batch_size // parts)

    def lines(self) -> list[str]:
        """Return the forecast in sentences."""
        size, whole = self.micro_batch_size, self.batch_size
        each = in_bytes(int(self.picture * self.unseen))
        at_once = f"{size} pictures at once" if size < whole else f"a batch of {whole}"
        lines = [
            f"memory: about {in_bytes(self.total(size))}, of {in_bytes(self.free + self.weights)} free: "
            f"{in_bytes(self.fixed)} for weights, their average and the optimizer, "
            f"{in_bytes(self.total(size) - self.fixed)} for {at_once} ({each} a picture)"
        ]
        if not self.fits(size):
            lines.append(f"this may be too much; {self._advice()}")
        return lines

    def told_of_fitting(self) -> list[str]:
        """Return why fewer pictures are computed at once than a step has, where that was decided by the memory."""
        if self.micro_batch_size == self.batch_size or not self.chosen:
            return []
        return [
            f"a batch of {self.batch_size} would take {in_bytes(self.total(self.batch_size))} at once: it is computed "
            f"in parts of {self.micro_batch_size}, with the same result within rounding; {self._advice()}"
        ]

    def _advice(self) -> str:
        return "training.gradient_checkpointing=true takes less; so do a smaller --size and network.base_channels"


def foretell(plan: Plan) -> list[str]:
    """Return what a run will take, in lines, without beginning it."""
    engine, training = plan.choose_engine(), plan.config.training
    network, objective = plan.start(engine)
    held_out = HeldOut.of(plan.store, plan.codec, len(objective.schedule), plan.config.seed, plan.conditions)
    memory = foresee(network, objective, held_out.train[0], training)
    count = sum(weight.numel() for weight in network.parameters())
    lines = [f"network of {count / 1e6:.2f} M parameters on {engine.device} in {engine.precision}", *memory.lines()]
    seconds = seconds_a_step(network, objective, held_out.train[0], training.batch_size)
    if seconds is not None:
        lines.append(f"time: about {seconds:.2g} s a step, {in_time(seconds * training.steps)} in all")
    return lines + memory.told_of_fitting()


def foresee(
    network: nn.Module, objective: Objective, pictures: Batch, training: TrainingConfig, group: Group = ALONE
) -> MemoryForecast:
    """Return what training a network will take. Nothing that matters changes: no weight, no random number.

    Costs three pictures' forward and backward pass.

    Args:
        network: in its place, with neither gradients nor an average yet.
        objective: what will be minimised.
        pictures: whose first is computed.
        training: the batch, and how many pictures at once if that is asked for; else as many as fit.
        group: of processes that share the batch, and the memory of the machine.
    """
    one, two = (_peak(network, objective, _first(pictures, count)) for count in (1, 2))
    give_back()
    picture = max(two - one, 1)
    pieces = group.size if training.sharding == "full" else 1
    sizes = [(weight.numel() * weight.element_size(), weight.requires_grad) for weight in network.parameters()]
    weights, trained = sum(size for size, _ in sizes) // pieces, sum(size for size, moves in sizes if moves) // pieces
    forecast = MemoryForecast(
        weights=weights,
        average=weights * (1 + (len(KEPT_WIDTHS) if training.snapshots else 0)),
        gradients=trained,
        optimizer=_MOMENTS * trained,
        step=max(one - picture, 0),
        picture=picture,
        free=free_memory(objective.engine.device) // (group.local_size if objective.engine.device == "cpu" else 1),
        batch_size=group.largest_part(training.batch_size),
        micro_batch_size=training.micro_batch_size or group.largest_part(training.batch_size),
        unseen=_unseen(objective.engine.device, training),
        chosen=training.micro_batch_size is None,
    )
    return replace(forecast, micro_batch_size=forecast.largest_fitting()) if forecast.chosen else forecast


def seconds_a_step(network: nn.Module, objective: Objective, pictures: Batch, batch_size: int) -> float | None:
    """Return about how long an optimizer step takes, from a few pictures; none on a GPU, which they do not fill."""
    if objective.engine.device != "cpu":
        return None
    count = max(1, min(batch_size, _VALUES_TIMED // pictures.x_0[0].numel()))
    began = time.perf_counter()
    _pass(network, objective, _first(pictures, count))
    seconds = time.perf_counter() - began
    network.zero_grad(set_to_none=True)
    return seconds / count * batch_size


def _unseen(device: str, training: TrainingConfig) -> float:
    if device != "cpu":  # whose allocator has counted all of it
        return 1.0
    return _UNSEEN_RECOMPUTING if training.gradient_checkpointing else _UNSEEN


def _first(batch: Batch, count: int) -> Batch:
    """Return the first picture `count` times."""
    first = torch.zeros(count, dtype=torch.int64)
    values = {each.name: getattr(batch, each.name) for each in fields(batch) if each.name != "condition"}
    condition = None if batch.condition is None else batch.condition.select(first)
    return Batch(**{name: value[first.numpy()] for name, value in values.items()}, condition=condition)


def _pass(network: nn.Module, objective: Objective, pictures: Batch) -> None:
    objective.losses(network, pictures).total.sum().backward()  # type: ignore[no-untyped-call]


def _peak(network: nn.Module, objective: Objective, pictures: Batch) -> int:
    """Return the most bytes that a pass holds at once beside weights and gradients.

    The gradients are there before it, so that the peak is that of the activations and grows with the pictures alone.

    Raises:
        TrainingError: if they are not to be had.
    """
    device = torch.device(objective.engine.device)
    try:
        for weight in network.parameters():
            weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            _pass(network, objective, pictures)
            return torch.cuda.max_memory_allocated(device) - before
        with _Live() as live:
            _pass(network, objective, pictures)
        peak: int = live.peak
        return peak
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        raise TrainingError(no_room_for_one()) from error
    finally:
        network.zero_grad(set_to_none=True)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own has no types
    """Counts the bytes of all tensors that are made while it is entered, and as long as they live.

    What an operation takes and gives back inside itself is not seen; on a CPU that is small.

    Attributes:
        peak: the most that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._living: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {_address(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (address := _address(tensor)) not in given:
                self._born(tensor.untyped_storage(), address)
        return result

    def _born(self, storage: torch.UntypedStorage, address: int) -> None:
        if address in self._living or address == 0:
            return
        size = storage.nbytes()

        def died(reference: object) -> None:
            del self._living[address]
            self._now -= size

        self._living[address] = weakref.ref(storage, died)
        self._now += size
        self.peak = max(self.peak, self._now)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
