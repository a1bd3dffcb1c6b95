"""A variational autoencoder (Kingma & Welling 2014) of handwritten digits: the bound that DDPM inherits, in one level.

    python vae_in_100_lines.py       # a few seconds; prints both terms of the bound, draws vae.png

An encoder draws a code z ~ q(z | x), a decoder p(x | z) draws the picture again, and p(z) = N(0, I). What has to be
small is the bound E[-log p(x | z)] + KL(q(z | x) || p(z)) >= -log p(x). DDPM is this with T codes x_1 .. x_T in a row,
as large as x, and an encoder that learns nothing: it adds noise.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

SIDE = 8


class Vae(nn.Module):
    """Encoder and decoder, both Gaussian with diagonal covariance; the decoder's deviation is one number, learned."""

    def __init__(self, code: int = 8, width: int = 256):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(SIDE**2, width), nn.SiLU(), nn.Linear(width, 2 * code))
        self.decoder = nn.Sequential(nn.Linear(code, width), nn.SiLU(), nn.Linear(width, SIDE**2), nn.Tanh())
        self.log_sigma = nn.Parameter(torch.zeros(()))
        self.code = code

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of q(z | x), each [B, code]."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance

    def reparameterize(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Return a draw of z: the dice are outside, so gradients flow through mean and variance."""
        return mean + (log_variance / 2).exp() * torch.randn_like(mean)

    def bound(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the terms of the bound in nats, each [B]: what the code leaves open, and what the code costs."""
        mean, log_variance = self.encode(x)
        error = (x - self.decoder(self.reparameterize(mean, log_variance))) / self.log_sigma.exp()  # [B, 64]
        reconstruction = (error**2 / 2 + self.log_sigma + math.log(2 * math.pi) / 2).sum(dim=1)  # -log p(x | z)
        kl = (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2  # of q(z | x) from N(0, I)
        return reconstruction, kl


def train(data: Tensor, steps: int, batch_size: int = 128, learning_rate: float = 2e-3) -> Vae:
    """Return a model trained on pictures [N, 64] in [-1, 1]."""
    model = Vae()
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in (bar := tqdm(range(steps), "training")):
        reconstruction, kl = model.bound(data[torch.randint(len(data), (batch_size,))])
        loss = (reconstruction + kl).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        bar.set_postfix(bound=f"{loss.item():.1f} nats", refresh=False)
    return model


def draw(rows: list[Tensor], path: Path) -> None:
    """Draw a row of pictures for each of [N, 64] in [-1, 1]."""
    cells = nn.functional.pad(torch.stack(rows).unflatten(-1, (SIDE, SIDE)), (0, 1, 0, 1))  # gray lines between
    pixels = ((cells.permute(0, 2, 1, 3).flatten(0, 1).flatten(1) + 1) * 127.5).clamp(0, 255).byte().numpy()
    Image.fromarray(np.kron(pixels, np.ones((5, 5), np.uint8))).save(path)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Train a variational autoencoder on digits, then sample.")
    parser.add_argument("--steps", type=int, default=3000, help="of training")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    parser.add_argument("--out", type=Path, default=Path("vae.png"), help="the picture")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    data, target = load_digits(return_X_y=True)
    parts = train_test_split(data / 8 - 1, test_size=360, stratify=target, random_state=0)
    seen, held_out = (torch.from_numpy(part).float() for part in parts)
    with torch.enable_grad():
        model = train(seen, arguments.steps)
    for name, x in (("trained on", seen), ("held out", held_out)):
        reconstruction, kl = (term.mean().item() for term in model.bound(x))
        print(f"{name}: {reconstruction:.1f} reconstruction + {kl:.1f} KL = {reconstruction + kl:.1f} nats a picture")
    samples = model.decoder(torch.randn(80, model.code)).unflatten(0, (4, 20))
    draw([held_out[:20], model.decoder(model.encode(held_out[:20])[0]), *samples], arguments.out)
    print(f"pictures, their reconstructions, and four rows of samples: {arguments.out}")


if __name__ == "__main__":
    main()
