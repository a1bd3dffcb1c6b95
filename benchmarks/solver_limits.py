"""How near each deterministic sampler comes, in few evaluations, to what the same noise leads to in the limit.

The limit is `dpm_solver_pp_2s` in 60 steps. Each sampler takes as many steps as the evaluations allow. Root mean
squares over pixels and pictures, on a scale from -1 to 1.

python benchmarks/solver_limits.py MODEL [--evaluations 10,20] [--pictures 64]
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from ddpm.diffusion.samplers import SAMPLERS
from ddpm.model import Model

SPACINGS = ("trailing", "linspace", "log_snr", "quadratic")
IN_THE_LIMIT = ("dpm_solver_pp_2s", "trailing", 60)


def main() -> None:
    """Print a row for each sampler and spacing, the nearest in the most evaluations first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run folder, or a model file")
    parser.add_argument("--evaluations", default="10,20")
    parser.add_argument("--pictures", type=int, default=64)
    arguments = parser.parse_args()
    budgets = [int(word) for word in arguments.evaluations.split(",")]
    model, numbers = Model.load(arguments.model), range(arguments.pictures)
    limit, _ = sampled(model, *IN_THE_LIMIT, numbers)
    rows = []
    for name, entry in SAMPLERS.items():
        if entry.deterministic and entry.evaluations is not None:
            for spacing in SPACINGS if name == "dpm_solver_pp" else (entry.spacing,):
                far = [distance(model, name, spacing, budget, numbers, limit) for budget in budgets]
                rows.append((far[-1], f"{name:<18}{spacing:<10}" + "".join(f"{each:>10.3f}" for each in far)))
    print(f"{'sampler':<18}{'spacing':<10}" + "".join(f"{budget:>10}" for budget in budgets))
    print("\n".join(words for _, words in sorted(rows)))


def distance(model: Model, name: str, spacing: str, budget: int, numbers: range, limit: Tensor) -> float:
    """Return how far the pictures are from the limit, made in as many steps as the evaluations allow."""
    for steps in range(budget, 0, -1):
        _, evaluations = sampled(model, name, spacing, steps, range(1))
        if evaluations <= budget:
            break
    pictures, _ = sampled(model, name, spacing, steps, numbers)
    return float((pictures - limit).square().mean().sqrt())


def sampled(model: Model, name: str, spacing: str, steps: int, numbers: range) -> tuple[Tensor, int]:
    """Return x_0 of pictures, [N, C, H, W], and how often the network was evaluated."""
    evaluations = 0

    def count(*_: object) -> None:
        nonlocal evaluations
        evaluations += 1

    hook = model.network.register_forward_hook(count)
    with torch.no_grad():
        *_, last = model.with_sampling(sampler=name, spacing=spacing, steps=steps).sample_steps(numbers)
    hook.remove()
    return last.x, evaluations


if __name__ == "__main__":
    main()
