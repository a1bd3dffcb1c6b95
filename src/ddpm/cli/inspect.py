"""`ddpm inspect`: what data, a model or a run is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction, arg

from ddpm.cli.train import parse_size
from ddpm.config import from_tree, merge, parse_assignments
from ddpm.words import counted

if TYPE_CHECKING:
    from ddpm.data import Inspection

_GRID = 64


def inspect(
    what: Annotated[
        Positional[str],
        arg(metavar="DATA|MODEL|RUN|PICTURE", help="data, a model file, a run, or a sampled picture"),
    ],
    /,
    *,
    size: Annotated[str | None, arg(metavar="S|HxW", help="of data: side in pixels, or height x width")] = None,
    out: Annotated[Path | None, arg(metavar="FILE", help="of data: the grid; by default NAME-inspected.png")] = None,
    set: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="KEY=VALUE", help="of data: any data.* configuration value")
    ] = (),
) -> None:
    """Say what data, a model, a run or a sampled picture is; of data, draw a grid of exactly what the network will see.

    Args:
        what: a path or a name.
        size: of the pictures.
        out: the file of the grid.
        set: configuration values.
    """
    path = Path(what)
    if path.is_dir() and any((path / f"{name}.safetensors").exists() for name in ("checkpoint", "model", "adapter")):
        _inspect_run(path)
    elif path.is_file() and path.suffix.lower() in (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pkl"):
        _inspect_file(path)
    elif path.suffix.lower() in (".png", ".tiff") and path.is_file():
        _inspect_picture(path)
    else:
        tree = parse_assignments(set)
        _inspect_data(what, merge(tree, {"data": {"size": parse_size(size)}} if size else {}), out)


def _inspect_data(data: str, tree: dict[str, object], out: Path | None) -> None:
    from ddpm.data import inspect as inspect_store
    from ddpm.data import open_store, render_grid, save_png
    from ddpm.terminal import bar
    from ddpm.training.plan import default_out

    config = from_tree(tree).data
    store = open_store(data, config, progress=bar)
    found: Inspection = inspect_store(store, config)
    print("\n".join(found.lines()))
    file = out or Path(f"{default_out(data).name}-inspected.png")
    step = max(1, len(store) // _GRID)
    grid = render_grid(store.pictures[::step][:_GRID], levels=store.levels, value_range=store.value_range)
    save_png(grid, file)
    print(f"grid: {file}")


def _inspect_run(path: Path) -> None:
    from ddpm.model_file import ADAPTER_NAME
    from ddpm.training.checkpoint import read_notes
    from ddpm.training.run_folder import RunFolder
    from ddpm.training.status import assess, evaluation_of

    folder = RunFolder(path)
    if folder.checkpoint.exists():
        notes = read_notes(folder.checkpoint)
        history = [evaluation_of(tree) for tree in notes["history"]]
        planned = notes["config"]["training"]["steps"]
        print(f"{path}: a run on {notes['data']}, {counted(planned, 'step')} planned")
        print(f"status: {assess(history).sentence}")
        if history:
            print(f"held-out loss: {history[-1].held_out:.4f} at step {history[-1].step:,}")
        if notes.get("scores"):
            score, name = notes["scores"][-1], notes["config"]["training"]["score"]
            print(f"{name}: {score['value']:.4g} ± {score['error']:.2g} at step {score['step']:,} ({score['recipe']})")
        previews = sorted(folder.previews.glob("*.png"))
        if previews:
            print(f"latest preview: {previews[-1]}")
    for file in (folder.model, folder.path / ADAPTER_NAME):
        if file.exists():
            _inspect_file(file)


def _inspect_file(path: Path) -> None:
    from ddpm.model import Model
    from ddpm.model_file import ADAPTER_FORMAT, CLASSIFIER_FORMAT, format_of

    special = {CLASSIFIER_FORMAT: _inspect_classifier, ADAPTER_FORMAT: _inspect_adapter}.get(format_of(path))
    if special is not None:
        special(path)
        return
    model = Model.load(path)
    provenance, advice = model.provenance, model.sampling
    height, width, channels = model.picture_shape
    print(f"{path}: a model, {model.num_parameters / 1e6:.2f} M parameters, {provenance.get('weights', '?')} weights")
    print(f"pictures: {height}x{width}, {counted(channels, 'channel')}, {model.codec.levels or 'continuous'} levels")
    print(
        f"schedule: {counted(len(model.schedule), 'timestep')}; the network predicts {model.parameterization}, "
        f"variance {model.variance}"
    )
    print(
        f"trained: {provenance.get('step', 0):,} steps, {provenance.get('pictures_seen', 0):,} pictures seen, on "
        f"{provenance.get('data', '?')} ({provenance.get('data_count', 0):,} pictures)"
    )
    origin = provenance.get("distilled_from")
    if isinstance(origin, dict):
        teacher, digest = origin.get("teacher", "?"), str(origin.get("teacher_sha256", "?"))[:12]
        print(f"distilled from: {teacher} (SHA-256 {digest}...), {origin.get('method', '?')}")
    begun = provenance.get("initialized_from")
    if isinstance(begun, dict):
        print(f"begun with: {begun.get('base', '?')} (SHA-256 {str(begun.get('base_sha256', '?'))[:12]}...)")
    for line in model.conditions.words():
        print(line)
    print(f"recommended: {json.dumps(advice.as_tree())}")
    print(f"sample from it: ddpm sample {path}")


def _inspect_adapter(path: Path) -> None:
    from ddpm.model.adapter import Adapter

    adapter = Adapter.load(path)
    provenance, base = adapter.provenance, adapter.provenance.get("base", "BASE")
    print(f"{path}: an adapter ({adapter.kind}) of {adapter.num_parameters:,} numbers: {json.dumps(adapter.settings)}")
    print(f"base: {base}, weights of SHA-256 {adapter.base_sha256[:12]}...")
    print(
        f"trained: {provenance.get('step', 0):,} steps on {provenance.get('data', '?')} "
        f"({provenance.get('data_count', 0):,} pictures)"
    )
    print(f"use it: ddpm sample {base} --adapter {path}")


def _inspect_classifier(path: Path) -> None:
    from ddpm.classifier import Accuracy, Classifier
    from ddpm.cli.train_classifier import advice

    classifier = Classifier.load(path)
    provenance = classifier.provenance
    height, width, channels = classifier.picture_shape
    what = "noised pictures x_t" if classifier.schedule is not None else "pictures"
    print(f"{path}: a classifier of {what}, {classifier.num_parameters / 1e6:.2f} M parameters")
    print(
        f"pictures: {height}x{width}, {counted(channels, 'channel')}, {classifier.codec.levels or 'continuous'} levels"
    )
    print(f"classes: {len(classifier.classes)} ({', '.join(classifier.classes[:10])})")
    if classifier.schedule is not None:
        print(f"schedule: {provenance.get('schedule', '?')}")
    print(
        f"trained: {provenance.get('step', 0):,} steps on {provenance.get('data', '?')} "
        f"({provenance.get('data_count', 0):,} pictures)"
    )
    if "accuracy" in provenance:
        print(f"held-out accuracy: {Accuracy(**provenance['accuracy'])}")
    print(f"use it: {advice(path, noisy=classifier.schedule is not None)}")


def _inspect_picture(path: Path) -> None:
    from ddpm.sampling import read_recipe

    recipe = read_recipe(path)
    step = "an unknown step" if recipe.step is None else f"step {recipe.step:,}"
    print(f"{path}: picture {recipe.picture} of seed {recipe.seed}")
    print(f"sampler: {recipe.as_words()}, in {recipe.precision}")
    print(f"model: {recipe.model} beside the picture, of {step}, SHA-256 {recipe.model_sha256}")
    print(f"made by: ddpm {recipe.version}")
    print(f"make it again: ddpm sample --from {path}")
