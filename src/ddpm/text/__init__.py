"""Texts: what they are cut into, and the encoders that read them."""
