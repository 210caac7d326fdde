"""Trees of values as torch's pytrees describe them in JSON (``treespec_dumps``, protocol 1): leaves in, tree out.

A description is ``[1, node]``, where a node is ``{"type", "context", "children_spec"}``: a leaf has neither type nor
children, the context of a dict is the JSON list of its keys.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from iostack.corpus.contracts import Sample

VALUE = "value"
"""Name of the one column of samples that are no dict of named values."""

_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {"builtins.list": list, "builtins.tuple": tuple}
_MAPPINGS: dict[str, Callable[..., Any]] = {"builtins.dict": dict, "collections.OrderedDict": OrderedDict}

Build = Callable[[Iterator[Any]], Any]


@dataclass(frozen=True)
class Tree:
    """A parsed description; ``columns`` names the column that each leaf belongs to."""

    columns: tuple[str, ...]
    keys: tuple[str, ...] | None
    """Of the sample, where each of its columns is a leaf."""
    build: Build
    is_sample: bool
    """Whether ``build`` makes a dict by column."""

    def sample(self, leaves: list[Any]) -> Sample:
        """Return the sample of these leaves."""
        if self.keys is not None:
            return dict(zip(self.keys, leaves, strict=True))
        built = self.build(iter(leaves))
        return built if self.is_sample else {VALUE: built}


def parse_tree(text: str) -> Tree:
    """Parse a description.

    Raises:
        ValueError: it is none, or holds containers that are not known.
    """
    try:
        version, node = json.loads(text)
        if version != 1:
            raise ValueError(f"a tree of version {version!r}")
        keys = _keys(node) if node["type"] in _MAPPINGS else ()
        is_sample = bool(keys) and all(isinstance(key, str) for key in keys)
        build, num_leaves = _compile(node)
        if not is_sample:
            return Tree((VALUE,) * num_leaves, None, build, False)
        counts = [_compile(child)[1] for child in node["children_spec"]]
        columns = tuple(key for key, count in zip(keys, counts, strict=True) for _ in range(count))
        flat = all(child["type"] is None for child in node["children_spec"])
        return Tree(columns, columns if flat else None, build, True)
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"a tree that is none: {type(error).__name__}: {error}") from error


def _compile(node: Any) -> tuple[Build, int]:
    kind, children = node["type"], node["children_spec"]
    if kind is None:
        if children:
            raise ValueError("a leaf with children")
        return next, 1
    compiled = [_compile(child) for child in children]
    builds, num_leaves = [build for build, _ in compiled], sum(count for _, count in compiled)
    if kind in _SEQUENCES:
        make = _SEQUENCES[kind]
        return lambda leaves: make([build(leaves) for build in builds]), num_leaves
    if kind in _MAPPINGS:
        mapping, keys = _MAPPINGS[kind], _keys(node)
        if len({*keys}) != len(builds) or len(keys) != len(builds):
            raise ValueError(f"a dict of {len(keys)} keys and {len(builds)} values")
        return lambda leaves: mapping(zip(keys, [build(leaves) for build in builds], strict=True)), num_leaves
    raise ValueError(f"the unknown container {str(kind)[:60]!r}")


def _keys(node: Any) -> tuple[Any, ...]:
    keys = json.loads(node["context"])
    if not isinstance(keys, list):
        raise TypeError("a dict without keys")
    return tuple(keys)
