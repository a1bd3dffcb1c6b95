"""How likely a model finds pictures that it has not seen."""
