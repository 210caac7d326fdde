"""Make the callbacks that the settings ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iostack.errors import SettingsError
from iostack.registry import registry
from iostack.suggest import closest
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
        broken = registry().blame_broken()
        raise SettingsError(f"no installed callback is named {name!r}{broken}", hint=closest(name, offered))
    try:
        callback: Callback = offered[name](**options)
    except TypeError as error:
        raise SettingsError(f"[callbacks.{name}]: {error}", hint="see the callback's page for its options") from error
    return callback
