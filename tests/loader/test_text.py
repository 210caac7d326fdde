"""Text on the fly, against a naive reference: documents of a unit in permuted order, joined, cut, and dealt to lanes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pytest
from plan import reference

import iostack
from iostack.corpus.index import build_manifest
from iostack.errors import PlanError, PluginError, SettingsError, UsageError

DOCUMENT_ORDER, SEQUENCE_ORDER, PHASE = 5, 7, 3
END_OF_TEXT = 256


def _sequences(texts: Sequence[str], seq_len: int, seed: int, epoch: int, unit: int) -> list[list[int]]:
    """The sequences that one unit gives, in order."""
    order = reference.permutation(reference.derive_key(seed, DOCUMENT_ORDER, epoch, unit), len(texts))
    stream = [token for row in order for token in [*texts[row].encode(), END_OF_TEXT]]
    count = max(len(stream) - 1, 0) // seq_len
    slack = (len(stream) - 1) % seq_len if stream else 0
    phase = reference.derive_key(seed, PHASE, epoch, unit) % (slack + 1)
    starts = reference.permutation(reference.derive_key(seed, SEQUENCE_ORDER, epoch, unit), count)
    return [stream[phase + k * seq_len :][: seq_len + 1] for k in starts]


def _stream(shards: Sequence[Sequence[str]], loader: iostack.Loader, *, known: bool) -> Iterator[list[int]]:
    """The sequences at positions 0, 1, 2, ...: lane g mod L goes through the units that the plan deals it."""
    source = loader.plan.sources[0]
    seed, lanes, seq_len = loader.plan.seed, loader.lanes, loader.plan.seq_len
    assert seq_len is not None
    counts = [len(shard) if known else -1 for shard in shards]
    by_shard = reference.units(counts, max(source.unit_rows, 1))
    dealt = reference.Source([len(units) for units in by_shard], seed=seed, lanes=lanes, window=source.window)

    def lane_outputs(lane: int) -> Iterator[list[int]]:
        draw = 0
        while True:
            epoch, shard, index = dealt.at(draw * lanes + lane)
            rows = by_shard[shard][index] or range(len(shards[shard]))
            number = sum(map(len, by_shard[:shard])) + index
            yield from _sequences([shards[shard][row] for row in rows], seq_len, seed, epoch, number)
            draw += 1

    streams = [lane_outputs(lane) for lane in range(lanes)]
    position = 0
    while True:
        yield next(streams[position % lanes])
        position += 1


def _write(folder: Path, shards: Sequence[Sequence[str]], *, known: bool) -> iostack.Corpus:
    for number, texts in enumerate(shards):
        corpora.write_jsonl(folder / f"{number:03}.jsonl", [{"text": text} for text in texts])
    if known:
        build_manifest(folder)
    return iostack.open_corpus(folder)


def _texts(count: int, seed: int = 0, top: int = 80) -> list[str]:
    random = np.random.default_rng(seed)
    return ["".join(random.choice(list("ab é\n中"), random.integers(0, top))) for _ in range(count)]


CASES: dict[str, list[list[str]]] = {
    "several shards": [_texts(30, seed) for seed in range(5)],
    "an empty shard among them": [_texts(30, 1), [], _texts(30, 2)],
    "one shard": [_texts(120)],
    "fewer units than lanes": [_texts(20, 3), _texts(10, 4)],
    "shards that are shorter than a sequence": [["a"], _texts(40, 5), ["b"], [""]],
    "one long document": [["x" * 3000]],
}


@pytest.mark.parametrize("known", [True, False], ids=["counted", "not counted"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lanes", [1, 3, None])
def test_sequences_are_those_of_the_reference(tmp_path: Path, case: str, known: bool, lanes: int | None) -> None:
    corpus = _write(tmp_path / "c", CASES[case], known=known)
    with iostack.Loader(corpus, batch_size=3, seq_len=24, seed=9, lanes=lanes, window_bytes=4000) as loader:
        found = [row for batch in islice(loader, 60) for row in batch["tokens"].tolist()]
        assert found == list(islice(_stream(CASES[case], loader, known=known), len(found)))


@pytest.mark.parametrize("known", [True, False], ids=["counted", "not counted"])
def test_a_pass_loses_nothing_but_the_tails_of_units(tmp_path: Path, known: bool) -> None:
    texts = CASES["several shards"]
    corpus = _write(tmp_path / "c", texts, known=known)
    loader = iostack.Loader(corpus, batch_size=4, seq_len=24, epochs=1)
    given = sum(int(batch["valid"].sum()) for batch in loader) * 24
    total = sum(len(text.encode()) + 1 for shard in texts for text in shard)
    units = loader.plan.sources[0].num_units
    assert total - units * 24 <= given <= total


@pytest.mark.parametrize("known", [True, False], ids=["counted", "not counted"])
def test_text_shorter_than_one_sequence_is_refused_with_both_sizes(tmp_path: Path, known: bool) -> None:
    corpus = _write(tmp_path / "c", [["abc", "de"], ["fgh"], []], known=known)
    for lanes in (1, 2, 4):
        loader = iostack.Loader(corpus, batch_size=4, seq_len=64, lanes=lanes)
        with pytest.raises(PlanError, match=r"shorter than one sequence: seq_len 64 needs 65 tokens.* holds [47]"):
            next(iter(loader))


def test_a_lane_that_meets_only_empty_units_for_a_while_goes_on(tmp_path: Path) -> None:
    # Two lanes are dealt two shards an epoch, of which one gives nothing: with this seed a lane is unlucky four times.
    corpus = _write(tmp_path / "c", [["a"], ["x" * 500]], known=False)
    for seed in range(20):
        with iostack.Loader(corpus, batch_size=2, seq_len=64, lanes=2, seed=seed) as loader:
            for batch in islice(loader, 30):
                assert batch["valid"].all()


def test_text_that_one_lane_never_gets_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    # All units lie in one shard and there are as many as lanes, so every lane reads the same unit in every epoch.
    rows = ["" for _ in range(90)] + ["x" * 400 for _ in range(90)]
    corpus = _write(tmp_path / "c", [rows], known=True)
    loader = iostack.Loader(corpus, batch_size=2, seq_len=100, lanes=2)
    units = loader.plan.sources[0].num_units
    assert units == 3
    loader = iostack.Loader(corpus, batch_size=3, seq_len=100, lanes=3)
    with pytest.raises(PlanError, match="got nothing"):
        list(islice(loader, 400))


def test_the_text_column_is_chosen(tmp_path: Path) -> None:
    rows = [{"body": "b" * 50, "text": "t" * 50} for _ in range(10)]
    corpora.write_jsonl(tmp_path / "c" / "0.jsonl", rows)
    corpus = iostack.open_corpus(tmp_path / "c")
    for column, letter in (("body", "b"), ("text", "t")):
        with iostack.Loader(corpus, batch_size=1, seq_len=20, text_column=column) as loader:
            assert set(next(iter(loader))["tokens"].flatten().tolist()) <= {ord(letter), END_OF_TEXT}


class Broken:
    """A tokenizer that fails, or gives what it should not."""

    name = "broken"
    end_of_text = 5
    vocab_size = 10

    def __init__(self, gives: Any) -> None:
        self.gives = gives

    def encode(self, texts: Sequence[str]) -> Any:
        if isinstance(self.gives, Exception):
            raise self.gives
        return [np.asarray(self.gives) for _ in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return ""


@pytest.mark.parametrize(
    ("gives", "told"),
    [([3, 10], "ids from 3 to 10.*vocab_size is 10"), ([-1], "ids from -1 to 5"), (ValueError("oh"), r"0\.jsonl.*oh")],
)
def test_a_tokenizer_that_breaks_its_promises_is_named(tmp_path: Path, gives: Any, told: str) -> None:
    corpus = _write(tmp_path / "c", [_texts(20)], known=False)
    with pytest.raises(PluginError, match=f"'broken'.*{told}"):
        next(iter(iostack.Loader(corpus, batch_size=1, seq_len=4, tokenizer=Broken(gives))))


class Wide(Broken):
    name = "wide"
    vocab_size = 1 << 20


def test_ids_beyond_16_bits_come_through(tmp_path: Path) -> None:
    corpus = _write(tmp_path / "c", [_texts(20)], known=False)
    with iostack.Loader(corpus, batch_size=2, seq_len=4, tokenizer=Wide([70_000, (1 << 20) - 1])) as loader:
        assert loader.vocab_size == 1 << 20
        assert set(next(iter(loader))["tokens"].flatten().tolist()) == {70_000, (1 << 20) - 1, 5}


def test_an_unknown_tokenizer_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    corpus = _write(tmp_path / "c", [_texts(20)], known=False)
    with pytest.raises(SettingsError, match="'byte'") as caught:
        iostack.Loader(corpus, batch_size=1, seq_len=4, tokenizer="byte")
    assert "'bytes'" in caught.value.hint
    with pytest.raises(UsageError, match="takes no argument"):
        iostack.Loader(corpus, batch_size=1, seq_len=4, tokenizer="bytes:x")


def test_json_text_with_half_a_surrogate_pair_is_trained_on(tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_text("".join(json.dumps({"text": "\ud800" * 9}) + "\n" for _ in range(9)))
    with iostack.Loader(iostack.open_corpus(tmp_path), batch_size=1, seq_len=4) as loader:
        assert next(iter(loader))["tokens"].shape == (1, 5)
