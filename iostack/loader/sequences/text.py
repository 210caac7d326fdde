"""Sequences from documents, tokenised on the fly.

a unit of rows ──permute──> documents ──tokenise, join──> one stream ──cut──> sequences ──permute──> outputs
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np

from iostack.corpus.contracts import Sample
from iostack.corpus.corpus import Corpus
from iostack.errors import IostackError, PlanError, PluginError, SampleError, SettingsError, ShardError
from iostack.loader.ahead.lookahead import LookAhead
from iostack.loader.ahead.residency import Residency
from iostack.loader.ahead.streams import UnitSource
from iostack.loader.order.planned import PlannedSource
from iostack.loader.order.schedule import Int64s
from iostack.loader.reading import Reading
from iostack.loader.sequences.aside import Aside
from iostack.loader.sequences.packed import BadRow, PackedSource, Packer, UnitSequences
from iostack.loader.sequences.pieces import Tokens
from iostack.loader.tasks.elsewhere import Elsewhere
from iostack.loader.tasks.task import UnitTask
from iostack.loader.transforming.bad_samples import BadSamples, nothing_is_good
from iostack.loader.transforming.filters import Filtering
from iostack.loader.transforming.transforms import Transforming
from iostack.loader.transforming.watch import Watch, read_watched
from iostack.plan.keyed import derive_key, permutation
from iostack.plan.units import Unit
from iostack.stages import stage

_DOCUMENT_ORDER = 5
_TOKENISED_BYTES = 128 << 10
"""About so much text is tokenised at a time: enough for a tokenizer with threads of its own."""
_LOADED_BYTES_PER_TEXT_BYTE = 4
"""A unit of text while it is loaded: the text, the ids of its documents, and the ids joined."""
_BYTES_IN_WORKERS_PER_TEXT_BYTE = 8
"""The same where a worker loads it: the ids stand in its slot too, and in the copy that this process takes of it."""
Join = Callable[[Iterable[Tokens]], Tokens]
"""Makes one array of parts."""


class TextSource(PackedSource):
    """One corpus of documents, as a source of sequences."""

    def __init__(self, source: PlannedSource, reading: Reading) -> None:
        plan = reading.plan
        assert plan.seq_len is not None
        residency = Residency(source.corpus, reading.lookahead_bytes, reading.meter, reading.in_flight)
        reader = TextReader(source, residency, reading.bad_samples, reading.watch, seq_len=plan.seq_len)
        num_texts = sum(each.kind == "text" for each in plan.sources)
        aside = Aside(source.corpus.cache_folder / "aside", num_texts * len(reading.own_lanes))
        units = UnitSource(
            source.unit_plan(plan.lanes),
            partial(_load_there, reading.elsewhere, source.number, aside)
            if reading.elsewhere
            else partial(_load_here, reader, aside),
            corpus=source.corpus,
            meter=reading.meter,
            own_lanes=reading.own_lanes,
            epochs=reading.epochs,
            lookahead=LookAhead(
                reading.lookahead_bytes,
                (_BYTES_IN_WORKERS_PER_TEXT_BYTE if reading.elsewhere else _LOADED_BYTES_PER_TEXT_BYTE)
                * source.unit_bytes,
                counts_used=True,
            ),
            threads=reading.unit_threads,
            slack_s=reading.slack_s,
            begin=reader.begin,
            why_nothing=reader.why_nothing,
            most_in_vain=source.most_units_in_vain,
            varies=bool(source.transforms),
        )
        super().__init__(source.number, residency, units)


def _load_here(reader: TextReader, aside: Aside, unit: Unit) -> UnitSequences:
    return _tables_aside(reader.load(unit, aside.joined), aside)


def _load_there(elsewhere: Elsewhere, number: int, aside: Aside, unit: Unit) -> UnitSequences:
    loaded: UnitSequences = elsewhere.do(UnitTask(number, unit))
    return _tables_aside(replace(loaded, tokens=aside.joined([loaded.tokens])), aside)


def _tables_aside(loaded: UnitSequences, aside: Aside) -> UnitSequences:
    tables = (loaded.starts, loaded.lengths, loaded.first, loaded.counts, loaded.identities)
    starts, lengths, first, counts, identities = np.split(
        aside.joined(tables), np.cumsum([len(table) for table in tables])[:-1]
    )
    return replace(loaded, starts=starts, lengths=lengths, first=first, counts=counts, identities=identities)


class _NoSuchColumn(SampleError):
    """A sample without the column of text; where no row of a unit has it, the setting is wrong, not the samples."""


class TextReader:
    """Turns units of documents into sequences; thread-safe."""

    def __init__(
        self, source: PlannedSource, residency: Residency, bad_samples: BadSamples, watch: Watch, *, seq_len: int
    ) -> None:
        assert source.tokenizer is not None
        self.residency = residency
        self.tokenizer = source.tokenizer
        self.seq_len = seq_len
        self._filtering = Filtering(source)
        self._has_filters = bool(source.filters)
        self._transforming = Transforming(source, number=source.number, watch=watch)
        self._watch = watch
        self._source_number = source.number
        self._bad_samples = bad_samples
        self._packer = Packer(source.packing, seq_len, source.seed, source.number, source.skip)
        self._seed = source.seed
        self._text_column = source.text_column
        self._most_tokens_seen = 0
        self._first_bad: Exception | None = None

    def load(self, unit: Unit, join: Join = lambda parts: np.concatenate(list(parts))) -> UnitSequences:
        """Return the sequences of a unit; documents and sequences are permuted by (seed, epoch, unit).

        Some texts are tokenised at a time, and ``join`` makes one array of what they gave: so much less is in memory at once.
        """
        texts, bad_rows = self._texts(unit)
        order = permutation(derive_key(self._seed, _DOCUMENT_ORDER, unit.epoch, unit.number), len(texts))
        counted: list[Int64s] = []
        tokens = join(self._tokenised([texts[row] for row in order.tolist()], unit, counted))
        lengths = np.concatenate(counted)
        sequences = self._packer.pack(unit, tokens, np.cumsum(lengths) - lengths, lengths)
        return replace(sequences, bad_rows=bad_rows)

    def begin(self, outputs: UnitSequences) -> None:
        """Be told of a unit that a lane comes to: its bad samples are reported now.

        Raises:
            SubstitutionError: the budget is exceeded.
        """
        self._most_tokens_seen = max(self._most_tokens_seen, len(outputs.tokens))
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
        if self._has_filters:
            return PlanError(
                f"{uri}: what the filters keep is shorter than one sequence: seq_len {self.seq_len} needs"
                f" {self.seq_len + 1} tokens, and the longest unit holds {self._most_tokens_seen} ({told})",
                hint="loosen the filters, or use a smaller seq_len",
            )
        if self._most_tokens_seen > self.seq_len:
            return PlanError(f"{uri}: all its sequences are skipped ({told})", hint="skip fewer samples")
        return PlanError(
            f"{uri}: text shorter than one sequence: seq_len {self.seq_len} needs {self.seq_len + 1} tokens, and the"
            f" longest unit holds {self._most_tokens_seen} ({told})",
            hint="use a corpus that holds more, or a smaller seq_len",
        )

    def _tokenised(self, texts: list[str], unit: Unit, counted: list[Int64s]) -> Iterator[Tokens]:
        """Yield the ids of all texts, some at a time, at least once; what ``_joined`` counts goes to ``counted``."""
        ends = np.cumsum([len(text) for text in texts])
        start = 0
        while start < len(texts) or not counted:
            begun = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, begun + _TOKENISED_BYTES, side="right")))
            tokens, lengths = self._joined(texts[start:stop], unit)
            counted.append(lengths)
            yield tokens
            start = stop

    def _joined(self, texts: list[str], unit: Unit) -> tuple[Tokens, Int64s]:
        """Return the ids of all texts, each with the id that ends it, in the smallest type that holds them; and their numbers."""
        try:
            with stage("decode", label=partial(_rows_of, self.residency.corpus, unit)):
                encoded = self.tokenizer.encode(texts)
        except Exception as error:
            raise PluginError(
                f"the tokenizer {self.tokenizer.name!r} failed on {_rows_of(self.residency.corpus, unit)}: {error}"
            ) from error
        vocab_size, end_of_text = self.tokenizer.vocab_size, self.tokenizer.end_of_text
        is_small = 0 <= end_of_text < vocab_size <= 1 << 16 and all(
            getattr(document, "dtype", None) in (np.uint8, np.uint16) for document in encoded
        )
        dtype: type[np.integer[Any]] = np.uint16 if is_small else np.int32
        end = np.asarray([end_of_text], dtype)
        pieces = [piece for document in encoded for piece in (document, end)]
        tokens = np.concatenate(pieces, dtype=dtype) if pieces else np.empty(0, dtype)
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
            raise PluginError(
                f"the tokenizer {self.tokenizer.name!r} gave ids from {tokens.min()} to {tokens.max()},"
                f" but its vocab_size is {vocab_size}"
            )
        lengths = np.asarray([len(document) + 1 for document in encoded], np.int64)
        return tokens.astype(np.uint16, copy=False) if vocab_size <= 1 << 16 else tokens, lengths

    def _texts(self, unit: Unit) -> tuple[list[str], list[BadRow]]:
        """Return the texts of a unit, another of them in the place of each bad one; none where all are bad."""
        self._watch.reading(self._source_number, unit.shard, -1)
        reader = self.residency.reader(unit.shard)
        stop = reader.counts.samples if unit.num_rows < 0 else unit.first_row + unit.num_rows
        if stop > reader.counts.samples:
            raise ShardError(
                f"{self.residency.corpus.shard_name(unit.shard)} holds {reader.counts.samples} samples, fewer than the"
                f" manifest says ({stop} or more)",
                hint="run iostack index on the corpus",
            )
        read = range(unit.first_row, stop)
        good: list[str] = []
        bad_rows: list[BadRow] = []
        label = partial(_rows_of, self.residency.corpus, unit)
        num_bytes = self.residency.stored_bytes(unit.shard, len(read))
        with stage("read", samples=len(read), num_bytes=num_bytes, label=label):
            samples = read_watched(reader.read, self._watch, self._source_number, unit.shard, read)
        with stage("decode", samples=len(read), num_bytes=num_bytes, label=label):
            found = [(row, self._text(sample, unit, row)) for row, sample in zip(read, samples, strict=True)]
        rows = [row for row, text in found if text is not None]
        texts = [text for _, text in found if text is not None]
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

    def _text(self, sample: Sample | Exception, unit: Unit, row: int) -> str | Exception | None:
        """Return the text of a row, the error that makes it bad, or None where a filter drops it."""
        verdict = self._filtering.judge(sample, unit.shard, row)
        if verdict is False or isinstance(verdict, Exception):
            return verdict or None
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
