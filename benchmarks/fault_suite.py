"""Kill -9 at random moments: does a run that was killed again and again end with the bits of one that never was?

    python benchmarks/fault_suite.py [--kills 50] [--json FILE]

The command `ddpm train digits` makes a tiny run in a process of its own: once to its end, and once more with SIGKILL at
random moments, each followed by the same command. Some kills come anywhere in the life of the process, some while it
trains, and some at the moment that a file is being written. After every kill the checkpoint is read whole; at the end
tensors and metrics of both runs are compared. The same is asked of runs that SIGTERM and SIGINT stop, and of one whose
disk, a small tmpfs, fills up. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

FILES = ("checkpoint.safetensors", "model.safetensors", "best.safetensors")
MOMENTS = ("any", "training", "writing", "training", "writing")
"""The kinds of moments at which kills come, in turn."""

SETTINGS = (
    "network.base_channels=8",
    "network.channel_multipliers=[1]",
    "network.attention_levels=[]",
    "network.num_groups=4",
    "network.dropout=0.1",
    "training.batch_size=8",
    "training.micro_batch_size=4",
    "training.checkpoint_every=4",
    "training.evaluate_every=120",
    "training.preview_every=100000",
    "training.previews=1",
    "training.log_every=1",
)


@dataclass
class Report:
    """What was done, and what came out."""

    torch: str
    machine: str
    steps: int
    kills: int = 0
    kills_by_moment: dict[str, int] = field(default_factory=dict)
    kills_inside_a_write: int = 0
    resumes: int = 0
    steps_lost: int = 0
    checkpoints_damaged: int = 0
    differing_tensors: int = 0
    compared_tensors: int = 0
    metric_lines: int = 0
    metrics_equal: bool = False
    parts_left: int = 0
    stopped_at_by_signal: dict[str, int | None] = field(default_factory=dict)
    full_disk: str = "not tried: it takes root to mount a tmpfs"
    other_faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def faults(self, wanted_kills: int) -> list[str]:
        """Return what is not as it should be."""
        checks = {
            f"only {self.kills} of {wanted_kills} kills came before the end": self.kills < wanted_kills,
            f"{self.checkpoints_damaged} checkpoints were damaged": self.checkpoints_damaged > 0,
            f"{self.differing_tensors} tensors differ": self.differing_tensors > 0,
            "no tensor was compared": self.compared_tensors == 0,
            "metrics differ": not self.metrics_equal,
            f"{self.parts_left} unfinished files were left": self.parts_left > 0,
        }
        return [fault for fault, found in checks.items() if found] + self.other_faults


def start(out: Path, steps: int, errors: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """Start the command in a process of its own."""
    command = [sys.executable, "-c", "from ddpm.cli.main import main; main()", "train", "digits", "--out", str(out)]
    for setting in (*SETTINGS, f"training.steps={steps}"):
        command += ["--set", setting]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=errors)


def train_to_the_end(out: Path, steps: int) -> None:
    """Run the command once, until it ends."""
    if code := start(out, steps).wait():
        raise SystemExit(f"ddpm train ended with exit code {code}")


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], pause: float) -> None:
    """Wait until the condition holds, or the process has ended."""
    while process.poll() is None and not condition():
        time.sleep(pause)


def is_writing(out: Path) -> bool:
    """Whether a file is being written at this moment."""
    return out.exists() and any(name.endswith(".part") for name in os.listdir(out))


def killed(out: Path, steps: int, moment: str, chance: random.Random) -> bool:
    """Start the command and kill it; return whether it was still alive."""
    target = last_line_step(out) + chance.randint(1, 8)
    process = start(out, steps)
    latest = time.monotonic() + (chance.uniform(0.0, 6.0) if moment == "any" else 600.0)
    wait_for(lambda: last_line_step(out) >= target or time.monotonic() > latest, process, 0.005)
    if moment == "writing":
        wait_for(lambda: is_writing(out), process, 0.0002)
        time.sleep(chance.uniform(0.0, 0.0005))
    else:
        time.sleep(chance.uniform(0.0, 0.1))
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive


def step_of(checkpoint: Path) -> int | None:
    """Read a checkpoint whole and return its step; none: there is none yet.

    Raises:
        SafetensorError: if it is damaged.
    """
    from safetensors import safe_open

    if not checkpoint.exists():
        return None
    load_file(checkpoint)
    with safe_open(checkpoint, framework="pt") as file:
        return int(json.loads(file.metadata()["counters"])["step"])


def last_line_step(out: Path) -> int:
    """Return the step of the last whole line of metrics."""
    path = out / "metrics.jsonl"
    whole = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []  # a kill may cut the last line
    return int(json.loads(whole[-1])["step"]) if whole else 0


def metric_lines(out: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics without the seconds, which no two runs share."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def compare(report: Report, one: Path, other: Path) -> None:
    """Compare the files of two finished runs, bit for bit."""
    for name in FILES:
        a, b = load_file(one / name), load_file(other / name)
        for key in a.keys() | b.keys():
            same = key in a and key in b and a[key].numpy().tobytes() == b[key].numpy().tobytes()
            report.differing_tensors += not same
            report.compared_tensors += 1
    lines = metric_lines(one)
    report.metric_lines = len(lines)
    report.metrics_equal = bool(lines) and lines == metric_lines(other)
    report.parts_left += len(list(other.rglob("*.part")))


def check(report: Report, whole: Path, out: Path, what: str) -> None:
    """Take a run to its end that something has stopped, and compare it."""
    train_to_the_end(out, report.steps)
    compare(report, whole, out)
    if not report.metrics_equal:
        report.other_faults.append(f"{what}: metrics differ")


def stop_by_signal(report: Report, whole: Path, out: Path, number: signal.Signals) -> None:
    """Ask a run to stop: it must save at once, end without an error, and go on later."""
    process = start(out, report.steps)
    wait_for(lambda: last_line_step(out) >= 6, process, 0.005)
    process.send_signal(number)
    code, step = process.wait(), step_of(out / "checkpoint.safetensors")
    report.stopped_at_by_signal[number.name] = step
    if code != 0 or step != last_line_step(out) or step == report.steps:
        report.other_faults.append(f"{number.name}: exit code {code}, saved at step {step} of {last_line_step(out)}")
    check(report, whole, out, number.name)


def fill_disk(report: Report, whole: Path, disk: Path) -> None:
    """Fill the disk of a run: one sentence, nothing lost that was saved, and it goes on when there is space."""
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], stderr=subprocess.DEVNULL).returncode:
        return
    try:
        out, ballast = disk / "run", disk / "ballast"
        process = start(out, report.steps, subprocess.PIPE)
        wait_for(lambda: last_line_step(out) >= 6, process, 0.005)
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        message = process.communicate()[1].decode().splitlines()[-1]
        step = step_of(out / "checkpoint.safetensors")
        report.full_disk = message.replace(str(disk), "DISK")
        if process.returncode != 2 or f"the disk is full. The checkpoint of step {step} is safe" not in message:
            report.other_faults.append(f"full disk: exit code {process.returncode}")
        report.parts_left += len(list(out.rglob("*.part")))
        ballast.unlink()
        check(report, whole, out, "full disk")
    finally:
        subprocess.run(["umount", disk], check=True)


def measure(kills: int, steps: int, seed: int, folder: Path) -> Report:
    """Make both runs, and report."""
    report, chance, begin = Report(torch.__version__, platform.machine(), steps), random.Random(seed), time.monotonic()
    whole, broken = folder / "whole", folder / "broken"
    train_to_the_end(whole, steps)
    for attempt in range(kills):
        moment = MOMENTS[attempt % len(MOMENTS)]
        if not killed(broken, steps, moment, chance):
            break
        report.kills += 1
        report.kills_by_moment[moment] = report.kills_by_moment.get(moment, 0) + 1
        report.kills_inside_a_write += is_writing(broken)
        try:
            step = step_of(broken / "checkpoint.safetensors")
        except Exception as error:  # whatever it is, the checkpoint is not whole
            report.checkpoints_damaged += 1
            print(f"damaged: {error}", file=sys.stderr)
            break
        report.resumes += step is not None
        report.steps_lost += max(0, last_line_step(broken) - (step or 0))
        found = "no checkpoint yet" if step is None else f"the checkpoint of step {step} is whole"
        print(f"kill {report.kills} ({moment}): {found}", file=sys.stderr, flush=True)
    check(report, whole, broken, "kills")
    for number in (signal.SIGTERM, signal.SIGINT):
        stop_by_signal(report, whole, folder / number.name, number)
    fill_disk(report, whole, folder / "disk")
    report.seconds = round(time.monotonic() - begin, 1)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, help="of the run; default: 12 a kill, so that it outlives them all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(arguments.kills, arguments.steps or 12 * arguments.kills, arguments.seed, Path(folder))
    faults = report.faults(arguments.kills)
    text = json.dumps({**asdict(report), "faults": faults}, indent=2)
    print(text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
