"""Compile the kernels of this folder with the machine's own compiler, once, into the cache folder.

The result is a plain shared library with C functions, called through ctypes: no header of torch is needed, so a build
takes two seconds and outlives an upgrade of torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.cpp")))
HEADERS = tuple(sorted(Path(__file__).parent.glob("*.h")))

_FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-fopenmp",
    # Both let loops with square roots and rounding become vectors; NaN and infinity keep their meaning.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
)
_LONGEST_BUILD = 120.0  # seconds


@dataclass(frozen=True, slots=True)
class Build:
    """What came of compiling.

    Attributes:
        kernels: as functions in C; none where they cannot be had.
        reason: why there are none, in a few words.
    """

    kernels: ctypes.CDLL | None
    reason: str = ""


def available() -> bool:
    """Whether the kernels can be called; the first call compiles them where they are not in the cache."""
    return build().kernels is not None


def why_unavailable() -> str:
    """Return why there are no kernels, in a few words; empty where there are."""
    return build().reason


def switched_off() -> bool:
    """Whether the user wants no kernels."""
    return os.environ.get("DDPM_NATIVE", "1") == "0"


@lru_cache(maxsize=1)
def build() -> Build:
    """Return the kernels, from the cache or compiled now; ``DDPM_NATIVE=0`` in the environment leaves them out."""
    if switched_off():
        return Build(None, "DDPM_NATIVE is 0")
    if platform.system() not in ("Linux", "Darwin"):
        return Build(None, f"not built on {platform.system()}")
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    if compiler is None:
        return Build(None, "there is no C++ compiler")
    try:
        return Build(ctypes.CDLL(str(_compiled(compiler))))
    except subprocess.CalledProcessError as error:
        last = (error.stderr or "").strip().splitlines()
        return Build(None, f"'{compiler}' failed ({last[-1] if last else error.returncode})")
    except (OSError, subprocess.TimeoutExpired) as error:
        return Build(None, f"'{compiler}' gave no library ({error})")


def _compiled(compiler: str) -> Path:
    """Return the library's file; two processes that need it at once compile it once."""
    from filelock import FileLock

    folder = _cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{_key(compiler)}.so"
    with FileLock(file.with_suffix(".lock")):
        if not file.exists():
            part = file.with_suffix(f".{os.getpid()}.part")
            try:
                subprocess.run(
                    [compiler, *_FLAGS, "-o", str(part), *map(str, SOURCES)],
                    check=True,
                    capture_output=True,
                    text=True,
                    timeout=_LONGEST_BUILD,
                )
                part.replace(file)
            finally:
                part.unlink(missing_ok=True)
    return file


def _key(compiler: str) -> str:
    """Return a hash of all that the machine code depends on; a cache folder may be shared by several machines."""
    cpu = "".join(sorted(line for line in _cpuinfo().splitlines() if line.startswith(("flags", "Features")))[:1])
    sources = [source.read_text(encoding="utf-8") for source in SOURCES + HEADERS]
    parts = [*sources, compiler, *_FLAGS, platform.machine(), platform.system(), cpu]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()


def _cache_folder() -> Path:
    if chosen := os.environ.get("DDPM_CACHE"):
        return Path(chosen) / "native"
    import platformdirs

    return Path(platformdirs.user_cache_dir("ddpm")) / "native"
