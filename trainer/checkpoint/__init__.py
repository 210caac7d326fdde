"""Checkpoints: what a training run saves, and how it finds its way back. ``checkpointer.py`` draws a save."""

from trainer.checkpoint.checkpointer import Checkpointer, Restored, SaveReport, StepInfo

__all__ = ["Checkpointer", "Restored", "SaveReport", "StepInfo"]
