"""What plugins tell of runs, so that their data can be planned without running them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iostack.loader.order.planned import Source


@dataclass(frozen=True)
class PlannedRun:
    """The data of a run. ``arguments`` are those of ``plan_loader`` that the run sets: seed, lanes, seq_len, and so on.

    ``metrics`` is its ``metrics.jsonl``, if there is one yet: with it, steps are found where the batch size was changed.
    """

    sources: Sequence[Source]
    batch_size: int
    arguments: Mapping[str, Any]
    metrics: Path | None = None


ReadRun = Callable[[Path, str], PlannedRun | None]
"""``read(path, uri)`` of a settings file or run folder; a URI that is not empty replaces its corpora. None: not one of mine."""
