"""Builds the documentation site: what mkdocs needs beside its configuration."""
