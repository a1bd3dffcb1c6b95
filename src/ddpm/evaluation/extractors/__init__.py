"""Networks that turn pictures into features, each with its recipe."""
