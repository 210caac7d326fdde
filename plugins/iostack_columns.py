"""Transforms of columns: ``keep`` some, ``rename`` some, ``decode`` bytes to text or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iostack import hookimpl
from iostack.corpus.contracts import Sample, Transform
from iostack.errors import SampleError, UsageError


@hookimpl
def iostack_transforms() -> Mapping[str, Any]:
    return {"keep": build_keep, "rename": build_rename, "decode": build_decode}


def build_keep(*, columns: Sequence[str]) -> Transform:
    """Keep only these columns."""
    return Keep(tuple(columns))


def build_rename(*, columns: Mapping[str, str]) -> Transform:
    """Rename columns, given as old name -> new name; two columns cannot get one name."""
    if len(set(columns.values())) < len(columns):
        raise UsageError(f"rename gives two columns the same name: {dict(columns)}", hint="choose different names")
    return Rename(dict(columns))


def build_decode(*, columns: Mapping[str, str]) -> Transform:
    """Turn columns of bytes into ``"text"`` (UTF-8) or ``"json"``, given as column -> kind."""
    if wrong := sorted(set(columns.values()) - {"text", "json"}):
        raise UsageError(f"decode knows no {', '.join(wrong)}", hint="kinds are text and json")
    return Decode(dict(columns))


# Classes rather than closures, so that worker processes can receive them.
@dataclass(frozen=True)
class Keep:
    """See ``build_keep``."""

    columns: tuple[str, ...]

    def __call__(self, sample: Sample) -> Sample:
        return {column: _value(sample, column) for column in self.columns}


@dataclass(frozen=True)
class Rename:
    """See ``build_rename``."""

    columns: Mapping[str, str]

    def __call__(self, sample: Sample) -> Sample:
        for column in self.columns:
            _value(sample, column)
        kept = {name: value for name, value in sample.items() if name not in self.columns}
        return kept | {new: sample[old] for old, new in self.columns.items()}


@dataclass(frozen=True)
class Decode:
    """See ``build_decode``."""

    columns: Mapping[str, str]

    def __call__(self, sample: Sample) -> Sample:
        return sample | {column: self._decoded(sample, column, kind) for column, kind in self.columns.items()}

    def _decoded(self, sample: Sample, column: str, kind: str) -> Any:
        try:
            text = _value(sample, column).decode()
            return json.loads(text) if kind == "json" else text
        except (ValueError, AttributeError, RecursionError) as error:
            raise SampleError(f"column {column!r} is no {kind}: {error}") from error


def _value(sample: Sample, column: str) -> Any:
    if column not in sample:
        raise SampleError(f"no column {column!r}; there are {', '.join(map(str, sample))}")
    return sample[column]
