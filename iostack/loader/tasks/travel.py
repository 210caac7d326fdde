"""What a worker needs to do any task of its loader: the plan, with corpora, transforms and tokenizers in a form that travels.

A corpus travels as its address and opens anew, without listing it again. Transforms and tokenizers that were given by name
are built anew by their plugins. A callable goes by the name of its module and its own: so it must be found there, and the
user's script, which a worker does not run again, is no such module.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iostack.corpus.corpus import Corpus
from iostack.errors import IostackError, PluginError, SettingsError
from iostack.loader.order.named import find_tokenizer, find_transforms
from iostack.loader.order.planned import LoaderPlan
from iostack.loader.workers.notes import Place
from iostack.stages import Tally


@dataclass(frozen=True)
class Setup:
    """``budget`` bounds the bad samples of a loader."""

    plan: LoaderPlan
    budget: int


@dataclass(frozen=True)
class Done:
    """A result, and what was reported on the way: arguments of ``BadSamples``, the slow samples, and the tally."""

    result: Any
    bad: Sequence[tuple[str, tuple[Any, ...]]]
    slow: Sequence[tuple[Place, float]]
    tally: Tally


def pack_setup(setup: Setup) -> bytes:
    """Return the setup as bytes.

    Raises:
        SettingsError: a transform or a tokenizer cannot be found again by another process; names it.
    """
    file = io.BytesIO()
    _Pickler(file, setup.plan).dump(setup)
    return file.getvalue()


def unpack_setup(data: bytes) -> Setup:
    """Return the setup, with corpora opened, transforms imported and plugins' objects built."""
    try:
        setup: Setup = _Unpickler(io.BytesIO(data)).load()
    except IostackError:
        raise
    except Exception as error:
        raise PluginError(
            f"a worker process cannot build what the loader has: {type(error).__name__}: {error}",
            hint="transforms must be importable by name in a new process; use workers=0 for those that are not",
        ) from error
    return setup


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, plan: LoaderPlan) -> None:
        super().__init__(file, 5)
        self._by_name: dict[int, tuple[str, Any]] = {}
        for source in plan.sources:
            for transform, name in zip(source.transforms, source.transform_names, strict=True):
                if isinstance(name, dict):
                    self._by_name[id(transform)] = ("transform", name)
                else:
                    _refuse_unnamed(transform, name)
            if source.tokenizer is not None and source.tokenizer_choice:
                self._by_name[id(source.tokenizer)] = ("tokenizer", source.tokenizer_choice)

    def persistent_id(self, value: Any) -> tuple[str, Any] | None:
        if isinstance(value, Corpus):
            return "corpus", value.address()
        return self._by_name.get(id(value))


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: tuple[str, Any]) -> Any:
        kind, value = pid
        if kind == "corpus":
            return value.open()
        if kind == "tokenizer":
            return find_tokenizer(value)
        return find_transforms([value])[0][0]


class _ByName(pickle.Pickler):
    """Refuses what lives in the user's script."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type) or callable(value):
            module = getattr(value, "__module__", None)
            if module == "__main__":
                raise pickle.PicklingError(f"{getattr(value, '__qualname__', value)!r} is defined in the script itself")
        return NotImplemented


def _refuse_unnamed(transform: Any, name: str) -> None:
    try:
        _ByName(io.BytesIO(), 5).dump(transform)
    except Exception as error:
        raise SettingsError(
            f"the transform {name} cannot go to worker processes: {error}",
            hint="define it at the top level of a module, or offer it by name as a plugin; or use workers=0",
        ) from error
