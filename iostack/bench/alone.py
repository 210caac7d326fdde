"""The stages of a loader, each alone: on the same shards, with the same number of threads, its input ready.

A stage that the pipeline lacks is left out: nothing is unpacked where nothing is compressed, nothing decoded without
transforms or a tokenizer. Rows and text are assembled from samples in memory; sequences of tokens are gathered by the
consumer's own thread, which the whole measures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence, Sized
from functools import partial
from pathlib import Path

import numpy as np

from iostack.bench.rounds import Speed, Work, measure
from iostack.cache.decompress import decompress
from iostack.cache.whole_objects import FREE_FLOOR_BYTES
from iostack.corpus.contracts import Sample, ShardReader
from iostack.corpus.corpus import Corpus
from iostack.errors import CorpusError
from iostack.loader.loader import Loader
from iostack.loader.tasks.batch_bytes import batch_bytes
from iostack.loader.tasks.collate import as_tensors, collate
from iostack.loader.transforming.transforms import Transforming
from iostack.stopping import refuse_if_stopped

FETCH_THREADS = 4
_ROWS, _MOST_SAMPLES, _MOST_SAMPLE_BYTES = 64, 512, 64 << 20
_BLOCK_BYTES = 8 << 20


class Stages:
    """The works of the stages of ``loader``, whose only source is ``corpus``."""

    def __init__(self, loader: Loader, corpus: Corpus) -> None:
        self._corpus = corpus
        self._source = loader.plan.sources[0]
        self._seq_len = loader.plan.seq_len
        self._threads = loader.threads
        self._batch_rows = loader.batch_size // loader.ranks
        self._shards = np.random.default_rng(loader.plan.seed).permutation(corpus.num_shards)
        self._is_of_tokens = self._source.kind in ("tokens", "documents")
        self._samples, self._row_bytes = ([], 0.0) if self._is_of_tokens else self._some_samples()

    def alone(self, seconds: float) -> Iterator[tuple[str, Speed]]:
        """Yield the name and the speed of each stage, in the order of the pipeline, after ``bare read``: the machine's limit.

        Raises:
            IostackError: the corpus cannot be read.
        """
        rate = self._samples_per_byte()
        fetching = partial(measure, threads=FETCH_THREADS, seconds=seconds, samples_per_byte=rate)
        working = partial(measure, threads=self._threads, seconds=seconds, samples_per_byte=rate)
        self._corpus.cache_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=self._corpus.cache_folder) as folder:
            yield "bare read", working(self._bare_read)
            yield "origin", fetching(self._origin(Path(folder)))
            if (unpack := self._unpack(Path(folder))) is not None:
                yield "cache", fetching(unpack)
        if self._is_of_tokens:
            return
        yield "read", working(self._read)
        if self._source.transforms or self._source.tokenizer is not None:
            yield "decode", working(self._decode_some)
        if self._source.kind != "text" and (decoded := self._transformed(self._samples)):
            yield "assemble", working(partial(self._assemble, decoded))

    def _samples_per_byte(self) -> float:
        """Return how many samples of a batch a stored byte becomes: sequences of tokens, sequences of text, or rows."""
        if self._is_of_tokens:
            return abs(int(self._source.counts.sum())) / max(1, int(self._corpus.manifest.bytes.sum()))
        if self._seq_len is None:
            return 1 / self._row_bytes
        ids = self._encoded(self._transformed(self._samples))
        return sum(len(document) + 1 for document in ids) / self._seq_len / (len(self._samples) * self._row_bytes)

    def _shard(self, turn: int) -> int:
        return int(self._shards[turn % len(self._shards)])

    def _bare_read(self, turn: int) -> tuple[float, int]:
        """Read a local file through a map and sum it up: what no loader can be faster than."""
        shard = self._shard(turn)
        path = self._corpus.local_files(shard).path
        size = path.stat().st_size
        if size >= 8:
            mapped = np.memmap(path, np.uint64, mode="r", shape=(size // 8,))
            for start in range(0, len(mapped), _BLOCK_BYTES):
                refuse_if_stopped()
                mapped[start : start + _BLOCK_BYTES].sum()
        return int(self._corpus.manifest.bytes[shard]), size

    def _origin(self, folder: Path) -> Work:
        """Fetch a shard's object, or read it where it is a local file; the copy is thrown away."""
        origin = self._corpus.origin

        def work(turn: int) -> tuple[float, int]:
            item = self._corpus.manifest.shard(self._shard(turn)).object
            if (local := origin.local_path(item.path)) is not None:
                with local.open("rb", buffering=0) as file:
                    buffer = bytearray(min(_BLOCK_BYTES, max(1, item.bytes)))
                    while file.readinto(buffer):
                        refuse_if_stopped()
            else:
                origin.fetch(item.path, copy := folder / f"{turn}.fetched")
                copy.unlink()
            return item.bytes, item.bytes

        return work

    def _unpack(self, folder: Path) -> Work | None:
        """Decompress one shard again and again; None where none is compressed."""
        shard = self._corpus.manifest.shard(self._shard(0))
        if not shard.compression:
            return None
        if (source := self._corpus.origin.local_path(shard.object.path)) is None:
            self._corpus.origin.fetch(shard.object.path, source := folder / "compressed")

        def work(turn: int) -> tuple[float, int]:
            unpacked = folder / f"{turn}.unpacked"
            name = self._corpus.shard_name(self._shard(0))
            decompress(source, unpacked, kind=shard.compression, name=name, free_floor_bytes=FREE_FLOOR_BYTES)
            size = unpacked.stat().st_size
            unpacked.unlink()
            return shard.object.bytes, size

        return work

    def _read(self, turn: int) -> tuple[float, int]:
        shard = self._shard(turn // 8)
        reader = self._corpus.open_shard(shard)
        rows = self._some_rows(reader, turn)
        reader.read(rows)
        stored = _row_bytes(self._corpus, shard, reader) * len(rows)
        return stored, int(stored)

    def _some_rows(self, reader: ShardReader, turn: int) -> list[int]:
        """Return rows as the loader asks for them: a run where units are read whole, else any."""
        num_rows = reader.counts.samples
        random = np.random.default_rng(turn)
        if self._source.kind == "text":
            first = int(random.integers(0, max(1, num_rows - _ROWS + 1)))
            return list(range(first, min(first + _ROWS, num_rows)))
        return [int(row) for row in random.integers(0, num_rows, _ROWS)] if num_rows else []

    def _some_samples(self) -> tuple[list[Sample], float]:
        """Return good samples of some shards, within a bound of memory, and what one takes in its shard on average."""
        found: list[Sample] = []
        num_bytes, stored = 0, 0.0
        for turn in range(2 * len(self._shards)):
            shard = self._shard(turn)
            reader = self._corpus.open_shard(shard)
            good = [sample for sample in reader.read(self._some_rows(reader, turn)) if isinstance(sample, dict)]
            found += good
            stored += _row_bytes(self._corpus, shard, reader) * len(good)
            num_bytes += sum(batch_bytes({name: [value] for name, value in sample.items()}) for sample in good)
            if len(found) >= _MOST_SAMPLES or num_bytes >= _MOST_SAMPLE_BYTES:
                break
        if not found:
            raise CorpusError(f"{self._corpus.uri} holds no good sample", hint="look at it with: iostack inspect")
        return found, max(stored, 1.0) / len(found)

    def _decode_some(self, turn: int) -> tuple[float, int]:
        some = [self._samples[(turn * _ROWS + row) % len(self._samples)] for row in range(_ROWS)]
        good = self._transformed(some)
        if self._source.tokenizer is not None:
            self._encoded(good)
        return self._row_bytes * _ROWS, int(self._row_bytes * _ROWS)

    def _transformed(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return what the transforms make of samples; bad ones are left out."""
        transforming = Transforming(self._source)
        decoded = [transforming.apply(sample, 0, 0, row) for row, sample in enumerate(samples)]
        return [sample for sample in decoded if isinstance(sample, dict)]

    def _encoded(self, samples: Sequence[Sample]) -> Sequence[Sized]:
        tokenizer = self._source.tokenizer
        assert tokenizer is not None
        texts = [sample.get(self._source.text_column) for sample in samples]
        return tokenizer.encode([text for text in texts if isinstance(text, str)])

    def _assemble(self, samples: Sequence[Sample], turn: int) -> tuple[float, int]:
        columns = collate([samples[(turn + row) % len(samples)] for row in range(self._batch_rows)])
        return self._row_bytes * self._batch_rows, batch_bytes(as_tensors(columns))


def _row_bytes(corpus: Corpus, shard: int, reader: ShardReader) -> float:
    return int(corpus.manifest.bytes[shard]) / max(1, reader.counts.samples)
