"""The configuration: a typed tree, built from a preset, then a file, then the command line, each over the one before.

An unknown key is an error that names the nearest known one. No module of this room imports torch: the command line
reads it first.
"""

from __future__ import annotations

from ddpm.config.reading import (
    Tree,
    explain,
    from_tree,
    keys_of,
    merge,
    parse_assignments,
    read_file,
    to_tree,
)
from ddpm.config.tree import (
    MIN_SIZE,
    Channels,
    ClassifierConfig,
    Config,
    DataConfig,
    DistillationConfig,
    Fit,
    NetworkConfig,
    ObjectiveConfig,
    Parameterization,
    Precision,
    ScheduleConfig,
    ScheduleName,
    Score,
    TrainingConfig,
)

__all__ = [
    "MIN_SIZE",
    "Channels",
    "ClassifierConfig",
    "Config",
    "DataConfig",
    "DistillationConfig",
    "Fit",
    "NetworkConfig",
    "ObjectiveConfig",
    "Parameterization",
    "Precision",
    "ScheduleConfig",
    "ScheduleName",
    "Score",
    "TrainingConfig",
    "Tree",
    "explain",
    "from_tree",
    "keys_of",
    "merge",
    "parse_assignments",
    "read_file",
    "to_tree",
]
