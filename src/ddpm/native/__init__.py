"""Small kernels in C++ for CPUs, compiled once on the machine that runs them: optional, cached, never needed."""

from ddpm.native.attention import attends, attention
from ddpm.native.build import available, switched_off, why_unavailable
from ddpm.native.calls import has, takes
from ddpm.native.conv import conv3x3, convolves, transform_weights
from ddpm.native.memory import keep_freed_memory
from ddpm.native.norm import Dropout, norm_silu

__all__ = [
    "Dropout",
    "attends",
    "attention",
    "available",
    "conv3x3",
    "convolves",
    "has",
    "keep_freed_memory",
    "norm_silu",
    "switched_off",
    "takes",
    "transform_weights",
    "why_unavailable",
]
