"""How many times too wide PNDM's samples are, by steps, where the network would be exact: on Gaussian data.

There the sampler is an affine map, so two starting points tell the deviation of all samples: no pictures are drawn.

python benchmarks/pndm_width.py [--schedule cosine] [--deviation 0.3] [--steps 3,4,5,6,7,8,10,20,50]
"""

from __future__ import annotations

import argparse
import math

import torch

from ddpm.diffusion import make_schedule
from ddpm.diffusion.analytic import GaussianDenoiser
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.samplers import SAMPLERS, spaced_timesteps
from ddpm.diffusion.samplers.timesteps import Spacing
from ddpm.diffusion.schedules import NoiseSchedule


def main() -> None:
    """Print a row for each spacing of the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", default="cosine", help="of 1,000 timesteps")
    parser.add_argument("--deviation", type=float, default=0.3, help="of the data, on a scale from -1 to 1")
    parser.add_argument("--steps", default="3,4,5,6,7,8,10,20,50")
    arguments = parser.parse_args()
    counts = [int(word) for word in arguments.steps.split(",")]
    schedule = make_schedule(arguments.schedule, 1000)
    print(f"{'steps':<10}", *(f"{count:>9}" for count in counts))
    spacings: tuple[Spacing, ...] = ("log_snr", "trailing")
    for spacing in spacings:
        widths = [width(schedule, arguments.deviation, spacing, count) for count in counts]
        print(f"{spacing:<10}", *(f"{each:>9.3g}" for each in widths))


def width(schedule: NoiseSchedule, deviation: float, spacing: Spacing, count: int) -> float:
    """Return the deviation of the samples over that of the data."""
    denoiser = GaussianDenoiser(schedule, torch.zeros(1), torch.full((1, 1), deviation**2, dtype=torch.float64))
    x_T = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    times = spaced_timesteps(count, schedule, spacing)
    *_, last = SAMPLERS["pndm"].run(denoiser, schedule, x_T, NoiseSource(0, range(2), (1,)), timesteps=times)
    # x_T has variance 1 here as in `ddpm sample`, also where the schedule leaves a little signal at its end.
    return math.fabs(float(last.x[1] - last.x[0])) / deviation


if __name__ == "__main__":
    main()
