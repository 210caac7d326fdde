"""The registry: finds plugins, orders them, and keeps a bad one from harming the rest."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from typing import Any

import pytest

from iostack import hookimpl
from iostack.errors import IostackError, PluginError, UsageError
from iostack.registry import GROUP, Registry


class FakeDistribution(Distribution):
    """An installed distribution of which only name and version are asked."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return "1.2"

    def read_text(self, filename: str) -> str | None:
        return None

    def locate_file(self, path: Any) -> Any:
        return path


@pytest.fixture
def modules() -> Iterator[dict[str, types.ModuleType]]:
    """Modules that exist for one test."""
    before = set(sys.modules)
    yield sys.modules
    for name in set(sys.modules) - before:
        del sys.modules[name]


def _plugin(modules: dict[str, types.ModuleType], name: str, distribution: str = "third", **hooks: Any) -> EntryPoint:
    module = types.ModuleType(f"fake_{distribution}_{name}")
    for hook, result in hooks.items():
        setattr(module, hook, hookimpl(_returning(result)))
    modules[module.__name__] = module
    return _entry_point(name, module.__name__, distribution)


def _returning(result: Any) -> Any:
    def function() -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    return function


def _entry_point(name: str, value: str, distribution: str) -> EntryPoint:
    entry_point = EntryPoint(name, value, GROUP)
    vars(entry_point)["dist"] = FakeDistribution(distribution)
    return entry_point


def _states(registry: Registry) -> dict[str, str]:
    return {plugin.name: plugin.state for plugin in registry.plugins}


def test_a_loaded_plugin_shows_where_it_is_from_and_its_hooks(modules: dict[str, types.ModuleType]) -> None:
    registry = Registry([_plugin(modules, "a", iostack_transforms={"x": 1})])
    (plugin,) = registry.plugins
    assert (plugin.name, plugin.distribution, plugin.version, plugin.state) == ("a", "third", "1.2", "loaded")
    assert plugin.hooks == ("iostack_transforms",)
    assert registry.named("iostack_transforms") == {"x": 1}


def test_a_broken_plugin_is_kept_with_its_error_and_harms_nobody(modules: dict[str, types.ModuleType]) -> None:
    good = _plugin(modules, "good", iostack_transforms={"x": 1})
    registry = Registry([_entry_point("bad", "no_such_module", "third"), good])
    assert _states(registry) == {"bad": "broken", "good": "loaded"}
    assert "No module named 'no_such_module'" in registry.broken()[0].error
    assert registry.named("iostack_transforms") == {"x": 1}
    assert "bad (ModuleNotFoundError" in registry.blame_broken()


def test_strict_mode_makes_a_broken_plugin_fatal() -> None:
    with pytest.raises(PluginError, match="plugin 'bad' is broken: ModuleNotFoundError"):
        Registry([_entry_point("bad", "no_such_module", "third")], strict=True)


def test_a_blocked_plugin_is_not_imported(modules: dict[str, types.ModuleType]) -> None:
    registry = Registry([_entry_point("bad", "no_such_module", "third")], blocked=["bad"], strict=True)
    assert _states(registry) == {"bad": "blocked"}
    assert registry.blame_broken() == ""


def test_one_name_from_two_distributions_is_refused_naming_both(modules: dict[str, types.ModuleType]) -> None:
    twins = [_plugin(modules, "a", "one", iostack_transforms={"x": 1}), _plugin(modules, "a", "two")]
    registry = Registry(twins)
    assert [plugin.state for plugin in registry.plugins] == ["broken", "broken"]
    assert all(plugin.error == "two distributions offer it: one, two" for plugin in registry.plugins)
    assert registry.named("iostack_transforms") == {}


def test_third_parties_come_first_then_ours_each_by_name(modules: dict[str, types.ModuleType]) -> None:
    names = [("z", "third"), ("b", "iostack"), ("a", "iostack"), ("y", "third")]
    plugins = [_plugin(modules, name, by, iostack_transforms={"x": name, name: name}) for name, by in names]
    for order in (plugins, plugins[::-1]):
        registry = Registry(order)
        assert [plugin.name for plugin in registry.plugins] == ["y", "z", "a", "b"]
        assert [name for name, _ in registry.call("iostack_transforms")] == ["y", "z", "a", "b"]
        assert registry.named("iostack_transforms")["x"] == "y"


