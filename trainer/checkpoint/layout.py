"""Where each thing of a checkpoint folder lies, and the names of its steps.

    run.json                                  which run this is; created once
    generations/<n>.json                      one per start of the run; the highest one may commit
    steps/<step>.<generation>-<attempt>/      one attempt to save a step: written once, never changed
        rank-00000-000.safetensors            tensors of rank 0, first file
        rank-00000.json                       what rank 0 wrote: its done mark
        index.json.zst                        the pieces of all tensors, by column
    manifests/<step>.<generation>.json        its creation is the commit of the step
    latest.json                               a hint: the last commit; tells only that a manifest is gone

Paths are built from numbers only, so nothing that stands in a document can name a file outside its folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

RUN = "run.json"
LATEST = "latest.json"
GENERATIONS = "generations"
MANIFESTS = "manifests"
STEPS = "steps"
INDEX = "index.json.zst"

_NUMBER = r"(0|[1-9]\d{0,17})"
_GENERATION_FILE = re.compile(rf"{_NUMBER}\.json")
_MANIFEST_FILE = re.compile(rf"{_NUMBER}\.{_NUMBER}\.json")
_STEP_FOLDER = re.compile(rf"{_NUMBER}\.{_NUMBER}-{_NUMBER}")


@dataclass(frozen=True, order=True)
class StepId:
    """A step as saved by one generation; ordered by generation, then by step."""

    generation: int
    step: int

    def __str__(self) -> str:
        return f"{self.step}.{self.generation}"


@dataclass(frozen=True, order=True)
class Attempt:
    """One attempt to save a step; a failed one leaves a folder that no manifest names."""

    id: StepId
    number: int

    @property
    def folder(self) -> str:
        return f"{STEPS}/{self.id}-{self.number}"


def generation_path(generation: int) -> str:
    return f"{GENERATIONS}/{generation}.json"


def manifest_path(step: StepId) -> str:
    return f"{MANIFESTS}/{step}.json"


def rank_path(attempt: Attempt, rank: int) -> str:
    return f"{attempt.folder}/rank-{rank:05d}.json"


def data_path(attempt: Attempt, rank: int, number: int) -> str:
    return f"{attempt.folder}/rank-{rank:05d}-{number:03d}.safetensors"


def index_path(attempt: Attempt) -> str:
    return f"{attempt.folder}/{INDEX}"


def parse_generation(name: str) -> int | None:
    """Return the generation that a file name in ``generations/`` stands for, None for any other name."""
    match = _GENERATION_FILE.fullmatch(name)
    return int(match[1]) if match else None


def parse_manifest(name: str) -> StepId | None:
    """Return the step that a file name in ``manifests/`` stands for, None for any other name."""
    match = _MANIFEST_FILE.fullmatch(name)
    return StepId(step=int(match[1]), generation=int(match[2])) if match else None


def parse_attempt(name: str) -> Attempt | None:
    """Return the attempt that a folder name in ``steps/`` stands for, None for any other name."""
    match = _STEP_FOLDER.fullmatch(name)
    if not match:
        return None
    return Attempt(StepId(step=int(match[1]), generation=int(match[2])), int(match[3]))
