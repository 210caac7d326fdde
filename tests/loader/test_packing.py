"""Packed sequences, against plain lists: which tokens of which documents stand where, and where documents begin and end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pytest
import torch
from plan import reference

import iostack
from iostack.corpus.contracts import ShardReader
from iostack.errors import PlanError, SettingsError, ShardError, StateError, UsageError
from iostack.loader.order.schedule import Int64s
from iostack.loader.sequences import fitted
from iostack.loader.sequences.documents import read_documents
from iostack.loader.sequences.live_documents import LiveDocuments
from iostack.loader.sequences.pieces import Streams, Tokens
from iostack.packing import cu_seqlens, document_ids

from . import packed
from .packed import Row

SEQ_LEN = 16
SHARDS: dict[str, list[list[int]]] = {
    "several shards": [[5, 40, 0, 17, 3, 16, 1, 33], [9, 2, 2, 30], [120, 1, 16]],
    "an empty shard, and empty documents": [[], [0, 0, 20, 0, 0, 31, 0], [4] * 20, [0]],
    "one document": [[200]],
    "a document a shard": [[50], [17], [16], [64]],
    "longer than a sequence": [[100, 33, 47], [16, 32, 48, 17]],
}
TOKENS = {"batch_size": 6, "seq_len": SEQ_LEN, "seed": 3, "window_bytes": 64}


def _write(
    folder: Path, shards: Sequence[Sequence[int]], dtypes: Sequence[str] = ("int32",)
) -> dict[int, tuple[int, int, int]]:
    """Write shards of documents of these lengths, no token twice; return for each (shard, document, index)."""
    owners: dict[int, tuple[int, int, int]] = {}
    for shard, lengths in enumerate(shards):
        documents = []
        for number, length in enumerate(lengths):
            tokens = range(len(owners) + 1, len(owners) + 1 + length)
            owners |= {token: (shard, number, index) for index, token in enumerate(tokens)}
            documents.append([list(tokens)])
        corpora.write_tokens(folder / f"{shard:03}", documents, dtypes[shard % len(dtypes)])
    return owners


def _rows(loader: iostack.Loader, num_steps: int | None = None) -> Iterator[dict[str, Any]]:
    for batch in islice(loader, num_steps):
        for index in batch["valid"].nonzero().flatten().tolist():
            yield {name: column[index].tolist() for name, column in batch.items()}


def _check(row: dict[str, Any], expected: Row, shard: int, owners: dict[int, tuple[int, int, int]]) -> None:
    assert [owners[token] if token else None for token in row["tokens"]] == [
        place and (shard, *place) for place in expected
    ]
    assert row["position_ids"] == packed.position_ids(expected)
    assert row["loss_mask"] == packed.loss_mask(expected)


@pytest.mark.parametrize("case", SHARDS)
@pytest.mark.parametrize("dtypes", [("int32",), ("uint16", "int64")], ids=["one dtype", "two dtypes"])
def test_split_shards_are_streams_of_permuted_documents(tmp_path: Path, case: str, dtypes: tuple[str, ...]) -> None:
    shards = SHARDS[case]
    owners = _write(tmp_path, shards, dtypes)
    with iostack.Loader(iostack.open_corpus(tmp_path), packing="split", **TOKENS) as loader:
        counts = [max(sum(lengths) - 1, 0) // SEQ_LEN for lengths in shards]
        order = reference.Source(counts, seed=3, lanes=loader.lanes, window=loader.plan.sources[0].window)
        for position, row in enumerate(_rows(loader, 3 * sum(counts) // 6 + 1)):
            epoch, shard, number = order.at(position)
            _check(row, packed.split_rows(shards[shard], SEQ_LEN, 3, epoch, shard)[number], shard, owners)


@pytest.mark.parametrize("case", SHARDS)
@pytest.mark.parametrize("dtypes", [("int32",), ("uint16", "int64")], ids=["one dtype", "two dtypes"])
def test_fitted_units_hold_whole_documents(tmp_path: Path, case: str, dtypes: tuple[str, ...]) -> None:
    shards = SHARDS[case]
    owners = _write(tmp_path, shards, dtypes)
    with iostack.Loader(iostack.open_corpus(tmp_path), packing="best_fit", **TOKENS) as loader:
        stream = _fitted(shards, loader)
        for row, (shard, expected) in zip(_rows(loader, 12), stream):
            _check(row, expected, shard, owners)


def _fitted(shards: Sequence[Sequence[int]], loader: iostack.Loader) -> Iterator[tuple[int, Row]]:
    source, lanes = loader.plan.sources[0], loader.lanes
    by_shard = reference.units([len(lengths) for lengths in shards], source.unit_rows)
    dealt = reference.Source([len(units) for units in by_shard], seed=3, lanes=lanes, window=source.window)

    def outputs(lane: int) -> Iterator[tuple[int, Row]]:
        draw = 0
        while True:
            epoch, shard, index = dealt.at(draw * lanes + lane)
            rows = by_shard[shard][index]
            number = sum(map(len, by_shard[:shard])) + index
            lengths = [shards[shard][row] for row in rows]
            for row in packed.unit_rows("best_fit", lengths, SEQ_LEN, 3, epoch, number, rows[0]):
                yield shard, row
            draw += 1

    streams = [outputs(lane) for lane in range(lanes)]
    position = 0
    while True:
        yield next(streams[position % lanes])
        position += 1


@pytest.mark.parametrize("case", SHARDS)
def test_fitting_gives_every_token_and_every_transition_once_an_epoch(tmp_path: Path, case: str) -> None:
    owners = _write(tmp_path, SHARDS[case])
    rows = list(_rows(iostack.Loader(iostack.open_corpus(tmp_path), packing="best_fit", epochs=1, **TOKENS)))
    assert Counter(token for row in rows for token in row["tokens"][:-1] if token) == Counter(dict.fromkeys(owners, 1))
    labels = Counter(token for row in rows for token, has_loss in zip(row["tokens"][1:], row["loss_mask"]) if has_loss)
    assert labels == Counter(token for token, (_, _, index) in owners.items() if index)


@pytest.mark.parametrize("case", SHARDS)
def test_splitting_loses_less_than_a_sequence_of_a_shard(tmp_path: Path, case: str) -> None:
    owners = _write(tmp_path, SHARDS[case])
    rows = list(_rows(iostack.Loader(iostack.open_corpus(tmp_path), packing="split", epochs=1, **TOKENS)))
    given = Counter(token for row in rows for token in row["tokens"][:-1])
    assert set(given.values()) == {1}
    lost = Counter(owners[token][0] for token in owners.keys() - given.keys())
    assert all(count <= SEQ_LEN for count in lost.values())


def _write_texts(folder: Path) -> list[list[str]]:
    random = np.random.default_rng(5)
    shards = [["".join(random.choice(list("abc"), n)) for n in random.integers(0, 60, count)] for count in (30, 7, 12)]
    for number, texts in enumerate(shards):
        corpora.write_jsonl(folder / f"{number}.jsonl", [{"text": text} for text in texts])
    return shards


@pytest.mark.parametrize("packing", ["split", "best_fit"])
def test_text_is_packed_as_token_units_are(tmp_path: Path, packing: str) -> None:
    shards = _write_texts(tmp_path)
    with iostack.Loader(
        iostack.open_corpus(tmp_path), batch_size=3, seq_len=SEQ_LEN, seed=3, lanes=1, packing=packing, epochs=1
    ) as loader:
        dealt = reference.Source([1, 1, 1], seed=3, lanes=1, window=loader.plan.sources[0].window)
        found = _rows(loader)
        for draw in range(3):
            epoch, shard, _ = dealt.at(draw)
            documents = [[*text.encode(), 256] for text in shards[shard]]
            for expected in packed.unit_rows(packing, list(map(len, documents)), SEQ_LEN, 3, epoch, shard):
                row = next(found)
                assert row["tokens"] == [0 if place is None else documents[place[0]][place[1]] for place in expected]
                assert row["position_ids"] == packed.position_ids(expected)
                assert row["loss_mask"] == packed.loss_mask(expected)
        assert next(found, None) is None


def test_split_text_has_the_tokens_of_text_that_is_not_packed(tmp_path: Path) -> None:
    _write_texts(tmp_path)
    corpus = iostack.open_corpus(tmp_path)
    plain, split = (list(_rows(iostack.Loader(corpus, packing=packing, **TOKENS), 20)) for packing in ("none", "split"))
    assert [row["tokens"] for row in plain] == [row["tokens"] for row in split]
    assert [row["sample_ids"] for row in plain] == [row["sample_ids"] for row in split]
    assert plain[0].keys() == {"tokens", "valid", "sample_ids"}


def test_boundaries_for_attention_follow_from_the_positions(tmp_path: Path) -> None:
    _write(tmp_path, SHARDS["several shards"])
    with iostack.Loader(iostack.open_corpus(tmp_path), packing="best_fit", **TOKENS) as loader:
        for batch in islice(loader, 8):
            positions = batch["position_ids"]
            offsets, longest = cu_seqlens(positions)
            assert offsets.dtype == torch.int32
            lengths = offsets.diff().tolist()
            assert sum(lengths) == positions.numel()
            assert max(lengths) <= longest == SEQ_LEN
            assert positions.flatten().tolist() == [index for length in lengths for index in range(length)]
            ids = document_ids(positions)
            assert [len(set(row)) for row in ids.tolist()] == (positions == 0).sum(1).tolist()
            fixed, _ = cu_seqlens(positions, max_documents=len(lengths) + 5)
            assert fixed.tolist() == offsets.tolist() + [positions.numel()] * 5
            assert cu_seqlens(positions, max_documents=len(lengths))[0].tolist() == offsets.tolist()


def test_many_live_shards_make_room_for_each_other(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shards = [random.integers(0, 30, random.integers(1, 40)).tolist() for _ in range(60)]
    owners = _write(tmp_path, shards)
    with iostack.Loader(iostack.open_corpus(tmp_path), packing="split", lanes=2, **TOKENS) as loader:
        counts = [max(sum(lengths) - 1, 0) // SEQ_LEN for lengths in shards]
        order = reference.Source(counts, seed=3, lanes=2, window=loader.plan.sources[0].window)
        loader.load_state_dict(loader.state_dict() | {"position": 600})
        for position, row in enumerate(_rows(loader, 300), start=600):
            epoch, shard, number = order.at(position)
            _check(row, packed.split_rows(shards[shard], SEQ_LEN, 3, epoch, shard)[number], shard, owners)


def test_tables_of_documents_take_what_the_shards_being_read_need() -> None:
    num_documents, length, rows = 1000, 5, np.arange(311)

    def permuted(key: tuple[int, int]) -> tuple[Int64s, Int64s]:
        order = np.random.default_rng(key).permutation(num_documents)
        return order * length, np.full(num_documents, length)

    live = LiveDocuments(permuted, SEQ_LEN, most_tokens=num_documents * length)
    stream = Streams([np.arange(num_documents * length)], SEQ_LEN + 1)
    for first in range(60):
        keys = [(0, shard) for shard in range(first, first + 10)]
        for number, key in enumerate(keys):
            begins, _ = permuted(key)
            tokens = (begins[:, np.newaxis] + np.arange(length)).reshape(-1)
            runs = live.runs(keys, np.full(10, 3), np.full(len(rows), number), rows, stream)
            found = np.repeat(runs.starts - np.cumsum(runs.lengths) + runs.lengths, runs.lengths)
            found += np.arange(len(found))
            assert (found.reshape(-1, SEQ_LEN + 1) == tokens[3 + SEQ_LEN * rows[:, np.newaxis] + np.arange(17)]).all()
    most_tables = 10 + 16 // 10 + 1  # those in use, those used in one of the last 16 runs, and a new one
    assert 0 < live.num_bytes <= most_tables * (8 * (num_documents + 1) + 4 * (len(rows) + 2)) * 9 / 8


def test_a_state_of_another_packing_is_refused_by_name(tmp_path: Path) -> None:
    _write(tmp_path, SHARDS["several shards"])
    corpus = iostack.open_corpus(tmp_path)
    states = {
        packing: iostack.Loader(corpus, packing=packing, **TOKENS).state_dict()
        for packing in ("none", "split", "best_fit")
    }
    for packing in states:
        for other in states.keys() - {packing}:
            with pytest.raises(StateError, match=r"'plan\.packing'"):
                iostack.Loader(corpus, packing=packing, **TOKENS).load_state_dict(json.loads(json.dumps(states[other])))


def test_packing_without_documents_or_sequences_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, SHARDS["several shards"])
    corpus = iostack.open_corpus(tmp_path)
    with pytest.raises(SettingsError, match="'bestfit'") as caught:
        iostack.Loader(corpus, packing="bestfit", **TOKENS)
    assert "best_fit" in caught.value.hint
    with pytest.raises(PlanError, match="needs the length of sequences"):
        iostack.Loader(corpus, packing="split", batch_size=1)
    corpus.format.holds_documents = False  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"packing='split' needs the documents.*'tokens' does not tell them apart"):
        iostack.Loader(corpus, packing="split", **TOKENS)


@pytest.mark.parametrize("packing", ["split", "best_fit"])
def test_an_index_that_does_not_fit_the_stream_is_an_error_of_the_shard(tmp_path: Path, packing: str) -> None:
    _write(tmp_path, [[20, 30, 40], [10, 50]])
    corpus = iostack.open_corpus(tmp_path)
    loader = iostack.Loader(corpus, packing=packing, **TOKENS)
    index = bytearray((tmp_path / "001.idx").read_bytes())
    index[34:38] = (2**31 - 1).to_bytes(4, "little")
    (tmp_path / "001.idx").write_bytes(index)
    with pytest.raises(ShardError, match=r"001\.bin.*does not fit"):
        list(islice(loader, 20))
    loader.close()


def test_documents_of_a_plugin_that_do_not_cover_its_tokens_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, [[20, 30, 40]])
    corpus = iostack.open_corpus(tmp_path)
    reader = type(corpus.open_shard(0))
    for bounds in ([], [0, 20], [0, 50, 20, 90], [1, 90], [0, 1 << 40]):
        monkeypatch.setattr(reader, "document_bounds", lambda _, found=bounds: np.asarray(found, np.int64))
        for packing in ("split", "best_fit"):
            with (
                iostack.Loader(corpus, packing=packing, **TOKENS) as loader,
                pytest.raises(ShardError, match="do not cover its 90"),
            ):
                next(iter(loader))


def test_a_corpus_of_empty_documents_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, [[0, 0], [0]])
    with pytest.raises(PlanError, match="no shard is long enough"):
        iostack.Loader(iostack.open_corpus(tmp_path), packing="split", **TOKENS)
    with (
        iostack.Loader(iostack.open_corpus(tmp_path), packing="best_fit", **TOKENS) as loader,
        pytest.raises(PlanError, match="all documents are empty"),
    ):
        next(iter(loader))


@pytest.mark.parametrize("kept_bytes", [0, 16 << 20])
def test_the_documents_of_a_shard_are_found_once_for_all_its_units_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    _write(tmp_path, [[20] * 400, [30] * 300])
    monkeypatch.setattr(fitted, "_KEPT_BYTES", kept_bytes)
    found = Counter[str]()

    def counted(reader: ShardReader, name: str) -> tuple[Tokens, Int64s]:
        found[name] += 1
        return read_documents(reader, name)

    monkeypatch.setattr(fitted, "read_documents", counted)
    with iostack.Loader(iostack.open_corpus(tmp_path), packing="best_fit", threads=1, **TOKENS) as loader:
        assert loader.plan.sources[0].num_units > 4
        list(islice(loader, 120))
    assert {Path(name).name for name in found} == {"000.bin", "001.bin"}
    assert (found.total() == 2) == (kept_bytes > 0)
