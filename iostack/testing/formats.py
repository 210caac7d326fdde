"""Checks of formats: one corpus in the format, read by row in every way that the loader does."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from iostack.corpus.contracts import ColumnReader, ObjectInfo, Sample, ShardReader
from iostack.corpus.corpus import Corpus, open_corpus
from iostack.corpus.detect import format_named
from iostack.errors import IostackError, SampleError
from iostack.loader.tasks.pieces import Piece, joined, samples_of
from iostack.testing.comparing import same

_FOREIGN = ("README.md", "notes.txt", "LICENSE", "sub/logo.svg", "x.unknown-format", ".hidden")
_THREADS = 4
_MOST_ROWS = 200


def check_format(uri: str | os.PathLike[str], *, format: str | None = None) -> None:
    """Check that every shard of a small local corpus is read the same by any rows, in any order, by any thread.

    ``uri`` is a local folder that holds one corpus; it is not changed.

    Raises:
        AssertionError: says what differs.
    """
    with tempfile.TemporaryDirectory() as cache, open_corpus(uri, format=format, cache_dir=cache) as corpus:
        _check_claims(corpus)
        for shard in range(corpus.num_shards):
            _check_reader(corpus, shard)
        assert corpus.num_shards > 0, f"{corpus.uri}: there is no shard, so nothing was checked"


def check_damage(uri: str | os.PathLike[str], *, format: str | None = None, tries: int = 40, seed: int = 0) -> None:
    """Check that truncated and altered shards give samples or errors of iostack, and never anything else.

    Each try cuts off or alters a copy of one file of the local corpus at ``uri``, and reads all of it. A reader that crashes
    or hangs takes the test process with it.

    Raises:
        AssertionError: names the file and what was done to it.
    """
    draw = random.Random(seed)
    source = Path(uri)
    files = sorted(path for path in source.rglob("*") if path.is_file() and path.stat().st_size)
    assert files, f"{uri} holds no files"
    for number in range(tries):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "corpus"
            shutil.copytree(source, copy)
            victim = copy / draw.choice(files).relative_to(source)
            done = _damage(victim, draw)
            try:
                for _ in _read_all(copy, format, Path(folder) / "cache"):
                    pass
            except IostackError:
                continue
            except Exception as error:
                raise AssertionError(
                    f"try {number}: {victim.relative_to(copy)} with {done} gave {type(error).__name__}: {error}; a"
                    " ShardError or FormatError was expected"
                ) from error


def _check_claims(corpus: Corpus) -> None:
    format = format_named(corpus.format.name)
    assert not format.find_shards([]), f"{format.name} finds shards where there is nothing"
    foreign = [ObjectInfo(path, 10) for path in _FOREIGN]
    assert not format.find_shards(foreign), f"{format.name} claims {format.find_shards(foreign)[0].object.path}"
    own = [corpus.manifest.shard(number) for number in range(corpus.num_shards)]
    objects = [info for shard in own for info in (shard.object, *shard.companions)]
    unique = list({info.path: info for info in objects}.values())
    found = format.find_shards(sorted([*unique, *foreign], key=lambda info: info.path))
    assert {shard.object.path for shard in found} == {shard.object.path for shard in own}, (
        f"{format.name} finds other shards where foreign files stand beside them"
    )


def _check_reader(corpus: Corpus, shard: int) -> None:
    name = corpus.shard_name(shard)
    reader = corpus.open_shard(shard)
    assert isinstance(reader, ShardReader), f"the reader of {name} lacks counts, read or close"
    num_rows = min(reader.counts.samples, _MOST_ROWS)
    assert list(reader.read([])) == [], f"{name}: reading no rows gives some"
    rows = list(range(num_rows))
    whole = list(reader.read(rows))
    assert len(whole) == num_rows, f"{name}: {num_rows} rows were asked for, {len(whole)} came"
    for row, sample in enumerate(whole):
        is_sample = isinstance(sample, dict | SampleError)
        assert is_sample, f"{name} row {row} is {type(sample).__name__}, neither a dict nor a SampleError"
    shuffled = rows * 2
    random.Random(0).shuffle(shuffled)
    _assert_same(name, shuffled, reader.read(shuffled), whole)
    for row in shuffled[:20]:
        _assert_same(name, [row], reader.read([row]), whole)
    if num_rows:
        _assert_same(name, [num_rows - 1], reader.read([num_rows - 1]), whole)
        for some in (rows, shuffled, [num_rows - 1]):
            _check_columns(name, reader, some, whole)
    with ThreadPoolExecutor(_THREADS) as threads:
        for found in threads.map(reader.read, [shuffled] * _THREADS):
            _assert_same(f"{name} in {_THREADS} threads", shuffled, found, whole)
    counts = corpus.manifest.counts(shard)
    assert counts in (None, reader.counts), f"{name}: count() says {counts}, the reader {reader.counts}"
    kept = list(reader.read(rows))
    reader.close()
    _assert_same(f"{name} after it was closed", rows, kept, whole)


def _check_columns(name: str, reader: ShardReader, rows: list[int], whole: Sequence[Sample | Exception]) -> None:
    """Check that rows read as columns, where the reader can give them so, are those of its samples."""
    columns = reader.read_columns(np.asarray(rows, np.int64)) if isinstance(reader, ColumnReader) else None
    if columns is None:
        return
    lengths = {column: len(values) for column, values in columns.items()}
    assert set(lengths.values()) == {len(rows)}, f"{name}: {len(rows)} rows were asked for, columns have {lengths}"
    for column, values in columns.items():
        is_number = not isinstance(values, np.ndarray) or values.dtype in (np.int64, np.float64, np.bool_)
        assert is_number, f"{name}: the column {column!r} is an array of {values.dtype}, not of int64, float64 or bool"
    found = samples_of(joined([Piece(np.arange(len(rows)), columns)]) or {})
    _assert_same(f"{name} by column", rows, found, whole)


def _assert_same(
    name: str, rows: Sequence[int], found: Sequence[Sample | Exception], whole: Sequence[Sample | Exception]
) -> None:
    assert len(found) == len(rows), f"{name}: {len(rows)} rows were asked for, {len(found)} came"
    for row, sample in zip(rows, found):
        assert same(sample, whole[row]), f"{name}: row {row} is {sample!r:.200}, and was {whole[row]!r:.200} before"


def _damage(path: Path, draw: random.Random) -> str:
    data = bytearray(path.read_bytes())
    if draw.random() < 0.4:
        kept = draw.randrange(len(data))
        path.write_bytes(data[:kept])
        return f"{kept} of {len(data)} bytes"
    places = [draw.randrange(len(data)) for _ in range(draw.choice((1, 1, 4, 32)))]
    for at in places:
        data[at] = draw.choice((data[at] ^ (1 << draw.randrange(8)), 0, 255))
    path.write_bytes(data)
    return f"the bytes at {places[:8]} altered"


def _read_all(folder: Path, format: str | None, cache: Path) -> Iterator[Sample | Exception]:
    with open_corpus(folder, format=format, cache_dir=cache) as corpus:
        for shard in range(corpus.num_shards):
            try:
                reader = corpus.open_shard(shard)
                yield from reader.read(range(min(reader.counts.samples, _MOST_ROWS)))
            except IostackError:
                continue
