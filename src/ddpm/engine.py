"""Where and how the arithmetic runs: device and precision. Choices follow from the hardware alone, never from a clock.

A choice by stop-watch could differ between two runs of the same command; these do not, so a run can be repeated.
"""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from ddpm import native
from ddpm.errors import ConfigError
from ddpm.networks.kernels import use_kernels
from ddpm.self_test import trouble_with

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class Engine:
    """The choices that a run keeps; stored in its checkpoint and used again on resume.

    Attributes:
        device: "cpu", "cuda", "cuda:1", "mps".
        precision: of convolutions and matrix products; weights, statistics, loss and optimizer stay float32.
        channels_last: memory layout of pictures and weights.
        threads: of the CPU; bit-equal results need the same number.
        native: whether group norms and convolutions run in the compiled kernels of `ddpm.native`.
        notices: what the user should know of the choice; no part of it.
    """

    device: str
    precision: Precision
    channels_last: bool
    threads: int
    native: bool = False
    notices: tuple[str, ...] = field(default=(), compare=False)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which the network's forward pass runs."""
        return autocast(self.device, self.precision)

    def scaler(self) -> torch.amp.GradScaler | None:
        """Return what scales losses so that small gradients do not vanish in float16; other precisions need none."""
        return torch.amp.GradScaler(torch.device(self.device).type) if self.precision == "float16" else None

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the device, in its memory layout, and choose its kernels."""
        network.to(self.device)
        use_kernels(network, self.native)
        if self.native:
            native.keep_freed_memory()
        if self.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    def as_tree(self) -> dict[str, Any]:
        """Return plain JSON values; ``Engine(**tree)`` inverts it."""
        return {name: value for name, value in asdict(self).items() if name != "notices"}


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """Return the context in which a network runs in a precision of `Precision`."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=getattr(torch, precision))


def choose_engine(device: str = "auto", precision: str = "auto") -> Engine:
    """Return the engine for this machine.

    bfloat16 in channels_last is used where the hardware multiplies it fast: CPUs with AMX, AMD's from Zen 5 on (a
    convolution twice as fast as in float32, a whole training step 1.9 times), GPUs with tensor cores for it.
    Elsewhere it is slower than float32 (1.2 to 1.7 times on an Intel CPU that has AVX512-BF16 but no AMX). On a CPU the
    compiled kernels, which read channels_last only, are used wherever they can be built. GPUs whose tensor cores know
    float16 alone compute in that, older ones in float32. A GPU of Apple's is tested before it is trusted.

    Raises:
        ConfigError: for a device that this machine does not have.
    """
    name = _default_device() if device == "auto" else device
    chosen_device = _checked_device(name)
    notices: list[str] = []
    if chosen_device.type == "mps" and (trouble := trouble_with(name)):
        notices.append(f"the GPU ('{name}') is not used, because {trouble}: going on with the CPU")
        name, chosen_device = "cpu", torch.device("cpu")
    kind, best = chosen_device.type, _best_precision(chosen_device)
    chosen: Precision = next((known for known in get_args(Precision) if known == precision), best)
    if kind == "cuda" and best == "float32" and chosen == best:
        notices.append(f"'{torch.cuda.get_device_name(chosen_device)}' has no use for half precision: float32")
    compiled = kind == "cpu" and chosen != "float16" and native.available()
    return Engine(
        device=name,
        precision=chosen,
        channels_last=kind != "mps" and (best != "float32" or compiled),
        threads=torch.get_num_threads(),
        native=compiled,
        notices=tuple(notices),
    )


def engine_of(tree: dict[str, Any]) -> tuple[Engine, str | None]:
    """Return the engine that a checkpoint names, or the nearest that this machine has, with a notice."""
    engine = Engine(**tree)
    if engine.native and not native.available():
        return replace(engine, native=False), (
            f"the compiled kernels that this run began with cannot be had ({native.why_unavailable()}): going on with "
            "torch's own; the result is no longer bit-equal to that of a run on one machine"
        )
    try:
        _checked_device(engine.device)
    except ConfigError:
        other = choose_engine()
        return other, (
            f"device '{engine.device}' is not there: going on with '{other.device}' in {other.precision}; "
            "the result is no longer bit-equal to that of a run on one machine"
        )
    return engine, None


def without_kernels() -> list[str]:
    """Return the one line that says why the compiled kernels are missing; none where they are there, or left out."""
    reason = native.why_unavailable()
    if not reason or native.switched_off():
        return []
    return [f"training on a CPU is slower than it could be, because the compiled kernels are missing: {reason}"]


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _checked_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError(f"{device.type} is not supported")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device '{name}' is not there ({str(error).splitlines()[0]}); use 'auto', or one of cpu, cuda, mps"
        ) from error
    return device


def _best_precision(device: torch.device) -> Precision:
    if device.type == "cuda":
        return precision_of_gpu(torch.cuda.get_device_capability(device), torch.cuda.get_device_name(device))
    return "bfloat16" if device.type == "cpu" and _cpu_multiplies_bfloat16_fast() else "float32"


def precision_of_gpu(capability: tuple[int, int], name: str) -> Precision:
    """Return the precision for an NVIDIA GPU: bfloat16 from Ampere on, float16 from Volta on, else float32.

    A GTX 16xx counts as Turing but has no tensor cores, and is known for results that are not finite in float16.
    """
    if capability >= (8, 0):
        return "bfloat16"
    return "float16" if capability >= (7, 0) and "GTX 16" not in name else "float32"


@lru_cache(maxsize=1)
def _cpu_multiplies_bfloat16_fast() -> bool:
    if platform.system() != "Linux":
        return False
    try:
        return fast_bfloat16_in(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return False


def fast_bfloat16_in(cpuinfo: str) -> bool:
    """Whether the processor that ``/proc/cpuinfo`` describes has AMX, or is an AMD Zen 5 (family 26) or later."""
    first = cpuinfo.split("\n\n", 1)[0]
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    flags = facts.get("flags", "").split()
    family = facts.get("cpu family", "")
    zen_5 = facts.get("vendor_id") == "AuthenticAMD" and family.isdigit() and int(family) >= 26
    return "amx_bf16" in flags or (zen_5 and "avx512_bf16" in flags)
