"""The matrix part of FID beside `scipy.linalg.sqrtm`, and k-NN coverage beside plain `cdist`, in one run.

    python benchmarks/score_speed.py [--rows 10000] [--repeats 3] [--slice ROWS] [--spectra flat ...] [--json FILE]

Features have 2,048 dimensions. Every measurement runs in a process of its own, so that its peak of memory is its own;
contenders take turns, and medians are reported, of wall time and of processor time (all threads): the latter is the
one to compare on a machine that others use too.

The plain contenders of the coverage compute the three matrices of distances that it needs, as `cdist` gives them, and
then the same four numbers; they take minutes at 10,000 rows, so they are measured once. With `--slice`, they compute
only so many rows of each matrix, without the numbers, and their times are scaled to all rows: the cost of `cdist` is
the same for every row. `torch.cdist` with matrix products, which is fast, inexact and holds whole matrices, is measured
too, always in full.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DIMENSIONS = 2048
K = 5
PLAIN = ("coverage:torch", "coverage:scipy")


def covariances(spectrum: str) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    variances = np.ones(DIMENSIONS) if spectrum == "flat" else np.arange(1, DIMENSIONS + 1) ** -2.0
    rows = 3000 if spectrum != "singular" else 1000
    made = [random.standard_normal((rows, DIMENSIONS)) * np.sqrt(variances) for _ in range(2)]
    mixing = np.linalg.qr(random.standard_normal((DIMENSIONS, DIMENSIONS)))[0]
    first, second = (np.cov(features @ mixing, rowvar=False) for features in made)
    return first, second


def features(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of unequal size and a spectrum that falls: harder for rounding than plain normal numbers."""
    random = np.random.default_rng(0)
    scales = np.arange(1, DIMENSIONS + 1, dtype=np.float32) ** -0.5
    centres = 3 * random.standard_normal((20, DIMENSIONS), dtype=np.float32) * scales
    sets = []
    for width in (1.0, 0.9):
        noise = random.standard_normal((rows, DIMENSIONS), dtype=np.float32)
        noise *= scales * np.float32(width)
        noise += centres[random.integers(0, 20, rows)]
        sets.append(noise)
    return sets[0], sets[1]


def fid_ours(spectrum: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    from ddpm.evaluation.scores.frechet import Moments, frechet_distance

    first, second = (Moments(3000, np.zeros(DIMENSIONS), covariance) for covariance in covariances(spectrum))
    return lambda: frechet_distance(first, second), float


def fid_sqrtm(spectrum: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    import scipy.linalg

    first, second = covariances(spectrum)
    return (
        lambda: np.trace(first + second) - 2 * np.trace(scipy.linalg.sqrtm(first @ second)),
        lambda value: float(value.real),
    )


def coverage_ours(rows: int) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    from ddpm.evaluation.scores.coverage import coverage

    real, samples = features(rows)
    return (
        lambda: coverage(real, samples, k=K),
        lambda found: [found.precision, found.recall, found.density, found.coverage],
    )


def coverage_plain(
    cdist: Callable[[Any, Any], np.ndarray], rows: int, part: int
) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    real, samples = features(rows)

    def score() -> list[float]:
        radii = [np.partition(cdist(own, own), K, axis=1)[:, K] for own in (real, samples)]  # the nearest is itself
        distances = cdist(real, samples)
        in_real, in_samples = distances <= radii[0][:, None], distances <= radii[1]
        shares = [in_real.any(0).mean(), in_samples.any(1).mean(), in_real.sum() / (K * rows), in_real.any(1).mean()]
        return [float(share) for share in shares]

    def distances_of_part() -> list[float]:
        for first, second in ((real, real), (samples, samples), (real, samples)):
            cdist(first[:part], second)
        return []

    return (distances_of_part if part else score), list


def by_scipy(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import cdist

    distances: np.ndarray = cdist(first, second)
    return distances


def by_torch(mode: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        import torch

        return torch.cdist(torch.from_numpy(first), torch.from_numpy(second), compute_mode=mode).numpy()

    return distances


def prepared(name: str, rows: int, part: int) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    kind, contender, *rest = name.split(":")
    if kind == "fid":
        return fid_ours(rest[0]) if contender == "ours" else fid_sqrtm(rest[0])
    if contender == "ours":
        return coverage_ours(rows)
    modes = {"torch": "donot_use_mm_for_euclid_dist", "torch-mm": "use_mm_for_euclid_dist"}
    distances = by_scipy if contender == "scipy" else by_torch(modes[contender])
    return coverage_plain(distances, rows, part if name in PLAIN else 0)


def measure_here(name: str, rows: int, part: int) -> None:
    """Measure one contender in this process, and print what was found."""
    work, plain = prepared(name, rows, part)
    scale = rows / part if part and name in PLAIN else 1
    before, before_cpu = time.perf_counter(), time.process_time()
    result = work()
    seconds, cpu_seconds = time.perf_counter() - before, time.process_time() - before_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    times = {"seconds": scale * seconds, "cpu_seconds": scale * cpu_seconds}
    print(json.dumps({**times, "peak_bytes": peak, "result": plain(result)}))


def measure(name: str, rows: int, part: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--only", name, "--rows", str(rows), "--slice", str(part)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    times = f"{found['seconds']:8.2f} s  {found['cpu_seconds']:8.2f} s of processor"
    print(f"{name:22} {rows:6} rows  {times}  {found['peak_bytes'] / 1e9:.2f} GB", flush=True)
    return found


def summary(runs: list[dict[str, Any]], rows: int) -> dict[str, Any]:
    return {
        "rows": rows,
        "median_seconds": statistics.median(run["seconds"] for run in runs),
        "median_cpu_seconds": statistics.median(run["cpu_seconds"] for run in runs),
        "all_cpu_seconds": [run["cpu_seconds"] for run in runs],
        "peak_gb": max(run["peak_bytes"] for run in runs) / 1e9,
        "result": runs[0]["result"],
    }


def compare(names: list[str], rows: int, repeats: int, part: int = 0) -> dict[str, dict[str, Any]]:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names:
            if repeat == 0 or name not in PLAIN:
                runs[name].append(measure(name, rows, part))
    return {name: summary(found, rows) for name, found in runs.items()}


def versions() -> dict[str, Any]:
    import scipy
    import torch

    processor = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "torch": torch.__version__,
        "processor": processor[0].split(": ")[1] if processor else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_at_start": os.getloadavg()[0],
        "OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slice", type=int, default=0)
    parser.add_argument("--spectra", nargs="+", default=["flat", "falling", "singular"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        measure_here(arguments.only, arguments.rows, arguments.slice)
        return
    report: dict[str, Any] = {"dimensions": DIMENSIONS, "k": K, "slice": arguments.slice, **versions()}
    names = [f"fid:{who}:{spectrum}" for spectrum in arguments.spectra for who in ("ours", "sqrtm")]
    report["fid"] = compare(names, 3000, arguments.repeats)
    report["coverage"] = compare(
        ["coverage:ours", "coverage:torch-mm", *PLAIN], arguments.rows, arguments.repeats, arguments.slice
    )
    found = report["fid"] | report["coverage"]
    report["times_faster"] = {
        f"{name}, {kind}": contender[kind] / found[name.replace(name.split(":")[1], "ours")][kind]
        for name, contender in found.items()
        for kind in ("median_seconds", "median_cpu_seconds")
        if "ours" not in name
    }
    print(json.dumps(report["times_faster"], indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
