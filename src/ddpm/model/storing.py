"""What a model file says of its model, written from one and checked as it is read."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from ddpm.codec import PixelCodec
from ddpm.config import MIN_SIZE, NetworkConfig
from ddpm.config.conditions import ConditionSpec
from ddpm.config.sampling import SamplingConfig, Variance
from ddpm.diffusion.denoiser import Parameterization
from ddpm.diffusion.schedules import NoiseSchedule
from ddpm.networks import build_network

if TYPE_CHECKING:
    from ddpm.model.model import Model

_MOST_VALUES = 2**28
"""Most values of a picture that a model file may announce: 1 GiB of float32."""


def parts_of(model: Model) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a model as its file holds it: a description of plain JSON values, and tensors by name."""
    adapters = {"adapters": [each.as_tree() for each in model.adapters]} if model.adapters else {}
    description = {
        "network": json.loads(model.network_config.model_dump_json()),
        "parameterization": model.parameterization,
        "variance": model.variance,
        "codec": {
            "levels": model.codec.levels,
            "value_range": list(model.codec.value_range),
            "dtype": model.codec.dtype,
        },
        "picture_shape": list(model.picture_shape),
        "sampling": model.sampling.as_tree(),
        "provenance": {**model.provenance, **adapters},
        **({"conditions": json.loads(model.conditions.model_dump_json())} if model.conditions.any else {}),
    }
    tensors = {f"network.{name}": tensor for name, tensor in model.network.state_dict().items()}
    return description, {**tensors, "schedule.betas": model.schedule.betas}


def fields_from(description: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the fields of the `Model` that a file describes; `parts_of` inverts it.

    Raises:
        ConfigError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError: if it describes no valid model.
    """
    network_config = NetworkConfig.model_validate_json(json.dumps(description["network"]))
    shape = _checked_shape(description["picture_shape"], MIN_SIZE if network_config.kind == "unet" else 1)
    variance: Variance = TypeAdapter(Variance).validate_python(description.get("variance", "fixed_large"))
    codec = description["codec"]
    low, high = codec["value_range"]
    weights = {name.removeprefix("network."): tensor for name, tensor in tensors.items() if name.startswith("network.")}
    for name, tensor in weights.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"weight '{name}' is {tensor.dtype}, expected torch.float32")
    conditions = ConditionSpec.model_validate_json(json.dumps(description.get("conditions", {})))
    with torch.device("meta"):  # so that a wrong description is refused before it takes any memory
        network = build_network(network_config, shape, learned_variance=variance == "learned", conditions=conditions)
    network.load_state_dict(weights, strict=True, assign=True)
    network.eval().requires_grad_(False)
    return {
        "network": network,
        "network_config": network_config,
        "schedule": NoiseSchedule(tensors["schedule.betas"]),
        "parameterization": TypeAdapter(Parameterization).validate_python(description["parameterization"]),
        "codec": PixelCodec(codec["levels"], (float(low), float(high)), codec["dtype"]),
        "picture_shape": shape,
        "variance": variance,
        "conditions": conditions,
        "sampling": SamplingConfig.model_validate_json(json.dumps(description["sampling"])),
        "provenance": _checked_provenance(description["provenance"]),
    }


def _checked_shape(sides: list[int], least: int) -> tuple[int, int, int]:
    height, width, channels = sides
    if not all(type(side) is int for side in sides) or min(height, width) < least or channels < 1:
        raise ValueError(f"picture_shape is {sides}; expected height and width from {least}, and at least one channel")
    if math.prod(sides) > _MOST_VALUES:
        raise ValueError(f"picture_shape is {sides}; expected at most {_MOST_VALUES:,} values")
    return height, width, channels


def _checked_provenance(tree: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise TypeError(f"provenance is {tree!r}; expected an object")
    for key in ("step", "pictures_seen", "data_count"):
        if type(tree.get(key, 0)) is not int:
            raise ValueError(f"provenance.{key} is {tree[key]!r}; expected a whole number")
    return tree
