"""Sequences from documents, tokenised on the fly.

a unit of rows ──permute──> documents ──tokenise, join──> one stream ──cut──> sequences ──permute──> outputs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
from numpy.typing import NDArray

from iostack.corpus.contracts import Sample
from iostack.corpus.corpus import Corpus
from iostack.errors import IostackError, PlanError, PluginError, SampleError, SettingsError, ShardError
from iostack.loader.bad_samples import BadSamples, nothing_is_good
from iostack.loader.buffers import Buffers
from iostack.loader.planning import PlannedSource
from iostack.loader.reading import Reading
from iostack.loader.residency import Residency
from iostack.loader.schedule import Draws, Int64s
from iostack.loader.sequences import Fill
from iostack.loader.sources import StreamedSource
from iostack.loader.streams import UnitSource
from iostack.loader.transforming import Transforming
from iostack.plan.identity import unit_identities
from iostack.plan.keyed import derive_key, permutation
from iostack.plan.sequences import unit_phase
from iostack.plan.units import Unit
from iostack.stages import stage

_DOCUMENT_ORDER, _SEQUENCE_ORDER = 5, 7
_LOADED_BYTES_PER_TEXT_BYTE = 4
"""A unit of text in memory: the text, the ids of its documents, and the ids joined."""

Tokens = NDArray[np.uint16] | NDArray[np.int32]


@dataclass(frozen=True)
class BadRow:
    """A bad row of a unit, and the row whose text appears in its place: None where no row of the unit is good."""

    row: int
    error: Exception
    substitute: int | None


@dataclass(frozen=True)
class TextUnit:
    """The sequences of one unit: output k is the ``seq_len`` + 1 tokens from ``starts[k]`` on."""

    unit: Unit
    tokens: Tokens
    seq_len: int
    starts: NDArray[np.int64]
    identities: NDArray[np.int64]
    bad_rows: Sequence[BadRow]

    def __len__(self) -> int:
        return len(self.identities)

    def sequence(self, output: int) -> Tokens:
        """Return the ``seq_len`` + 1 tokens of one output; a view."""
        start = int(self.starts[output])
        return self.tokens[start : start + self.seq_len + 1]


class TextSource(StreamedSource[TextUnit]):
    """One corpus of documents, as a source of sequences."""

    def __init__(self, source: PlannedSource, reading: Reading) -> None:
        plan = reading.plan
        assert plan.seq_len is not None
        residency = Residency(source.corpus, reading.lookahead_bytes, reading.meter)
        reader = TextReader(source, residency, reading.bad_samples, seq_len=plan.seq_len)
        unit_bytes = max(1, int(_LOADED_BYTES_PER_TEXT_BYTE * source.unit_bytes))
        units = UnitSource(
            source.unit_plan(plan.lanes),
            reader.load,
            corpus=source.corpus,
            meter=reading.meter,
            own_lanes=reading.own_lanes,
            epochs=reading.epochs,
            lookahead_units=max(1, reading.lookahead_bytes // unit_bytes),
            threads=reading.threads,
            begin=reader.report_bad_rows,
            why_nothing=reader.why_nothing,
        )
        super().__init__(source.number, residency, units)

    def plan(self, draws: Draws) -> Fill:
        """Return what writes the next outputs of the drawn lanes, and the cursor after each, into blocks."""
        return partial(self._fill, draws.positions)

    def _fill(self, positions: Int64s, part: slice, places: Int64s, buffers: Buffers) -> None:
        for place, unit, output, is_valid, lane, cursor in self.take(Draws(places, positions[part])):
            buffers.tokens[place] = unit.sequence(output)
            buffers.identities[place] = unit.identities[output]
            buffers.valid[place] = is_valid
            buffers.cursors[place // buffers.rows].setdefault(self.number, {})[lane] = cursor


class _NoSuchColumn(SampleError):
    """A sample without the column of text; where no row of a unit has it, the setting is wrong, not the samples."""


class TextReader:
    """Turns units of documents into sequences; thread-safe."""

    def __init__(self, source: PlannedSource, residency: Residency, bad_samples: BadSamples, *, seq_len: int) -> None:
        assert source.tokenizer is not None
        self.residency = residency
        self.tokenizer = source.tokenizer
        self.seq_len = seq_len
        self._transforming = Transforming(source)
        self._bad_samples = bad_samples
        self._number = source.number
        self._skip = source.skip
        self._seed = source.seed
        self._text_column = source.text_column
        self._most_tokens_seen = 0
        self._first_bad: Exception | None = None

    def load(self, unit: Unit) -> TextUnit:
        """Return the sequences of a unit; documents and sequences are permuted by (seed, epoch, unit)."""
        texts, bad_rows = self._texts(unit)
        order = permutation(derive_key(self._seed, _DOCUMENT_ORDER, unit.epoch, unit.number), len(texts))
        tokens = self._joined([texts[row] for row in order.tolist()], unit)
        self._most_tokens_seen = max(self._most_tokens_seen, len(tokens))
        num_outputs = max(len(tokens) - 1, 0) // self.seq_len
        first = unit_phase(len(tokens), self.seq_len, self._seed, unit.epoch, unit.number)
        outputs = permutation(derive_key(self._seed, _SEQUENCE_ORDER, unit.epoch, unit.number), num_outputs)
        identities = unit_identities(self._number, unit.number, num_outputs)[outputs]
        kept = ~self._skip.holds(identities)
        starts = first + outputs * self.seq_len
        return TextUnit(unit, tokens, self.seq_len, starts[kept], identities[kept], bad_rows)

    def report_bad_rows(self, outputs: TextUnit) -> None:
        """Report the bad samples of a unit that a lane comes to.

        Raises:
            SubstitutionError: the budget is exceeded.
        """
        if not outputs.bad_rows:
            return
        self._first_bad = self._first_bad or outputs.bad_rows[0].error
        name = self.residency.corpus.shard_name(outputs.unit.shard)
        if outputs.bad_rows[0].substitute is None:
            places = [f"{name} row {bad.row}" for bad in outputs.bad_rows]
            self._bad_samples.dropped(_rows_of(self.residency.corpus, outputs.unit), places, outputs.bad_rows[0].error)
            return
        for bad in outputs.bad_rows:
            self._bad_samples.substituted(f"{name} row {bad.row}", bad.error, f"row {bad.substitute}")

    def why_nothing(self, told: str) -> IostackError:
        """Return the error for a corpus that gives no sequence: all of it is bad, or the text is too short."""
        uri = self.residency.corpus.uri
        if not self._most_tokens_seen and self._first_bad is not None:
            return nothing_is_good(uri, self._first_bad)
        if self._most_tokens_seen > self.seq_len:
            return PlanError(f"{uri}: all its sequences are skipped ({told})", hint="skip fewer samples")
        return PlanError(
            f"{uri}: text shorter than one sequence: seq_len {self.seq_len} needs {self.seq_len + 1} tokens, and the"
            f" longest unit holds {self._most_tokens_seen} ({told})",
            hint="use a corpus that holds more, or a smaller seq_len",
        )

    def _joined(self, texts: list[str], unit: Unit) -> Tokens:
        """Return the ids of all texts, each with the id that ends it, in the smallest type that holds them."""
        try:
            with stage("decode", label=partial(_rows_of, self.residency.corpus, unit)):
                encoded = self.tokenizer.encode(texts)
        except Exception as error:
            raise PluginError(
                f"the tokenizer {self.tokenizer.name!r} failed on {_rows_of(self.residency.corpus, unit)}: {error}"
            ) from error
        end = np.asarray([self.tokenizer.end_of_text], np.int32)
        pieces = [piece for document in encoded for piece in (document, end)]
        tokens = np.concatenate(pieces, dtype=np.int32) if pieces else np.empty(0, np.int32)
        vocab_size = self.tokenizer.vocab_size
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
            raise PluginError(
                f"the tokenizer {self.tokenizer.name!r} gave ids from {tokens.min()} to {tokens.max()},"
                f" but its vocab_size is {vocab_size}"
            )
        return tokens.astype(np.uint16) if vocab_size <= 1 << 16 else tokens

    def _texts(self, unit: Unit) -> tuple[list[str], list[BadRow]]:
        """Return the texts of a unit, another of them in the place of each bad one; none where all are bad."""
        reader = self.residency.reader(unit.shard)
        stop = reader.counts.samples if unit.num_rows < 0 else unit.first_row + unit.num_rows
        if stop > reader.counts.samples:
            raise ShardError(
                f"{self.residency.corpus.shard_name(unit.shard)} holds {reader.counts.samples} samples, fewer than the"
                f" manifest says ({stop} or more)",
                hint="run iostack index on the corpus",
            )
        rows = range(unit.first_row, stop)
        good: list[str] = []
        bad_rows: list[BadRow] = []
        label = partial(_rows_of, self.residency.corpus, unit)
        num_bytes = self.residency.stored_bytes(unit.shard, len(rows))
        with stage("read", samples=len(rows), num_bytes=num_bytes, label=label):
            samples = reader.read(rows)
        with stage("decode", samples=len(rows), num_bytes=num_bytes, label=label):
            texts = [self._text(sample, unit, row) for row, sample in zip(rows, samples, strict=True)]
        if len(texts) > 1 and all(isinstance(text, _NoSuchColumn) for text in texts):
            raise SettingsError(
                f"{_rows_of(self.residency.corpus, unit)}: {texts[0]}",
                hint="name the column that holds the text: data.text_column, in Python text_column=",
            )
        for index, text in enumerate(texts):
            substitute = index if isinstance(text, str) else _next_good(texts, index)
            if isinstance(text, Exception):
                bad_rows.append(BadRow(rows[index], text, None if substitute is None else rows[substitute]))
            if substitute is not None:
                good.append(cast(str, texts[substitute]))
        return good, bad_rows

    def _text(self, sample: Sample | Exception, unit: Unit, row: int) -> str | Exception:
        sample = self._transforming.apply(sample, unit.epoch, unit.shard, row)
        if isinstance(sample, Exception):
            return sample
        if self._text_column not in sample:
            columns = ", ".join(sorted(map(str, sample))) or "none"
            return _NoSuchColumn(f"there is no column {self._text_column!r}; the sample has {columns}")
        text = sample[self._text_column]
        return text if isinstance(text, str) else SampleError(f"column {self._text_column!r} holds no text")


def _next_good(texts: Sequence[str | Exception], index: int) -> int | None:
    """Return the index of the text that stands in for the bad one at ``index``: the next good one around the unit."""
    after = (*range(index + 1, len(texts)), *range(index))
    return next((other for other in after if isinstance(texts[other], str)), None)


def _rows_of(corpus: Corpus, unit: Unit) -> str:
    rows = "all rows" if unit.num_rows < 0 else f"rows {unit.first_row} to {unit.first_row + unit.num_rows - 1}"
    return f"{corpus.shard_name(unit.shard)} {rows}"
