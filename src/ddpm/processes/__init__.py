"""Several processes that train one model together, on torch.distributed: one machine or many, CPUs or GPUs."""

from ddpm.processes.group import ALONE, Group
from ddpm.processes.joining import joined
from ddpm.processes.launch import launch

__all__ = ["ALONE", "Group", "joined", "launch"]
