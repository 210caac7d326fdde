"""Find plugins, order them, block them, and blame them.

Entry points of the group ``iostack`` are loaded once per process, at the first hook call. A plugin that cannot be loaded
stays in the list with its error and harms nobody else; ``IOSTACK_STRICT=1`` makes it fatal (for CI).

Environment: ``IOSTACK_PLUGINS=module,...`` loads loose modules, ``IOSTACK_BLOCK=name,...`` leaves plugins out.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Any

import pluggy

from iostack import hookspecs
from iostack.errors import IostackError, PluginError

GROUP = "iostack"
OUR_DISTRIBUTION = "iostack"


@dataclass(frozen=True)
class Plugin:
    """One plugin as ``iostack plugins`` shows it. ``state`` is loaded, blocked or broken; ``error`` says why."""

    name: str
    module: str
    distribution: str
    version: str
    state: str
    hooks: tuple[str, ...] = ()
    error: str = ""


class Registry:
    """The plugins of one process.

    ``call`` returns results in a fixed order: third parties first, then ours, each by name; so a third party may offer
    a format, scheme or model in place of ours. Reading is thread-safe; loading happens in the constructor.

    Raises:
        PluginError: in strict mode, if any plugin is broken.
    """

    def __init__(
        self,
        candidates: Iterable[EntryPoint],
        *,
        loose_modules: Iterable[str] = (),
        blocked: Iterable[str] = (),
        strict: bool = False,
    ) -> None:
        self.plugins: list[Plugin] = []
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        found = [*candidates, *(EntryPoint(name, name, GROUP) for name in loose_modules)]
        blocked_names = set(blocked)
        owners: dict[str, set[str]] = {}
        for candidate in found:
            owners.setdefault(candidate.name, set()).add(_distribution(candidate)[0])
        # pluggy calls the last one registered first.
        for candidate in sorted(set(found), key=_precedence, reverse=True):
            self.plugins.append(self._load(candidate, blocked_names, owners[candidate.name]))
        self.plugins.reverse()
        if strict and (broken := self.broken()):
            raise PluginError("; ".join(f"plugin {p.name!r} is broken: {p.error}" for p in broken))

    def _load(self, candidate: EntryPoint, blocked: set[str], owners: set[str]) -> Plugin:
        distribution, version = _distribution(candidate)
        known = (candidate.name, candidate.value, distribution, version)
        if candidate.name in blocked:
            return Plugin(*known, state="blocked", error="blocked by IOSTACK_BLOCK")
        if len(owners) > 1:
            return Plugin(*known, state="broken", error=f"two distributions offer it: {', '.join(sorted(owners))}")
        try:
            plugin = candidate.load() if candidate.dist else importlib.import_module(candidate.value)
            self._manager.register(plugin, name=candidate.name)
            self._refuse_unknown_hooks(plugin)
        except Exception as error:  # noqa: BLE001 - whatever a foreign module raises is kept and shown
            if self._manager.has_plugin(candidate.name):
                self._manager.unregister(name=candidate.name)
            return Plugin(*known, state="broken", error=f"{type(error).__name__}: {error}")
        hooks = tuple(caller.name for caller in self._manager.get_hookcallers(plugin) or ())
        return Plugin(*known, state="loaded", hooks=hooks)

    def _refuse_unknown_hooks(self, plugin: object) -> None:
        for name in dir(plugin):
            if self._manager.parse_hookimpl_opts(plugin, name) is not None and not hasattr(hookspecs, name):
                raise PluginError(f"there is no hook named {name!r}")

    def broken(self) -> list[Plugin]:
        """Return the plugins that could not be loaded."""
        return [plugin for plugin in self.plugins if plugin.state == "broken"]

    def call(self, hook: str) -> Iterator[tuple[str, Any]]:
        """Yield (plugin name, result) of every implementation of ``hook`` that offers something.

        Raises:
            PluginError: an implementation raised something that is not an ``IostackError``; names plugin and hook.
        """
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            try:
                result = implementation.function()
            except IostackError:
                raise
            except Exception as error:
                raise PluginError(
                    f"plugin {implementation.plugin_name!r} failed in {hook}: {type(error).__name__}: {error}",
                    hint=f"set IOSTACK_BLOCK={implementation.plugin_name} to run without it",
                ) from error
            if result is not None:
                yield implementation.plugin_name, result

    def named(self, hook: str) -> dict[str, Any]:
        """Return all that a hook of mappings offers; the first to name a thing wins."""
        merged: dict[str, Any] = {}
        for plugin_name, offers in self.call(hook):
            if not isinstance(offers, Mapping):
                raise PluginError(f"plugin {plugin_name!r}: {hook} must return a mapping, not {type(offers).__name__}")
            for name, build in offers.items():
                merged.setdefault(name, build)
        return merged

    def listed(self, hook: str) -> list[Any]:
        """Return all that a hook of sequences offers, in order."""
        return [item for _, offers in self.call(hook) for item in offers]

    def blame_broken(self) -> str:
        """Return a clause that names the broken plugins, for errors about something that was not found."""
        names = [f"{plugin.name} ({plugin.error})" for plugin in self.broken()]
        return f"; broken plugins: {', '.join(names)}" if names else ""


@cache
def registry() -> Registry:
    """Return the registry of this process, loading the plugins at the first call."""
    return Registry(
        entry_points(group=GROUP),
        loose_modules=_names("IOSTACK_PLUGINS"),
        blocked=_names("IOSTACK_BLOCK"),
        strict=os.environ.get("IOSTACK_STRICT", "") not in ("", "0"),
    )


def _names(variable: str) -> list[str]:
    return [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]


def _distribution(candidate: EntryPoint) -> tuple[str, str]:
    if candidate.dist is None:
        return "(loose module)", ""
    return _name_and_version(candidate.dist)


@cache
def _name_and_version(distribution: Distribution) -> tuple[str, str]:
    """Return what its metadata say; each look at them parses them anew, which for all plugins took 30 ms of every start."""
    return distribution.name, distribution.version


def _precedence(candidate: EntryPoint) -> tuple[bool, str, str]:
    distribution, _ = _distribution(candidate)
    return distribution == OUR_DISTRIBUTION, candidate.name, candidate.value
