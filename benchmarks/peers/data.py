"""The data of the comparisons, written once per folder: each peer gets the same samples in the format it reads best."""

from __future__ import annotations

import io
import json
import struct
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SEQ_LEN = 2048
NUM_SHARDS, TOKENS_PER_SHARD = 16, 8_000_000
NUM_IMAGES, IMAGES_PER_TAR = 8_000, 1_000
TEXT_BYTES = 100_000_000


def write_tokens(folder: Path) -> None:
    """Write Megatron pairs of uint16 (for us, torch, Grain), litData token chunks, MDS, tars and an Arrow dataset of windows."""
    import datasets
    import litdata
    import webdataset

    from benchmarks.peers.stubs import import_streaming

    shards = [
        np.random.default_rng(shard).integers(0, 50_000, TOKENS_PER_SHARD, dtype=np.uint16)
        for shard in range(NUM_SHARDS)
    ]
    (folder / "megatron").mkdir(parents=True)
    for shard, tokens in enumerate(shards):
        tokens.tofile(folder / "megatron" / f"{shard:03d}.bin")
        header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 1, 2)
        index = np.asarray([len(tokens)], np.int32).tobytes() + np.zeros(1, np.int64).tobytes()
        (folder / "megatron" / f"{shard:03d}.idx").write_bytes(header + index + np.asarray([0, 1], np.int64).tobytes())
    windows = [shard[: len(shard) // SEQ_LEN * SEQ_LEN].reshape(-1, SEQ_LEN) for shard in shards]
    (folder / "tar").mkdir()
    with webdataset.ShardWriter(str(folder / "tar" / "%05d.tar"), maxcount=4000, verbose=0) as tars:
        for shard, window in enumerate(windows):
            for number, row in enumerate(window):
                tars.write({"__key__": f"{shard:03d}{number:06d}", "npy": row.tobytes()})
    columns = {"tokens": [row for window in windows for row in window]}
    datasets.Dataset.from_dict(columns).save_to_disk(str(folder / "datasets"))
    litdata.optimize(
        fn=_shard_tokens,
        inputs=[str(path) for path in sorted((folder / "megatron").glob("*.bin"))],
        output_dir=str(folder / "litdata"),
        chunk_size=(SEQ_LEN + 1) * 2000,
        item_loader=litdata.TokensLoader(),
        num_workers=1,
    )
    streaming = import_streaming()  # last: its stubs confuse datasets
    with streaming.MDSWriter(out=str(folder / "mds"), columns={"tokens": f"ndarray:uint16:{SEQ_LEN}"}) as mds:
        for window in windows:
            for row in window:
                mds.write({"tokens": row})


def _shard_tokens(path: str) -> Iterator[Any]:
    import torch

    tokens = np.fromfile(path, np.uint16)
    for start in range(0, len(tokens) - 100_000, 100_000):
        yield torch.from_numpy(tokens[start : start + 100_000].astype(np.int32))


def write_images(folder: Path) -> None:
    """Write JPEGs of some 70 KB with a JSON each: as tars, MDS and litData."""
    import litdata

    from benchmarks.peers.stubs import import_streaming

    streaming = import_streaming()
    jpegs = make_jpegs(64)
    (folder / "tar").mkdir(parents=True)
    samples = [
        (jpegs[number * 7 % len(jpegs)], {"label": number % 1000, "number": number}) for number in range(NUM_IMAGES)
    ]
    for first in range(0, NUM_IMAGES, IMAGES_PER_TAR):
        with tarfile.open(folder / "tar" / f"{first // IMAGES_PER_TAR:05d}.tar", "w") as archive:
            for number in range(first, first + IMAGES_PER_TAR):
                jpeg, label = samples[number]
                for suffix, data in (("jpg", jpeg), ("json", json.dumps(label).encode())):
                    member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    with streaming.MDSWriter(out=str(folder / "mds"), columns={"jpg": "bytes", "json": "json"}) as mds:
        for jpeg, label in samples:
            mds.write({"jpg": jpeg, "json": label})
    litdata.optimize(
        fn=_litdata_image(jpegs),
        inputs=list(range(NUM_IMAGES)),
        output_dir=str(folder / "litdata"),
        chunk_bytes="64MB",
        num_workers=1,
    )


class _litdata_image:
    def __init__(self, jpegs: list[bytes]) -> None:
        self.jpegs = jpegs

    def __call__(self, number: int) -> dict[str, Any]:
        return {"jpg": self.jpegs[number * 7 % len(self.jpegs)], "label": number % 1000, "number": number}


def make_jpegs(count: int) -> list[bytes]:
    """Return JPEGs of 500 x 400 pixels and some 70 KB: smooth colours with the grain of a photograph."""
    from PIL import Image

    random = np.random.default_rng(0)
    jpegs = []
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (500, 400), Image.Resampling.BICUBIC
        )
        pixels = np.clip(np.asarray(coarse) + random.normal(0, 11, (400, 500, 3)), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=89)
        jpegs.append(file.getvalue())
    return jpegs


def write_texts(folder: Path) -> None:
    """Write documents cut from the sources of the standard library as .jsonl.zst in 8 shards."""
    import zstandard

    folder.mkdir(parents=True)
    documents = list(make_documents(TEXT_BYTES))
    per_shard = -(-len(documents) // 8)
    for shard in range(8):
        lines = "".join(
            json.dumps({"id": number, "text": text}) + "\n"
            for number, text in enumerate(documents[shard * per_shard : (shard + 1) * per_shard], shard * per_shard)
        )
        (folder / f"{shard:03d}.jsonl.zst").write_bytes(zstandard.compress(lines.encode(), 3))


def make_documents(total_bytes: int) -> Iterator[str]:
    """Yield documents of 0.5 to 8 KB of real text until ``total_bytes`` are out."""
    random = np.random.default_rng(0)
    library = Path(json.__file__).parent.parent
    texts = [path.read_text("utf-8", "replace") for path in sorted(library.glob("*.py"))]
    given = 0
    while given < total_bytes:
        text = texts[int(random.integers(len(texts)))]
        size = int(min(8000, 500 + random.exponential(1500)))
        start = int(random.integers(max(1, len(text) - size)))
        yield text[start : start + size]
        given += size


WRITERS = {"tokens": write_tokens, "images": write_images, "texts": write_texts}

if __name__ == "__main__":
    WRITERS[sys.argv[1]](Path(sys.argv[2]))
