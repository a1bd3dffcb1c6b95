"""The `ddpm` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ddpm.errors import DdpmError

EPILOGUE = "--debug, anywhere, shows the traceback of an error."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit code 0 for success, 2 for bad input, 130 when interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    try:
        _run(words)
    except DdpmError as error:
        if debug:
            raise
        _fail(str(error), 2)
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        if debug:
            raise
        _fail("interrupted", 130)


def _run(words: Sequence[str]) -> None:
    import tyro

    from ddpm.cli.average import average
    from ddpm.cli.compare import compare_samplers
    from ddpm.cli.distill import distill
    from ddpm.cli.evaluate import evaluate
    from ddpm.cli.figure import figure
    from ddpm.cli.inspect import inspect
    from ddpm.cli.merge import merge
    from ddpm.cli.sample import sample
    from ddpm.cli.train import train
    from ddpm.cli.train_adapter import train_adapter
    from ddpm.cli.train_classifier import train_classifier

    if words[0] == "--version":
        from ddpm.version import __version__

        print(f"ddpm {__version__}")
        return
    tyro.extras.subcommand_cli_from_dict(
        {
            "train": train,
            "sample": sample,
            "evaluate": evaluate,
            "inspect": inspect,
            "figure": figure,
            "distill": distill,
            "merge": merge,
            "average": average,
            "compare-samplers": compare_samplers,
            "train-classifier": train_classifier,
            "train-adapter": train_adapter,
        },
        prog="ddpm",
        description=f"Denoising Diffusion Probabilistic Models: train, sample, score, understand. {EPILOGUE}",
        args=words,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def _fail(message: str, code: int) -> None:
    print(f"ddpm: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
