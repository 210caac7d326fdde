"""What writers of shards and engines promise: the protocols that plugins for ``iostack prepare`` implement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from iostack.corpus.contracts import Sample
from iostack.prepare.types import Types

T = TypeVar("T")
R = TypeVar("R")

Layout = Mapping[str, Any]
"""What all shards of one corpus have in common, such as columns and their types. JSON-safe."""


class ShardSink(Protocol):
    """One shard being written; used by one thread, and closed exactly once, also after an error."""

    def write(self, samples: Sequence[Sample], rows: Sequence[int]) -> Sequence[Sample | Exception]:
        """Append samples; return each as the format's reader will give it back.

        ``rows`` number them over the whole source, for formats whose samples need a name. A sample that does not fit is
        left out and returned as its ``SampleError``, which names column and type.
        """
        ...

    def close(self) -> None:
        """Complete the files. They are not synced: whoever moves them into place does that."""
        ...


class Writer(Protocol):
    """Writes shards of one format. Equal samples and layouts must give equal bytes. Subclasses inherit what has a default."""

    format: str
    """Name of the format that reads them."""

    identity: Mapping[str, Any]
    """All that decides what is written, JSON-safe: a conversion is not resumed with another.

    ``vocab_size``, if it is there, goes into the manifest, so that training need not be told.
    """

    def layout(self, samples: Sequence[Sample], types: Types) -> Layout:
        """Decide from some samples of the source, and what it says of types, what all shards have in common.

        Raises:
            UsageError: a column cannot be written; names it and its type.
        """
        return {}

    def names(self, number: int) -> Sequence[str]:
        """Return the names of the files of one shard, the one that readers are given first."""
        ...

    def open(self, folder: Path, number: int, layout: Layout) -> ShardSink:
        """Start a shard: its files, called ``names(number)``, are created in ``folder``."""
        ...

    def summary(self, layout: Layout, shards: Sequence[tuple[str, int, int]]) -> Mapping[str, bytes]:
        """Return the files that the format wants beside all shards, by name, for (name, bytes, samples) of each."""
        return {}


class Engine(Protocol):
    """Runs work somewhere: in processes of this machine, on a cluster. Closed after use, also after an error."""

    def map(
        self, build_worker: Callable[[], Callable[[T], R]], items: Iterable[T], tick: Callable[[], None]
    ) -> Iterator[R]:
        """Yield ``worker(item)`` of all items in any order, where each process makes its own ``worker`` once.

        Everything that crosses over is pickled. An item may be run twice. What a worker raises is raised here.
        ``tick`` is called in the caller's thread, about once a second while it waits.

        Raises:
            PluginError: a process of the engine died; names how.
        """
        ...

    def close(self) -> None:
        """Stop what was started; returns within seconds even while items are being worked on."""
        ...
