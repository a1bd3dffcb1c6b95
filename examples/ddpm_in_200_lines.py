"""Denoising Diffusion Probabilistic Models (Ho et al. 2020) in one file: U-Net, training, DDPM and DDIM sampling.

    python ddpm_in_200_lines.py              # digits of 8x8 pixels: 145 s of one core, Fréchet ratio 1.1
    python ddpm_in_200_lines.py mnist/       # MNIST: a folder of .parquet files, an .npz, or an unpacked idx file

Noise destroys a picture x_0 step by step, x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) noise, until nothing else is
left. A network learns to see the noise in x_t. Who knows the noise can take a little of it away, and who does so T
times turns pure noise into a picture. Here t counts from 0: t = 0 is the paper's t = 1, one step of noise.
"""

import argparse
import copy
import io
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

# The schedule: how fast x_0 is lost. alpha_bar_t is a squared cosine (Nichol & Dhariwal 2021, Eq. 17).
T = 1000
cosine = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + 0.008) / 1.008 * math.pi / 2) ** 2
betas = (1 - cosine[1:] / cosine[:-1]).clamp(max=0.999)  # float64 [T], as all that follow
alphas = 1 - betas
alphas_cumprod = alphas.cumprod(0)  # alpha_bar_t: the share of x_0 in the variance of x_t
alphas_cumprod_prev = torch.cat([torch.ones(1), alphas_cumprod[:-1]])  # alpha_bar_{t-1}: 1 where no noise is left
# q(x_{t-1} | x_t, x_0) is a Gaussian around x_0_weight * x_0 + x_t_weight * x_t (Ho et al. 2020, Eq. 7).
x_0_weight = alphas_cumprod_prev.sqrt() * betas / (1 - alphas_cumprod)
x_t_weight = alphas.sqrt() * (1 - alphas_cumprod_prev) / (1 - alphas_cumprod)
posterior_variance = (1 - alphas_cumprod_prev) / (1 - alphas_cumprod) * betas  # 0 at t = 0: x_0 is known


def at(t: Tensor, table: Tensor) -> Tensor:
    """Return table[t] as float32 [B, 1, 1, 1], a factor for pictures; t is [B], or one time for all."""
    return table.to(t.device)[t].float().reshape(-1, 1, 1, 1)


