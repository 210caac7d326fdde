"""Filters: what they drop never comes, all else comes as often as before, and what they cannot judge is told."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import corpora
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worker_transforms import is_rare, is_third

import iostack
from iostack.corpus.contracts import Sample
from iostack.corpus.index import build_manifest
from iostack.errors import OriginError, PlanError, SettingsError, StateError, SubstitutionError, UsageError
from iostack.loader.ahead.residency import Residency
from iostack.loader.ahead.streams import UnitSource
from iostack.loader.order.planned import Source
from iostack.plan.units import Unit
from iostack.testing import check_resume_at_every_step, take_steps

from .pipelines import NUM_ROWS, NUM_TEXTS, ROWS, TAR, TEXT, TOKENS, Corpora, make


def is_even(sample: Sample) -> bool:
    return bool(json.loads(sample["json"])["i"] % 2 == 0)


def drop_all(sample: Sample) -> bool:
    return False


def _numbers(loader: iostack.Loader) -> list[int]:
    with loader:
        return [
            json.loads(text)["i"]
            for batch in loader
            for text, valid in zip(batch["json"], batch["valid"].tolist(), strict=True)
            if valid
        ]


@settings(derandomize=True, deadline=None, max_examples=10)
@given(
    modulus=st.integers(1, 9),
    lanes=st.integers(1, 6),
    batch_size=st.sampled_from([6, 12, 60]),
    epochs=st.integers(1, 2),
    name=st.sampled_from(["tar", "tar counted"]),
)
def test_a_pass_gives_exactly_what_the_filter_keeps(
    small: Corpora, modulus: int, lanes: int, batch_size: int, epochs: int, name: str
) -> None:
    def keeps(sample: Sample) -> bool:
        return bool(json.loads(sample["json"])["i"] % modulus == 0)

    changes: dict[str, Any] = {"lanes": lanes, "batch_size": batch_size, "epochs": epochs, "seed": modulus}
    found = _numbers(iostack.Loader(small[name], filters=[keeps], **changes, **TAR))
    assert Counter(found) == Counter(dict.fromkeys(range(0, NUM_ROWS, modulus), epochs))


@pytest.mark.parametrize("name", ["texts", "texts counted"])
def test_only_documents_that_are_kept_are_tokenised(small: Corpora, name: str) -> None:
    loader = iostack.Loader(small[name], batch_size=4, epochs=1, lanes=2, filters=[is_multiple_of_ten], **TEXT)
    with loader:
        tokens = bytes(token for batch in loader for row in batch["tokens"].tolist() for token in row if token < 256)
    numbers = {number for number in range(NUM_TEXTS) if f"line {number} ".encode() in tokens}
    assert numbers
    assert all(number % 10 == 0 for number in numbers)


def is_multiple_of_ten(sample: Sample) -> bool:
    return bool(sample["n"] % 10 == 0)


def test_filters_must_all_agree_and_see_samples_before_any_transform(small: Corpora) -> None:
    rename = {"name": "rename", "columns": {"json": "other"}}
    source = Source(small["tar counted"], filters=[is_even], transforms=[rename])
    with iostack.Loader(source, batch_size=12, lanes=2, epochs=1, filters=[is_multiple_of_five], **TAR) as loader:
        found = [
            json.loads(text)["i"] for batch in loader for text, valid in zip(batch["other"], batch["valid"]) if valid
        ]
    assert sorted(found) == list(range(0, NUM_ROWS, 10))


def is_multiple_of_five(sample: Sample) -> bool:
    return bool(json.loads(sample["json"])["i"] % 5 == 0)


def test_a_filtered_source_in_a_mix_keeps_its_share(small: Corpora) -> None:
    mix = [Source(small["tar counted"], 3, filters=[is_even]), (small["tar counted"], 1)]

    def make_mix(rank: int, ranks: int) -> iostack.Loader:
        return iostack.Loader(mix, batch_size=24, lanes=4, rank=rank, ranks=ranks, **TAR)

    check_resume_at_every_step(make_mix, num_steps=2, ranks=(1, 3))
    with make_mix(0, 1) as loader:
        rows = [row for step in take_steps([loader], 4) for row in step]
    odd = sum(json.loads(row["json"])["i"] % 2 for row in rows)
    assert 0 < odd <= 24


@pytest.mark.parametrize("name", ["tar", "tar counted", "texts", "texts counted"])
@pytest.mark.parametrize("epochs", [None, 1])
def test_a_filter_that_drops_everything_is_an_error_not_a_hang(small: Corpora, name: str, epochs: int | None) -> None:
    settings_ = TEXT if "texts" in name else TAR
    with iostack.Loader(small[name], batch_size=4, filters=[drop_all], epochs=epochs, **settings_) as loader:
        with pytest.raises(PlanError, match=r"filters (did not )?keep .* read \d+ units and got nothing") as caught:
            next(iter(loader))
        assert "loosen the filters" in caught.value.hint


def test_a_lane_gives_up_after_an_epoch_of_units_in_vain(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for shard in range(8):
        corpora.write_jsonl(folder / f"{shard}.jsonl", [{"i": 8 * row + shard} for row in range(100)])
    build_manifest(folder, cache_dir=tmp_path)
    corpus = iostack.open_corpus(folder, cache_dir=tmp_path)
    # Ranks have lanes of their own, so that no rank sees all units of an epoch soon.
    with iostack.Loader(corpus, batch_size=4, rank=0, ranks=4, filters=[drop_all]) as loader:
        source = loader.plan.sources[0]
        assert source.most_units_in_vain == source.num_units + 1000
        with pytest.raises(PlanError, match="did not keep any of 800 samples"):
            next(iter(loader))


def test_what_no_filter_can_judge_is_left_out_and_counted(small: Corpora, caplog: pytest.LogCaptureFixture) -> None:
    loader = make(small, "filtered rows", epochs=1)
    assert sorted(_numbers(loader)) == [n for n in range(NUM_ROWS) if n % 3 and n % 9 != 2]
    assert loader.bad_samples.count == NUM_ROWS // 9
    assert "2 cannot be judged): it is left out" in caplog.text
    with (
        make(small, "filtered rows", epochs=1, max_bad_samples=3) as strict,
        pytest.raises(SubstitutionError, match="4 bad samples, more than the budget of 3"),
    ):
        list(strict)


def test_unreadable_rows_are_left_out_too(small: Corpora) -> None:
    with iostack.Loader(small["bad counted"], batch_size=10, epochs=1, lanes=2, filters=[keep_all], **ROWS) as loader:
        ids = [each for batch in loader for each in batch["sample_ids"][batch["valid"]].tolist()]
        assert len(ids) == len(set(ids)) == NUM_ROWS - 4
        assert loader.bad_samples.count == 4


def keep_all(sample: Sample) -> bool:
    return True


def test_a_filter_that_returns_no_truth_value_makes_the_sample_bad(small: Corpora) -> None:
    with (
        iostack.Loader(small["tar"], batch_size=4, filters=[give_a_number], max_bad_samples=5) as loader,
        pytest.raises(SubstitutionError, match="a filter returned int, not True or False"),
    ):
        next(iter(loader))


def give_a_number(sample: Sample) -> Any:
    return 1


def test_failing_storage_in_a_filter_is_no_bad_sample(small: Corpora) -> None:
    with (
        iostack.Loader(small["tar counted"], batch_size=4, filters=[fail_to_fetch]) as loader,
        pytest.raises(OriginError, match=r"a filter failed on .*tar row \d+: the store is down"),
    ):
        next(iter(loader))


def fail_to_fetch(sample: Sample) -> bool:
    raise OriginError("the store is down")


def test_units_are_read_some_rows_at_a_time(small: Corpora, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iostack.loader.samples.row_units._FILTERED_BYTES", 2000)
    reads: list[int] = []
    plain = Residency.read_rows

    def read_rows(self: Residency, shard: int, rows: list[int], *read_by: Any) -> Sequence[Sample | Exception]:
        reads.append(len(rows))
        return plain(self, shard, rows, *read_by)

    monkeypatch.setattr(Residency, "read_rows", read_rows)
    found = _numbers(iostack.Loader(small["tar"], batch_size=1, epochs=1, filters=[is_even], **TAR))
    assert sorted(found) == list(range(0, NUM_ROWS, 2))
    assert max(reads) < 10


def test_a_state_of_other_filters_is_refused_by_their_name(small: Corpora) -> None:
    with make(small, "filtered rows") as loader:
        state = loader.state_dict()
    for filters in ([is_even], [is_third, is_even], []):
        with (
            make(small, "filtered rows", filters=filters) as other,
            pytest.raises(StateError, match=r"plan.sources\[0\]"),
        ):
            other.load_state_dict(state)


def test_filters_that_cannot_be_are_refused(small: Corpora) -> None:
    with pytest.raises(UsageError, match="filters choose samples, but token shards are cut"):
        iostack.Loader(small["tokens"], batch_size=4, filters=[is_even], **TOKENS)
    with pytest.raises(SettingsError, match="no plugin offers a filter named 'wher'") as caught:
        iostack.Loader(small["tar"], batch_size=4, filters=["wher"])
    assert "'where'" in caught.value.hint
    with pytest.raises(SettingsError, match="filter 'length' does not take these options"):
        iostack.Loader(small["tar"], batch_size=4, filters=[{"name": "length", "colum": "jpg"}])
    with pytest.raises(PlanError, match="how many samples its filters leave"):
        iostack.Loader([Source(small["tar counted"], epochs=1, filters=[is_even]), small["tar"]], batch_size=4)


def unchanged(sample: Sample) -> Sample:
    return sample


@pytest.mark.parametrize("pipeline", ["filtered sparse texts", "rows counted of arrow"])
def test_units_of_which_filters_leave_nothing_are_read_once(
    small: Corpora, monkeypatch: pytest.MonkeyPatch, pipeline: str
) -> None:
    load, empty = UnitSource._load_measured, Counter[int]()  # type: ignore[var-annotated]

    def counted(source: Any, unit: Unit) -> Any:
        outputs = load(source, unit)
        empty[unit.number] += not len(outputs)
        return outputs

    def first_ids(**changes: Any) -> list[Any]:
        empty.clear()
        with make(small, pipeline, filters=[is_rare], **changes) as loader:
            return [batch["sample_ids"].tolist() for batch in islice(loader, 10)]

    monkeypatch.setattr(UnitSource, "_load_measured", counted)
    found = first_ids()
    assert sum(count > 0 for count in empty.values()) > 1
    assert max(empty.values()) <= 8  # each lane may have one ahead before another comes to it
    if pipeline == "filtered sparse texts":  # a transform may make texts that are long enough in another epoch
        assert first_ids(transforms=[unchanged]) == found
        assert max(empty.values()) > 16


def test_units_of_all_lanes_load_at_once_where_each_gives_little(tmp_path: Path) -> None:
    for shard in range(16):
        rows = [{"i": shard * 10 + row} for row in range(10)]
        (tmp_path / f"{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    together = threading.Barrier(4, timeout=20)  # the row of a unit that loads without those of the other lanes is bad

    def is_first(sample: Sample) -> bool:
        if sample["i"] % 10:
            return False
        together.wait()
        return True

    corpus = iostack.open_corpus(tmp_path)
    with iostack.Loader(corpus, batch_size=16, lanes=4, threads=4, filters=[is_first]) as loader:
        batches = iter(loader)
        found = [next(batches)["i"].tolist() for _ in range(2)]
        together.abort()
    assert [sorted(batch) for batch in found] == [list(range(0, 160, 10))] * 2
    assert loader.bad_samples.count == 0
