"""Filters of samples: ``where`` a column compares, by ``length``, and ``keep_fraction`` of all by a hash of the content.

Filters look at samples as they stand in their shards. A column may be named with a path into JSON behind dots: ``json.score``
is the key ``score`` of the column ``json``, whether that is a table already or the text of one.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iostack import hookimpl
from iostack.corpus.contracts import Filter, Sample
from iostack.errors import SampleError, SettingsError

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda value, wanted: value in wanted,
    "not in": lambda value, wanted: value not in wanted,
    "contains": operator.contains,
    "matches": lambda value, pattern: re.search(pattern, value) is not None,
}


@hookimpl
def iostack_filters() -> Mapping[str, Any]:
    return {"where": build_where, "length": build_length, "keep_fraction": build_keep_fraction}


def build_where(*, column: str, op: str, value: Any) -> Filter:
    """Keep samples whose column compares so with a value; a sample without the column is bad."""
    if op not in _OPERATORS:
        raise SettingsError(f"where knows no op {op!r}", hint=f"there are: {', '.join(_OPERATORS)}")
    if op == "matches":
        try:
            re.compile(value)
        except (TypeError, re.error) as error:
            raise SettingsError(f"where: {value!r} is no regular expression: {error}") from error
    return Where(column, op, value)


def build_length(*, column: str, min: int = 0, max: int | None = None) -> Filter:
    """Keep samples whose column has from ``min`` to ``max`` letters, bytes or items, both included."""
    if max is not None and max < min:
        raise SettingsError(f"length: max = {max} is below min = {min}", hint="no sample has such a length")
    return Length(column, min, max)


def build_keep_fraction(*, fraction: float, columns: Sequence[str] = (), seed: int = 0) -> Filter:
    """Keep about this fraction of all samples, chosen by a hash of some columns, or all: equal samples share their fate."""
    if not 0 < fraction <= 1:
        raise SettingsError(f"keep_fraction: {fraction} is no fraction", hint="give a number above 0, and 1 at most")
    return KeepFraction(float(fraction), tuple(columns), seed)


# Classes rather than closures, so that worker processes can receive them.
@dataclass(frozen=True)
class Where:
    """See ``build_where``."""

    column: str
    op: str
    value: Any

    def __call__(self, sample: Sample) -> bool:
        found = _value(sample, self.column)
        if isinstance(found, bytes) and not isinstance(self.value, bytes):
            found = found.decode()
        try:
            return bool(_OPERATORS[self.op](found, self.value))
        except TypeError as error:
            raise SampleError(f"column {self.column!r} does not compare with {self.value!r}: {error}") from error


@dataclass(frozen=True)
class Length:
    """See ``build_length``."""

    column: str
    min: int
    max: int | None

    def __call__(self, sample: Sample) -> bool:
        found = _value(sample, self.column)
        if not hasattr(found, "__len__"):
            raise SampleError(f"column {self.column!r} has no length: it is {type(found).__name__}")
        return len(found) >= self.min and (self.max is None or len(found) <= self.max)


@dataclass(frozen=True)
class KeepFraction:
    """See ``build_keep_fraction``."""

    fraction: float
    columns: tuple[str, ...]
    seed: int

    def __call__(self, sample: Sample) -> bool:
        import xxhash

        hashed = xxhash.xxh3_64(seed=self.seed & (1 << 64) - 1)
        for column in self.columns or sorted(sample):
            content = _content(_value(sample, column))
            hashed.update(f"{column}\0{len(content)}\0".encode())
            hashed.update(content)
        return hashed.intdigest() < self.fraction * 2**64


def _content(value: Any) -> bytes:
    """Return bytes that are equal for equal values, in every process."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if hasattr(value, "tobytes"):
        return f"{value.dtype} {value.shape} ".encode() + bytes(value.tobytes())
    return json.dumps(value, sort_keys=True, default=repr).encode()


def _value(sample: Sample, column: str) -> Any:
    """Return the value of a column, or what a path of keys behind dots names in it."""
    if column in sample:
        return sample[column]
    name = next((name for name in _prefixes(column) if name in sample), None)
    if name is None:
        raise SampleError(f"no column {column!r}; there are {', '.join(map(str, sample))}")
    value = sample[name]
    try:
        value = json.loads(value) if isinstance(value, bytes | str) else value
    except (ValueError, RecursionError) as error:
        raise SampleError(f"column {name!r} is no json: {error}") from error
    for key in column[len(name) + 1 :].split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise SampleError(f"column {name!r} has no {column[len(name) + 1 :]!r}")
        value = value[key]
    return value


def _prefixes(column: str) -> list[str]:
    """Return the names that a path may begin with, the longest first: column names may hold dots themselves."""
    places = [place for place, letter in enumerate(column) if letter == "."]
    return [column[:place] for place in reversed(places)]
