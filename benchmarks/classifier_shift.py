"""How far a noisy classifier moves x_0, beside what is exact, by time: what classifier guidance rests on.

At scale 1 guidance moves x_0 by (1 - alpha-bar) / sqrt(alpha-bar) times the gradient of log p(y | x_t) (Dhariwal &
Nichol 2021, Alg. 2). Where the data are the training pictures and nothing else, this is E[x_0 | x_t, y] - E[x_0 | x_t],
known in closed form. In much noise that is what a classifier should find; near the picture it should do otherwise, for
it has to know other pictures than these. Root mean squares over pixels and pictures, and the cosine between the two.

python benchmarks/classifier_shift.py digits CLASSIFIER [--times 999,950,900,750,500] [--pictures 100]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ddpm.classifier import Classifier
from ddpm.config import DataConfig
from ddpm.data import open_store
from ddpm.diffusion.analytic import finite_set_denoiser
from ddpm.diffusion.guidance import gradient
from ddpm.diffusion.noise import NoiseSource
from ddpm.diffusion.process import q_sample
from ddpm.diffusion.schedules import NoiseSchedule


def main() -> None:
    """Print a row for each time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="that the classifier was trained on")
    parser.add_argument("classifier", help="file that `ddpm train-classifier DATA --noisy` wrote")
    parser.add_argument("--times", default="999,950,900,750,500")
    parser.add_argument("--pictures", type=int, default=100)
    arguments = parser.parse_args()
    classifier = Classifier.load(arguments.classifier)
    schedule = classifier.schedule
    if schedule is None:
        parser.error("this classifier knows clean pictures only; train one with --noisy")
    store = open_store(arguments.data, DataConfig())
    if store.labels is None or store.classes != classifier.classes:
        parser.error(f"the classifier tells {', '.join(classifier.classes)} apart, and these data do not")
    x_0 = classifier.codec.encode(np.array(store.pictures[store.train]))
    labels = torch.from_numpy(store.labels[store.train])
    print(f"{'t':>5}{'classifier':>12}{'exact':>10}{'cosine':>10}")
    for t in (int(word) for word in arguments.times.split(",")):
        found, exact = shifts(classifier, schedule, x_0, labels, t, arguments.pictures)
        cosine = float(functional.cosine_similarity(found.flatten(1), exact.flatten(1)).mean())
        sizes = [float(each.square().mean().sqrt()) for each in (found, exact)]
        print(f"{t:>5}{sizes[0]:>12.3g}{sizes[1]:>10.3g}{cosine:>10.2f}")


def shifts(
    classifier: Classifier, schedule: NoiseSchedule, x_0: Tensor, labels: Tensor, t: int, count: int
) -> tuple[Tensor, Tensor]:
    """Return by how much guidance to their own classes moves x_0 of noisy training pictures, and what is exact."""
    rows = torch.arange(count) * len(x_0) // count
    own = labels[rows]
    times = torch.full((count,), t)
    x_t = q_sample(x_0[rows], times, NoiseSource(0, range(count), x_0.shape[1:]).normal(0, "eps"), schedule)
    slope = gradient(lambda x, at: classifier.log_probability(x, at).gather(1, own[:, None])[:, 0], x_t, times)
    signal, noise = (float(each) for each in schedule.signal_and_noise(torch.tensor(t)))
    found = noise**2 / signal * slope.double()

    points = x_0.flatten(1).double()
    every = finite_set_denoiser(schedule, points)
    of_class = {y: finite_set_denoiser(schedule, points[labels == y]) for y in set(own.tolist())}
    exact = []
    for one, y in zip(x_t.double()[:, None], own.tolist(), strict=True):  # each is compared with every picture
        exact.append(of_class[y](one, times[:1]).x_0 - every(one, times[:1]).x_0)
    return found, torch.cat(exact)


if __name__ == "__main__":
    main()
