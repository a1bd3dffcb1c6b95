"""From data and a configuration to a model: what is decided, one step, the run around it, and its way back."""
