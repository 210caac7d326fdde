"""Every way of reading the data that is compared: each is a generator of how many samples (or tokens) a batch held.

Peers are used as their manuals say, with their own shuffling, at their fastest setting that was found; the batch is made of
torch tensors or lists of bytes as each of them makes it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.data import SEQ_LEN

BATCH_SIZE, BLOCK = 8, 64
IMAGE_BATCH = 32
Contender = Callable[[Path], Iterator[int]]


def tokens_bare_gather(folder: Path) -> Iterator[int]:
    maps = [
        np.memmap(path, np.uint16, mode="r").view(np.ndarray) for path in sorted((folder / "megatron").glob("*.bin"))
    ]
    draw, width, count = np.random.default_rng(0), SEQ_LEN + 1, BLOCK * BATCH_SIZE
    while True:
        shards = draw.integers(0, len(maps), count).tolist()
        starts = draw.integers(0, len(maps[0]) - width, count).tolist()
        block = np.empty((count, width), np.int64)
        for row, shard, start in zip(block, shards, starts, strict=True):
            row[:] = maps[shard][start : start + width]
        for batch in block.reshape(BLOCK, BATCH_SIZE, width):
            batch[0, 0]
            yield BATCH_SIZE * SEQ_LEN


def tokens_iostack(folder: Path) -> Iterator[int]:
    import iostack

    for batch in iostack.Loader(iostack.open_corpus(folder / "megatron"), batch_size=BATCH_SIZE, seq_len=SEQ_LEN):
        batch["tokens"][0, 0]
        yield BATCH_SIZE * SEQ_LEN


def tokens_torch(folder: Path, workers: int = 0) -> Iterator[int]:
    from torch.utils.data import DataLoader

    dataset = _Windows(folder)
    while True:
        for batch in DataLoader(
            dataset,
            BATCH_SIZE,
            sampler=_Endless(len(dataset)),
            num_workers=workers,
            prefetch_factor=8 if workers else None,
        ):
            batch[0, 0]
            yield BATCH_SIZE * SEQ_LEN


def tokens_torch_workers(folder: Path) -> Iterator[int]:
    return tokens_torch(folder, 2)


class _Windows:
    def __init__(self, folder: Path) -> None:
        self.maps = [np.memmap(path, np.uint16, mode="r") for path in sorted((folder / "megatron").glob("*.bin"))]
        self.per_shard = (len(self.maps[0]) - 1) // SEQ_LEN

    def __len__(self) -> int:
        return self.per_shard * len(self.maps)

    def __getitem__(self, index: int) -> Any:
        import torch

        shard, row = divmod(int(index), self.per_shard)
        return torch.from_numpy(self.maps[shard][row * SEQ_LEN : (row + 1) * SEQ_LEN + 1].astype(np.int64))


class _Endless:
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return 1 << 40

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from np.random.default_rng(0).permutation(self.length).tolist()


def tokens_litdata(folder: Path, workers: int = 0) -> Iterator[int]:
    import litdata

    while True:
        dataset = litdata.StreamingDataset(
            str(folder / "litdata"),
            item_loader=litdata.TokensLoader(block_size=SEQ_LEN + 1),
            shuffle=True,
            drop_last=True,
        )
        for batch in litdata.StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers):
            batch[0, 0]
            yield BATCH_SIZE * SEQ_LEN


def tokens_litdata_workers(folder: Path) -> Iterator[int]:
    return tokens_litdata(folder, 2)


def tokens_mosaic(folder: Path, workers: int = 0) -> Iterator[int]:
    from benchmarks.peers.stubs import import_streaming

    streaming = import_streaming()
    streaming.base.util.clean_stale_shared_memory()
    dataset = streaming.StreamingDataset(
        local=str(folder / "mds"), shuffle=True, batch_size=BATCH_SIZE, num_canonical_nodes=1
    )
    while True:
        for batch in streaming.StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers):
            batch["tokens"][0, 0]
            yield BATCH_SIZE * SEQ_LEN


def tokens_webdataset(folder: Path) -> Iterator[int]:
    import torch
    import webdataset

    dataset = (
        webdataset.WebDataset(_tars(folder), shardshuffle=100, empty_check=False)
        .shuffle(1000)
        .map(lambda sample: torch.from_numpy(np.frombuffer(sample["npy"], np.uint16).astype(np.int64)))
    )
    while True:
        for batch in webdataset.WebLoader(dataset, batch_size=BATCH_SIZE, num_workers=0):
            batch[0, 0]
            yield BATCH_SIZE * SEQ_LEN


def tokens_datasets(folder: Path) -> Iterator[int]:
    import datasets
    from torch.utils.data import DataLoader

    dataset = datasets.load_from_disk(str(folder / "datasets")).with_format("torch")
    while True:
        for batch in DataLoader(dataset, BATCH_SIZE, shuffle=True):
            batch["tokens"][0, 0]
            yield BATCH_SIZE * SEQ_LEN


def tokens_grain(folder: Path) -> Iterator[int]:
    import grain

    dataset = grain.MapDataset.source(_NumpyWindows(folder)).shuffle(seed=0).repeat().batch(BATCH_SIZE)
    for batch in dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=16)):
        batch[0, 0]
        yield BATCH_SIZE * SEQ_LEN


class _NumpyWindows(_Windows):
    def __getitem__(self, index: int) -> Any:
        shard, row = divmod(int(index), self.per_shard)
        return self.maps[shard][row * SEQ_LEN : (row + 1) * SEQ_LEN + 1].astype(np.int64)


def images_iostack(folder: Path, **options: Any) -> Iterator[int]:
    import iostack

    for batch in iostack.Loader(iostack.open_corpus(folder / "tar"), batch_size=IMAGE_BATCH, threads=2, **options):
        yield len(batch["sample_ids"])


def images_litdata(folder: Path, workers: int = 0) -> Iterator[int]:
    import litdata

    while True:
        dataset = litdata.StreamingDataset(str(folder / "litdata"), shuffle=True)
        for batch in litdata.StreamingDataLoader(dataset, batch_size=IMAGE_BATCH, num_workers=workers, collate_fn=list):
            yield len(batch)


def images_litdata_workers(folder: Path) -> Iterator[int]:
    return images_litdata(folder, workers=2)


def images_webdataset(folder: Path) -> Iterator[int]:
    import webdataset

    dataset = webdataset.WebDataset(_tars(folder), shardshuffle=100, empty_check=False).shuffle(1000)
    while True:
        for batch in webdataset.WebLoader(dataset, batch_size=IMAGE_BATCH, num_workers=0, collate_fn=list):
            yield len(batch)


def images_mosaic(folder: Path) -> Iterator[int]:
    from torch.utils.data import DataLoader

    from benchmarks.peers.stubs import import_streaming

    streaming = import_streaming()
    streaming.base.util.clean_stale_shared_memory()
    dataset = streaming.StreamingDataset(
        local=str(folder / "mds"), shuffle=True, batch_size=IMAGE_BATCH, num_canonical_nodes=1
    )
    while True:
        for batch in DataLoader(dataset, batch_size=IMAGE_BATCH, collate_fn=list):
            yield len(batch)


def images_spdl(folder: Path) -> Iterator[int]:
    from spdl.pipeline import PipelineBuilder

    pipeline = (
        PipelineBuilder().add_source(_shuffled_jpegs(folder)).aggregate(IMAGE_BATCH).add_sink(8).build(num_threads=2)
    )
    with pipeline.auto_stop():
        for batch in pipeline:
            yield len(batch)


def _shuffled_jpegs(folder: Path) -> Iterator[bytes]:
    import mmap

    maps = []
    places = []
    for number, path in enumerate(sorted((folder / "tar").glob("*.tar"))):
        import tarfile

        with tarfile.open(path) as archive:
            places += [(number, member.offset_data, member.size) for member in archive if member.name.endswith(".jpg")]
        with path.open("rb") as file:
            maps.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    while True:
        random.shuffle(places)
        for shard, offset, size in places:
            yield maps[shard][offset : offset + size]


def decoded_bare(folder: Path) -> Iterator[int]:
    """Two threads that decode the same bytes over and over, without any loader."""
    import simplejpeg

    jpegs = [data for _, data in zip(range(256), _shuffled_jpegs(folder))]

    def decode(part: list[bytes]) -> int:
        for data in part:
            simplejpeg.decode_jpeg(data)
        return len(part)

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        while True:
            yield from pool.map(decode, [jpegs[start : start + IMAGE_BATCH] for start in range(0, 256, IMAGE_BATCH)])


def decoded_iostack(folder: Path) -> Iterator[int]:
    return images_iostack(folder, transforms=[{"name": "image"}, {"name": "keep", "columns": ["image"]}])


def decoded_spdl(folder: Path) -> Iterator[int]:
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    def decode(data: bytes) -> Any:
        packets = spdl.io.demux_image(data)
        return spdl.io.decode_packets(packets, filter_desc=spdl.io.get_filter_desc(packets, pix_fmt="rgb24"))

    pipeline = (
        PipelineBuilder()
        .add_source(_shuffled_jpegs(folder))
        .pipe(decode, concurrency=2)
        .aggregate(IMAGE_BATCH)
        .pipe(lambda frames: spdl.io.to_numpy(spdl.io.convert_frames(frames)))
        .add_sink(4)
        .build(num_threads=3)
    )
    with pipeline.auto_stop():
        for batch in pipeline:
            yield len(batch)


def _decode_pillow(data: bytes) -> Any:
    import io

    import torch
    from PIL import Image

    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB")))


def _collate_pillow(samples: list[Any]) -> Any:
    import torch

    return torch.stack([_decode_pillow(sample["jpg"]) for sample in samples])


def decoded_litdata(folder: Path) -> Iterator[int]:
    import litdata

    while True:
        dataset = litdata.StreamingDataset(str(folder / "litdata"), shuffle=True)
        yield from map(
            len, litdata.StreamingDataLoader(dataset, batch_size=IMAGE_BATCH, num_workers=2, collate_fn=_collate_pillow)
        )


def decoded_webdataset(folder: Path) -> Iterator[int]:
    import webdataset

    dataset = webdataset.WebDataset(_tars(folder), shardshuffle=100, empty_check=False).shuffle(1000)
    while True:
        yield from map(
            len, webdataset.WebLoader(dataset, batch_size=IMAGE_BATCH, num_workers=2, collate_fn=_collate_pillow)
        )


def decoded_mosaic(folder: Path) -> Iterator[int]:
    from torch.utils.data import DataLoader

    from benchmarks.peers.stubs import import_streaming

    streaming = import_streaming()
    streaming.base.util.clean_stale_shared_memory()
    dataset = streaming.StreamingDataset(
        local=str(folder / "mds"), shuffle=True, batch_size=IMAGE_BATCH, num_canonical_nodes=1
    )
    while True:
        yield from map(len, DataLoader(dataset, batch_size=IMAGE_BATCH, num_workers=2, collate_fn=_collate_pillow))


def texts_iostack(folder: Path) -> Iterator[int]:
    import iostack
    from iostack.corpus.index import build_manifest

    build_manifest(folder)
    for batch in iostack.Loader(iostack.open_corpus(folder), batch_size=256, threads=2):
        yield len(batch["text"])


def texts_datasets(folder: Path, shuffled: bool = False) -> Iterator[int]:
    import datasets

    files = [str(path) for path in sorted(folder.glob("*.jsonl.zst"))]
    dataset = datasets.load_dataset("json", data_files=files, split="train", streaming=True)
    if shuffled:
        dataset = dataset.shuffle(seed=0, buffer_size=1000)
    while True:
        for batch in dataset.iter(batch_size=256):
            yield len(batch["text"])


def texts_datasets_shuffled(folder: Path) -> Iterator[int]:
    return texts_datasets(folder, shuffled=True)


def texts_datasets_by_example(folder: Path) -> Iterator[int]:
    """As a DataLoader takes them."""
    import datasets
    from torch.utils.data import DataLoader

    files = [str(path) for path in sorted(folder.glob("*.jsonl.zst"))]
    dataset = datasets.load_dataset("json", data_files=files, split="train", streaming=True)
    while True:
        for batch in DataLoader(dataset.shuffle(seed=0, buffer_size=10_000), batch_size=256, collate_fn=list):
            yield len(batch)


def texts_bare(folder: Path) -> Iterator[int]:
    """Decompress and parse line by line, not shuffled."""
    import io
    import json

    import zstandard

    while True:
        for path in sorted(folder.glob("*.jsonl.zst")):
            with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
                batch = []
                for line in io.TextIOWrapper(stream, "utf-8"):
                    batch.append(json.loads(line))
                    if len(batch) == 256:
                        yield len(batch)
                        batch = []


def _tars(folder: Path) -> list[str]:
    return [str(path) for path in sorted((folder / "tar").glob("*.tar"))]


CONTENDERS: dict[str, dict[str, Contender]] = {
    "tokens": {
        "bare gather": tokens_bare_gather,
        "iostack": tokens_iostack,
        "torch DataLoader": tokens_torch,
        "torch DataLoader, 2 workers": tokens_torch_workers,
        "litdata": tokens_litdata,
        "litdata, 2 workers": tokens_litdata_workers,
        "mosaicml-streaming": tokens_mosaic,
        "webdataset": tokens_webdataset,
        "datasets": tokens_datasets,
        "grain": tokens_grain,
    },
    "images": {
        "iostack": images_iostack,
        "litdata": images_litdata,
        "litdata, 2 workers": images_litdata_workers,
        "webdataset": images_webdataset,
        "mosaicml-streaming": images_mosaic,
        "spdl-core": images_spdl,
    },
    "decoded": {
        "bare decoding": decoded_bare,
        "iostack": decoded_iostack,
        "spdl-core": decoded_spdl,
        "litdata, 2 workers": decoded_litdata,
        "webdataset, 2 workers": decoded_webdataset,
        "mosaicml-streaming, 2 workers": decoded_mosaic,
    },
    "texts": {
        "bare json": texts_bare,
        "iostack": texts_iostack,
        "datasets, not shuffled": texts_datasets,
        "datasets, shuffled by 1,000": texts_datasets_shuffled,
        "datasets in a DataLoader, shuffled by 10,000": texts_datasets_by_example,
    },
}
"""Work -> contender -> its generator; the first named is the reference."""
UNITS = {"tokens": ("Mtok/s", 1e6), "images": ("samples/s", 1), "decoded": ("images/s", 1), "texts": ("documents/s", 1)}
DATA = {"tokens": "tokens", "images": "images", "decoded": "images", "texts": "texts"}
