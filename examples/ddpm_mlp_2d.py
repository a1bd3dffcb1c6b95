"""Denoising Diffusion Probabilistic Models (Ho et al. 2020) of points in the plane: all of the method, no pictures.

    python ddpm_mlp_2d.py            # a Swiss roll, in ten seconds; draws swissroll.png

Data are points on a spiral. Noise spreads them to N(0, I) in T = 1000 steps; a small network learns to see the noise in
a noisy point, and leads new points from N(0, I) back to the spiral. t counts from 0: t = 0 is the paper's t = 1.
"""

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

# Ho et al. 2020, Sec. 4: beta_t grows linearly; alpha_bar_t is the share of x_0 in the variance of x_t.
T = 1000
betas = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
alphas = 1 - betas
alphas_cumprod = alphas.cumprod(0)


def at(t: Tensor, table: Tensor) -> Tensor:
    """Return table[t] as float32 [B, 1], a factor for points; t is [B], or one time for all."""
    return table[t].float().reshape(-1, 1)


def swiss_roll(count: int) -> Tensor:
    """Return points [count, 2] on a spiral of one and a half turns; the standard deviation is about 1, as of noise."""
    angle = 1.5 * math.pi * (1 + 2 * torch.rand(count))
    points = torch.stack([angle * angle.cos(), angle * angle.sin()], dim=1) / (2.25 * math.pi)
    return points + 0.02 * torch.randn_like(points)


class Mlp(nn.Module):
    """Says from x_t and t what the noise is; both come as sines and cosines, too, the hands of fast and slow clocks."""

    def __init__(self, width: int = 128):
        super().__init__()
        self.of_x, self.of_t = torch.logspace(0, 0.9, 8), torch.logspace(0, -4, 32)  # frequencies
        self.layers = nn.Sequential(
            *(nn.Linear(2 + 2 * (2 * 8 + 32), width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()),
            *(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)),
        )

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        angles = torch.cat([(x_t[:, :, None] * self.of_x).flatten(1), t[:, None] * self.of_t], dim=1)  # [B, 48]
        return self.layers(torch.cat([x_t, angles.sin(), angles.cos()], dim=1))  # eps [B, 2]


def train(data: Tensor, steps: int, batch_size: int = 512, learning_rate: float = 2e-3) -> Mlp:
    """Return a network trained to see the noise in points [N, 2] (Algorithm 1)."""
    model = Mlp()
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in tqdm(range(steps), "training"):
        x_0 = data[torch.randint(len(data), (batch_size,))]
        t = torch.randint(T, (batch_size,))
        eps = torch.randn_like(x_0)
        x_t = at(t, alphas_cumprod.sqrt()) * x_0 + at(t, (1 - alphas_cumprod).sqrt()) * eps  # Eq. 4
        loss = nn.functional.mse_loss(model(x_t, t), eps)  # L_simple, Eq. 14
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return model


@torch.no_grad()
def sample(model: Mlp, count: int) -> Tensor:
    """Return the ways of points from noise to data [T + 1, count, 2] (Algorithm 2): x_T first, x_0 last."""
    way = [torch.randn(count, 2)]
    for t in tqdm(torch.arange(T - 1, -1, -1), "sampling"):
        eps = model(way[-1], t.expand(count))
        mean = (way[-1] - at(t, betas / (1 - alphas_cumprod).sqrt()) * eps) / at(t, alphas.sqrt())  # Eq. 11
        way.append(mean + at(t, betas.sqrt()) * torch.randn(count, 2) if t > 0 else mean)
    return torch.stack(way)


def draw(data: Tensor, way: Tensor, path: Path) -> None:
    """Draw all points at six moments, and below x_t of four of them as lines through time."""
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.6))
    for axes, left in zip(above.subplots(1, 6), (1000, 500, 250, 100, 25, 0), strict=True):
        axes.plot(*way[T - left].T, ".", markersize=1.5, color="#0072b2")
        axes.set(title=f"{left} steps left" if left else "done", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
        axes.set_axis_off()
    plane, time = below.subplots(1, 2, width_ratios=(1, 1.7))
    plane.plot(*data[:1000].T, ".", markersize=2, color="#b5bac1")
    for point, colour in enumerate(("#0072b2", "#d55e00", "#009e73", "#cc79a7")):
        plane.plot(*way[:, point].T, linewidth=0.5, color=colour)
        plane.plot(*way[-1, point], "o", markersize=5, color=colour)
        time.plot(range(T, -1, -1), way[:, point, 0], linewidth=0.7, color=colour)
    plane.set(title="four points on their way to the data", aspect="equal")
    time.set(title="the same: first coordinate of x_t", xlabel="steps left", xlim=(T, 0))
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train DDPM on a Swiss roll, then sample.")
    parser.add_argument("--steps", type=int, default=3000, help="of training")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    parser.add_argument("--out", type=Path, default=Path("swissroll.png"), help="the picture")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    data = swiss_roll(10_000)
    way = sample(train(data, arguments.steps), 1000)
    nearest = torch.cdist(way[-1], data).min(dim=1).values
    draw(data, way, arguments.out)
    print(f"{(nearest < 0.1).float().mean():.1%} of the points are within 0.1 of the roll; drawn in {arguments.out}")


if __name__ == "__main__":
    main()