def q_sample(x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Return x_t: t + 1 small Gaussian steps are one large one (Eq. 4)."""
    return at(t, alphas_cumprod.sqrt()) * x_0 + at(t, (1 - alphas_cumprod).sqrt()) * eps


def norm_silu_conv(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(nn.GroupNorm(8, channels_in), nn.SiLU(), nn.Conv2d(channels_in, channels_out, 3, padding=1))


class ResidualBlock(nn.Module):
    """x + what two convolutions make of it; between them they are told the time."""

    def __init__(self, channels_in: int, channels_out: int, time_width: int):
        super().__init__()
        self.first, self.second = norm_silu_conv(channels_in, channels_out), norm_silu_conv(channels_out, channels_out)
        self.time = nn.Linear(time_width, channels_out)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        nn.init.zeros_(self.second[-1].weight)  # a block begins by doing nothing: deep networks then train easily

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.skip(x) + self.second(self.first(x) + self.time(time)[:, :, None, None])


class Attention(nn.Module):
    """Every pixel looks at every other: strokes that are far apart have to fit together."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.qkv = nn.GroupNorm(8, channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)  # [B, HW, C] each
        return x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class UNet(nn.Module):
    """Down to few pixels, where all is near, and up again; each level hands what it saw over to the way up."""

    def __init__(self, side: int, width: int = 32):
        super().__init__()
        channels, time_width = [width, width], 4 * width
        while side % 2 == 0 and side > 4:  # levels of 8 and 4 pixels, or of 28, 14 and 7
            side, channels = side // 2, [*channels, 2 * width]
        steps = list(pairwise(channels))
        self.embed_time = nn.Sequential(nn.Linear(width, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        self.enter = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.ModuleList(ResidualBlock(before, after, time_width) for before, after in steps)
        self.middle = nn.ModuleList(ResidualBlock(channels[-1], channels[-1], time_width) for _ in range(2))
        self.attention = Attention(channels[-1])
        self.up = nn.ModuleList(ResidualBlock(2 * after, before, time_width) for before, after in reversed(steps))
        self.leave = norm_silu_conv(width, 1)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        h, seen = self.enter(x_t), []  # [B, width, H, W]
        angles = t[:, None] * torch.logspace(0, -4, h.shape[1] // 2, device=t.device)  # hands of clocks, fast and slow
        time = self.embed_time(torch.cat([angles.sin(), angles.cos()], dim=1))  # [B, time_width]
        for block in self.down:
            h = block(nn.functional.avg_pool2d(h, 2) if seen else h, time)
            seen.append(h)
        h = self.middle[1](self.attention(self.middle[0](h, time)), time)
        for block in self.up:
            h = block(torch.cat([nn.functional.interpolate(h, seen[-1].shape[2:]), seen.pop()], dim=1), time)
        return self.leave(h)  # eps [B, 1, H, W]


def train(pictures: Tensor, steps: int, batch_size: int = 64, learning_rate: float = 2e-3) -> UNet:
    """Return a network that sees the noise in pictures [N, 1, H, W] (Algorithm 1), with weights averaged over steps."""
    model = UNet(pictures.shape[-1]).to(pictures.device)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 100) * (1 - step / steps))
    for step in tqdm(range(steps), "training"):
        x_0 = pictures[torch.randint(len(pictures), (batch_size,), device=pictures.device)]
        t = torch.randint(T, (batch_size,), device=x_0.device)
        eps = torch.randn_like(x_0)
        loss = nn.functional.mse_loss(model(q_sample(x_0, t, eps), t), eps)  # L_simple, Eq. 14
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
            slow.lerp_(fast, 1 - min(0.999, (step + 1) / (step + 10)))
    return average


def predict(model: nn.Module, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the x_0 that the network believes in, kept inside [-1, 1], and the eps that goes with it."""
    signal, noise = at(t, alphas_cumprod.sqrt()), at(t, (1 - alphas_cumprod).sqrt())
    x_0 = ((x_t - noise * model(x_t, t.expand(len(x_t)))) / signal).clamp(-1, 1)
    return x_0, (x_t - signal * x_0) / noise


@torch.no_grad()
def ddpm(model: nn.Module, x: Tensor) -> Tensor:
    """Return pictures from x = x_T by T draws from q(x_{t-1} | x_t, x_0), as if x_0 were known (Algorithm 2)."""
    for t in tqdm(torch.arange(T - 1, -1, -1, device=x.device), "DDPM"):
        mean = at(t, x_0_weight) * predict(model, x, t)[0] + at(t, x_t_weight) * x
        x = mean + at(t, posterior_variance.sqrt()) * torch.randn_like(x)
    return x


@torch.no_grad()
def ddim(model: nn.Module, x: Tensor, num_steps: int = 50) -> Tensor:
    """Return pictures from x = x_T in fewer steps and without dice: functions of x_T (Song et al. 2021, Eq. 12)."""
    times = torch.linspace(T - 1, 0, num_steps, device=x.device).round().long()
    for t, s in tqdm(list(zip(times, [*times[1:], -1], strict=True)), "DDIM"):
        x_0, eps = predict(model, x, t)
        left = alphas_cumprod_prev[s + 1]  # alpha_bar_s, where s is the time stepped to; -1 is clean
        x = left.sqrt() * x_0 + (1 - left).sqrt() * eps
    return x


def load_pictures(path: Path | None) -> Tensor:
    """Return what is trained on, float32 [N, 1, H, W] in [-1, 1]; 360 of scikit-learn's digits are kept out of it."""
    if path is None:
        digits = load_digits()
        pictures, _ = train_test_split(digits.images * 255 / 16, test_size=360, stratify=digits.target, random_state=0)
    elif path.is_dir():
        cells = pd.concat(pd.read_parquet(file) for file in path.glob("*train*.parquet"))["image"]
        pictures = [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in cells]
    elif path.suffix == ".npz":
        pictures = np.load(path)["x_train"]
    else:
        pictures = np.fromfile(path, np.uint8, offset=16).reshape(-1, 28, 28)
    return torch.from_numpy(np.asarray(pictures, np.float32))[:, None] / 127.5 - 1


def save(x: Tensor, name: Path) -> None:
    """Write pictures as numbers, NAME.npy, uint8 [N, H, W], and as many as make a square as NAME.png."""
    pictures = ((x[:, 0] + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()
    np.save(name.with_suffix(".npy"), pictures)
    side = min(math.isqrt(len(pictures)), 10)
    sheet = Image.fromarray(np.hstack(np.hstack(pictures[: side**2].reshape(side, side, *x.shape[2:]))))
    sheet.resize((4 * sheet.width, 4 * sheet.height), Image.Resampling.NEAREST).save(name.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train DDPM on small gray pictures, then sample.")
    parser.add_argument("data", type=Path, nargs="?", help="MNIST; without it, scikit-learn's digits")
    parser.add_argument("--steps", type=int, default=4000, help="of training")
    parser.add_argument("--samples", type=int, default=100, help="of each sampler")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    pictures = load_pictures(arguments.data).to("cuda" if torch.cuda.is_available() else "cpu")
    model = train(pictures, arguments.steps)
    x_T = torch.randn(arguments.samples, *pictures.shape[1:], device=pictures.device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for sampler in (ddpm, ddim):
        save(sampler(model, x_T), arguments.out / sampler.__name__)


if __name__ == "__main__":
    main()
