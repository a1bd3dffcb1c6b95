"""Small kernels in C++ for CPUs, compiled once on the machine that runs them: optional, cached, never needed."""

from ddpm.native.build import available, switched_off, why_unavailable
from ddpm.native.norm import norm_silu, takes

__all__ = ["available", "norm_silu", "switched_off", "takes", "why_unavailable"]
