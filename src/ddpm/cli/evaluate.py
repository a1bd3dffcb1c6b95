"""`ddpm evaluate`: scores of a model's samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from ddpm.evaluation import PixelScores


def evaluate(
    model: Annotated[Positional[Path], arg(metavar="MODEL|RUN", help="a model file, or the run folder that holds one")],
    /,
    *,
    data: Annotated[
        str | None, arg(metavar="DATA", help="the data to compare with; by default what the model was trained on")
    ] = None,
    number: Annotated[int, arg(aliases=["-n"], metavar="N", help="how many samples")] = 1000,
    sampler: Annotated[
        str | None, arg(metavar="NAME", help="ddim or ddpm; by default what the model recommends")
    ] = None,
    steps: Annotated[int | None, arg(metavar="N", help="sampling steps; by default what the model recommends")] = None,
    seed: Annotated[int, arg(metavar="S", help="decides the samples")] = 0,
    json_file: Annotated[Path | None, arg(name="json", metavar="FILE", help="write the scores there too")] = None,
) -> None:
    """Score samples of a model against held-out pictures, by raw pixels: for small pictures such as digits.

    Every score stands beside what held-out pictures reach; the recipe is printed with it.

    Args:
        model: where the model is.
        data: what to compare with.
        number: of samples.
        sampler: its name.
        steps: of the sampler.
        seed: of the noise.
        json_file: where to write the scores.
    """
    from ddpm.config import from_tree
    from ddpm.data import open_store
    from ddpm.errors import DataError, ModelFileError, RunError
    from ddpm.evaluation import pixel_scores
    from ddpm.files import write_text
    from ddpm.model import Model
    from ddpm.terminal import bar

    loaded = Model.load(model).with_sampling(sampler=sampler, steps=steps)
    provenance = loaded.provenance
    if "config" not in provenance or (data is None and "data" not in provenance):
        raise ModelFileError(f"'{model}' does not say what it was trained on; expected a model that 'ddpm train' wrote")
    batches = loaded.sampling_batches(number, seed=seed)
    store = open_store(data or provenance["data"], from_tree(provenance["config"]).data, progress=bar)
    if (store.levels, store.value_range) != (loaded.codec.levels, loaded.codec.value_range):
        raise DataError(
            f"'{store.source}' has {store.levels} levels in {store.value_range}, the model's pictures have "
            f"{loaded.codec.levels} in {loaded.codec.value_range}; expected the same"
        )
    with bar(len(batches) * loaded.sampling.steps, "sampling") as shown:
        pictures = loaded.sample(number, seed=seed, on_step=lambda step: shown.update(1))
    scores = pixel_scores(pictures, store)
    recipe = {
        "model": str(model),
        "data": store.source,
        "data_fingerprint": store.fingerprint,
        "trained_on_same_data": store.fingerprint == provenance.get("data_fingerprint"),
        "step": provenance.get("step"),
        "weights": provenance.get("weights"),
        "seed": seed,
        **json.loads(loaded.sampling.model_dump_json()),
    }
    print(table(scores, recipe))
    if json_file is not None:
        try:
            write_text(json_file, json.dumps({"recipe": recipe, "scores": scores.as_tree()}, indent=2) + "\n")
        except OSError as error:
            raise RunError(
                f"cannot write the scores to '{json_file}' ({error.strerror}); use another --json"
            ) from error


def table(scores: PixelScores, recipe: dict[str, Any]) -> str:
    """Return the scores as lines for people."""
    rows = [
        ("Fréchet distance, to held-out's", f"{scores.frechet_ratio:.3f}", "1 is perfect"),
        ("1-nearest-neighbour accuracy", f"{scores.two_sample_accuracy:.3f}", "0.5 is perfect, 1 is worst"),
        ("distance to training, to held-out's", f"{scores.copying_ratio:.3f}", "1 is perfect, 0 is copying"),
    ]
    if scores.sure_ratio is not None:
        shares = f"{min(scores.class_shares):.1%} to {max(scores.class_shares):.1%}"
        rows += [
            ("classifier is sure, to held-out's", f"{scores.sure_ratio:.3f}", "1 is perfect"),
            ("share of a class", shares, f"{len(scores.class_shares)} classes"),
        ]
    lines = [f"{name:<38}{value:>16}   {meaning}" for name, value, meaning in rows]
    made = f"{scores.samples} samples ({recipe['sampler']}, {recipe['steps']} steps, seed {recipe['seed']})"
    return "\n".join([f"{made} against {scores.held_out} held-out pictures of {recipe['data']}", *lines])
