"""The settings of a training run: one tree of frozen models, merged from a file and the command line."""

from trainer.settings.merge import Layers, resolve_settings
from trainer.settings.tree import (
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    Interval,
    MetricsSettings,
    ModelSettings,
    ParallelSettings,
    Settings,
    SourceSettings,
    TrainSettings,
    parse_interval,
)

__all__ = [
    "CheckpointSettings",
    "DataSettings",
    "EvaluationSettings",
    "Interval",
    "Layers",
    "MetricsSettings",
    "ModelSettings",
    "ParallelSettings",
    "Settings",
    "SourceSettings",
    "TrainSettings",
    "parse_interval",
    "resolve_settings",
]
