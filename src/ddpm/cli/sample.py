"""`ddpm sample`: pictures from a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from ddpm.codec import Pictures
    from ddpm.model import Model


def sample(
    model: Annotated[Positional[Path], arg(metavar="MODEL|RUN", help="a model file, or the run folder that holds one")],
    /,
    *,
    number: Annotated[int, arg(aliases=["-n"], metavar="N", help="how many pictures")] = 64,
    sampler: Annotated[
        str | None, arg(metavar="NAME", help="ddim or ddpm; by default what the model recommends")
    ] = None,
    steps: Annotated[int | None, arg(metavar="N", help="sampling steps; by default what the model recommends")] = None,
    seed: Annotated[
        int, arg(metavar="S", help="decides the pictures: picture i is the same in any number and batch")
    ] = 0,
    batch_size: Annotated[int | None, arg(metavar="B", help="pictures at once; by default what fits")] = None,
    out: Annotated[Path | None, arg(metavar="DIR", help="by default samples/ beside the model")] = None,
    device: Annotated[str, arg(metavar="NAME", help="auto, cpu, cuda, cuda:N or mps")] = "auto",
) -> None:
    """Sample pictures: one PNG each (00000.png ...), and all of them in grid.png.

    Args:
        model: where the model is.
        number: of pictures.
        sampler: its name.
        steps: of the sampler.
        seed: of the noise.
        batch_size: of the network.
        out: the folder of the pictures.
        device: where to compute.
    """
    from ddpm.model import Model
    from ddpm.model_file import locate
    from ddpm.terminal import say
    from ddpm.training.engine import choose_engine

    file = locate(model)
    engine = choose_engine(device)
    loaded = Model.load(file, device=engine.device).with_sampling(sampler=sampler, steps=steps)
    folder = out if out is not None else default_folder(file, loaded, seed)
    with engine.autocast():
        written = write_samples(loaded, folder, number=number, seed=seed, batch_size=batch_size)
    say(f"{written} pictures and grid.png in {folder}")


def default_folder(file: Path, model: Model, seed: int) -> Path:
    """Return a folder beside the model whose name is the recipe, so that two recipes never mix."""
    advice = model.sampling
    stem = "" if file.name == "model.safetensors" else f"{file.stem}-"
    return file.parent / "samples" / f"{stem}{advice.sampler}-{advice.steps}-seed{seed}"


def write_samples(model: Model, folder: Path, *, number: int, seed: int, batch_size: int | None) -> int:
    """Sample with a progress bar, and write the pictures and their grid; return how many."""
    from ddpm.data import render_grid, save_png, to_image
    from ddpm.errors import RunError
    from ddpm.terminal import bar

    advice, codec = model.sampling, model.codec
    batches = len(model.sampling_batches(number, seed=seed, batch_size=batch_size))  # refuses before a folder is made
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to '{folder}' ({error.strerror}); use another --out") from error
    with bar(batches * advice.steps, f"{advice.sampler}, {advice.steps} steps") as shown:
        pictures = model.sample(number, seed=seed, batch_size=batch_size, on_step=lambda step: shown.update(1))
    recipe = {"seed": seed, **json.loads(advice.model_dump_json())}
    save_png(render_grid(pictures, levels=codec.levels, value_range=codec.value_range), folder / "grid.png")
    if model.picture_shape[:2] == (1, 1):
        write_points(pictures, folder / "points.csv")
        return len(pictures)
    for index, picture in enumerate(pictures):
        image = to_image(picture, levels=codec.levels, value_range=codec.value_range)
        save_png(image, folder / f"{index:05d}.png", {"ddpm": json.dumps({"picture": index, **recipe})})
    return len(pictures)


def write_points(points: Pictures, file: Path) -> None:
    """Write points [n, 1, 1, C] as a table with a column a coordinate."""
    from ddpm.errors import RunError
    from ddpm.files import write_text

    rows = [",".join(f"{value:.6g}" for value in point.ravel()) for point in points]
    header = ",".join(["x", "y", "z"][: points.shape[-1]])
    try:
        write_text(file, "\n".join([header, *rows]) + "\n")
    except OSError as error:
        raise RunError(f"cannot write the points '{file}': {error.strerror or error}; free some space") from error
