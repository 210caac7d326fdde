"""Packs the sources of the running interpreter's standard library into shards: real text that every machine has."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iostack.errors import CorpusError

NUM_SHARDS = 16
_HELD_OUT_SHARE = 50
"""One file in so many is held out for evaluation."""
_FRAME_BYTES = 1 << 20
_MOST_FILE_BYTES = 1 << 20
"""Larger files are tables in the guise of code."""
_FACTS = "facts.json"


@dataclass(frozen=True)
class PackedCorpus:
    """What was packed. ``byte_frequency_loss`` is the entropy of single bytes, in nats: what a model of them reaches."""

    train: str
    held_out: str
    documents: int
    text_bytes: int
    packed_bytes: int
    byte_frequency_loss: float


def pack_standard_library(folder: Path, progress: Callable[[int, int], None]) -> PackedCorpus:
    """Write ``folder``/train and ``folder``/held-out as multi-frame ``.jsonl.zst`` shards, unless they are there already.

    The folder appears whole or not at all. Each line is ``{"path": ..., "text": ...}``.

    Raises:
        CorpusError: this interpreter carries no sources.
    """
    if not (folder / _FACTS).exists():
        temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            _pack(temporary, progress)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    facts = json.loads((folder / _FACTS).read_text())
    return PackedCorpus(train=str(folder / "train"), held_out=str(folder / "held-out"), **facts)


def _pack(folder: Path, progress: Callable[[int, int], None]) -> None:
    paths = list(_source_files())
    root = Path(sysconfig.get_path("stdlib"))
    if not paths:
        raise CorpusError(f"{root} holds no Python sources", hint="use a Python that was installed with its library")
    for part in ("train", "held-out"):
        (folder / part).mkdir(parents=True)
    train = [_ShardWriter(folder / "train" / f"{number:03d}.jsonl.zst") for number in range(NUM_SHARDS)]
    held_out = _ShardWriter(folder / "held-out" / "000.jsonl.zst")
    counts = np.zeros(256, np.int64)
    documents = 0
    for number, path in enumerate(paths):
        name = path.relative_to(root).as_posix()
        try:
            text = path.read_text("utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        line = json.dumps({"path": name, "text": text}).encode() + b"\n"
        digest = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")
        if digest % _HELD_OUT_SHARE == 0:
            held_out.add(line)
        else:
            train[documents % NUM_SHARDS].add(line)
            counts += np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256)
            documents += 1
        progress(number + 1, len(paths))
    packed_bytes = sum(writer.close() for writer in train)
    held_out.close()
    facts = {
        "documents": documents,
        "text_bytes": int(counts.sum()),
        "packed_bytes": packed_bytes,
        "byte_frequency_loss": _entropy(np.append(counts, documents)),
    }
    (folder / _FACTS).write_text(json.dumps(facts))


def _source_files() -> Iterator[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root).parts
        if (
            not {"site-packages", "dist-packages", "__pycache__"} & set(inside)
            and path.stat().st_size <= _MOST_FILE_BYTES
        ):
            yield path


class _ShardWriter:
    """One ``.jsonl.zst`` file of several frames, so that readers may begin in the middle."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self._file = path.open("wb")
        self._compressor = zstandard.ZstdCompressor(level=6)
        self._lines = bytearray()

    def add(self, line: bytes) -> None:
        self._lines += line
        if len(self._lines) >= _FRAME_BYTES:
            self._end_frame()

    def close(self) -> int:
        """End the last frame; return the bytes of the file."""
        self._end_frame()
        size = self._file.tell()
        self._file.close()
        return size

    def _end_frame(self) -> None:
        if self._lines:
            self._file.write(self._compressor.compress(bytes(self._lines)))
            self._lines.clear()


def _entropy(counts: NDArray[np.int64]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
