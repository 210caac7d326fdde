"""A corpus on a real S3 server: listed, indexed, read through the cache, and errors that hide the keys."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import corpora
import fsspec
import pytest
import zstandard

import iostack
from iostack.corpus.index import build_manifest
from iostack.errors import CorpusNotFoundError, OriginError, ShardError

pytestmark = pytest.mark.s3


def _put(s3_options: dict[str, Any], uri: str, data: bytes) -> None:
    with fsspec.open(uri, "wb", **s3_options) as file:
        file.write(data)


@pytest.fixture
def corpus_uri(s3_folder: str, s3_options: dict[str, Any], tmp_path: Path) -> str:
    """Two JSONL shards, of 10 and 5 samples, the second one compressed."""
    plain = [
        corpora.write_jsonl(tmp_path / name, corpora.texts(*span)) for name, span in (("a", (10,)), ("b", (5, 10)))
    ]
    _put(s3_options, f"{s3_folder}/a.jsonl", plain[0].read_bytes())
    _put(s3_options, f"{s3_folder}/sub/b.jsonl.zst", zstandard.compress(plain[1].read_bytes()))
    return s3_folder


def test_a_corpus_is_listed_indexed_and_read(corpus_uri: str, s3_options: dict[str, Any], cache_dir: Path) -> None:
    corpus = iostack.open_corpus(corpus_uri, **s3_options)
    assert (corpus.num_shards, corpus.indexed) == (2, False)
    done = build_manifest(corpus_uri, **s3_options)
    assert done.file == f"{corpus_uri}/.iostack/manifest.arrow"
    assert build_manifest(corpus_uri, **s3_options).num_counted == 0
    corpus = iostack.open_corpus(corpus_uri, **s3_options)
    assert corpus.indexed
    assert list(corpus) == corpora.texts(15)
    assert not list(cache_dir.rglob("*.part"))
    assert iostack.open_corpus(f"{corpus_uri}/a.jsonl", **s3_options).open_shard(0).counts.samples == 10


def test_tokens_are_counted_by_ranges(s3_folder: str, s3_options: dict[str, Any], tmp_path: Path) -> None:
    documents = corpora.documents(40)
    for path in corpora.write_tokens(tmp_path / "a", documents):
        _put(s3_options, f"{s3_folder}/{path.name}", path.read_bytes())
    corpus = iostack.open_corpus(s3_folder, **s3_options)
    assert len(corpus) == 40
    assert not corpus.is_resident(0)
    assert corpus[7]["tokens"].tolist() == documents[7][0]


def test_a_shard_that_shrank_is_named(corpus_uri: str, s3_options: dict[str, Any], tmp_path: Path) -> None:
    build_manifest(corpus_uri, **s3_options)
    command = "import fsspec, json, sys; fsspec.filesystem('s3', **json.loads(sys.argv[2])).pipe(sys.argv[1], b'{}')"
    # Another process replaces it, so that no client of this one can know.
    subprocess.run([sys.executable, "-c", command, f"{corpus_uri}/a.jsonl", json.dumps(s3_options)], check=True)
    iostack.open_corpus(corpus_uri, **s3_options).open_shard(0)  # the old version is in the cache
    with pytest.raises(ShardError, match=r"a\.jsonl shrank from .* since it was indexed"):
        iostack.open_corpus(corpus_uri, cache_dir=tmp_path / "another", **s3_options).open_shard(0)


def test_nothing_there_and_wrong_keys_say_so_without_the_keys(s3_folder: str, s3_options: dict[str, Any]) -> None:
    with pytest.raises(CorpusNotFoundError):
        iostack.open_corpus(f"{s3_folder}/nowhere", **s3_options)
    with pytest.raises(OriginError) as caught:
        iostack.open_corpus(s3_folder, **{**s3_options, "secret": "hunter2"})
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"


def test_the_command_line_reads_it(corpus_uri: str, s3_options: dict[str, Any]) -> None:
    options = [word for key, value in s3_options.items() for word in ("-o", f"{key}={value}")]
    program = "import sys; from iostack.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "inspect", corpus_uri, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "samples      15" in done.stdout


FORK = """
import json, os, sys
import iostack
corpus = iostack.open_corpus(sys.argv[1], **json.loads(sys.argv[2]))
corpus.open_shard(0)
if (pid := os.fork()) == 0:
    print(corpus.open_shard(1).counts.samples, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""


def test_a_forked_process_goes_on_reading(corpus_uri: str, s3_options: dict[str, Any]) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK, corpus_uri, json.dumps(s3_options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "5\n"
