"""Make the callbacks that the settings ask for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from iostack.errors import SettingsError
from iostack.registry import registry
from trainer.contracts import Callback
from trainer.settings import Settings


def build_callbacks(settings: Settings) -> list[Callback]:
    """Return the callbacks in the order of the settings; ``[evaluation]`` stands for the callback of that name.

    Raises:
        SettingsError: no plugin offers one, or it does not take its options.
    """
    wanted: dict[str, Mapping[str, Any]] = dict(settings.callbacks)
    if settings.evaluation.uri:
        wanted.setdefault("evaluation", settings.evaluation.model_dump())
    offered = registry().named("iostack_callbacks") if wanted else {}
    return [_build(name, options, offered) for name, options in wanted.items()]


def _build(name: str, options: Mapping[str, Any], offered: Mapping[str, Any]) -> Callback:
    if name not in offered:
        near = difflib.get_close_matches(name, offered, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"installed are: {', '.join(sorted(offered)) or 'none'}"
        raise SettingsError(f"no installed callback is named {name!r}{registry().blame_broken()}", hint=hint)
    try:
        callback: Callback = offered[name](**options)
    except TypeError as error:
        raise SettingsError(f"[callbacks.{name}]: {error}", hint="see the callback's page for its options") from error
    return callback
