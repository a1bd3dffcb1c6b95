"""`ddpm figure`: draw why it works."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from ddpm.data import Store
    from ddpm.diffusion.bits import BitsPerDim
    from ddpm.figures import Entry, Request
    from ddpm.model import Model

ALL = "all"


def figure(
    name: Annotated[
        Positional[str | None], arg(metavar="NAME|all", help="which figure; without a name they are listed")
    ] = None,
    /,
    *,
    out: Annotated[
        Path | None, arg(metavar="FILE|DIR", help="by default NAME.png here; of all: the folder, by default figures/")
    ] = None,
    format: Annotated[
        Literal["png", "svg"] | None, arg(metavar="KIND", help="png or svg; by default what --out ends with, or png")
    ] = None,
    dark: Annotated[bool, arg(help="light lines on dark paper")] = False,
    model: Annotated[
        Path | None, arg(metavar="MODEL|RUN", help="what it learned is shown; by default exact denoisers of the digits")
    ] = None,
    seed: Annotated[int, arg(metavar="S", help="of all random numbers")] = 0,
    dpi: Annotated[int, arg(metavar="N", help="of a PNG: dots an inch; figures are 7.2 inches wide")] = 200,
) -> None:
    """Draw a figure of the mathematics, the samplers or the mistakes of common texts; or list them all.

    Args:
        name: of the figure.
        out: where it goes.
        format: of the file.
        dark: the style.
        model: where a model is.
        seed: of the noise.
        dpi: of a PNG.
    """
    from ddpm.errors import ConfigError
    from ddpm.figures import FIGURES, entry_of, save_figure
    from ddpm.terminal import bar

    if name is None:
        print("\n".join(listing()))
        return
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed {seed}; expected 0 to 2^64 - 1")
    if not 20 <= dpi <= 2400:
        raise ConfigError(f"{dpi} dots an inch; expected 20 to 2400")
    kind = format or suffix_of(out, name)
    asked = FIGURES if name == ALL else {name: entry_of(name)}
    files = {key: place(out, key, kind, whole=name == ALL) for key in asked}
    request = make_request(model, {entry.takes for entry in asked.values()}, dark=dark, seed=seed)
    entries = {key: entry for key, entry in asked.items() if name != ALL or can_draw(entry, request)}
    with bar(len(entries), "figures") as shown:
        for key, entry in entries.items():
            save_figure(entry.draw(request), files[key], kind, dpi)
            shown.update(1)
    print(f"{len(entries)} figures in {(out or Path('figures'))}" if name == ALL else f"figure: {files[name]}")
    if len(entries) < len(asked):
        print(f"not drawn, as they show another kind of model: {', '.join(key for key in asked if key not in entries)}")


def can_draw(entry: Entry, request: Request) -> bool:
    """Whether a figure can be drawn of this model, or of none."""
    if entry.takes == "a model of points, needed":
        return request.points is not None
    return entry.takes != "a model of pictures" or request.points is None


def listing() -> list[str]:
    """Return a line a figure."""
    from ddpm.figures import FIGURES

    width = max(map(len, FIGURES))
    marks = {"nothing": "", "a model of points, needed": " (--model)"}
    return [
        *(f"{name:<{width}}  {entry.shows}{marks.get(entry.takes, ' [--model]')}" for name, entry in FIGURES.items()),
        "",
        "draw one: ddpm figure NAME    all of them: ddpm figure all    dark, for print: --dark, --format svg",
    ]


def suffix_of(out: Path | None, name: str) -> Literal["png", "svg"]:
    """Return the kind of file that the name of the output asks for.

    Raises:
        ConfigError: for an ending that is neither.
    """
    from ddpm.errors import ConfigError

    ending = "" if out is None or name == ALL else out.suffix.lower()
    if ending not in ("", ".png", ".svg"):
        raise ConfigError(f"'{out}' ends with '{ending}'; expected .png or .svg")
    return "svg" if ending == ".svg" else "png"


def place(out: Path | None, name: str, kind: Literal["png", "svg"], *, whole: bool) -> Path:
    """Return the file of a figure.

    Raises:
        ConfigError: if the output's ending contradicts the format, or a folder is given for a file.
    """
    from ddpm.errors import ConfigError

    if whole:
        folder = out or Path("figures")
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"'{folder}' is a file; of all figures, --out is a folder")
        return folder / f"{name}.{kind}"
    if out is None:
        return Path(f"{name}.{kind}")
    if out.is_dir():
        return out / f"{name}.{kind}"
    if out.suffix == "":
        return out.with_suffix(f".{kind}")
    if out.suffix.lower() != f".{kind}":
        raise ConfigError(f"'{out}' is no name for --format {kind}; let it end with .{kind}")
    return out


def make_request(path: Path | None, takes: Iterable[str], *, dark: bool, seed: int) -> Request:
    """Return what the figures are drawn from; the bound of a model is measured only where one is asked for.

    Raises:
        ConfigError: for a model that none of the figures can show.
    """
    from ddpm.errors import ConfigError
    from ddpm.figures import Request
    from ddpm.model import Model

    style: Literal["light", "dark"] = "dark" if dark else "light"
    if path is None:
        return Request(style, seed)
    if set(takes) == {"nothing"}:
        raise ConfigError("this figure shows no model; leave out --model (`ddpm figure` says which take one)")
    model = Model.load(path)
    measured = measure(model, seed) if "a model, whose bound is measured" in takes else None
    points = points_of(model) if model.picture_shape == (1, 1, 2) else None
    return Request(style, seed, model, measured, points)


def measure(model: Model, seed: int) -> BitsPerDim:
    """Return the bound of a model on the held-out pictures of the data that it was trained on."""
    from ddpm.evaluation.likelihood.bound import bits_per_dim_of
    from ddpm.terminal import bar

    return bits_per_dim_of(model, data_of(model), n=64, seed=seed, progress=bar)


def points_of(model: Model) -> Tensor:
    """Return the points [N, 2] that a model was trained on, as x_0."""
    data = data_of(model)
    return model.codec.encode(data.pictures[data.train]).flatten(1)


def data_of(model: Model) -> Store:
    """Return the data that a model was trained on."""
    from ddpm.config import from_tree
    from ddpm.data import open_store
    from ddpm.terminal import bar

    provenance = model.provenance
    return open_store(provenance["data"], from_tree(provenance["config"]).data, progress=bar)
