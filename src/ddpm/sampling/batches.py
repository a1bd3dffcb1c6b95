"""Pictures in batches that fit: how many at once, how long it will take, and what happens when memory runs out."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ddpm.codec import Pictures
from ddpm.conditions import Condition
from ddpm.config.conditions import ConditionSpec
from ddpm.diffusion.samplers import SampleStep
from ddpm.engine import Engine
from ddpm.errors import SamplingError
from ddpm.memory import free_memory, give_back, is_shortage
from ddpm.model import Model
from ddpm.terminal import in_time

OnStep = Callable[[Sequence[int], SampleStep], object]
"""``(numbers of the batch's pictures, step) -> ...``, called after each step of each batch."""

Conditions = Callable[[Sequence[int]], Condition | None]
"""Numbers of pictures -> their conditions."""

_FREE_SHARE = 0.5  # of the free memory: other programs want some too, and convolutions need room to work
_VALUES_ON_CPU = 2**18  # pixel values at once: larger batches leave the caches, and run no faster
_VALUES_ON_GPU = 2**23
_STATES = 12  # copies of x_t that a sampler, its history and its noise hold at once
_MOST_NUMBERS = 10_000_000


def parse_numbers(text: str) -> list[int]:
    """Return the picture numbers of a text such as "3,17,40-50", in its order, each once.

    Raises:
        SamplingError: if it is something else.
    """
    numbers: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not (_is_number(first) and (not dash or _is_number(last))):
            raise SamplingError(f"pictures '{text}': '{part.strip()}' is no number; expected for example 3,17,40-50")
        low, high = int(first), int(last) if dash else int(first)
        if low > high or high - low >= _MOST_NUMBERS:
            raise SamplingError(
                f"pictures '{text}': '{part.strip()}' runs the wrong way, or over more than "
                f"{_MOST_NUMBERS:,} pictures; expected for example 40-50"
            )
        numbers.update(dict.fromkeys(range(low, high + 1)))
    return list(numbers)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


@dataclass(frozen=True, slots=True)
class Forecast:
    """What sampling will take.

    Attributes:
        batch_size: pictures at once.
        evaluations: of the network, for each batch.
        seconds: in all.
    """

    batch_size: int
    evaluations: int
    seconds: float

    def as_words(self) -> str:
        """Return the time for people."""
        return f"about {in_time(self.seconds)}"


def forecast(model: Model, count: int, engine: Engine, *, batch_size: int | None = None) -> Forecast:
    """Return what sampling `count` pictures will take, by running the network once on one picture and once on a batch.

    Args:
        model: its network placed by the engine.
        count: of pictures.
        engine: in which precision.
        batch_size: none: what fits in half of the free memory, and no more than runs faster for being together.

    Raises:
        SamplingError: if not even one picture fits.
    """
    shape = model.picture_shape
    passes = 1 if model.guidance is None else 2  # guidance runs the network with and without condition, at once
    try:
        needed, channels_out = _probe(model, engine)
        needed *= passes
    except (RuntimeError, MemoryError) as error:
        if is_shortage(error):
            raise _refusal() from error
        raise
    if batch_size is None:
        cap = _VALUES_ON_GPU if model.device.type == "cuda" else _VALUES_ON_CPU
        batch_size = max(1, min(int(free_memory(model.device) * _FREE_SHARE) // needed, cap // math.prod(shape)))
    size = min(batch_size, count)
    while True:
        try:
            seconds = _time_one(model, engine, size * passes)
            break
        except (RuntimeError, MemoryError) as error:
            size = _halved(size, error)
    evaluations = count_evaluations(model, channels_out)
    return Forecast(size, evaluations, seconds * evaluations * count / size)


def count_evaluations(model: Model, channels_out: int) -> int:
    """Return how often the model's sampler runs the network for a batch; of adaptive ones, on blank pictures.

    Args:
        model: whose sampler and steps.
        channels_out: of the network.
    """
    blank = _Blank(channels_out)
    plain = replace(
        model,
        conditions=ConditionSpec(),
        prompt_reader=None,
        prompt=None,
        guide=None,
        sampling=model.sampling.unguided(),
    )
    stand_in = replace(plain, network=blank, picture_shape=(1, 1, model.picture_shape[2]))
    deque(stand_in.sample_steps([0]), maxlen=0)
    return blank.calls


class _Blank(nn.Module):
    """A network that counts how often it runs, and returns zeros."""

    def __init__(self, channels_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()), requires_grad=False)  # which says where the network is
        self.channels_out = channels_out
        self.calls = 0

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Return zeros."""
        self.calls += 1
        return torch.zeros(len(x_t), self.channels_out, *x_t.shape[2:])


def make_pictures(
    model: Model,
    numbers: Sequence[int],
    *,
    seed: int,
    engine: Engine,
    batch_size: int,
    conditions: Conditions | None = None,
    on_step: OnStep | None = None,
) -> Iterator[tuple[Sequence[int], Pictures]]:
    """Yield numbers and pictures [B, H, W, C] of each batch; where memory runs out, it is halved and made again.

    Picture i of seed s has the same noise in any batch and order; the picture is the same to 1/255.

    Args:
        model: its network placed by the engine.
        numbers: which pictures.
        seed: of the noise.
        engine: in which precision.
        batch_size: pictures at once, at first.
        conditions: of the pictures; none: as the model draws them.
        on_step: told of each step; of a batch that is made again, twice.

    Raises:
        SamplingError: if not even one picture fits, or the network returns numbers that are not finite.
    """
    start, size = 0, batch_size
    while start < len(numbers):
        batch = numbers[start : start + size]
        try:
            tell = None if on_step is None else partial(on_step, batch)
            with engine.autocast():
                condition = None if conditions is None else conditions(batch)
                pictures = model.sample_numbers(batch, seed=seed, condition=condition, on_step=tell)
        except (RuntimeError, MemoryError) as error:
            size = _halved(len(batch), error)
            continue
        yield batch, pictures
        start += len(batch)


def _halved(size: int, error: Exception) -> int:
    """Return half the batch if `error` says that memory ran out; raise it, or a sentence, otherwise."""
    if not is_shortage(error):
        raise error
    if size == 1:
        raise _refusal() from error
    give_back()
    return size // 2


def _refusal() -> SamplingError:
    return SamplingError("not even one picture fits into memory; close other programs, or use another --device")


def _probe(model: Model, engine: Engine) -> tuple[int, int]:
    """Run the network on one picture; return the bytes of all that its modules put out, and its output's channels.

    More than what lives at once (each is freed after its last use), so the sum is a bound with room for workspaces.
    """
    count, channels = 0, 0

    def add(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal count, channels
        if isinstance(output, Tensor):
            count += output.numel() * output.element_size()
        if module is model.network and isinstance(output, Tensor):
            channels = output.shape[1]

    handles = [module.register_forward_hook(add) for module in model.network.modules()]
    try:
        _run(model, engine, 1)
    finally:
        for handle in handles:
            handle.remove()
    return count + _STATES * 4 * math.prod(model.picture_shape), channels


def _time_one(model: Model, engine: Engine, size: int) -> float:
    start = time.perf_counter()
    _run(model, engine, size)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - start


@torch.no_grad()
def _run(model: Model, engine: Engine, size: int) -> None:
    height, width, channels = model.picture_shape
    x_t = torch.zeros(size, channels, height, width, device=model.device)
    with engine.autocast():
        model.denoiser()(x_t, torch.zeros(size, dtype=torch.float64))
