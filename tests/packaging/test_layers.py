"""Imports run one way, and no module imports itself by a detour. Read from the sources, so lazy imports count too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
OURS = ("iostack", "trainer")

LAYERS = [
    {"iostack.cli", "iostack.testing", "iostack.packing"},
    {"iostack.bench", "iostack.metrics", "iostack.prepare", "iostack.preview"},
    {"iostack.loader"},
    {"iostack.corpus", "iostack.plan"},
    {"iostack.cache"},
    {"iostack.registry"},
    {"iostack.forks", "iostack.hookspecs", "iostack.sizes", "iostack.stopping", "iostack.suggest"},
    {"iostack.batch_memory", "iostack.errors", "iostack.lazy", "iostack.logs", "iostack.stages"},
]
"""From the top: a module imports those of its own entry and of layers below. Neighbours in a layer know nothing of each other."""

TOUCHES_THE_WORLD = {
    "os",
    "io",
    "pathlib",
    "socket",
    "subprocess",
    "threading",
    "asyncio",
    "shutil",
    "tempfile",
    "time",
}


@dataclass(frozen=True)
class Import:
    """``importer`` imports ``imported``; ``is_lazy``: inside a function, when that runs."""

    importer: str
    imported: str
    is_lazy: bool


def _modules(top: str) -> dict[str, Path]:
    folder = ROOT / top
    found = {}
    for path in folder.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = {name: path for top in OURS for name, path in _modules(top).items()}
PLUGINS = {path.stem: path for path in (ROOT / "plugins").glob("iostack_*.py")}


class _Visitor(ast.NodeVisitor):
    """Collects imports that happen at run time: those under ``if TYPE_CHECKING`` do not."""

    def __init__(self, module: str) -> None:
        self.module, self.found, self._depth = module, set[Import](), 0

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)
        for other in node.orelse if "TYPE_CHECKING" in ast.unparse(node.test) else ():
            self.visit(other)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.found.add(Import(self.module, alias.name, bool(self._depth)))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert not node.level, f"{self.module} imports relatively"
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            self.found.add(Import(self.module, whole if whole in MODULES else str(node.module), bool(self._depth)))


@cache
def _imports() -> frozenset[Import]:
    found: set[Import] = set()
    for name, path in {**MODULES, **PLUGINS}.items():
        visitor = _Visitor(name)
        visitor.visit(ast.parse(path.read_text("utf-8")))
        found |= visitor.found
    return frozenset(found)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _within(top: str) -> Iterator[Import]:
    return (each for each in _imports() if _top(each.importer) == top)


def _layer(module: str) -> tuple[int, str]:
    for number, entries in enumerate(LAYERS):
        for entry in entries:
            if module == entry or module.startswith(f"{entry}."):
                return number, entry
    return -1, module


def test_the_sources_are_read() -> None:
    assert Import("iostack.registry", "iostack.errors", False) in _imports()
    assert Import("iostack.corpus.manifest", "pyarrow", True) in _imports()
    assert not any(each.imported.startswith("trainer") for each in _within("iostack")), "under TYPE_CHECKING only"


def test_every_module_of_iostack_has_a_layer() -> None:
    outside = {name for name in MODULES if _top(name) == "iostack" and _layer(name)[0] < 0}
    assert outside == {"iostack", "iostack.__main__"}


def test_imports_of_iostack_run_downwards() -> None:
    wrong = []
    for each in _within("iostack"):
        if _top(each.imported) != "iostack" or each.importer in ("iostack", "iostack.__main__"):
            continue
        if each.imported == "iostack":
            continue
        (upper, owner), (lower, other) = _layer(each.importer), _layer(each.imported)
        if owner != other and lower <= upper:
            wrong.append(f"{each.importer} imports {each.imported}")
    assert not wrong


def test_the_plan_is_pure_arithmetic() -> None:
    for each in _within("iostack"):
        if each.importer.startswith("iostack.plan"):
            assert _top(each.imported) in {"numpy", "iostack"} | sys.stdlib_module_names - TOUCHES_THE_WORLD, each
            assert _top(each.imported) != "iostack" or each.imported.startswith(("iostack.plan", "iostack.errors")), (
                each
            )


def test_iostack_never_imports_the_trainer() -> None:
    assert not [each for each in _within("iostack") if _top(each.imported) == "trainer"]


def test_nobody_imports_plugins() -> None:
    assert not [each for each in _imports() if _top(each.imported) in PLUGINS]


def test_plugins_import_the_trainer_only_for_its_contracts_or_when_they_run() -> None:
    for each in _imports():
        if each.importer in PLUGINS and _top(each.imported) == "trainer" and not each.is_lazy:
            assert each.imported == "trainer.contracts", each


@pytest.mark.parametrize("top", OURS)
def test_no_module_imports_itself_by_a_detour(top: str) -> None:
    edges: dict[str, set[str]] = {}
    for each in _within(top):
        if each.imported in MODULES and not each.is_lazy and each.imported not in OURS:
            edges.setdefault(each.importer, set()).add(each.imported)
    try:
        list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("top", OURS)
def test_no_packages_import_each_other(top: str) -> None:
    """Packages of one level: ``trainer.checkpoint`` and ``trainer.settings`` may know each other in one direction only."""
    edges: dict[str, set[str]] = {}
    packages = {name for name in MODULES if MODULES[name].name == "__init__.py"}
    for each in _within(top):
        importer, imported = each.importer.split("."), each.imported.split(".")
        level = next((at for at, (one, other) in enumerate(zip(importer, imported)) if one != other), 0)
        owner, other = (".".join(parts[: level + 1]) for parts in (importer, imported))
        if level and {owner, other} <= packages:
            edges.setdefault(owner, set()).add(other)
    try:
        list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))
