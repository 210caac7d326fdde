"""Indexes of other tools beside archives: used for counts where they are sound, and as if absent where they are not."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import corpora
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import iostack
from iostack.corpus.contracts import ObjectInfo, Shard
from iostack.corpus.local_origin import LocalOrigin
from iostack.corpus.tar_counts import TarCounts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shard in range(3):
        corpora.write_tar(tmp_path / "tar" / f"{shard}.tar", corpora.images(5 + shard, 10 * shard))
    return tmp_path / "tar"


def write_list(folder: Path, **changes: Any) -> None:
    entries = [
        {"url": f"https://host/data/{path.name}?x=1", "nsamples": 5 + number, "filesize": path.stat().st_size} | changes
        for number, path in enumerate(sorted(folder.glob("*.tar")))
    ]
    (folder / "images.json").write_text(json.dumps({"wids_version": 1, "shardlist": entries}))


def write_offsets(folder: Path) -> None:
    """Write the offsets of samples of two members each, and where the last ends."""
    from iostack.corpus.tar_index import members

    for path in folder.glob("*.tar"):
        found = list(members(path.read_bytes(), source=path.name))
        starts = [member.offset - 512 for member in found[::2]]
        end = -(-(found[-1].offset + found[-1].size) // 512) * 512
        path.with_suffix(".tar.idx").write_bytes(struct.pack(f"<{len(starts) + 1}Q", *starts, end))


def write_counts(folder: Path, kind: str) -> None:
    (folder / ".nv-meta").mkdir()
    counts = {f"{number}.tar": 5 + number for number in range(3)}
    lines = "".join(f"  {name}: {count}\n" for name, count in counts.items())
    text = json.dumps({"shard_counts": counts}) if kind == "json" else f"version: 7\nshard_counts:\n{lines}other: 1\n"
    (folder / ".nv-meta" / f".info.{kind}").write_text(text)


@pytest.mark.parametrize(
    "write",
    [
        write_list,
        write_offsets,
        lambda folder: write_counts(folder, "json"),
        lambda folder: write_counts(folder, "yaml"),
    ],
)
def test_counts_come_from_the_index_and_it_is_not_reported_as_ignored(folder: Path, write: Any) -> None:
    assert iostack.open_corpus(folder).manifest.samples is None
    write(folder)
    corpus = iostack.open_corpus(folder)
    assert (len(corpus), corpus.ignored) == (18, ())
    assert [corpus[number]["__key__"] for number in (0, 4, 5, 17)]
    for path in folder.glob("*.tar"):
        assert corpus.open_shard(int(path.stem)).counts.samples == 5 + int(path.stem)


@pytest.mark.parametrize(
    "changes", [{"filesize": 1}, {"nsamples": -1}, {"nsamples": "5"}, {"nsamples": 1 << 60}, {"url": 7}]
)
def test_a_list_of_other_archives_is_as_if_it_were_not_there(folder: Path, changes: dict[str, Any]) -> None:
    write_list(folder, **changes)
    assert iostack.open_corpus(folder).manifest.samples is None


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"shardlist": 5}', '{"shardlist": [5]}', '{"a": 1}'])
def test_other_json_beside_archives_changes_nothing(folder: Path, text: str) -> None:
    (folder / "annotations.json").write_text(text)
    corpus = iostack.open_corpus(folder)
    assert corpus.manifest.samples is None
    assert corpus.open_shard(0).counts.samples == 5


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=80) | st.lists(st.integers(0, 1 << 64) | st.integers(0, 40).map(lambda n: 512 * n)).map(
    lambda offsets: b"".join(struct.pack("<Q", offset % (1 << 64)) for offset in offsets)
))  # fmt: skip
def test_hostile_offsets_give_a_count_that_fits_the_archive_or_none(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("offsets")
    archive = corpora.write_tar(folder / "0.tar", corpora.images(5))
    (folder / "0.tar.idx").write_bytes(content)
    objects = [ObjectInfo(path.name, path.stat().st_size) for path in sorted(folder.iterdir())]
    count = TarCounts(objects).count(Shard(objects[0]), LocalOrigin(str(folder), {}))
    assert count is None or 0 <= count <= archive.stat().st_size // 512
