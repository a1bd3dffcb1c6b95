"""The commands' work as Python calls: what `ddpm.train` and `ddpm.evaluate` are."""
