"""The version, which every model file records."""

__version__ = "0.1.0"
