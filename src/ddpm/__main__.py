"""``python -m ddpm``: the command, for launchers such as torchrun that start a module."""

from ddpm.cli.main import main

main()
