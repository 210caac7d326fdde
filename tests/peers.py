"""Writers and readers of other loaders, as oracles of ours. Tests that need one skip where it is not installed."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

# What mosaicml-streaming imports from them at its top: to install them would bring CUDA libraries along.
_STANDING_IN: dict[str, dict[str, Any]] = {
    "transformers": {},
    "transformers.feature_extraction_utils": {"BatchFeature": dict},
    "transformers.tokenization_utils_base": {"BatchEncoding": dict},
    "transformers.models": {},
    "transformers.models.auto": {},
    "transformers.models.auto.tokenization_auto": {"AutoTokenizer": object},
    "torchvision": {},
    "torchvision.datasets": {"VisionDataset": object},
    "torchvision.transforms": {},
    "torchvision.transforms.functional": {"to_tensor": None},
}


def streaming() -> Any:
    """Return mosaicml-streaming; what it imports and is not there is stood in for meanwhile."""
    packages = {name.partition(".")[0] for name in _STANDING_IN}
    missing = {name for name in packages if importlib.util.find_spec(name) is None}
    made = [name for name in _STANDING_IN if name.partition(".")[0] in missing]
    for name in made:
        module = types.ModuleType(name)
        module.__dict__.update(_STANDING_IN[name], __path__=[], __spec__=ModuleSpec(name, None))
        sys.modules[name] = module
    try:
        return pytest.importorskip("streaming", exc_type=ImportError)
    finally:
        for name in made:
            del sys.modules[name]


def mosaic_samples(folder: Path, index: str = "") -> list[dict[str, Any]]:
    """Return all samples of a folder of MDS shards as MosaicML's own shard readers give them."""
    streaming()
    from streaming.base.compression import decompress
    from streaming.base.format import reader_from_json

    found = []
    described = json.loads((folder / index / "index.json").read_text())
    for entry in described["shards"]:
        reader = reader_from_json(str(folder), index, entry)
        raw = folder / index / entry["raw_data"]["basename"]
        made = not raw.exists()
        if made:
            packed = folder / index / entry["zip_data"]["basename"]
            raw.write_bytes(decompress(entry["compression"], packed.read_bytes()))
        found += [reader[row] for row in range(len(reader))]
        if made:
            raw.unlink()
    return found


def litdata() -> Any:
    """Return litData."""
    return pytest.importorskip("litdata", exc_type=ImportError)


def write_litdata(folder: Path, items: list[Any], **settings: Any) -> Path:
    """Write items with litData's own writer, in one process."""
    litdata()
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir(parents=True)
    writer = BinaryWriter(str(folder), **{"chunk_bytes": 3000} | settings)
    for number, item in enumerate(items):
        writer[number] = item
    writer.done()
    writer.merge()
    return folder
