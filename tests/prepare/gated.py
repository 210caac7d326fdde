"""A plugin for tests: a transform that stops a job at one row until a file lets it pass, and says which process waits."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import iostack

_DEADLINE_S = 60.0


def build_gate(*, folder: str, row: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Stop at the sample whose ``n`` is ``row`` until ``folder/open`` is there; ``folder/waiting`` holds the process."""

    def gate(sample: dict[str, Any]) -> dict[str, Any]:
        is_job = multiprocessing.parent_process() is not None  # planning, which reads some rows, goes through
        if is_job and sample["n"] == row and not Path(folder, "open").exists():
            partial = Path(folder, "partial")
            partial.write_text(str(os.getpid()))
            partial.replace(Path(folder, "waiting"))
            deadline = time.monotonic() + _DEADLINE_S
            while not Path(folder, "open").exists() and time.monotonic() < deadline:
                threading.Event().wait(0.01)
        return sample

    return gate


@iostack.hookimpl
def iostack_transforms() -> Mapping[str, Any]:
    return {"gate": build_gate}
