"""Bad samples are replaced by others of their window, the same on every topology, and both are named."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import corpora
import pytest

import iostack
from iostack.corpus.contracts import Sample
from iostack.corpus.index import build_manifest
from iostack.errors import OriginError, PluginError, SettingsError, SubstitutionError
from iostack.loader.transforming.bad_samples import BadSamples
from iostack.testing import take_steps

from .pipelines import BAD_ROWS, NUM_ROWS, Corpora, make

WITH_BAD = [
    "bad rows",
    "bad rows counted",
    "rows transformed",
    "rows counted transformed",
    "bad texts",
    "bad texts counted",
]
BAD_NUMBERS = {number for number in range(NUM_ROWS) if number % 7 == 3}


def _warnings(caplog: pytest.LogCaptureFixture) -> Iterator[tuple[str, str]]:
    """The identities, as SHARD row N, of each bad sample that was logged and of its substitute."""
    for record in caplog.records:
        if record.name == "iostack.loader":
            found = re.fullmatch(
                r"bad sample .*?(\w+\.\w+ row \d+) .*: .*?(\w+\.\w+ row \d+|row \d+) appears in its place",
                record.getMessage(),
            )
            assert found is not None, record.getMessage()
            yield found[1], found[2]


@pytest.mark.parametrize("pipeline", WITH_BAD)
def test_every_bad_sample_of_a_pass_is_replaced_and_reported_with_its_substitute(
    small: Corpora, pipeline: str, caplog: pytest.LogCaptureFixture
) -> None:
    loader = make(small, pipeline, epochs=1, batch_size=6)
    rows = [row for step in take_steps([loader], 1000) for row in step]
    bad = {f"{n // 18}.jsonl row {n % 18}" for n in BAD_ROWS}
    if "transformed" in pipeline:
        bad = {f"{n // 18}.tar row {n % 18}" for n in BAD_NUMBERS}
    reported = dict(_warnings(caplog))
    assert reported.keys() == bad
    assert loader.bad_samples.count >= len(bad)
    if "rows" in pipeline:
        assert len(rows) == NUM_ROWS
        numbers = [row["number" if "transformed" in pipeline else "n"] for row in rows]
        assert not set(numbers) & (BAD_NUMBERS if "transformed" in pipeline else set(BAD_ROWS))
        assert len(numbers) - len(set(numbers)) == len(bad), "each substitute appears once more"


def test_a_substitute_has_its_own_identity(small: Corpora) -> None:
    rows = [row for step in take_steps([make(small, "bad rows counted", epochs=1)], 1000) for row in step]
    by_number: dict[int, set[int]] = {}
    for row in rows:
        by_number.setdefault(row["n"], set()).add(row["sample_ids"])
    assert all(len(identities) == 1 for identities in by_number.values())


@pytest.mark.parametrize("pipeline", WITH_BAD)
def test_substitutes_are_the_same_on_every_topology(
    small: Corpora, pipeline: str, caplog: pytest.LogCaptureFixture
) -> None:
    found: list[tuple[Any, Any]] = []
    for ranks in (1, 2, 3):
        caplog.clear()
        loaders = [make(small, pipeline, rank, ranks, epochs=1) for rank in range(ranks)]
        found.append((list(take_steps(loaders, 1000)), set(_warnings(caplog))))
    assert found[0] == found[1] == found[2]


def _write(folder: Path, lines: list[str], *, counted: bool) -> iostack.Corpus:
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if counted:
        build_manifest(folder)
    return iostack.open_corpus(folder)


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("seq_len", [None, 8])
def test_a_window_in_which_nothing_is_good_is_an_error_that_names_it(
    tmp_path: Path, counted: bool, seq_len: int | None
) -> None:
    corpus = _write(tmp_path / "c", ["{"] * 9, counted=counted)
    loader = iostack.Loader(corpus, batch_size=3, seq_len=seq_len)
    with pytest.raises(SubstitutionError, match=r"every sample of .* is bad; the first: .*a\.jsonl.*line \d") as caught:
        next(iter(loader))
    assert caught.value.hint


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("seq_len", [None, 8])
def test_one_bad_line_that_is_alone_in_its_shard_ends_no_run_and_changes_no_topology(
    tmp_path: Path, counted: bool, seq_len: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    for shard in range(8):
        rows = [{"text": f"document {shard} {'x' * 30}"}]
        corpora.write_jsonl(tmp_path / f"{shard}.jsonl", rows)
    (tmp_path / "3.jsonl").write_text("{broken\n")
    if counted:
        build_manifest(tmp_path)
    corpus = iostack.open_corpus(tmp_path)
    found = []
    for ranks in (1, 2, 3):
        loaders = [
            iostack.Loader(corpus, batch_size=6, seq_len=seq_len, lanes=3, rank=rank, ranks=ranks, epochs=2)
            for rank in range(ranks)
        ]
        found.append(list(take_steps(loaders, 1000)))
        assert all(loader.bad_samples.count <= 1 for loader in loaders)
    assert found[0] == found[1] == found[2]
    given = [row for step in found[0] for row in step]
    if seq_len is None:
        assert len(given) == 16
        assert {row["text"][:10] for row in given} == {f"document {n}" for n in range(8) if n != 3}
    assert "3.jsonl" in caplog.text


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("seq_len", [None, 8])
def test_a_bad_sample_counts_and_is_logged_once_however_often_it_comes(
    tmp_path: Path, counted: bool, seq_len: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = _write(tmp_path / "c", ['{"text": "good enough", "n": 1}'] * 9 + ["{"], counted=counted)
    with iostack.Loader(corpus, batch_size=5, seq_len=seq_len, max_bad_samples=1) as loader:
        for _ in range(3):  # each iterator reads the units, or batches, at hand anew
            assert len(list(islice(loader, 20))) == 20
        assert loader.bad_samples.count == 1
    assert [bad.rpartition("/")[2] for bad, _ in _warnings(caplog)] == ["a.jsonl row 9"]


def test_bad_text_that_was_only_loaded_ahead_does_not_count(tmp_path: Path) -> None:
    for shard in range(8):
        corpora.write_jsonl(tmp_path / f"{shard}.jsonl", [{"text": "x" * 60} for _ in range(5)])
        with (tmp_path / f"{shard}.jsonl").open("a") as file:
            file.write("{broken\n")
    with iostack.Loader(iostack.open_corpus(tmp_path), batch_size=1, seq_len=8, lanes=1, max_bad_samples=1) as loader:
        next(iter(loader))
        assert loader.bad_samples.count == 1


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("seq_len", [None, 8])
def test_more_bad_samples_than_the_budget_are_an_error(tmp_path: Path, counted: bool, seq_len: int | None) -> None:
    lines = ['{"text": "good enough", "n": 1}', "{", '{"text": "good enough", "n": 2}', "{"] * 5
    corpus = _write(tmp_path / "c", lines, counted=counted)
    list(islice(iostack.Loader(corpus, batch_size=20, seq_len=seq_len, max_bad_samples=50, epochs=1), 2))
    loader = iostack.Loader(corpus, batch_size=20, seq_len=seq_len, max_bad_samples=4, epochs=1, threads=1)
    with pytest.raises(SubstitutionError, match="5 bad samples, more than the budget of 4"):
        list(loader)
    none = iostack.Loader(corpus, batch_size=20, seq_len=seq_len, max_bad_samples=0, epochs=1)
    with pytest.raises(SubstitutionError, match=r"budget of 0|in a row"):
        list(none)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("budget", [0, 3])
def test_all_batches_before_the_one_that_ends_a_run_come_however_many_are_read_at_once(
    tmp_path: Path, budget: int, mixed: bool
) -> None:
    for name in ("counted", "units"):
        for shard in range(3):
            lines = ["{broken" if row % 120 == 50 else f'{{"n": {1000 * shard + row}}}' for row in range(400)]
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{shard}.jsonl").write_text("\n".join(lines))
    build_manifest(tmp_path / "counted")
    sources = [
        (iostack.open_corpus(tmp_path / name), 1.0) for name in (("counted", "units") if mixed else ("counted",))
    ]
    came: list[list[list[int]]] = []
    for transforms in ([], [dict]):  # what is transformed is read batch by batch
        came.append([])
        with (
            iostack.Loader(
                sources, batch_size=4, max_bad_samples=budget, transforms=transforms, threads=1, rank=0, ranks=1
            ) as loader,
            pytest.raises(SubstitutionError, match=f"{budget + 1} bad samples, more than the budget"),
        ):
            came[-1].extend(batch["n"].tolist() for batch in loader)
    assert came[0] == came[1]
    assert len(came[0]) > 2


@pytest.mark.parametrize("counted", [True, False])
def test_a_transform_that_always_fails_is_found_out_before_a_whole_window_is_read(
    tmp_path: Path, counted: bool
) -> None:
    calls = 0

    def fails(sample: Sample) -> Sample:
        nonlocal calls
        calls += 1
        raise RuntimeError("never works")

    corpora.write_jsonl(tmp_path / "c" / "a.jsonl", corpora.texts(3000))
    if counted:
        build_manifest(tmp_path / "c")
    corpus = iostack.open_corpus(tmp_path / "c")
    loader = iostack.Loader(corpus, batch_size=1, transforms=[fails], max_bad_samples=20, lookahead_bytes=0)
    with pytest.raises(SubstitutionError, match=r"in a row are bad.*RuntimeError: never works"):
        next(iter(loader))
    assert calls < 100


@pytest.mark.parametrize(
    ("transform", "told"),
    [
        (lambda sample: None, "a transform returned NoneType, not a sample"),
        (lambda sample: sample["absent"], "absent"),
        (lambda sample: {"text": 5}, "column 'text' holds no text"),
    ],
)
def test_what_is_wrong_with_a_sample_of_text_is_said(tmp_path: Path, transform: Any, told: str) -> None:
    corpus = _write(tmp_path / "c", ['{"text": "abc"}'] * 4, counted=False)
    with pytest.raises(SubstitutionError, match=told):
        next(iter(iostack.Loader(corpus, batch_size=1, seq_len=2, transforms=[transform])))


def test_a_column_that_no_row_of_a_unit_has_is_a_wrong_setting(tmp_path: Path) -> None:
    corpus = _write(tmp_path / "c", ['{"body": "abc"}'] * 4, counted=False)
    with pytest.raises(SettingsError, match="all rows: there is no column 'text'; the sample has body") as caught:
        next(iter(iostack.Loader(corpus, batch_size=1, seq_len=2)))
    assert "text_column" in caught.value.hint


def test_bad_samples_are_warnings(small: Corpora, caplog: pytest.LogCaptureFixture) -> None:
    list(make(small, "bad rows counted", epochs=1))
    assert {record.levelno for record in caplog.records if record.name == "iostack.loader"} == {logging.WARNING}


def _raising(error: Exception) -> Any:
    def transform(sample: Sample) -> Sample:
        raise error

    return transform


@pytest.mark.parametrize("seq_len", [None, 8])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError(2, "no such file"), PluginError),
        (TimeoutError("the mount hangs"), PluginError),
        (MemoryError("no memory"), PluginError),
        (OriginError("the bucket is away", hint="look there"), OriginError),
    ],
)
def test_storage_that_fails_a_transform_is_an_error_that_names_the_row(
    tmp_path: Path, error: Exception, kind: type[Exception], seq_len: int | None
) -> None:
    corpus = _write(tmp_path / "c", ['{"text": "good enough"}'] * 4, counted=False)
    loader = iostack.Loader(corpus, batch_size=1, seq_len=seq_len, transforms=[_raising(error)])
    with pytest.raises(kind, match=r"a transform failed on .*a\.jsonl row \d: ") as caught:
        next(iter(loader))
    assert caught.value.__cause__ is error
    assert loader.bad_samples.count == 0


def test_an_os_error_without_a_number_is_what_image_decoders_say_of_a_bad_sample(tmp_path: Path) -> None:
    corpus = _write(tmp_path / "c", ['{"text": "good enough"}'] * 4, counted=False)
    loader = iostack.Loader(corpus, batch_size=1, transforms=[_raising(OSError("image file is truncated"))])
    with pytest.raises(SubstitutionError, match="image file is truncated"):
        next(iter(loader))


@pytest.mark.parametrize(
    ("error", "words"), [(ValueError("two\n lines"), "two lines"), (StopIteration(), "StopIteration")]
)
def test_a_bad_sample_is_told_on_one_line_and_never_without_a_reason(
    error: Exception, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad_samples = BadSamples(1)
    bad_samples.substituted("0.tar row 1", error, "0.tar row 2")
    assert caplog.messages == [f"bad sample 0.tar row 1 ({words}): 0.tar row 2 appears in its place"]
    with pytest.raises(SubstitutionError, match=f"the last one is 0.tar row 3: {words}$"):
        bad_samples.substituted("0.tar row 3", error, "0.tar row 4")


def _ends_the_process(sample: Sample) -> Sample:
    raise SystemExit(0)


def test_a_transform_that_ends_the_process_is_an_error_that_names_the_row(small: Corpora) -> None:
    with (
        make(small, "rows counted", transforms=[_ends_the_process]) as loader,
        pytest.raises(PluginError, match=r"tried to end the process on .*\.tar row \d+: exit code 0"),
    ):
        next(iter(loader))
