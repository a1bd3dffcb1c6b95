"""A process that `launch` starts: it does the call that it finds in a folder. Run as ``-m ddpm.processes.worker``.

An error that names a user's mistake would come again after every restart, so it is no failure of the process: it is
left in the folder, for `launch` to raise. A process that lost the others ends with a line instead of a traceback.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

from ddpm.errors import DdpmError
from ddpm.files import write_atomically
from ddpm.processes.launch import CALL_NAME, is_lost_peer


def main(folder: Path) -> int:
    """Do the call; return the exit code."""
    call, words, named = pickle.loads((folder / CALL_NAME).read_bytes())
    try:
        call(*words, **named)
    except DdpmError as met:
        left = pickle.dumps(type(met)(str(met)))  # without its cause, which may not be picklable
        write_atomically(folder / f"error-{os.environ['RANK']}.pickle", lambda part: part.write_bytes(left))
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        print(f"ddpm: process {os.environ['RANK']} has lost the others, and ends", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
