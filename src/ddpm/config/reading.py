"""Trees of plain values: read from files and assignments, merged, and validated into configurations."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ddpm.config.tree import Config
from ddpm.errors import ConfigError, nearest

Tree = dict[str, Any]


def from_tree(tree: Mapping[str, Any]) -> Config:
    """Validate a plain tree of JSON values into a `Config`.

    Raises:
        ConfigError: for an unknown key (the nearest known one is named) or a value out of its range.
    """
    try:
        return Config.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ConfigError(explain(error)) from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the configuration holds a value that JSON cannot express: {error}") from error


def to_tree(config: Config) -> Tree:
    """Return the tree of plain JSON values; `from_tree` inverts it exactly."""
    tree: Tree = json.loads(config.model_dump_json())
    return tree


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """Return `base` with the leaves of `over` put in their places."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_assignments(assignments: Sequence[str], section: type[BaseModel] = Config) -> Tree:
    """Turn ``["training.steps=500", ...]`` into a tree of `section`; values are read as JSON, else as text.

    Raises:
        ConfigError: for an item without ``=`` or an unknown key.
    """
    tree: Tree = {}
    for item in assignments:
        path, sign, text = item.partition("=")
        if not sign or not path:
            raise ConfigError(f"'{item}' is no assignment; expected KEY=VALUE, for example training.steps=500")
        keys = path.strip().split(".")
        _check_path(keys, section)
        leaf: Any = _parse_value(text.strip())
        for key in reversed(keys):
            leaf = {key: leaf}
        tree = merge(tree, leaf)
    return tree


def read_file(path: Path) -> Tree:
    """Read a configuration tree from a JSON or TOML file.

    Raises:
        ConfigError: if the file is missing, or is neither.
    """
    if not path.is_file():
        raise ConfigError(f"no configuration file at '{path}'; expected a .json or .toml file")
    try:
        text = path.read_text(encoding="utf-8")
        tree = _read_toml(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"'{path}' is not valid {path.suffix[1:].upper() or 'JSON'}: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"'{path}' holds a {type(tree).__name__}; expected sections such as {{\"training\": ...}}")
    return tree


def keys_of(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Return every dotted key of the tree, in order."""
    keys: list[str] = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += keys_of(inner, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _check_path(keys: Sequence[str], section: type[BaseModel]) -> None:
    path = ".".join(keys)
    known = keys_of(section)
    if path not in known:
        by_leaf = [key for key in known if key.rsplit(".", 1)[-1] == keys[-1]]
        hint = f"; did you mean '{by_leaf[0]}'?" if by_leaf else nearest(path, known)
        raise ConfigError(f"unknown configuration key '{path}'{hint}")


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def explain(error: ValidationError, section: str = "") -> str:
    """Put the first fault into one sentence with its key, its value, and what was expected."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in ([section] if section else []) + [*first["loc"]])
    if first["type"] == "extra_forbidden":
        return f"unknown configuration key '{key}'{nearest(key, keys_of())}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"configuration key '{key}' is {first['input']!r}: {message[0].lower()}{message[1:]}"
