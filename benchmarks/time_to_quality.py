"""How good a model is after so much training: ours beside denoising-diffusion-pytorch, from the same processor time.

Each program trains a network, in one process, for a budget of processor time, so that a machine that is shared strikes
all alike: ten minutes of two cores are 20. At a quarter, a half and the whole of it the averaged weights make samples,
all with the same sampler (UniPC, 20 evaluations), whose time does not count. They are scored by the Fréchet distance of
a classifier's features to the training split; the floor is what as many held-out pictures reach.

"lucidrains, default" is that program's README: U-Net of 64 channels and multipliers 1, 2, 4, 8, its Trainer's batch of
16, learning rate 1e-4, average and random flips, in float32. "lucidrains, best" is the same U-Net in bfloat16 and
channels_last with the fused optimizer, flips only where our preset has them, and `--batch` and `--rate`. Pictures are
padded to a side that 8 divides, which it needs, and its samples cut again.

python benchmarks/time_to_quality.py DATA CLASSIFIER --program ours --set training.steps=2500 --json FILE
python benchmarks/time_to_quality.py DATA CLASSIFIER --program "lucidrains, best" --json FILE --plot FILE.png
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from turns import machine

from ddpm.config import parse_assignments
from ddpm.data import render_grid, save_png
from ddpm.diffusion.denoiser import clipped, network_denoiser
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers import SAMPLERS, spaced_timesteps
from ddpm.diffusion.schedules import NoiseSchedule
from ddpm.evaluation.extractors.features import load_extractor
from ddpm.figures.style import blank, finished, save_figure
from ddpm.files import write_text
from ddpm.sampling.frechet_score import FrechetScore
from ddpm.training.batches import prefetched
from ddpm.training.loop import train_steps
from ddpm.training.plan import Plan, make_plan
from ddpm.training.run_folder import NoMetrics, RunFolder
from ddpm.training.session import Session

Pictures = NDArray[np.uint8]
Sample = Callable[[int], Pictures]
STEPS = 20
DOWNSAMPLING = 8
GOALS = {
    "ours to lucidrains, default": "at most 0.1",
    "ours to lucidrains, best": "at most 0.5",
    "ours to the floor": "at most 30",
}


def main() -> None:
    """Train one program, score it on the way, and add it to the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("classifier", type=Path, help="of 'ddpm train-classifier', whose features are compared")
    parser.add_argument("--program", default="ours", help="ours, 'lucidrains, default' or 'lucidrains, best'")
    parser.add_argument("--name", help="of the curve; default: the program's")
    parser.add_argument("--preset", help="of ours; default: the data's")
    parser.add_argument("--set", action="append", default=[], help="passed on to our training")
    parser.add_argument("--batch", type=int, default=128, help="of 'lucidrains, best'")
    parser.add_argument("--rate", type=float, default=1e-3, help="its learning rate")
    parser.add_argument("--minutes", type=float, default=20.0, help="of the processor")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 1.0], help="of it, that are scored")
    parser.add_argument("-n", type=int, default=1000, help="samples a score")
    parser.add_argument("--out", type=Path, help="keep our run there, as `ddpm train` does; its writing counts")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--grid", type=Path, help="of the last samples")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = arguments.out or Path(folder) / "run"
        plan = make_plan(arguments.data, parse_assignments(arguments.set), preset=arguments.preset, out=out)
        score = FrechetScore(plan.store, arguments.n, load_extractor(str(arguments.classifier)))
        run = ours(plan, files=arguments.out is not None) if arguments.program == "ours" else theirs(plan, arguments)
        points = curve(run, score, [60 * arguments.minutes * share for share in arguments.shares], arguments)
    result = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {"curves": {}}
    result["curves"][arguments.name or arguments.program] = {"settings": settings(arguments), "points": points}
    result |= {"goals": GOALS, "samples": arguments.n, "floor": score.floor, "machine": machine()}
    print(json.dumps(points, indent=2))
    if arguments.json:
        write_text(arguments.json, json.dumps(result, indent=2) + "\n")
    if arguments.plot:
        plot(result, arguments.plot)


def settings(arguments: argparse.Namespace) -> list[str]:
    """Return what a program was told beyond its defaults."""
    if arguments.program == "lucidrains, best":
        return [f"batch={arguments.batch}", f"rate={arguments.rate:g}"]
    return list(arguments.set)


def curve(
    run: Iterator[tuple[int, bool, Sample]], score: FrechetScore, marks: list[float], arguments: argparse.Namespace
) -> list[dict[str, float]]:
    """Return the scores at these seconds of the processor, or at the last step where it comes earlier.

    What `run` yields is how many steps were made, whether that is all, and how to sample.
    """
    points: list[dict[str, float]] = []
    spent, since = 0.0, time.process_time()
    with tqdm(total=round(marks[-1]), unit="s", file=sys.stderr) as bar:
        for steps, ended, sample in run:
            now = time.process_time()
            spent, since = spent + now - since, now
            bar.update(round(spent) - bar.n)
            if spent < marks[len(points)] and not ended:
                continue
            pictures = sample(arguments.n)
            value, error = score(pictures)
            points.append({"minutes": round(spent / 60, 2), "steps": steps, "score": value, "error": error})
            bar.write(f"{spent / 60:.1f} minutes, {steps:,} steps: {value:.3f} ± {error:.3f}", file=sys.stderr)
            if arguments.grid:
                save_png(render_grid(pictures[:64], 16), arguments.grid)
            if len(points) == len(marks):
                break
            since = time.process_time()
    return points


