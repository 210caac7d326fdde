"""Token sequences equal slices of the files, for all dtypes, and never cross shards."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import corpora
import numpy as np
import pytest
import torch
from plan import reference

import iostack
from iostack.errors import PlanError, ShardError, UsageError
from iostack.plan.identity import row_identities

SEQ_LEN = 8
RANGES = {
    "uint8": (0, 255),
    "int8": (-128, 127),
    "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}


def _write(folder: Path, counts: list[int], dtype: str = "uint16") -> list[list[int]]:
    random = np.random.default_rng(1)
    low, high = RANGES[dtype]
    shards = [random.integers(low, high, count, dtype=dtype, endpoint=True).tolist() for count in counts]
    for number, tokens in enumerate(shards):
        corpora.write_tokens(folder / f"{number}", [[tokens]] if tokens else [], dtype)
    return shards


@pytest.mark.parametrize("dtype", RANGES)
def test_every_sequence_is_the_slice_that_the_plan_names(tmp_path: Path, dtype: str) -> None:
    shards = _write(tmp_path, [100, 9, 8, 0, 61], dtype)
    with iostack.Loader(
        iostack.open_corpus(tmp_path), batch_size=4, seq_len=SEQ_LEN, seed=3, window_bytes=64
    ) as loader:
        counts = [max(len(tokens) - 1, 0) // SEQ_LEN for tokens in shards]
        order = reference.Source(counts, seed=3, lanes=loader.lanes, window=loader.plan.sources[0].window)
        for step, batch in enumerate(islice(loader, 3 * sum(counts) // 4)):
            assert batch["tokens"].dtype == torch.int64
            assert batch["tokens"].shape == (4, SEQ_LEN + 1)
            for index, row in enumerate(batch["tokens"].tolist()):
                epoch, shard, number = order.at(4 * step + index)
                place = reference.sequences(len(shards[shard]), SEQ_LEN, 3, epoch, shard)[number]
                assert row == shards[shard][place.start : place.stop]
                identity = row_identities(0, np.asarray([shard]), np.asarray([number]))
                assert batch["sample_ids"][index] == identity[0]


def test_a_batch_belongs_to_the_consumer(tmp_path: Path) -> None:
    _write(tmp_path, [500])
    before = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    kept, clones = [], []
    with iostack.Loader(iostack.open_corpus(tmp_path), batch_size=4, seq_len=SEQ_LEN) as loader:
        for batch in islice(loader, 40):
            kept.append(batch["tokens"])
            clones.append(batch["tokens"].clone())
    for tokens, clone in zip(kept, clones, strict=True):
        assert torch.equal(tokens, clone)
        tokens.zero_()
    assert before == [path.read_bytes() for path in sorted(tmp_path.iterdir())]


def test_shards_that_are_all_too_short_are_refused_with_the_sizes(tmp_path: Path) -> None:
    _write(tmp_path, [8, 3])
    with pytest.raises(PlanError, match="the longest holds 8 tokens, and seq_len 8 needs 9") as caught:
        iostack.Loader(iostack.open_corpus(tmp_path), batch_size=1, seq_len=8)
    assert "smaller seq_len" in caught.value.hint


def test_transforms_are_refused_where_there_are_no_samples_to_map(tmp_path: Path) -> None:
    _write(tmp_path, [100])
    with pytest.raises(UsageError, match="transforms"):
        iostack.Loader(iostack.open_corpus(tmp_path), batch_size=1, seq_len=8, transforms=[dict])


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_a_shard_that_shrank_since_it_was_opened_is_an_error(tmp_path: Path, dtype: str) -> None:
    _write(tmp_path, [400, 400], dtype)
    corpus = iostack.open_corpus(tmp_path)
    loader = iostack.Loader(corpus, batch_size=4, seq_len=SEQ_LEN)
    _write(tmp_path, [200, 200], dtype)
    with pytest.raises(ShardError, match=r"[01]\.bin shrank"):
        next(iter(loader))


def test_documents_of_token_shards_are_samples_where_there_is_no_seq_len(tmp_path: Path) -> None:
    documents = corpora.documents(40)
    corpora.write_tokens(tmp_path / "a", documents)
    with iostack.Loader(iostack.open_corpus(tmp_path), batch_size=5, epochs=1) as loader:
        found = sorted(np.asarray(row).tolist() for batch in loader for row in batch["tokens"])
    assert found == sorted(document[0] for document in documents)
