"""What a conversion is and how far it came, kept below its target so that the same command goes on.

.iostack/prepare.json    the plan: everything that decides the bytes of every shard; written once
.iostack/prepare.jsonl   one line per finished piece; written after its files are in place

A piece whose line is missing is made again, into the same bytes. So a line that is torn or lost costs work, never data.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iostack.errors import PrepareError
from iostack.prepare.target import HIDDEN, Target

PLAN = f"{HIDDEN}/prepare.json"
FINISHED = f"{HIDDEN}/prepare.jsonl"
_SAVE_EVERY_S = 1.0
_SAVE_SHARE = 0.05


@dataclass(frozen=True)
class WrittenFile:
    """One file of a finished shard; ``digest`` is xxh3-128 of its bytes."""

    name: str
    bytes: int
    digest: str


@dataclass(frozen=True)
class Finished:
    """What became of one piece; ``files`` is empty where no sample of it was left. ``bad`` names the first bad rows."""

    piece: int
    rows: int
    samples: int
    tokens: int | None
    files: tuple[WrittenFile, ...]
    num_bad: int = 0
    bad: tuple[str, ...] = ()
    num_filtered: int = 0

    @property
    def bytes(self) -> int:
        """Of all its files."""
        return sum(file.bytes for file in self.files)


class Journal:
    """The plan and the finished pieces of one target; used by the one process that holds its lock."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.plan: dict[str, Any] | None = None
        self.finished: dict[int, Finished] = {}
        self._next_save = 0.0
        self._load()

    def _load(self) -> None:
        if (data := self._target.read(PLAN)) is None:
            return
        try:
            self.plan = dict(json.loads(data))
        except ValueError as error:
            raise PrepareError(
                f"{self._target.uri}/{PLAN} is damaged: {error}",
                hint="remove the folder by hand, and write everything anew",
            ) from error
        for line in (self._target.read(FINISHED) or b"").splitlines():
            try:
                record = json.loads(line)
                files = tuple(WrittenFile(**file) for file in record.pop("files"))
                done = Finished(**{**record, "files": files, "bad": tuple(record.get("bad", ()))})
            except (ValueError, TypeError, KeyError, AttributeError):  # torn by a crash: that piece is made again
                continue
            self.finished[done.piece] = done

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Write the plan of a new conversion, or compare it with that of the one to go on with.

        Raises:
            PrepareError: it was begun with another plan; names the field.
        """
        wanted = json.loads(json.dumps(plan))
        if self.plan is None:
            self._target.write(PLAN, json.dumps(wanted, indent=1).encode())
            self.plan = wanted
        for field in {**self.plan, **wanted}:
            if (was := self.plan.get(field)) != (now := wanted.get(field)):
                raise PrepareError(
                    f"{self._target.uri} was begun with {field} {_short(was)}, and now it is {_short(now)}",
                    hint="use the same source and options, another folder, or --overwrite to write everything anew",
                )

    def keep_existing(self, sizes: Mapping[str, int]) -> list[int]:
        """Forget the finished pieces whose files are not there any more at their size; return which."""
        lost = [
            number
            for number, done in self.finished.items()
            if any(sizes.get(file.name) != file.bytes for file in done.files)
        ]
        for number in lost:
            del self.finished[number]
        return lost

    def add(self, done: Finished) -> None:
        """Record a piece whose files are in place; what is written may be a second behind, see ``save``."""
        self.finished[done.piece] = done
        if time.monotonic() >= self._next_save:
            self.save()

    def save(self) -> None:
        """Write all of it; the next ``add`` that does so waits until this took at most a twentieth of the time."""
        began = time.monotonic()
        lines = [json.dumps(dataclasses.asdict(done)).encode() + b"\n" for done in self.finished.values()]
        self._target.write(FINISHED, b"".join(lines))
        ended = time.monotonic()
        self._next_save = ended + max(_SAVE_EVERY_S, (ended - began) / _SAVE_SHARE)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