def test_sequences_are_joined_in_order_and_nothing_is_skipped(modules: dict[str, types.ModuleType]) -> None:
    offers = {"a": [1], "b": None, "c": [2, 3]}
    registry = Registry([_plugin(modules, name, iostack_formats=offer) for name, offer in offers.items()])
    assert registry.listed("iostack_formats") == [1, 2, 3]


def test_a_loose_module_is_a_plugin(modules: dict[str, types.ModuleType]) -> None:
    name = _plugin(modules, "loose", iostack_transforms={"x": 1}).value
    registry = Registry([], loose_modules=[name])
    assert [(plugin.name, plugin.distribution) for plugin in registry.plugins] == [(name, "(loose module)")]
    assert registry.named("iostack_transforms") == {"x": 1}


def test_a_hook_that_does_not_exist_breaks_its_plugin_alone(modules: dict[str, types.ModuleType]) -> None:
    registry = Registry([_plugin(modules, "typo", iostack_transfroms={"x": 1}, iostack_transforms={"y": 1})])
    assert registry.broken()[0].error == "PluginError: there is no hook named 'iostack_transfroms'"
    assert registry.named("iostack_transforms") == {}


def test_an_error_in_a_hook_names_plugin_hook_and_the_way_out(modules: dict[str, types.ModuleType]) -> None:
    registry = Registry([_plugin(modules, "bad", iostack_transforms=ZeroDivisionError("oops"))])
    with pytest.raises(
        PluginError, match="plugin 'bad' failed in iostack_transforms: ZeroDivisionError: oops"
    ) as caught:
        registry.named("iostack_transforms")
    assert caught.value.hint == "set IOSTACK_BLOCK=bad to run without it"


def test_an_error_of_ours_passes_as_it_is(modules: dict[str, types.ModuleType]) -> None:
    registry = Registry([_plugin(modules, "a", iostack_transforms=UsageError("yours"))])
    with pytest.raises(UsageError, match="yours"):
        registry.named("iostack_transforms")


def test_a_hook_of_mappings_must_return_one(modules: dict[str, types.ModuleType]) -> None:
    registry = Registry([_plugin(modules, "a", iostack_transforms=["x"])])
    with pytest.raises(PluginError, match="plugin 'a': iostack_transforms must return a mapping, not list"):
        registry.named("iostack_transforms")


def test_errors_survive_pickling() -> None:
    import pickle

    again = pickle.loads(pickle.dumps(UsageError("what", hint="how")))
    assert (type(again), again.message, again.hint) == (UsageError, "what", "how")
    assert isinstance(again, IostackError)


def test_a_plugin_is_imported_only_for_the_hooks_that_its_module_names(
    modules: dict[str, types.ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    offer = "from iostack import hookimpl\n@hookimpl\ndef iostack_{}():\n    return {{'x': 1}}\n"
    (tmp_path / "lazy_transforms.py").write_text(offer.format("transforms"))
    (tmp_path / "lazy_filters.py").write_text(offer.format("filters"))
    (tmp_path / "lazy_broken.py").write_text("raise ValueError('not today')\niostack_formats = None\n")
    (tmp_path / "lazy_unclear.py").write_text("from lazy_transforms import *\n")
    names = ["lazy_transforms", "lazy_filters", "lazy_broken", "lazy_unclear"]
    registry = Registry([_entry_point(name, name, "third") for name in names])
    assert [name for name, _ in registry.call("iostack_transforms")] == ["lazy_transforms", "lazy_unclear"]
    assert "lazy_filters" not in modules
    assert registry.named("iostack_filters") == {"x": 1}
    assert _states(registry) == {
        "lazy_broken": "broken",
        "lazy_filters": "loaded",
        "lazy_transforms": "loaded",
        "lazy_unclear": "loaded",
    }
