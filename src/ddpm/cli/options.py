"""Options that several commands have, with the same words."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import UseAppendAction, arg

AnyValues = Annotated[
    UseAppendAction[tuple[str, ...]], arg(metavar="KEY=VALUE", help="any configuration value; may be repeated")
]
ManyProcesses = Annotated[
    int, arg(metavar="N", help="of this machine, one for each GPU, that share every batch; more machines: torchrun")
]
