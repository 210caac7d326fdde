"""Token shards as whole documents, fitted into sequences unit by unit; their tokens stay where they are mapped."""

from __future__ import annotations

import numpy as np

from iostack.errors import IostackError, PlanError, ShardError
from iostack.loader.ahead.lookahead import LookAhead
from iostack.loader.ahead.residency import Residency
from iostack.loader.ahead.streams import UnitSource
from iostack.loader.order.planned import PlannedSource
from iostack.loader.reading import Reading
from iostack.loader.sequences.documents import read_documents
from iostack.loader.sequences.packed import PackedSource, Packer, UnitSequences
from iostack.plan.keyed import derive_key, permutation
from iostack.plan.units import Unit

_DOCUMENT_ORDER = 5
"""Purpose of keys; see ``iostack.plan.indexed``."""


class FittedDocumentSource(PackedSource):
    """One corpus of token shards, as a source of sequences of whole documents."""

    taken_bytes = 32 << 20

    def __init__(self, source: PlannedSource, reading: Reading) -> None:
        plan = reading.plan
        assert plan.seq_len is not None
        self._seed = source.seed
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
        super().__init__(
            source.number, Residency(source.corpus, reading.lookahead_bytes, reading.meter, reading.in_flight), units
        )

    def _load(self, unit: Unit) -> UnitSequences:
        """Return the sequences of a unit; of equally long documents, (seed, epoch, unit) decides which is placed first."""
        reader = self.residency.reader(unit.shard)
        name = self.residency.corpus.shard_name(unit.shard)
        tokens, bounds = read_documents(reader, name)
        stop = len(bounds) - 1 if unit.num_rows < 0 else unit.first_row + unit.num_rows
        if stop >= len(bounds):
            raise ShardError(
                f"{name} holds {len(bounds) - 1} documents, fewer than the manifest says ({stop} or more)",
                hint="run iostack index on the corpus",
            )
        bounds = bounds[unit.first_row : stop + 1]
        order = permutation(derive_key(self._seed, _DOCUMENT_ORDER, unit.epoch, unit.number), len(bounds) - 1)
        return self._packer.pack(unit, tokens, bounds[order], np.diff(bounds)[order])

    def _why_nothing(self, told: str) -> IostackError:
        return PlanError(f"{self.residency.corpus.uri}: all documents are empty ({told})")
