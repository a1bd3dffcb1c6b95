"""`ddpm merge`: a model and adapters of it become one ordinary model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def merge(
    model: Annotated[Positional[Path], arg(metavar="MODEL|RUN", help="the base: a model file, or a run folder")],
    adapters: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="ADAPTER[:SCALE]", help="LoRA adapters of it, at a scale (1)"),
    ],
    /,
    *,
    out: Annotated[Path, arg(metavar="FILE", help="the model file to write")],
    overwrite: Annotated[bool, arg(help="replace the file, if there is one")] = False,
) -> None:
    """Write a model with adapters merged into its weights: a model file like any other, at the base's own speed.

    Args:
        model: the base.
        adapters: what is added.
        out: the file.
        overwrite: whether it may be there.
    """
    from ddpm.errors import ConfigError, RunError
    from ddpm.model import Model
    from ddpm.model.adapter import parse_adapter
    from ddpm.terminal import say

    if not adapters:
        raise ConfigError("no adapter to merge; expected: ddpm merge MODEL ADAPTER --out FILE")
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}; expected the name of a .safetensors file")
    if out.exists() and not overwrite:
        raise RunError(f"'{out}' exists already; add --overwrite to replace it, or choose another --out")
    merged = Model.load(model)
    for text in adapters:
        merged = merged.with_adapter(*parse_adapter(text))
    try:
        merged.save(out)
    except OSError as error:
        raise RunError(f"cannot write '{out}' ({error.strerror}); use another --out") from error
    say(f"next: ddpm sample {out}")
