"""What a run tells about its loader: which stage holds it back, figures for Prometheus, a timeline."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from trainer.settings import MetricsSettings
from trainer.supervise.world import World


class Waits:
    """The seconds waited for each stage, as they were when they were last looked at."""

    def __init__(self) -> None:
        self._before: dict[str, float] = {}

    def slowest_since(self, waits_s: Mapping[str, float]) -> str | None:
        """Return the stage that was waited for most since the last call; None where nothing was waited for."""
        grown = {stage: waited_s - self._before.get(stage, 0.0) for stage, waited_s in waits_s.items()}
        self._before = dict(waits_s)
        slowest = max(grown, key=grown.__getitem__, default=None)
        return slowest if slowest is not None and grown[slowest] > 0 else None


def trace_path(settings: MetricsSettings, rank: int) -> Path | None:
    """Return the file that one rank writes its timeline to: ``trace.json``, ``trace-1.json``, ..."""
    if not settings.trace:
        return None
    path = Path(settings.trace)
    return path if rank == 0 else path.with_stem(f"{path.stem}-{rank}")


def serve_metrics(settings: MetricsSettings, world: World) -> AbstractContextManager[object]:
    """Serve this rank's figures inside the context, if the settings ask for it.

    Raises:
        UsageError: the port is taken.
    """
    if not settings.port:
        return nullcontext()
    from iostack.metrics import serve

    return serve(settings.port + world.local_rank, address=settings.address)
