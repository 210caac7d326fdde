"""Token shards as whole documents, fitted into sequences unit by unit; their tokens stay where they are mapped."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

from iostack.errors import IostackError, PlanError, ShardError
from iostack.forks import renew_in_children
from iostack.loader.ahead.lookahead import LookAhead
from iostack.loader.ahead.residency import Residency
from iostack.loader.ahead.streams import UnitSource
from iostack.loader.order.planned import PlannedSource
from iostack.loader.reading import Reading
from iostack.loader.sequences.documents import read_documents
from iostack.loader.sequences.packed import PackedSource, Packer, UnitSequences
from iostack.loader.sequences.pieces import Tokens
from iostack.plan.keyed import derive_key, permutation
from iostack.plan.packing import Bounds
from iostack.plan.units import Unit

_DOCUMENT_ORDER = 5
"""Purpose of keys; see ``iostack.plan.indexed``."""
_KEPT_BYTES = 16 << 20


class FittedDocumentSource(PackedSource):
    """One corpus of token shards, as a source of sequences of whole documents."""

    taken_bytes = 32 << 20

    def __init__(self, source: PlannedSource, reading: Reading) -> None:
        plan = reading.plan
        assert plan.seq_len is not None
        self._seed = source.seed
        residency = Residency(source.corpus, reading.lookahead_bytes, reading.meter, reading.in_flight)
        self._documents = _RecentDocuments(residency)
        self._packer = Packer(source.packing, plan.seq_len, source.seed, source.number, source.skip)
        units = UnitSource(
            source.unit_plan(plan.lanes),
            self._load,
            corpus=source.corpus,
            own_lanes=reading.own_lanes,
            epochs=reading.epochs,
            lookahead=LookAhead(reading.lookahead_bytes, source.unit_bytes),
            threads=reading.unit_threads,
            meter=reading.meter,
            begin=lambda unit: None,
            why_nothing=self._why_nothing,
            most_in_vain=source.most_units_in_vain,
        )
        super().__init__(source.number, residency, units)

    def _load(self, unit: Unit) -> UnitSequences:
        """Return the sequences of a unit; of equally long documents, (seed, epoch, unit) decides which is placed first."""
        name = self.residency.corpus.shard_name(unit.shard)
        tokens, bounds = self._documents.of(unit.shard)
        stop = len(bounds) - 1 if unit.num_rows < 0 else unit.first_row + unit.num_rows
        if stop >= len(bounds):
            raise ShardError(
                f"{name} holds {len(bounds) - 1} documents, fewer than the manifest says ({stop} or more)",
                hint="run iostack index on the corpus",
            )
        bounds = bounds[unit.first_row : stop + 1].astype(np.int64)
        order = permutation(derive_key(self._seed, _DOCUMENT_ORDER, unit.epoch, unit.number), len(bounds) - 1)
        return self._packer.pack(unit, tokens, bounds[order], np.diff(bounds)[order])

    def _why_nothing(self, told: str) -> IostackError:
        return PlanError(f"{self.residency.corpus.uri}: all documents are empty ({told})")

    def close(self) -> None:
        """Stop, and let go of the open shards."""
        super().close()
        self._documents.clear()


class _RecentDocuments:
    """The documents of shards that units were loaded from last, some 16 MiB of bounds; thread-safe.

    Finding them costs as much as the whole shard has documents, and a unit has but some of these.
    """

    def __init__(self, residency: Residency) -> None:
        self._residency = residency
        self._lock = threading.Lock()
        renew_in_children(self)
        self._found: OrderedDict[int, tuple[Tokens, Bounds]] = OrderedDict()

    def of(self, shard: int) -> tuple[Tokens, Bounds]:
        """Return the tokens of a shard, and where each of its documents begins; waits for its bytes if need be."""
        with self._lock:
            if shard in self._found:
                self._found.move_to_end(shard)
                return self._found[shard]
        tokens, bounds = read_documents(self._residency.reader(shard), self._residency.corpus.shard_name(shard))
        kept = bounds.astype(np.uint32) if len(tokens) < 1 << 32 else bounds
        with self._lock:
            self._found[shard] = tokens, kept
            while len(self._found) > 1 and sum(bounds.nbytes for _, bounds in self._found.values()) > _KEPT_BYTES:
                self._found.popitem(last=False)
        return tokens, kept

    def clear(self) -> None:
        """Let go of all."""
        self._found.clear()

    def renew_after_fork(self) -> None:
        """Be able to go on in a forked child, whose other threads are gone."""
        self._lock = threading.Lock()
