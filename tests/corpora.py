"""Writers of corpora for tests: each writes the format from its specification, apart from the code under test."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEGATRON_CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float64": 6, "float32": 7, "uint16": 8}


def write_jsonl(path: Path, samples: Sequence[Any]) -> Path:
    """Write one JSON value per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path


def texts(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Return samples with a text of varying length and a number."""
    return [{"text": f"line {i} " + "x" * (i % 37), "n": i} for i in range(start, start + count)]


def write_tokens(
    stem: Path,
    documents: Sequence[Sequence[Sequence[int]]],
    dtype: str = "uint16",
    *,
    with_modes: bool = False,
    marks: Sequence[int] | None = None,
) -> tuple[Path, Path]:
    """Write a Megatron pair: each document is a list of sequences of token ids."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    sequences = [sequence for document in documents for sequence in document]
    if marks is None:
        marks = [0]
        for document in documents:
            marks = [*marks, marks[-1] + len(document)]
    itemsize = np.dtype(dtype).itemsize
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, MEGATRON_CODES[dtype], len(sequences), len(marks))
    index += b"".join(struct.pack("<i", len(sequence)) for sequence in sequences)
    at = 0
    for sequence in sequences:
        index += struct.pack("<q", at)
        at += len(sequence) * itemsize
    index += b"".join(struct.pack("<q", mark) for mark in marks)
    if with_modes:
        index += bytes(len(sequences))
    files = stem.with_suffix(".bin"), stem.with_suffix(".idx")
    files[0].write_bytes(b"".join(np.asarray(sequence, dtype).tobytes() for sequence in sequences))
    files[1].write_bytes(index)
    return files


def documents(count: int, seed: int = 0, top: int = 100) -> list[list[list[int]]]:
    """Return documents of one sequence each, of uneven lengths, some of them empty."""
    random = np.random.default_rng(seed)
    return [[random.integers(0, top, random.integers(0, 30)).tolist()] for _ in range(count)]


def flat(documents: Sequence[Sequence[Sequence[int]]]) -> NDArray[np.int64]:
    """Return all tokens of documents, one after the other."""
    return np.array([token for document in documents for sequence in document for token in sequence], np.int64)


def write_tar(path: Path, files: Sequence[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    """Write a tar archive with Python's ``tarfile``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def images(count: int, start: int = 0) -> list[tuple[str, bytes]]:
    """Return members of ``count`` samples, each with the columns jpg and json."""
    return [
        member
        for i in range(start, start + count)
        for member in ((f"k{i:05}.jpg", bytes([i % 256]) * (i % 700)), (f"k{i:05}.json", json.dumps({"i": i}).encode()))
    ]


def grouped(files: Sequence[tuple[str, bytes]]) -> list[Mapping[str, Any]]:
    """Return the samples that ``images`` makes."""
    samples: dict[str, dict[str, Any]] = {}
    for name, data in files:
        key, extension = name.split(".", 1)
        samples.setdefault(key, {"__key__": key})[extension] = data
    return list(samples.values())


def write_mds(folder: Path, samples: Sequence[tuple[int, str]], *, per_shard: int) -> Path:
    """Write MosaicML shards with the columns ``number`` (int) and ``text`` (str)."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"column_names": ["number", "text"], "column_encodings": ["int", "str"], "column_sizes": [8, None]}
    shards = []
    for start in range(0, len(samples), per_shard):
        rows = [
            struct.pack("<Iq", len(text.encode()), number) + text.encode()
            for number, text in samples[start : start + per_shard]
        ]
        data = offset_table(rows)
        raw = {"basename": f"shard.{start // per_shard:05}.mds", "bytes": len(data), "hashes": {}}
        (folder / raw["basename"]).write_bytes(data)
        shards.append(
            {"format": "mds", "version": 2, "samples": len(rows), "raw_data": raw, "zip_data": None, **columns}
        )
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return folder


def write_litdata_tokens(folder: Path, chunks: Sequence[Sequence[Sequence[int]]]) -> Path:
    """Write litData chunks of the TokensLoader: each holds documents of token ids, as uint16."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, documents in enumerate(chunks):
        data = offset_table([np.asarray(document, "<u2").tobytes() for document in documents])
        name, tokens = f"chunk-0-{number}.bin", sum(map(len, documents))
        (folder / name).write_bytes(data)
        entries.append({"filename": name, "chunk_bytes": len(data), "chunk_size": len(documents), "dim": tokens})
    config = {"item_loader": "TokensLoader", "data_format": ["no_header_numpy:5"], "data_spec": None}
    (folder / "index.json").write_text(json.dumps({"chunks": entries, "config": config}))
    return folder


def offset_table(rows: Sequence[bytes]) -> bytes:
    """Return u32 number of rows, u32 where each begins and the end, and the rows: MosaicML and litData share it."""
    ends = np.cumsum([4 * (len(rows) + 2), *map(len, rows)]).astype("<u4")
    return struct.pack("<I", len(rows)) + ends.tobytes() + b"".join(rows)
