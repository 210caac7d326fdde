"""Write settings as TOML or as plain values, without credentials.

Secrets (see ``trainer.settings.secrets``) are shown as ``***`` on the screen, and left out of what is saved.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.settings.merge import DEFAULT
from trainer.settings.secrets import HIDDEN, without_secrets
from trainer.settings.tree import Settings

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def plain_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings as JSON-safe values to keep beside a run or in a checkpoint: secrets are left out."""
    return without_secrets(settings.model_dump(mode="json"), replacement=None)


def shown_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings as JSON-safe values to look at: secrets are ``***``."""
    return without_secrets(settings.model_dump(mode="json"), replacement=HIDDEN)


def to_toml(values: Mapping[str, Any], *, origins: Mapping[str, str] | None = None) -> str:
    """Return a tree of values as TOML; with ``origins``, each line ends in a comment that says where it came from."""
    return "\n".join(_table(values, "", origins)).lstrip("\n") + "\n"


def _table(values: Mapping[str, Any], path: str, origins: Mapping[str, str] | None) -> Iterator[str]:
    tables = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    if path and (len(tables) < len(values) or not values):
        yield f"\n[{path}]"
    for key, value in values.items():
        if key in tables:
            continue
        line = f"{_key(key)} = {_value(value)}"
        if origins is not None:
            dotted = f"{path}.{key}" if path else key
            line = f"{line:<40}  # {origins.get(dotted, DEFAULT)}"
        yield line
    for key, table in tables.items():
        if table or path == "callbacks":
            yield from _table(table, f"{path}.{_key(key)}" if path else _key(key), origins)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _string(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, float):
        return repr(value)
    return str(value)


def _string(text: str) -> str:
    # JSON's escapes are TOML's, except that TOML also wants DEL escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
