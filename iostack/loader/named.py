"""Tokenizers and transforms by name, as plugins offer them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from iostack.corpus.contracts import Tokenizer, Transform
from iostack.errors import SettingsError
from iostack.registry import registry

TransformSpec = str | Mapping[str, Any] | Transform
"""A name, a table {name = ..., option = ...}, or a callable."""


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
    transforms: list[Transform] = []
    names: list[Any] = []
    for spec in specs:
        if callable(spec):
            transforms.append(spec)
            names.append(f"{getattr(spec, '__module__', '?')}.{getattr(spec, '__qualname__', type(spec).__qualname__)}")
            continue
        table = {"name": spec} if isinstance(spec, str) else dict(spec)
        options = {key: value for key, value in table.items() if key != "name"}
        build = _find("transform", str(table.get("name", "")), registry().named("iostack_transforms"))
        try:
            transforms.append(build(**options))
        except TypeError as error:
            raise SettingsError(f"transform {table['name']!r} does not take these options: {error}") from error
        names.append(table)
    return transforms, names


def _find(what: str, name: str, offered: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if name in offered:
        return offered[name]
    near = difflib.get_close_matches(name, offered, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(offered))}"
    raise SettingsError(f"no plugin offers a {what} named {name!r}{registry().blame_broken()}", hint=hint)
