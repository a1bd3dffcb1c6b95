"""What must agree: the processes of a run with one another, and a run with the one that it goes on with."""

from __future__ import annotations

import json
from typing import Any

import torch

from ddpm.config import from_tree, to_tree
from ddpm.errors import RunError
from ddpm.training.plan import Plan, config_tree, difference, may_change_on_resume
from ddpm.version import __version__


def facts(plan: Plan) -> dict[str, str]:
    """Return what must be the same in every process, by names for people."""
    return {
        "version of ddpm": __version__,
        "version of torch": torch.__version__,
        "data": f"{plan.store.source} ({plan.store.fingerprint[:12]})",
        "configuration": json.dumps(config_tree(plan), sort_keys=True),
    }


def compare(plan: Plan, notes: dict[str, Any]) -> list[str]:
    """Refuse to go on with other data or another recipe; return what differs and does no harm."""
    if notes["data_fingerprint"] != plan.store.fingerprint:
        raise RunError(
            f"'{plan.out}' was trained on other pictures ({notes['data']}): the data, or how they are read, have "
            "changed. Use another --out to train on them as they are now"
        )
    before = to_tree(from_tree(notes["config"]))  # keys that came later take their defaults
    changes = difference(before, config_tree(plan))
    refused = [line for line in changes if not may_change_on_resume(line)]
    if refused:
        raise RunError(
            f"'{plan.out}' holds a run with another configuration ({'; '.join(refused[:3])}); "
            "use the same arguments to go on, or another --out to start anew"
        )
    return [f"changed on resume: {line}" for line in changes]
