"""Merge defaults, a TOML file and the command line into one settings tree, and remember where each value came from."""

from __future__ import annotations

import difflib
import logging
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from iostack.errors import SettingsError, redact
from trainer.settings.secrets import HIDDEN, is_secret, without_secrets
from trainer.settings.tree import Settings

log = logging.getLogger("trainer.settings")

DEFAULT = "default"


@dataclass
class Layers:
    """Values on their way to become settings: a later layer replaces what an earlier one said, key by key.

    ``origins`` maps each dotted key that was set to where its value came from.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def add(self, values: Mapping[str, Any], origin: str, *, path: tuple[str, ...] = ()) -> None:
        """Lay a tree of values over those that are there; tables merge, everything else is replaced."""
        for key, value in values.items():
            here = (*path, key)
            if isinstance(value, Mapping) and value:
                self.add(value, origin, path=here)
            else:
                self._put(here, value, origin)

    def _put(self, path: tuple[str, ...], value: Any, origin: str) -> None:
        table = self.values
        for depth, key in enumerate(path[:-1]):
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                dotted = ".".join(path[: depth + 1])
                raise SettingsError(f"{'.'.join(path)} (from {origin}): {dotted} is a value, not a table")
        if isinstance(table.get(path[-1]), dict) and not isinstance(value, dict):
            dotted = ".".join(path)
            raise SettingsError(f"{dotted} = {_show(dotted, value)} (from {origin}): a table, not a value")
        table[path[-1]] = value
        self.origins[".".join(path)] = origin


def resolve_settings(
    *, file: Path | None = None, assignments: Sequence[str] = (), uri: str = "", flags: Mapping[str, Any] | None = None
) -> tuple[Settings, dict[str, str]]:
    """Return the settings, and for each dotted key that is not a default, where it came from.

    Later layers win: defaults, ``file``, ``flags`` (dotted keys of command-line options) and ``uri``, ``assignments``
    (``key.path=value``; the value is read as TOML, and as a plain string where it is none).

    Raises:
        SettingsError: the file cannot be read, a key is unknown, a value impossible; all mistakes at once.
    """
    layers = Layers()
    if file is not None:
        layers.add(_read_toml(file), str(file))
    for key, value in (flags or {}).items():
        layers.add(_nest(key, value), "command line")
    if uri:
        replaced = {"sources": (), "phases": ()} if "data.sources" in layers.origins else {}
        if replaced:
            log.warning("the URI of the command line replaces data.sources of %s", layers.origins["data.sources"])
        layers.add({"data": {"uri": uri, **replaced}}, "command line")
    for assignment in assignments:
        key, value = parse_assignment(assignment)
        layers.add(_nest(key, value), f"-s {key}")
    try:
        return Settings.model_validate(layers.values), layers.origins
    except ValidationError as error:
        lines = list(dict.fromkeys(_explain(error, layers)))
        hint = "every setting is listed by: iostack train --show-config"
        raise SettingsError("; ".join(lines), hint=hint) from error


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split ``key.path=value``; the value is TOML, or else the string as it stands."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(part.strip() for part in key.split(".")):
        raise SettingsError(f"-s {redact(text)}: expected key.path=value", hint="for instance -s train.steps=60")
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")
    except tomllib.TOMLDecodeError:
        return key, value
    # A newline could smuggle in further keys.
    return key, parsed["value"] if len(parsed) == 1 else value


def _nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    nested: dict[str, Any] = value
    return nested


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"settings file {str(file)!r} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {str(file)!r} is not valid TOML: {error}") from error


def _explain(error: ValidationError, layers: Layers) -> Iterator[str]:
    """Yield all mistakes at once; the alternatives of a union (``int | "auto"``) are one mistake."""
    mistakes: dict[str, list[Mapping[str, Any]]] = {}
    for detail in error.errors(include_url=False):
        mistakes.setdefault(_setting_of(detail, layers.values), []).append(dict(detail))
    for key, details in mistakes.items():
        first = details[0]
        if not key:
            yield str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
        elif first["type"] == "extra_forbidden" or _is_no_backend(key, first):
            yield f"unknown setting {key!r} (from {_origin(key, layers)}){_suggest(key)}"
        elif first["type"] == "missing":
            yield f"{key} is missing (from {_origin(key, layers)})"
        else:
            wanted = " or ".join(dict.fromkeys(_wanted(detail) for detail in details))
            yield f"{key} = {_show(key, first['input'])} (from {_origin(key, layers)}): {wanted}"


def _is_no_backend(key: str, detail: Mapping[str, Any]) -> bool:
    """Whether this is a value in ``[parallel]`` under an unknown name, where only tables of options may stand."""
    return key.startswith("parallel.") and key.count(".") == 1 and detail["type"] == "dict_type"


def _setting_of(detail: Mapping[str, Any], values: Any) -> str:
    """Return the dotted key of a mistake: pydantic's location, without the names of union members at its end."""
    key = ""
    for part in detail["loc"]:
        is_there = _holds(values, part)
        if not is_there and detail["type"] != "missing":
            break
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
        if not is_there:
            break
        values = values[part]
    return key


def _holds(values: Any, part: str | int) -> bool:
    if isinstance(part, int):
        return isinstance(values, list | tuple) and part < len(values)
    return isinstance(values, dict) and part in values


def _wanted(detail: Mapping[str, Any]) -> str:
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    return str(detail["msg"]).removeprefix("Input ").replace("should", "must", 1)


def _show(key: str, value: Any) -> str:
    """Return a value as it was written; ``***`` if it is a secret, or stands where only secrets may."""
    if any(is_secret(part) or part == "storage_options" for part in key.split(".")):
        return HIDDEN
    text = redact(repr(without_secrets({"": value}, replacement=HIDDEN)[""]))
    return text if len(text) <= 80 else text[:77] + "..."


def _origin(key: str, layers: Layers) -> str:
    """Return where a key was set, or the nearest key above or below it."""
    while key:
        below = (origin for known, origin in layers.origins.items() if known.startswith(key + "."))
        if found := layers.origins.get(key) or next(below, ""):
            return found
        key = key.rpartition("[" if key.endswith("]") else ".")[0]
    return DEFAULT


def known_keys() -> list[str]:
    """Return every dotted key that the tree declares."""
    keys = []
    for section, info in Settings.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys += [f"{section}.{name}" for name in info.annotation.model_fields]
        keys.append(section)
    return keys


def _suggest(key: str) -> str:
    close = difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.75)
    if not close:
        by_name = {known.rpartition(".")[2]: known for known in reversed(known_keys())}
        close = [by_name[name] for name in difflib.get_close_matches(key.rpartition(".")[2], by_name, n=1, cutoff=0.75)]
    return f"; did you mean {close[0]!r}?" if close else ""
