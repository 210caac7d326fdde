"""Whether the shards of a corpus of tables have the same columns, of the same kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from iostack.errors import ShardError

_OF_NOTHING = "null"
"""Of a column that holds only nulls: it goes with any other."""


class Kinds:
    """The columns of the shards that were met so far, and of which shard each is known. ``name`` gives a shard's URI."""

    def __init__(self, name: Callable[[int], str]) -> None:
        self.name = name
        self._known: dict[str, tuple[str, int]] = {}
        self._first: int | None = None

    def meet(self, shard: int, found: Mapping[str, str]) -> None:
        """Compare the columns of a shard with those met before.

        Raises:
            ShardError: they differ; names the column and both shards.
        """
        if self._first is None:
            self._first = shard
            self._known = {column: (kind, shard) for column, kind in found.items()}
        for column in {**self._known, **found}:
            known, known_in = self._known.get(column, (None, self._first))
            kind = found.get(column)
            if known == _OF_NOTHING and kind is not None:
                self._known[column] = kind, shard
            elif kind not in (known, _OF_NOTHING):
                told = " and ".join(
                    f"is missing in {self.name(at)}" if each is None else f"is {each} in {self.name(at)}"
                    for each, at in ((known, known_in), (kind, shard))
                )
                raise ShardError(
                    f"the column {column!r} {told}",
                    hint="keep shards of one schema in a corpus, or choose the columns that they share (columns)",
                )
