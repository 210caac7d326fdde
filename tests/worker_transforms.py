"""Transforms that worker processes import by name, as users' own modules are imported: good ones, and some that do harm."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from iostack.batch_memory import array_for

Sample = dict[str, Any]


def shout(sample: Sample) -> Sample:
    """A transform of text."""
    return sample | {"text": sample["text"].upper()}


def decode_number(sample: Sample) -> Sample:
    """A transform that finds every seventh sample bad, and makes its array in the batch."""
    number = json.loads(sample["json"])["i"]
    first_bytes = array_for("bytes", (4,), np.uint8)
    first_bytes[:] = np.frombuffer(sample["jpg"][:4].ljust(4), np.uint8)
    if number % 7 == 3:
        raise ValueError(f"{number} is a bad number")
    return {"number": number, "bytes": first_bytes}


class Draw:
    """A transform that draws from its key."""

    def __call__(self, sample: Sample) -> Sample:
        return sample | {"drawn": -1}

    def with_key(self, sample: Sample, key: int) -> Sample:
        return sample | {"drawn": key % 1_000_000}


def with_pid(sample: Sample) -> Sample:
    return sample | {"pid": os.getpid()}


def _crash(_: Sample) -> None:
    ctypes.string_at(0)


def _exit(_: Sample) -> None:
    os._exit(7)


def _kill(_: Sample) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang(_: Sample) -> None:
    time.sleep(3600)


def _raise_unpicklable(_: Sample) -> None:
    class Local(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}", lambda: None)

    raise Local(1, 2)


_HARM: dict[str, Callable[[Sample], None]] = {
    "crash": _crash,
    "exit": _exit,
    "kill": _kill,
    "hang": _hang,
    "unpicklable": _raise_unpicklable,
}


@dataclass(frozen=True)
class Harm:
    """Does harm at the sample whose ``i`` is ``at``; with ``once``, a file, only the first time."""

    what: str
    at: int
    once: str = ""

    def __call__(self, sample: Sample) -> Sample:
        if sample["i"] == self.at and not (self.once and Path(self.once).exists()):
            if self.once:
                Path(self.once).touch()
            _HARM[self.what](sample)
        return sample


class DiesAtStart:
    """Ends the process that is given it, as an import of it that crashes would."""

    def __call__(self, sample: Sample) -> Sample:
        return sample

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


@dataclass(frozen=True)
class Fail:
    """Fails as storage does: the sample is not to blame, and the loader stops."""

    def __call__(self, sample: Sample) -> Sample:
        raise ConnectionResetError(104, "the server went away")


@dataclass(frozen=True)
class Stand:
    """Stands still for ever, having written ``at``: in a sleep, or in a call that holds the GIL."""

    at: str
    in_c: bool = False

    def __call__(self, sample: Sample) -> Sample:
        Path(self.at).write_text(str(os.getpid()))
        if self.in_c:
            ctypes.PyDLL(None).sleep(3600)
        time.sleep(3600)
        return sample


@dataclass(frozen=True)
class Spawn:
    """Starts a program that nobody waits for, as a transform that calls ffmpeg may, and writes its process id to ``at``."""

    at: str

    def __call__(self, sample: Sample) -> Sample:
        with suppress(FileExistsError), Path(self.at).open("x") as file:
            file.write(str(subprocess.Popen(["sleep", "3600"]).pid))
        return sample


def slow_at_13(sample: Sample) -> Sample:
    """Take 50 ms over one sample."""
    if sample["i"] == 13:
        time.sleep(0.05)
    return sample


def everything(sample: Sample) -> Sample:
    """Return values of every kind that a batch can hold."""
    import torch

    i = sample["i"]
    return {
        "int": i,
        "float": i / 3,
        "bool": i % 2 == 0,
        "big": 2**70 + i,
        "text": f"ü{i}",
        "bytes": bytes(range(i % 7)),
        "array": np.full((2, 3), i, np.uint16),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3) + i),
        "ragged": np.arange(i % 5, dtype=np.float32),
        "tensor": torch.full((3,), float(i), dtype=torch.bfloat16),
        "ragged tensor": torch.ones(i % 4),
        "nested": {"list": [i, None, "x"], "pair": (1, b"2")},
        "nothing": None,
    }


class Opaque:
    """A value that cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("opaque things stay here")


def opaque(sample: Sample) -> Sample:
    return sample | {"value": Opaque()}


def is_third(sample: Sample) -> bool:
    """A filter of images that finds every ninth bad."""
    number = json.loads(sample["json"])["i"]
    if number % 9 == 2:
        raise ValueError(f"{number} cannot be judged")
    return bool(number % 3)


def is_long(sample: Sample) -> bool:
    """A filter of texts."""
    return len(sample["text"]) > 30


def is_rare(sample: Sample) -> bool:
    """A filter of texts that keeps two, nothing of most units."""
    return sample["n"] in (36, 73)


def put_ids(corpus: Any, workers: int, answers: Any) -> None:
    """Put the ids of three batches of ``corpus``, read with workers; the target of a child process."""
    import iostack

    with iostack.Loader(corpus, batch_size=6, lanes=2, transforms=[decode_number], workers=workers) as loader:
        answers.put([batch["sample_ids"].tolist() for batch in islice(loader, 3)])
