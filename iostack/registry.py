"""Find plugins, order them, block them, and blame them.

Entry points of the group ``iostack`` are loaded once per process, each at the first call of a hook that its module names: to
open a corpus of tokens takes no trainer. A plugin that cannot be loaded stays in the list with its error and harms nobody
else; ``IOSTACK_STRICT=1`` loads all at once, and makes it fatal (for CI).

Environment: ``IOSTACK_PLUGINS=module,...`` loads loose modules, ``IOSTACK_BLOCK=name,...`` leaves plugins out.
"""

from __future__ import annotations

import importlib
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pluggy

from iostack import hookspecs
from iostack.errors import IostackError, PluginError
from iostack.forks import renew_in_children

GROUP = "iostack"
OUR_DISTRIBUTION = "iostack"
_HOOKS = {name for name in vars(hookspecs) if name.startswith("iostack_")}
_HOOK_NAME = re.compile(rb"\biostack_[a-z]+\b")


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
    a format, scheme or model in place of ours. Thread-safe.

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
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        found = [*candidates, *(EntryPoint(name, name, GROUP) for name in loose_modules)]
        self._blocked = set(blocked)
        self._owners: dict[str, set[str]] = {}
        for candidate in found:
            self._owners.setdefault(candidate.name, set()).add(_distribution(candidate)[0])
        self._candidates = sorted(set(found), key=_precedence)
        self._places = {candidate.name: place for place, candidate in enumerate(self._candidates)}
        self._known: dict[EntryPoint, Plugin] = {}
        self._called: set[str] = set()
        self._loading = threading.RLock()
        renew_in_children(self)
        if strict and (broken := self.broken()):
            raise PluginError("; ".join(f"plugin {p.name!r} is broken: {p.error}" for p in broken))

    def renew_after_fork(self) -> None:
        """Be usable in a forked child, whichever thread was loading."""
        self._loading = threading.RLock()

    @property
    def plugins(self) -> list[Plugin]:
        """All plugins in their order; loads those that nobody has asked for."""
        with self._loading:
            return [self._loaded(candidate) for candidate in self._candidates]

    def _load_for(self, hook: str) -> None:
        """Load the plugins whose modules may implement ``hook``."""
        with self._loading:
            if hook in self._called:
                return
            for candidate in self._candidates:
                if candidate not in self._known and _may_implement(candidate, hook):
                    self._loaded(candidate)
            self._called.add(hook)

    def _loaded(self, candidate: EntryPoint) -> Plugin:
        if candidate not in self._known:
            self._known[candidate] = self._load(candidate, self._blocked, self._owners[candidate.name])
        return self._known[candidate]

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
        self._load_for(hook)
        implementations = getattr(self._manager.hook, hook).get_hookimpls()
        for implementation in sorted(implementations, key=lambda each: self._places[each.plugin_name]):
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


def _may_implement(candidate: EntryPoint, hook: str) -> bool:
    """Return whether a plugin can have an implementation of ``hook``: False only where its module names other hooks.

    Nothing is imported for it. What is no plain module of Python, or names no hook, is loaded to see what it is.
    """
    if not candidate.value.isidentifier():  # finding a module inside a package would import the package
        return True
    try:
        spec = find_spec(candidate.value)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            return True
        text = Path(spec.origin).read_bytes()
    except (ImportError, ValueError, OSError):
        return True
    named = {name.decode() for name in _HOOK_NAME.findall(text)} & _HOOKS
    return hook in named or not named


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
