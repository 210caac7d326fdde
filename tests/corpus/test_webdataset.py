"""Tar shards written by other programs, sample for sample, with webdataset's own reader as the oracle."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import corpora
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iostack_webdataset import split_name

import iostack
from iostack.corpus.index import build_manifest
from iostack.errors import ShardError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import webdataset
    from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander


def _ours(path: Path) -> list[Any]:
    reader = iostack.open_corpus(path).open_shard(0)
    return list(reader.read(range(reader.counts.samples)))


def _theirs(path: Path) -> list[Any]:
    with path.open("rb") as stream:
        samples = list(group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}])))
    return [{name: value for name, value in sample.items() if name != "__url__"} for sample in samples]


def test_what_shard_writer_writes_is_read_sample_for_sample(tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "%04d.tar"), maxcount=40, verbose=0) as writer:
        for i in range(100):
            writer.write({"__key__": f"dir/{i:05}", "txt": f"Grüße {i}", "seg.json": {"i": i}, "bin": bytes(i)})
    build_manifest(tmp_path)
    corpus = iostack.open_corpus(tmp_path)
    assert corpus.num_shards == 3
    assert list(corpus) == [sample for path in sorted(tmp_path.glob("*.tar")) for sample in _theirs(path)]
    assert corpus[-1]["seg.json"] == b'{"i": 99}'


LONG = "long/" + "/".join(f"folder{i:03}" for i in range(30)) + "/" + "n" * 120


@pytest.mark.parametrize("format", ["gnu", "pax", "ustar", "v7", "oldgnu"])
def test_what_gnu_tar_writes_is_read_in_every_format(tmp_path: Path, format: str) -> None:
    source = tmp_path / "source"
    names = ["a.jpg", "a.json", "b.seg.png", "b.CLS", "d.e/c.txt", "d.e/f/c.txt", "no_extension", ".hidden"]
    if format in ("gnu", "pax", "oldgnu"):
        names += [f"{LONG}.txt", f"{LONG}.json", "ümlaut.txt", "with space.txt"]
    if format == "ustar":
        names += [f"{'p' * 70}/{'q' * 60}/{'n' * 90}.txt"]
    for number, name in enumerate(names):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(bytes([number]) * (number * 300))
    path = tmp_path / "a.tar"
    command = ["tar", f"--format={format}", "--sort=name", "-C", str(source), "-cf", str(path)]
    subprocess.run([*command, "."], check=True)
    assert _ours(path) == _theirs(path)
    subprocess.run([*command, *sorted({name.split("/")[0] for name in names})], check=True)
    assert _ours(path) == _theirs(path)
    assert sum(len(sample) - 1 for sample in _ours(path)) == len(names) - 2


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_python_writes_is_read_in_every_format(tmp_path: Path, format: int) -> None:
    files = corpora.images(50)
    path = corpora.write_tar(tmp_path / "a.tar", files, format)
    assert _ours(path) == corpora.grouped(files) == _theirs(path)


def test_pax_headers_may_hold_path_and_size_and_be_global(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "for all"}) as archive:
        member = tarfile.TarInfo("short.txt")
        member.size = 5
        member.pax_headers = {"path": "dir/" + "ä" * 200 + ".txt", "size": "5", "mtime": "1.5"}
        archive.addfile(member, io.BytesIO(b"hello"))
    assert _ours(path) == _theirs(path) == [{"__key__": "dir/" + "ä" * 200, "txt": b"hello"}]


def test_a_base_256_size_is_read(tmp_path: Path) -> None:
    content = bytearray(corpora.write_tar(tmp_path / "a.tar", [("a.txt", b"hello")], tarfile.GNU_FORMAT).read_bytes())
    content[124:136] = b"\x80" + (5).to_bytes(11, "big")
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    (tmp_path / "a.tar").write_bytes(content)
    assert _ours(tmp_path / "a.tar") == _theirs(tmp_path / "a.tar") == [{"__key__": "a", "txt": b"hello"}]


@pytest.mark.parametrize(
    "names",
    [
        ["a.txt", "b.txt", "a.txt"],
        ["A.TXT", "A.Json"],
        ["__meta__", "__meta__.json", "__dir__/x.txt", "a.txt", "__b.txt", "b__.txt"],
        ["a", "a.b/c", "a.b/c.d", ".x", "x/.y", "x/.y.z", "a..b", "a.b."],
        ["./a.jpg", "./a.txt", "././b.txt"],
        ["a.b\n", "a\nb.c", "ü.é", "a b.c d"],
        [],
    ],
)
def test_samples_are_grouped_as_webdataset_groups_them(tmp_path: Path, names: list[str]) -> None:
    path = corpora.write_tar(tmp_path / "a.tar", [(name, name.encode()) for name in names])
    assert _ours(path) == _theirs(path)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(alphabet="aB._/", min_size=1, max_size=6).filter(lambda name: _is_plain(name)), max_size=6))
def test_grouping_agrees_for_any_names(tmp_path_factory: pytest.TempPathFactory, names: Sequence[str]) -> None:
    folder = tmp_path_factory.mktemp("names")
    path = corpora.write_tar(folder / "a.tar", [(name, b"%d" % i) for i, name in enumerate(names)])
    try:
        expected = _theirs(path)
    except ValueError:  # duplicate file name in tar file
        with pytest.raises(ShardError, match="has two members named"):
            _ours(path)
    else:
        assert _ours(path) == expected


def _is_plain(name: str) -> bool:
    return not name.startswith("/") and not name.endswith("/") and ".." not in name.split("/")


@pytest.mark.parametrize(("suffix", "mode"), [(".tar.gz", "w:gz"), (".tgz", "w:gz"), (".tar.zst", "")])
def test_compressed_archives_are_decompressed_into_the_cache(tmp_path: Path, suffix: str, mode: str) -> None:
    files = corpora.images(20)
    plain = corpora.write_tar(tmp_path / "plain", files).read_bytes()
    folder = tmp_path / "corpus"
    folder.mkdir()
    if mode:
        import gzip

        (folder / f"a{suffix}").write_bytes(gzip.compress(plain))
    else:
        import zstandard

        (folder / f"a{suffix}").write_bytes(zstandard.compress(plain))
    assert _ours(folder) == corpora.grouped(files)


def test_rows_are_read_in_any_order_and_more_than_once(tmp_path: Path) -> None:
    files = corpora.images(30)
    reader = iostack.open_corpus(corpora.write_tar(tmp_path / "a.tar", files)).open_shard(0)
    expected = corpora.grouped(files)
    assert list(reader.read([29, 0, 7, 7])) == [expected[29], expected[0], expected[7], expected[7]]
    assert json.loads(reader.read([3])[0]["json"]) == {"i": 3}


@settings(max_examples=500, deadline=None)
@given(st.text("ab./", max_size=12))
def test_names_are_split_as_webdataset_splits_them(name: str) -> None:
    key, extension = base_plus_ext(name)
    assert split_name(name) == (key or "", extension or "")


def test_a_name_of_many_megabytes_is_split_at_once() -> None:
    assert split_name("a/" * (8 << 20)) == ("", "")
