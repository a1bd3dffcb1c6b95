"""One network cut into pieces, of which each process holds one (FSDP2): for networks that do not fit into one memory.

A block's weights are gathered when it runs, and let go after it; gradients are summed and scattered again.
All processes must make the same forward passes, in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ddpm.errors import ConfigError
from ddpm.processes.group import Group


def require_sharding() -> Any:
    """Return the function that shards a module.

    Raises:
        ConfigError: if this torch has none.
    """
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise ConfigError(f"training.sharding=full needs torch 2.6 or later, this is {torch.__version__}") from error
    return fully_shard


def shard(network: nn.Module, group: Group) -> None:
    """Cut the weights of a network into as many pieces as there are processes, in place; each keeps its own.

    Every block of a list of blocks is a unit, whose weights are gathered together; the rest is one more. All processes
    must hold the same weights before.
    """
    from torch.distributed.device_mesh import init_device_mesh

    fully_shard = require_sharding()
    mesh = init_device_mesh(next(network.parameters()).device.type, (group.size,))
    for weight in network.parameters():  # pieces are cut from memory in its plain order
        weight.data = weight.data.contiguous()
    for unit in units(network):
        fully_shard(unit, mesh=mesh)
    fully_shard(network, mesh=mesh)


def units(network: nn.Module) -> list[nn.Module]:
    """Return the innermost blocks of the network's lists of blocks."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    blocks = [block for each in lists for block in each if any(True for _ in block.parameters())]
    return [block for block in blocks if not any(isinstance(inner, nn.ModuleList) for inner in block.modules())]


def is_shard(tensor: Tensor) -> bool:
    """Whether this process holds a piece of the tensor alone."""
    return hasattr(tensor, "full_tensor")


def is_sharded(network: nn.Module) -> bool:
    """Whether the weights of a network are in pieces."""
    return any(is_shard(weight) for weight in network.parameters())


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor."""
    held: Tensor = tensor.to_local() if is_shard(tensor) else tensor  # type: ignore[attr-defined]
    return held


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor; all processes must ask for it."""
    gathered: Tensor = tensor.full_tensor() if is_shard(tensor) else tensor  # type: ignore[attr-defined]
    return gathered


def whole_weights(network: nn.Module, group: Group) -> dict[str, Tensor]:
    """Return the whole weights on the CPU, in the first process; the others help, and return nothing.

    One tensor after another, so that no GPU holds more than the largest.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        gathered = whole(tensor.detach())
        if group.is_first:
            weights[name] = gathered.cpu()
    return weights


def scatter(tensor: Tensor, source: Tensor | None) -> None:
    """Overwrite a tensor that may be in pieces with the first process's `source`; the others need none."""
    with torch.no_grad():
        if not is_shard(tensor):
            if source is not None:
                tensor.copy_(source)
            dist.broadcast(tensor, src=0)
            return
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
        given = torch.empty(tensor.shape, dtype=tensor.dtype) if source is None else source
        tensor.copy_(distribute_tensor(given.to(tensor.device), mesh, placements))
