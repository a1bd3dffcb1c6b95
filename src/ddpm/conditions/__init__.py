"""What a picture is conditioned on: as tensors here; how it is asked for, and what data hold of it, in the modules."""

from __future__ import annotations

from ddpm.conditions.condition import Condition, concatenated

__all__ = ["Condition", "concatenated"]
