"""Import mosaicml-streaming where torchvision or transformers, which it imports but does not need here, are not installed."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

_NAMES = {
    "torchvision.transforms.functional": ["to_tensor"],
    "torchvision.datasets": ["VisionDataset", "CIFAR10"],
    "transformers.models.auto.tokenization_auto": ["AutoTokenizer"],
    "transformers.feature_extraction_utils": ["BatchFeature"],
    "transformers.tokenization_utils_base": ["BatchEncoding"],
    "transformers": ["AutoTokenizer", "BatchEncoding", "BatchFeature"],
}


def import_streaming() -> Any:
    """Return the module ``streaming``."""
    for name, attributes in _NAMES.items():
        if importlib.util.find_spec(name.partition(".")[0]) is not None and name.partition(".")[0] not in _stubbed:
            continue
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            module = ".".join(parts[:depth])
            if module not in sys.modules:
                _stubbed.add(module)
                sys.modules[module] = types.ModuleType(module)
                sys.modules[module].__path__ = []  # type: ignore[attr-defined]
                sys.modules[module].__spec__ = importlib.util.spec_from_loader(module, None)
        for attribute in attributes:
            setattr(sys.modules[name], attribute, type(attribute, (), {}))
    import streaming

    return streaming


_stubbed: set[str] = set()
