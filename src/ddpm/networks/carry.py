"""From one network to another that reads more: the same weights, and what is new begins with no effect."""

from __future__ import annotations

import torch
from torch import nn

from ddpm.errors import ConfigError

_SILENCED = ("label_embedding.weight", "number_embedding.mix.weight", "number_embedding.mix.bias")
"""What is added to the embedding of time; cross-attention and the mean of a text begin with no effect by themselves."""


@torch.no_grad()
def carry_weights(source: nn.Module, target: nn.Module) -> None:
    """Give a network the weights of another that has no conditions, or the same.

    New channels of the first convolution, which reads a paired picture there, get weights of zero: so does what new
    labels and numbers add. The target then computes what the source does, whatever its conditions say.

    Args:
        source: the trained network.
        target: of the same widths and depths; changed in place.

    Raises:
        ConfigError: if a weight of the source has no place in the target.
    """
    known, own = source.state_dict(), target.state_dict()
    for name, tensor in own.items():
        given = known.get(name)
        if given is None:
            if name in _SILENCED:
                tensor.zero_()
        elif given.shape == tensor.shape:
            tensor.copy_(given)
        elif name == "conv_in.weight" and given.shape[1] < tensor.shape[1] and given.shape[0] == tensor.shape[0]:
            tensor.zero_()[:, : given.shape[1]] = given
        else:
            raise ConfigError(f"weight '{name}' is {list(given.shape)}, but {list(tensor.shape)} is expected")
    if lost := sorted(known.keys() - own.keys()):
        raise ConfigError(f"weight '{lost[0]}' of the base has no place in the new network")
