"""The data of a run as ``iostack plan`` asks for it: from a settings file, or from the folder of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iostack.preview.contracts import PlannedRun
from iostack.sizes import parse_bytes
from trainer.checkpoint import Checkpointer
from trainer.saving import RunState
from trainer.settings import Settings, resolve_settings
from trainer.setup import open_sources


def read_run(path: Path, uri: str) -> PlannedRun | None:
    """Return the data of a run, with the lanes of its last checkpoint; None if this is neither a folder nor a file of ours."""
    file = path / "settings.toml" if path.is_dir() else path
    if file.suffix != ".toml" or (path.is_dir() and not file.is_file()):
        return None
    settings, _ = resolve_settings(file=file, uri=uri)
    data = settings.data
    metrics = path / "metrics.jsonl"
    arguments: dict[str, Any] = {
        "seed": data.seed,
        "lanes": _lanes(settings, path),
        "seq_len": data.seq_len,
        "packing": data.packing,
        "window_bytes": parse_bytes(data.window),
        "tokenizer": data.tokenizer,
        "text_column": data.text_column,
        "transforms": data.transforms,
        "filters": data.filters,
        "phases": [phase.model_dump() for phase in data.phases],
        "skip": data.skip or (),
    }
    return PlannedRun(open_sources(data), data.batch_size, arguments, metrics if metrics.is_file() else None)


def _lanes(settings: Settings, path: Path) -> int | None:
    """Return the lanes that are set, or those of the last checkpoint; None where a new run would choose them."""
    if settings.data.lanes != "auto":
        return settings.data.lanes
    uri = settings.checkpoint.uri or (str(path / "checkpoints") if (path / "checkpoints").is_dir() else "")
    if not path.is_dir() or not uri:
        return None
    saved = Checkpointer(uri, storage_options=settings.checkpoint.storage_options).latest()
    return None if saved is None else int(RunState.from_json(saved.state).loader["plan"]["lanes"])
