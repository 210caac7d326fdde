"""JSONL shards: plain and compressed, written by other programs, and lines that are no samples."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import corpora
import iostack_jsonl
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import iostack
from iostack.corpus.contracts import ShardReader
from iostack.errors import CorpusError, SampleError, ShardError


def _reader(path: Path) -> ShardReader:
    return iostack.open_corpus(path).open_shard(0)


def _all(reader: ShardReader) -> list[Any]:
    return list(reader.read(range(reader.counts.samples)))


def _frames(data: bytes, size: int) -> bytes:
    compressor = zstandard.ZstdCompressor()
    return b"".join(compressor.compress(data[i : i + size]) for i in range(0, len(data), size))


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".jsonl", lambda data: data),
        (".ndjson", lambda data: data),
        (".jsonl.gz", gzip.compress),
        (".jsonl.gz", lambda data: gzip.compress(data[:999]) + gzip.compress(data[999:])),
        (".jsonl.zst", zstandard.compress),
        (".jsonl.zst", lambda data: _frames(data, 777)),
        (".ndjson.zst", lambda data: _frames(data, 10_000)),
    ],
)
def test_each_packing_gives_the_same_samples(tmp_path: Path, suffix: str, pack: Any) -> None:
    samples = corpora.texts(500)
    plain = corpora.write_jsonl(tmp_path / "plain", samples).read_bytes()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(pack(plain))
    assert _all(_reader(path)) == samples


def test_what_datasets_exports_is_read_row_for_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets")
    rows = {"text": ["Grüße", 'quote " and \\', "line\nbreak", "\u2028 \U0001f600", ""], "n": [1, -2, None, 4, 2**60]}
    exported = datasets.Dataset.from_dict(rows)
    for name in ("a.jsonl", "a.json", "a.jsonl.gz"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        exported.to_json(folder / name, compression="gzip" if name.endswith("gz") else None)
        assert _all(_reader(folder)) == exported.to_list()


def test_blank_lines_line_ends_and_a_byte_order_mark_are_no_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\n\r\n  \t\n{"a": 1}\r\n\n \n  {"a": 2}\n\n{"a": 3}\n   \n{"a": 4}')
    assert _all(_reader(path)) == [{"a": 1}, {"a": 2}, {"a": 3}, {"a": 4}]


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"   "])
def test_a_file_without_lines_has_no_samples(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert _all(_reader(path)) == []


def test_lines_longer_than_a_block_of_the_scan_are_found(tmp_path: Path) -> None:
    samples = [{"t": "x" * size} for size in (1, 20 << 20, 3, 17 << 20, 5)]
    assert _all(_reader(corpora.write_jsonl(tmp_path / "a.jsonl", samples))) == samples


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "Expecting property name"),
        (b"[1, 2]", "a JSON object was expected, not list"),
        (b"null", "a JSON object was expected, not NoneType"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        (b'{"a": ' * 200_000, "recursion"),
        (b'{"a": ' + b"9" * 5000 + b"}", "integer string conversion"),
        (b'{"a": 1} {"b": 2}', "Extra data"),
    ],
)
def test_a_bad_line_is_that_row_alone_with_its_line_number(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n\n' + line + b'\n{"n": 2}\n')
    first, bad, last = _all(_reader(path))
    assert (first, last) == ({"n": 1}, {"n": 2})
    assert isinstance(bad, SampleError)
    assert said in bad.message
    assert f"{path}: line 3: " in bad.message


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".jsonl.gz", lambda data: gzip.compress(data)[:-20]),
        (".jsonl.gz", lambda data: b"no gzip at all"),
        (".jsonl.gz", lambda data: gzip.compress(data)[:-8] + bytes(8)),
        (".jsonl.zst", lambda data: zstandard.compress(data)[:-20]),
        (".jsonl.zst", lambda data: zstandard.compress(data) + b"rubbish behind it"),
    ],
)
def test_a_damaged_stream_is_named_and_leaves_nothing(
    tmp_path: Path, cache_dir: Path, suffix: str, damage: Any
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(damage(corpora.write_jsonl(tmp_path / "plain", corpora.texts(2000)).read_bytes()))
    with pytest.raises(ShardError, match=f"a{suffix}: the .* stream is truncated or damaged"):
        _reader(path)
    assert not [file for file in cache_dir.rglob("*") if file.is_file()]


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=200) | st.text(alphabet='{}[]"a1:, \n\r\t', max_size=200).map(str.encode))
def test_rows_are_the_lines_that_are_not_blank(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.jsonl"
    path.write_bytes(content)
    lines = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip(b" \t\r\n")]
    read = _all(_reader(path))
    assert len(read) == len(lines)
    for line, sample in zip(lines, read, strict=True):
        try:
            expected = json.loads(line.decode())
        except ValueError:
            expected = None
        assert sample == expected if isinstance(expected, dict) else isinstance(sample, CorpusError)


@pytest.mark.parametrize(
    "line",
    [
        '{"a": 123456789012345678901234567890}',
        '{"a": [1, {"b": 18446744073709551616}]}',
        '{"a": -9223372036854775809}',
        '{"a": 1e300, "b": 1.5, "c": -0}',
        '{"a": 1e400}',
        '{"a": NaN, "b": -Infinity}',
        '{"a": "\\ud800"}',
        '{"a": 1, "a": 2}',
        '{"a": 18446744073709551615}',
        '{"a": "\\u0000\\n\\t"}',
    ],
)
def test_a_line_gives_what_the_standard_library_gives_with_or_without_the_faster_parser(
    tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    expected = repr(json.loads(line))
    pytest.importorskip("orjson")
    for is_there in (True, False):
        monkeypatch.setitem(sys.modules, "orjson", sys.modules["orjson"] if is_there else None)
        iostack_jsonl._fast_parse.cache_clear()
        assert (iostack_jsonl._fast_parse() is not None) == is_there
        with iostack.open_corpus(path, cache_dir=tmp_path / "cache") as corpus:
            [sample] = corpus.open_shard(0).read([0])
            assert repr(sample) == expected
    iostack_jsonl._fast_parse.cache_clear()
