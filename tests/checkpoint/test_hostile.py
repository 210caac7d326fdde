"""A checkpoint that was made to harm gives a CheckpointError, whatever it says and however well it is sealed."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iostack.errors import CheckpointError
from trainer.checkpoint import Checkpointer
from trainer.checkpoint import documents as documents_module
from trainer.checkpoint.documents import digest

MANIFEST = "manifests/1.1.json"
RANK = "steps/1.1-0/rank-00000.json"
INDEX = "steps/1.1-0/index.json.zst"
DATA = "steps/1.1-0/rank-00000-000.safetensors"

hostile_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, -1, 2**31, 2**62, 2**63, 1 << 40]),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(
        ["../../../etc/passwd", "/etc/passwd", "rank-99999-000.safetensors", "F32", "rank-00000-001.safetensors"]
    ),
    st.lists(st.integers(0, 2**63), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def tensors() -> dict[str, torch.Tensor]:
    return {"a": torch.zeros(4, 5), "b": torch.zeros(3, dtype=torch.float64), "c": torch.zeros((), dtype=torch.int64)}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "checkpoints"
    checkpoints = Checkpointer(str(folder))
    checkpoints.begin({})
    checkpoints.save(1, tensors(), {"position": 1}, settings={"dim": 1}, rank_state={"rng": 1})
    return folder


@pytest.fixture(scope="module")
def folder(original: Path) -> Path:
    return Path(shutil.copytree(original, original.with_name("hostile")))


def read(folder: Path) -> dict[str, Any]:
    """Return the three documents of the step."""
    index = zstandard.ZstdDecompressor().decompress((folder / INDEX).read_bytes())
    return {
        MANIFEST: json.loads((folder / MANIFEST).read_bytes()),
        RANK: json.loads((folder / RANK).read_bytes()),
        INDEX: json.loads(index),
    }


def write(folder: Path, documents: dict[str, Any]) -> None:
    """Write documents with every digest and size as it should be, as somebody who knows the format would."""
    index = zstandard.ZstdCompressor().compress(json.dumps(documents[INDEX]).encode())
    rank = sealed(documents[RANK])
    manifest = documents[MANIFEST]
    if isinstance(manifest, dict):
        manifest |= {"index_bytes": len(index), "index_digest": digest(index), "rank_digests": [digest(rank)]}
        if isinstance(manifest.get("ranks"), dict):
            manifest["ranks"]["bytes"] = [len(rank)]
    (folder / INDEX).write_bytes(index)
    (folder / RANK).write_bytes(rank)
    (folder / MANIFEST).write_bytes(sealed(manifest))


def sealed(document: Any) -> bytes:
    if not isinstance(document, dict):
        return json.dumps(document).encode()
    body = json.dumps({key: value for key, value in document.items() if key != "digest"}).encode()
    return b'{"digest":"' + digest(body).encode() + b'",' + body[1:]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Give the path of every value inside a JSON document."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from places(item, (*path, number))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = replaced(value[path[0]], path[1:], new)
    return value


def load(folder: Path) -> None:
    """Load the step, or be told with a CheckpointError why not; anything else fails the test."""
    try:
        restored = Checkpointer(str(folder)).load(tensors())
    except CheckpointError:
        return
    assert restored is not None


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_any_place_of_a_sealed_document(original: Path, folder: Path, data: st.DataObject) -> None:
    documents = read(original)
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from([MANIFEST, RANK, INDEX]))
        path = data.draw(st.sampled_from(sorted(places(documents[name]), key=repr)))
        documents[name] = replaced(documents[name], path, data.draw(hostile_values))
    write(folder, documents)
    load(folder)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), name=st.sampled_from([MANIFEST, RANK, INDEX, DATA]))
def test_any_bytes_in_any_file(
    original: Path, tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    folder = Path(shutil.copytree(original, tmp_path_factory.mktemp("bytes") / "copy"))
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError):
        Checkpointer(str(folder)).load(tensors())
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        (MANIFEST, ("files", "names", 0), "../../../etc/passwd", "names files that no rank writes"),
        (MANIFEST, ("files", "names", 0), "rank-00007-000.safetensors", "is missing"),
        (MANIFEST, ("world",), 2, "lists 1 ranks of 2"),
        (MANIFEST, ("world",), 2**40, "world"),
        (MANIFEST, ("step",), 9, "is the manifest of step 9.1"),
        (MANIFEST, ("parent",), {"step": 2, "generation": 1}, "names a parent that comes after it"),
        (MANIFEST, ("format",), "other", "format"),
        (MANIFEST, ("version",), 2, "version"),
        (RANK, ("crc32", 0), [], "does not describe"),
        (RANK, ("crc32", 0, 0), 1, "is damaged: the crc32 of block 0"),
        (RANK, ("files", "bytes", 0), 2**60, "does not describe"),
        (INDEX, ("tensors", "shapes", 0), [2**40, 2**40], "index is wrong|incomplete"),
        (INDEX, ("tensors", "dtypes", 0), "F999", "there is no dtype 'F999'"),
        (INDEX, ("tensors", "names", 0), "b", "columns of different lengths"),
        (INDEX, ("pieces", "begin", 0), 2**61, "ends outside of its file"),
        (INDEX, ("pieces", "begin", 0), 1, "not aligned"),
        (INDEX, ("pieces", "file", 0), 5, "ends outside of its file"),
        (INDEX, ("pieces", "tensor", 0), 77, "belongs to tensor 77 of 3"),
        (INDEX, ("pieces", "sizes"), [4, 5], "lies outside of it"),
        (INDEX, ("pieces", "offsets"), [1, 0, 0], "lies outside of it"),
        (INDEX, ("pieces", "sizes", 0), 2, "is incomplete: 10 of its 20 elements"),
        (INDEX, ("pieces", "offsets"), [0, 0, 0, 1, 1, 1], "do not belong to its pieces"),
    ],
)
def test_what_is_wrong_is_named(
    original: Path, folder: Path, name: str, path: tuple[Any, ...], value: Any, message: str
) -> None:
    documents = read(original)
    documents[name] = replaced(documents[name], path, value)
    write(folder, documents)
    with pytest.raises(CheckpointError, match=message):
        Checkpointer(str(folder)).load(tensors())


def test_pieces_that_overlap_are_refused(original: Path, folder: Path) -> None:
    documents = read(original)
    documents[INDEX]["pieces"] = {
        "tensor": [0, 0, 1, 2],
        "file": [0, 0, 0, 0],
        "begin": [documents[INDEX]["pieces"]["begin"][row] for row in (0, 0, 1, 2)],
        "offsets": [0, 0, 1, 0, 0],
        "sizes": [2, 5, 2, 5, 3],
    }
    write(folder, documents)
    with pytest.raises(CheckpointError, match="pieces of a overlap"):
        Checkpointer(str(folder)).load(tensors())


def test_an_index_that_grows_without_end_is_stopped(
    original: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = read(original)
    documents[INDEX]["tensors"]["names"] += ["x" * 10_000_000]
    write(folder, documents)
    assert (folder / INDEX).stat().st_size < 10_000
    monkeypatch.setattr(documents_module, "MAX_DOCUMENT_BYTES", 1_000_000)
    with pytest.raises(CheckpointError, match="decompresses to more than 1000000 bytes"):
        Checkpointer(str(folder)).load(tensors())


def test_a_deeply_nested_document_is_refused(original: Path, folder: Path) -> None:
    write(folder, read(original))
    body = b'{"state":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    (folder / MANIFEST).write_bytes(b'{"digest":"' + digest(body).encode() + b'",' + body[1:])
    with pytest.raises(CheckpointError, match="recursion limit"):
        Checkpointer(str(folder)).load(tensors())
