"""Who may write: which run a folder belongs to, and which start of it is the newest.

Every start of a run takes the next generation. Two that start at once get different ones, since the file of a
generation is created conditionally; the older then finds itself superseded when it wants to save.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from iostack import logs
from iostack.errors import BrokenStepError, CheckpointError
from trainer.checkpoint.documents import JSON, MAX_DOCUMENT_BYTES, GenerationFile, RunFile, plain, seal, unseal
from trainer.checkpoint.layout import RUN, generation_path
from trainer.checkpoint.lineage import newest_generation
from trainer.checkpoint.store import Store, locate

logger = logs.logger(__name__)


def begin_generation(store: Store, run: Mapping[str, JSON], *, world: int) -> int:
    """Claim the folder for ``run`` and take the next generation, by conditional creation; returns its number."""
    _claim(store, run)
    generation = newest_generation(store) + 1
    while not store.create(
        generation_path(generation),
        seal(
            GenerationFile(
                generation=generation,
                host=socket.gethostname(),
                pid=os.getpid(),
                world=world,
                started=datetime.now(UTC).isoformat(timespec="seconds"),
            )
        ),
    ):
        generation += 1
    return generation


def _claim(store: Store, run: Mapping[str, JSON]) -> None:
    ours = plain(run, what="run")
    data = seal(RunFile(run=ours))
    if not store.create(RUN, data):
        what = locate(store, RUN)
        data = store.read(RUN, limit=MAX_DOCUMENT_BYTES)
        try:
            saved = unseal(RunFile, data, what=what).run
        except BrokenStepError as error:
            hint = "restore it from a copy, or delete it: the saved steps stay as they are"
            raise CheckpointError(error.message, hint=hint) from error
        for name, there, here in _differences(saved, ours, ""):
            raise CheckpointError(
                f"{what} is of another run: {name} is {there} there and {here} here",
                hint="continue with the settings that the run was started with, or choose another folder",
            )
    if store.create(RUN, data):
        raise CheckpointError(
            f"{store.uri} overwrites what it was told to create only if it does not exist",
            hint="conditional writes keep two runs apart: use a store that honours them, or a file system",
        )


def _differences(there: JSON, here: JSON, name: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(key for key in here if key not in there)]:
            inner = f"{name}.{key}" if name else key
            if key not in there or key not in here:
                yield inner, _field(there, key), _field(here, key)
            else:
                yield from _differences(there[key], here[key], inner)
    elif json.dumps(there) != json.dumps(here):
        yield name, json.dumps(there), json.dumps(here)


def check_newest(store: Store, generation: int) -> None:
    """Raise CheckpointError if a later start of the run has taken over, naming who did."""
    newest = newest_generation(store)
    if newest <= generation:
        return
    path = generation_path(newest)
    who = ""
    try:
        other = unseal(GenerationFile, store.read(path, limit=MAX_DOCUMENT_BYTES), what=path)
        who = f", on {other.host} (process {other.pid}) since {other.started}"
    except (OSError, BrokenStepError):
        logger.warning("%s cannot be read", locate(store, path))
    raise CheckpointError(
        f"generation {newest} has taken over from generation {generation} in {store.uri}{who}",
        hint="another process continues this run: stop this one",
    )


def _field(side: dict[str, JSON], key: str) -> str:
    return json.dumps(side[key]) if key in side else "absent"
