"""What every kernel's call needs: which tensors it can read, and their form in C."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from ddpm.native.build import available, build

_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def readable(x: Tensor) -> bool:
    """Whether kernels can read the memory of `x`: on a CPU, float32 or bfloat16, outside of compilation."""
    return (
        x.device.type == "cpu"
        and x.dtype in _NAMES
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.peek_interpreter_stack()  # a transform of torch.func has tensors without memory
        and available()
    )


def takes(x: Tensor) -> bool:
    """Whether kernels can read `x` as pictures: `readable`, and channels_last."""
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and readable(x)


def has(name: str, dtype: torch.dtype) -> bool:
    """Whether this machine's library has a kernel for numbers of this type; some need certain instructions."""
    return available() and dtype in _NAMES and hasattr(build().kernels, f"{name}_{_NAMES[dtype]}")


def kernel(name: str, dtype: torch.dtype) -> Any:
    """Return a kernel of the library, which must be there."""
    kernels = build().kernels
    assert kernels is not None  # `readable` was asked before
    return kernels[f"{name}_{_NAMES[dtype]}"]


def pointer(tensor: Tensor | None, offset: int = 0) -> ctypes.c_void_p:
    """Return the address of a tensor's number `offset`, or none."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr() + offset * tensor.element_size())


def integers(*values: int) -> tuple[ctypes.c_int64, ...]:
    """Return 64-bit integers."""
    return tuple(ctypes.c_int64(value) for value in values)
