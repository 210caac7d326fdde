"""The checks for plugin authors: every shipped plugin passes them, and each notices what it is there to notice."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import corpora
import fsspec
import numpy as np
import peers
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iostack.corpus.contracts import Counts, ObjectInfo, Sample, Shard, ShardFiles
from iostack.corpus.detect import formats
from iostack.corpus.local_origin import LocalOrigin
from iostack.corpus.mapping import map_shard
from iostack.registry import registry
from iostack.testing import check_damage, check_format, check_origin, check_transform

Write = Callable[[Path], None]


def _jsonl(folder: Path) -> None:
    for shard in range(2):
        corpora.write_jsonl(
            folder / f"{shard}.jsonl", [*corpora.texts(20, 20 * shard), {"text": None, "x": [1, {"y": 2.5}]}]
        )


def _tar(folder: Path) -> None:
    for shard in range(2):
        corpora.write_tar(folder / f"{shard}.tar", corpora.images(12, 12 * shard))


def _tokens(folder: Path) -> None:
    for shard in range(2):
        corpora.write_tokens(folder / f"{shard}", corpora.documents(10, seed=shard))


def _table() -> pa.Table:
    return pa.table({"text": ["a", None, "ccc"] * 8, "n": list(range(24)), "list": [[1, 2], [], [3]] * 8})


def _parquet(folder: Path) -> None:
    folder.mkdir()
    for shard in range(2):
        pq.write_table(_table(), folder / f"{shard}.parquet", row_group_size=7)


def _arrow(folder: Path) -> None:
    folder.mkdir()
    for shard, compression in enumerate((None, "zstd")):
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_file(str(folder / f"{shard}.arrow"), _table().schema, options=options) as writer:
            writer.write_table(_table(), max_chunksize=9)


def _mds(folder: Path) -> None:
    columns = {"text": "str", "n": "int", "bytes": "bytes", "array": "ndarray:float32"}
    with peers.streaming().MDSWriter(out=str(folder), columns=columns, size_limit=1500, hashes=["sha1"]) as writer:
        for n in range(30):
            writer.write(
                {"text": "x" * (n % 9), "n": n, "bytes": bytes([n]), "array": np.arange(1 + n % 5, dtype=np.float32)}
            )


def _mds_text(folder: Path) -> None:
    columns = {"text": "str", "n": "int"}
    with peers.streaming().CSVWriter(out=str(folder), columns=columns, size_limit=150, hashes=["sha1"]) as writer:
        for n in range(30):
            writer.write({"text": "x" * (n % 9), "n": n})


def _litdata(folder: Path) -> None:
    items = [{"text": "x" * (n % 9), "n": n, "list": [n, {"array": np.arange(n % 5)}]} for n in range(30)]
    peers.write_litdata(folder, items, chunk_bytes=1500)


FORMATS: dict[str, Write] = {
    "jsonl": _jsonl,
    "webdataset": _tar,
    "tokens": _tokens,
    "parquet": _parquet,
    "arrow": _arrow,
    "mds": _mds,
    "mds-text": _mds_text,
    "litdata": _litdata,
}


def test_every_shipped_format_is_checked_here() -> None:
    assert FORMATS.keys() >= formats().keys()


@pytest.mark.parametrize("format", FORMATS)
def test_shipped_formats_are_read_the_same_by_any_rows_in_any_order_by_any_thread(format: str, tmp_path: Path) -> None:
    FORMATS[format](tmp_path / "corpus")
    check_format(tmp_path / "corpus")


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_shards_of_shipped_formats_give_errors_of_ours_alone(format: str, tmp_path: Path) -> None:
    FORMATS[format](tmp_path / "corpus")
    check_damage(tmp_path / "corpus", format=format, tries=40)


class _Lines:
    """A small format that is correct; the tests below break one thing each."""

    name = "lines"
    holds_tokens = False

    def find_shards(self, objects: Sequence[ObjectInfo]) -> Sequence[Shard]:
        return [Shard(info) for info in objects if info.path.endswith(".lines")]

    def count(self, shard: Shard, origin: Any) -> Counts | None:
        return None

    def open(self, files: ShardFiles) -> Any:
        return _LineReader(bytes(map_shard(files.path, name=files.name)).splitlines())


class _LineReader:
    def __init__(self, lines: list[bytes]) -> None:
        self.lines = lines
        self.counts = Counts(len(lines))

    def read(self, rows: Sequence[int]) -> Sequence[Sample | Exception]:
        return [{"line": self.lines[row]} for row in rows]

    def close(self) -> None:
        pass


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Check the format above with some of its parts replaced."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "0.lines").write_bytes(b"\n".join(b"%d" % n for n in range(50)))

    def check(damage: bool = False, **parts: Any) -> None:
        reader = type("_Broken", (_LineReader,), {k: v for k, v in parts.items() if k in ("read", "close", "counts")})
        broken = type(
            "_BrokenLines", (_Lines,), {k: v for k, v in parts.items() if k in ("find_shards", "count", "open")}
        )
        if "open" not in parts:
            broken.open = lambda self, files: reader(bytes(map_shard(files.path, name=files.name)).splitlines())
        listed = registry().listed
        monkeypatch.setattr(
            type(registry()), "listed", lambda self, hook: [broken()] if hook == "iostack_formats" else listed(hook)
        )
        (check_damage if damage else check_format)(tmp_path / "corpus")

    return check


def test_a_correct_format_passes(lines: Callable[..., None]) -> None:
    lines()
    lines(damage=True)


def _shared(self: Any, rows: Sequence[int]) -> Any:
    self.last = getattr(self, "last", 0) + 1
    return [{"line": self.lines[row], "reads": self.last} for row in rows]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"read": lambda self, rows: [{"line": self.lines[row]} for row in sorted(rows)]}, "was .* before"),
        (
            {"read": lambda self, rows: [{"line": self.lines[row]} for row in dict.fromkeys(rows)]},
            "rows were asked for",
        ),
        ({"read": lambda self, rows: [self.lines[row] for row in rows]}, "neither a dict nor a SampleError"),
        ({"read": _shared}, "was .* before"),
        ({"find_shards": lambda self, objects: [Shard(info) for info in objects]}, "claims README.md"),
        ({"find_shards": lambda self, objects: [Shard(ObjectInfo("a", 1))]}, "where there is nothing"),
        ({"count": lambda self, shard, origin: Counts(7)}, "7"),
    ],
)
def test_a_broken_format_is_told_what_is_wrong(lines: Callable[..., None], parts: dict[str, Any], said: str) -> None:
    with pytest.raises((AssertionError, Exception), match=said):
        lines(**parts)


def test_a_format_that_trips_over_damage_is_told_what_was_done(lines: Callable[..., None]) -> None:
    def read(self: Any, rows: Sequence[int]) -> Any:
        return [{"number": int(self.lines[row])} for row in rows]

    with pytest.raises(AssertionError, match=r"0.lines with .* gave ValueError"):
        lines(damage=True, read=read)


def _image() -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("transform", "sample"),
    [
        ({"name": "keep", "columns": ["a"]}, {"a": 1, "b": 2}),
        ({"name": "rename", "columns": {"a": "c"}}, {"a": [1], "b": 2}),
        ({"name": "decode", "columns": {"a": "json"}}, {"a": b'{"x": [1]}'}),
        ({"name": "decode", "columns": {"a": "json"}}, {"a": b"{"}),
        ({"name": "image", "resize": 20}, {"png": _image()}),
        ({"name": "image", "crop": 20, "random": True}, {"png": _image(), "n": 1}),
    ],
)
def test_shipped_transforms_are_pure(transform: Mapping[str, Any], sample: Sample) -> None:
    check_transform(transform, [sample, {"other": 1}])


class Changes:
    """Changes the sample that it was given."""

    def __call__(self, sample: Sample) -> Sample:
        sample["a"] += 1
        return sample


class Draws:
    """Draws from a generator of its own."""

    def __call__(self, sample: Sample) -> Sample:
        return sample | {"drawn": random.random()}


class Counter:
    """Depends on how many came before."""

    seen = 0

    def __call__(self, sample: Sample) -> Sample:
        self.seen += 1
        return sample | {"seen": self.seen}


class Nothing:
    """Returns no sample."""

    def __call__(self, sample: Sample) -> Any:
        return None


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (Changes(), "changed the sample"),
        (Draws(), "the second time"),
        (Counter(), "the second time"),
        (Nothing(), "NoneType, not a sample"),
        (lambda sample: sample, "cannot be sent"),
    ],
)
def test_a_transform_that_is_not_pure_is_told_why(transform: Any, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_transform(transform, [{"a": 1}])


OBJECTS = {"a.bin": bytes(range(256)) * 40, "b/c.bin": b"x", "b/d.bin": b"12345"}


def test_shipped_origins_give_what_lies_there(tmp_path: Path) -> None:
    for path, content in OBJECTS.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    check_origin(LocalOrigin, str(tmp_path), OBJECTS)
    memory = fsspec.filesystem("memory")
    for path, content in OBJECTS.items():
        memory.pipe_file(f"/conformance/{path}", content)
    try:
        check_origin(registry().named("iostack_origins")["*"], "memory://conformance", OBJECTS)
    finally:
        memory.rm("/conformance", recursive=True)


@pytest.mark.parametrize(
    ("method", "broken", "said"),
    [
        ("list", lambda right: lambda self: list(reversed(right(self))), "were listed"),
        ("info", lambda right: lambda self, path: right(self, path) or ObjectInfo(path, 0), "not there"),
        ("read", lambda right: lambda self, path, start, stop: right(self, path, start, stop + 1), "bytes 0 to"),
        ("fetch", lambda right: lambda self, path, to: to.write_bytes(b"x"), "other bytes"),
        ("local_path", lambda right: lambda self, path: Path(__file__), "other bytes"),
        ("write", lambda right: lambda self, path, data: right(self, path, data[:5]), "was written"),
    ],
)
def test_a_broken_origin_is_told_what_is_wrong(tmp_path: Path, method: str, broken: Any, said: str) -> None:
    for path, content in OBJECTS.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    origin = type("_Broken", (LocalOrigin,), {method: broken(getattr(LocalOrigin, method))})
    with pytest.raises(AssertionError, match=said):
        check_origin(origin, str(tmp_path), OBJECTS)
