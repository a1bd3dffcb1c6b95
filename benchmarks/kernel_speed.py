"""Our kernels beside the matrix library, in one run: convolutions, their gradients, attention, transformed weights.

Each pair takes turns in one process, so that what else the machine does strikes both alike; numbers are medians of
processor time, which other work on the machine changes less than wall time. bfloat16, channels_last, one thread, the
sizes of the CIFAR-10 U-Net. The last row is what a training step spends on the transforms of its weights, which
sampling makes once: measured as a share of a whole step of that network.

python benchmarks/kernel_speed.py [--repeats 30] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from training_speed import NETWORK, our_step
from turns import machine

from ddpm import native
from ddpm.files import write_text
from ddpm.networks import build_network
from ddpm.networks.conv import Conv3x3

Run = Callable[[], object]
STEP_BATCH = 32


def main() -> None:
    """Time every pair, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    native.keep_freed_memory()
    if not native.has("winograd", torch.bfloat16):
        raise SystemExit(f"there are no such kernels on this machine: {native.why_unavailable() or 'other processor'}")
    rows = []
    for name, library, ours in pairs():
        turns = medians([library, ours], arguments.repeats)
        rows.append({"kernel": name, "library_ms": 1e3 * turns[0], "ours_ms": 1e3 * turns[1]})
        print(f"{name:<62}{rows[-1]['library_ms']:8.2f} ms{rows[-1]['ours_ms']:8.2f} ms", flush=True)
    step, _ = our_step("ours, default", STEP_BATCH)
    transforms, whole = medians([all_transforms(), step], max(arguments.repeats // 10, 3))
    print(
        f"transforms of weights: {1e3 * transforms:.1f} ms of a step of {1e3 * whole:.0f} ms, {transforms / whole:.1%}"
    )
    result = {
        "repeats": arguments.repeats,
        "rows": rows,
        "training_step": {"batch": STEP_BATCH, "transforms_ms": 1e3 * transforms, "step_ms": 1e3 * whole},
        "machine": machine(),
    }
    if arguments.json:
        write_text(arguments.json, json.dumps(result, indent=2) + "\n")


def medians(runs: list[Run], repeats: int) -> list[float]:
    """Return the median seconds of the processor of each, by turns, after one unmeasured turn."""
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats + 1):
        for taken, run in zip(seconds, runs, strict=True):
            start = time.process_time()
            run()
            if turn > 0:
                taken.append(time.process_time() - start)
    return [statistics.median(taken) for taken in seconds]


def pairs() -> list[tuple[str, Run, Run]]:
    """Return what is timed: its name, by the matrix library, by our kernel."""
    return [
        ("3x3 convolution, 128 channels, 32x32, batch 16", *convolution(16, 128, 128, 32)),
        ("3x3 convolution, 256 channels, 16x16, batch 16", *convolution(16, 256, 256, 16)),
        ("3x3 convolution, 512 to 256 channels, 16x16, batch 16", *convolution(16, 512, 256, 16)),
        ("gradient of its weights, 128 channels, 32x32, batch 32", *weight_gradient(32, 128, 32)),
        ("gradient of its weights, 256 channels, 4x4, batch 32", *weight_gradient(32, 256, 4)),
        ("attention, 256 pixels, one head of 256, batch 32", *attention(32, 256, 256, gradient=False)),
        ("the same and its gradient", *attention(32, 256, 256, gradient=True)),
    ]


def pictures(*shape: int) -> Tensor:
    """Return random numbers in bfloat16 and channels_last."""
    return torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last)


def convolution(batch: int, in_: int, out: int, side: int) -> tuple[Run, Run]:
    """Return a convolution as sampling computes it: weights cast, or transformed, before."""
    x, weight = pictures(batch, in_, side, side), torch.randn(out, in_, 3, 3)
    cast = weight.bfloat16().contiguous(memory_format=torch.channels_last)
    transformed = native.transform_weights(weight, torch.bfloat16)
    return (
        lambda: functional.conv2d(x, cast, padding=1),
        lambda: native.conv3x3(x, weight, None, transformed=transformed),
    )


def weight_gradient(batch: int, channels: int, side: int) -> tuple[Run, Run]:
    """Return the gradient of a convolution's weights alone."""
    x, dy = pictures(batch, channels, side, side), pictures(batch, channels, side, side)
    weight = torch.randn(channels, channels, 3, 3)
    cast = weight.bfloat16().contiguous(memory_format=torch.channels_last)

    def library() -> Any:
        return torch.ops.aten.convolution_backward(
            dy, x, cast, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]
        )

    needs = weight.clone().requires_grad_()
    y = native.conv3x3(x, needs, None)
    return library, lambda: torch.autograd.grad(y, needs, dy, retain_graph=True)


def attention(batch: int, pixels: int, width: int, *, gradient: bool) -> tuple[Run, Run]:
    """Return softmax attention, and perhaps its gradient; the library's is its fused one."""
    qkv = torch.randn(batch, pixels, 3, 1, width).bfloat16().requires_grad_(gradient)
    dy = torch.randn(batch, pixels, 1, width).bfloat16()

    def library() -> Tensor:
        q, k, v = qkv.transpose(1, 3).unbind(2)
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    def run(forward: Callable[[], Tensor]) -> Run:
        if not gradient:
            return forward
        return lambda: torch.autograd.grad(forward(), qkv, dy)

    return run(library), run(lambda: native.attention(qkv))


def all_transforms() -> Run:
    """Return all transforms of weights in a training step: of each, forward and for its input's gradient."""
    network = build_network(NETWORK, (32, 32, 3))
    weights = [
        module.weight
        for module in network.modules()
        if isinstance(module, Conv3x3) and not any(channels % 32 for channels in module.weight.shape[:2])
    ]
    return lambda: [
        native.transform_weights(weight, torch.bfloat16, transposed=transposed)
        for weight in weights
        for transposed in (False, True)
    ]


if __name__ == "__main__":
    main()
