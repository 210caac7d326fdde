"""Writers and engines by name, as plugins offer them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from iostack.errors import SettingsError
from iostack.prepare.contracts import Engine, Writer
from iostack.registry import registry
from iostack.suggest import closest


def build_writer(name: str, options: Mapping[str, Any]) -> Writer:
    """Return the writer of that name.

    Raises:
        SettingsError: no plugin offers it, or it takes no such option.
    """
    return cast(Writer, _build("writer", name, options, registry().named("iostack_writers")))


def build_engine(name: str, options: Mapping[str, Any]) -> Engine:
    """Return the engine of that name.

    Raises:
        SettingsError: no plugin offers it, or it takes no such option.
    """
    return cast(Engine, _build("engine", name, options, registry().named("iostack_engines")))


def _build(what: str, name: str, options: Mapping[str, Any], offered: Mapping[str, Callable[..., Any]]) -> Any:
    if name not in offered:
        raise SettingsError(
            f"no plugin offers a {what} named {name!r}{registry().blame_broken()}", hint=closest(name, offered)
        )
    build = offered[name]
    known = inspect.signature(build).parameters
    for option in options:
        if option not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise SettingsError(f"the {what} {name!r} has no option {option!r}", hint=takes)
    return build(**options)
