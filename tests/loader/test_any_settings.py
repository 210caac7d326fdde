"""Whatever the corpora, weights, phases, packing and sizes: memory, threads, workers, interruptions and ranks change no batch."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import iostack
from iostack.errors import SubstitutionError

from .pipelines import Corpora

SEQUENCES = ["tokens", "documents", "texts", "texts counted", "bad", "parquet", "litdata"]
ROWS = ["tar", "tar counted", "bad", "parquet", "mds"]
STEPS = 20


@st.composite
def mixes(draw: st.DrawFn) -> dict[str, Any]:
    """Names of corpora with their weights, and what decides the order of their samples."""
    of_sequences = draw(st.booleans())
    names = draw(st.lists(st.sampled_from(SEQUENCES if of_sequences else ROWS), min_size=1, max_size=3, unique=True))
    weights = [draw(st.sampled_from([1, 2, 7, 50, 0.31])) for _ in names]
    order: dict[str, Any] = {
        "batch_size": draw(st.sampled_from([1, 2, 6, 12, 24])),
        "lanes": draw(st.sampled_from([1, 2, 4, 12])),
        "seed": draw(st.integers(0, 99)),
        "window_bytes": draw(st.sampled_from([300, 2000, 100_000])),
    }
    if of_sequences:
        order["seq_len"] = draw(st.sampled_from([3, 16, 50]))
        order["packing"] = draw(st.sampled_from(["none", "split", "best_fit"]))
    if len(names) > 1 and draw(st.booleans()):
        later = [draw(st.sampled_from([0, 1, 5])) for _ in names]
        order["phases"] = [{"after_samples": draw(st.integers(1, 120)), "weights": later if any(later) else weights}]
    if len(names) == 1:
        order["epochs"] = draw(st.sampled_from([None, 1, 2]))
    return {"names": list(zip(names, weights, strict=True)), "order": order}


WAYS = st.fixed_dictionaries(
    {
        "memory": st.sampled_from(["least", "64 KiB", "1 GiB"]),
        "threads": st.sampled_from([1, 3]),
        "lookahead_bytes": st.sampled_from([1, 1000, 1 << 20]),
    }
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mix=mixes(), way=WAYS, cut=st.integers(0, STEPS - 1), ranks=st.sampled_from([1, 2, 3]))
def test_how_it_is_read_changes_no_batch(small: Corpora, mix: dict[str, Any], way: Any, cut: int, ranks: int) -> None:
    order = mix["order"]
    corpus = [(small[name], weight) for name, weight in mix["names"]]
    given_corpus = corpus if len(corpus) > 1 else corpus[0][0]

    if way["memory"] == "least":
        way = way | {"memory": _one_batch_blocks(**order)}

    def taken(steps: int, state: Any = None, **changes: Any) -> tuple[list[dict[str, Any]], Any]:
        with iostack.Loader(given_corpus, **(order | changes)) as loader:
            if state is not None:
                loader.load_state_dict(state)
            return [_plain(batch) for batch in islice(loader, steps)], loader.state_dict()

    try:
        whole, _ = taken(STEPS)
        cut = min(cut, len(whole) - 1)
        assert taken(STEPS, **way)[0] == whole
        first, state = taken(cut, **way)
        rest, _ = taken(STEPS - cut, state)
        assert first + rest == whole
        if order["batch_size"] % ranks == 0:
            parts = [taken(STEPS - cut, state, rank=rank, ranks=ranks, **way)[0] for rank in range(ranks)]
            for step, expected in enumerate(rest):  # where the data tells the end, a rank may end before the others
                found = [each for part in parts if step < len(part) for each in part[step]["sample_ids"] if each]
                assert sorted(found) == sorted(filter(None, expected["sample_ids"]))
    except SubstitutionError:
        assume(False)


def _one_batch_blocks(*, batch_size: int, seq_len: int = 0, **_: Any) -> int:
    """Return so much memory that blocks of sequences hold a single batch, where rows take 13 bytes a token and 17 besides."""
    return max(1 << 10, 4 * batch_size * (13 * seq_len + 17)) if seq_len else 64 << 10


def _plain(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