def ours(plan: Plan, *, files: bool) -> Iterator[tuple[int, bool, Sample]]:
    """Train as `ddpm train` does, with or without its files."""
    folder = RunFolder(plan.out, plan.result)
    session = Session.open(plan, folder)

    def sample(n: int) -> Pictures:
        with session.engine.autocast():
            return session.model().sample(n, sampler="unipc", steps=STEPS)

    steps, batch = plan.config.training.steps, plan.batches(len(session.objective.schedule)).batch
    for report in train_steps(session.state, prefetched(batch, 0, steps), session.objective, plan.config.training):
        ended = report.step == steps
        if files and (ended or report.step % plan.config.training.checkpoint_every == 0):
            with folder.claimed():
                for _ in session.save(NoMetrics()):
                    pass
        yield report.step, ended, sample


def theirs(plan: Plan, arguments: argparse.Namespace) -> Iterator[tuple[int, bool, Sample]]:
    """Train as the Trainer of denoising-diffusion-pytorch does, which itself needs packages that are not here."""
    # Only its Trainer uses these.
    for missing in ("torchvision", "accelerate", "pytorch_fid"):
        if find_spec(missing) is None:
            sys.modules[missing] = types.ModuleType(missing)
            vars(sys.modules[missing]).update(transforms=None, utils=None, Accelerator=None)
    from denoising_diffusion_pytorch.denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    store, best = plan.store, arguments.program == "lucidrains, best"
    torch.manual_seed(0)
    height, width, channels = store.pictures.shape[1:]
    padding = -height % DOWNSAMPLING // 2, -width % DOWNSAMPLING // 2
    padded_size = height + 2 * padding[0], width + 2 * padding[1]
    diffusion = GaussianDiffusion(Unet(dim=64, dim_mults=(1, 2, 4, 8), channels=channels), image_size=padded_size)
    if best:
        diffusion.to(memory_format=torch.channels_last)
    size, rate = (arguments.batch, arguments.rate) if best else (16, 1e-4)
    flips = plan.config.data.flip or not best
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=rate, betas=(0.9, 0.99), fused=best or None)
    average = EMA(diffusion, beta=0.995, update_every=10)
    source = np.random.default_rng(0)
    for step in range(1, 10**9):
        mirrored = (source.random(size) < 0.5) & flips
        x_0 = padded(store.pictures[source.choice(store.train, size)], mirrored, padding)
        with autocast(best):
            loss = diffusion(x_0.contiguous(memory_format=torch.channels_last) if best else x_0)
        loss.backward()
        nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        yield step, False, lambda n: sampled(average.ema_model, n, (channels, *padded_size), padding, best)


def padded(pictures: Pictures, mirrored: NDArray[np.bool_], padding: tuple[int, int]) -> Tensor:
    """Return pictures [B, H, W, C] as [B, C, H', W'] in [0, 1], some mirrored, with so much around them."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    x = torch.where(torch.from_numpy(mirrored)[:, None, None, None], x.flip(3), x)
    (top, left) = padding
    return functional.pad(x, (left, left, top, top))


def sampled(diffusion: Any, n: int, shape: tuple[int, int, int], padding: tuple[int, int], best: bool) -> Pictures:
    """Return samples of their averaged network by our sampler: the same numbers of evaluations for all."""
    schedule = NoiseSchedule(diffusion.betas.double())
    network = diffusion.model.eval()
    denoiser = clipped(network_denoiser(network, schedule, "v"), schedule)
    parts = []
    for start in range(0, n, 100):
        noise = NoiseSource(0, range(start, min(start + 100, n)), shape)
        times = spaced_timesteps(STEPS, schedule, SAMPLERS["unipc"].spacing)
        with torch.inference_mode(), autocast(best):
            *_, last = SAMPLERS["unipc"].run(denoiser, schedule, noise.normal(0, "x_T"), noise, timesteps=times)
        (top, left), (height, width) = padding, shape[1:]
        cut = last.x[:, :, top : height - top, left : width - left]
        parts.append(((cut + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def autocast(on: bool) -> AbstractContextManager[object]:
    """Return the context in which a forward pass is made."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if on else nullcontext()


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw distance against minutes, both logarithmic."""
    figure, palette = blank("light", 3.2)
    axes = figure.subplots()
    for colour, (name, each) in zip(palette.series, result["curves"].items(), strict=False):
        minutes = [point["minutes"] for point in each["points"]]
        scores, errors = ([point[key] for point in each["points"]] for key in ("score", "error"))
        axes.errorbar(minutes, scores, errors, color=colour, marker="o", markersize=4, label=name)
    axes.axhline(result["floor"], color=palette.faint, label="held-out pictures")
    axes.set(xscale="log", yscale="log", xlabel="minutes of the processor", ylabel="Fréchet distance")
    axes.minorticks_off()
    at = sorted({round(point["minutes"]) for each in result["curves"].values() for point in each["points"]})
    axes.set_xticks(at, map(str, at))
    axes.set_yticks([0.3, 1, 3, 10, 30], ["0.3", "1", "3", "10", "30"])
    axes.legend(frameon=False)
    save_figure(finished(figure, palette), path, "png")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
