"""Whose options of the storage client open which corpus of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
import runs

import iostack
from iostack.errors import OriginError
from trainer.settings import resolve_settings
from trainer.setup import open_held_out, open_sources

OPTIONS = 'data.storage_options={client="of data"}'


@pytest.fixture
def remote(corpus) -> Iterator[str]:
    """The tiny corpus in fsspec's memory, which takes any option."""
    memory = fsspec.filesystem("memory")
    memory.put(f"{corpus}/*.jsonl", "/options/corpus/")
    yield "memory://options/corpus"
    memory.rm("/options", recursive=True)


@pytest.fixture
def opened(monkeypatch, tmp_path) -> list[dict[str, Any]]:
    """The options that corpora were opened with."""
    seen = []
    open_corpus = iostack.open_corpus

    def spy(uri: str, *, columns: Any, cache_dir: str | None, **options: Any) -> iostack.Corpus:
        seen.append(options)
        return open_corpus(uri, columns=columns, cache_dir=tmp_path / "cache", **options)

    monkeypatch.setattr(iostack, "open_corpus", spy)
    return seen


def test_each_source_of_a_mix_has_its_own_options_or_those_of_the_data_and_a_local_one_none(remote, corpus, opened):
    own = f'{{uri="{remote}", storage_options={{client="of its own"}}}}'
    mix = f'data.sources=[{{uri="{remote}"}}, {own}, {{uri="{corpus}"}}]'

    open_sources(resolve_settings(assignments=[OPTIONS, mix])[0].data)

    assert opened == [{"client": "of data"}, {"client": "of its own"}, {}]


@pytest.mark.parametrize(
    ("is_remote", "own", "expected"),
    [(True, {}, {"client": "of data"}), (True, {"client": "own"}, {"client": "own"}), (False, {}, {})],
)
def test_a_held_out_corpus_takes_the_options_of_the_data_if_it_lies_there_too(
    remote, corpus, opened, is_remote, own, expected
):
    data = resolve_settings(uri=remote, assignments=[OPTIONS])[0].data

    open_held_out(remote if is_remote else str(corpus), data, own)

    assert opened == [expected]


def test_a_held_out_corpus_elsewhere_does_not_get_the_credentials_of_the_data(remote, corpus, opened):
    data = resolve_settings(uri=str(corpus), assignments=[OPTIONS])[0].data
    open_held_out(remote, data, {})
    assert opened == [{}]


def test_options_that_are_given_to_a_local_path_itself_are_refused(corpus, opened):
    with pytest.raises(OriginError, match="local files take no storage options"):
        open_held_out(str(corpus), resolve_settings()[0].data, {"client": "x"})


def test_a_run_evaluates_and_writes_no_option_anywhere(run, corpus):
    options = ("-s", 'data.storage_options={key="hunter2"}', "-s", "checkpoint.storage_options={}")
    ended = run.train(*options, "-s", f"evaluation.uri={corpus}", "-s", "train.steps=1", "-s", "evaluation.steps=1")
    assert ended.code == 0, ended.err

    assert len(runs.read_lines(run.folder / "evaluation.jsonl")) == 1
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"hunter2" in path.read_bytes()]
