"""Tokenizers, transforms and filters by name, as plugins offer them."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from iostack.corpus.contracts import Filter, Tokenizer, Transform
from iostack.errors import SettingsError
from iostack.registry import registry
from iostack.suggest import closest

TransformSpec = str | Mapping[str, Any] | Transform
"""A name, a table {name = ..., option = ...}, or a callable."""
FilterSpec = str | Mapping[str, Any] | Filter
"""The same of a filter."""
Operator = TypeVar("Operator", bound=Callable[..., Any])


def find_tokenizer(choice: str | Tokenizer) -> Tokenizer:
    """Return a tokenizer: ``"name"`` or ``"name:argument"``, for instance ``huggingface:tokenizer.json``.

    Raises:
        SettingsError: no plugin offers it.
    """
    if not isinstance(choice, str):
        return choice
    name, _, argument = choice.partition(":")
    build = _find("tokenizer", name, registry().named("iostack_tokenizers"))
    return cast(Tokenizer, build(argument))


def find_transforms(specs: Sequence[TransformSpec]) -> tuple[list[Transform], list[Any]]:
    """Return the transforms, and how the plan names them (JSON-safe).

    Raises:
        SettingsError: no plugin offers one, or its options are wrong.
    """
    return _build_all("transform", specs)


def find_filters(specs: Sequence[FilterSpec]) -> tuple[list[Filter], list[Any]]:
    """Return the filters, and how the plan names them (JSON-safe).

    Raises:
        SettingsError: no plugin offers one, or its options are wrong.
    """
    return _build_all("filter", specs)


def _build_all(what: str, specs: Sequence[str | Mapping[str, Any] | Operator]) -> tuple[list[Operator], list[Any]]:
    built: list[Operator] = []
    names: list[Any] = []
    for spec in specs:
        if callable(spec):
            built.append(spec)
            names.append(_name_of(spec))
            continue
        table = {"name": spec} if isinstance(spec, str) else _as_json(what, spec)
        options = {key: value for key, value in table.items() if key != "name"}
        build = _find(what, str(table.get("name", "")), registry().named(f"iostack_{what}s"))
        try:
            built.append(build(**options))
        except TypeError as error:
            raise SettingsError(
                f"{what} {table['name']!r} does not take these options: {error}",
                hint=f"it takes: {', '.join(inspect.signature(build).parameters) or 'none'}",
            ) from error
        names.append(table)
    return built, names


def _name_of(operator: Callable[..., Any]) -> str:
    """Return what tells a callable from others in the plan; a dataclass tells its fields too."""
    if dataclasses.is_dataclass(operator):
        return f"{type(operator).__module__}.{operator!r}"
    return f"{operator.__module__}.{getattr(operator, '__qualname__', type(operator).__qualname__)}"


def _as_json(what: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table as a state gives it back: tuples as lists, keys as text."""
    try:
        return dict(json.loads(json.dumps(dict(table))))
    except (TypeError, ValueError) as error:
        raise SettingsError(f"the {what} {table.get('name')!r} has an option that JSON cannot hold: {error}") from error


def _find(what: str, name: str, offered: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if name in offered:
        return offered[name]
    raise SettingsError(
        f"no plugin offers a {what} named {name!r}{registry().blame_broken()}", hint=closest(name, offered)
    )
