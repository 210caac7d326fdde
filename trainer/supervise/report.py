"""How a rank tells why it ends: one line, once, however many ranks end for the same reason."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from dataclasses import asdict, dataclass

from iostack.errors import IostackError, redact

_TELLING_S = 5.0


@dataclass(frozen=True)
class Failure:
    """Why a rank ends. ``is_consequence``: because another rank did."""

    message: str
    hint: str = ""
    exit_code: int = 1
    is_consequence: bool = False

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Failure:
        return cls(**json.loads(data))


def failure_of(error: BaseException) -> Failure:
    """Return what to tell about an error; of an error that is not ours, its kind and its first line."""
    if isinstance(error, IostackError):
        return Failure(redact(error.message), redact(error.hint), error.exit_code)
    first_line = (str(error).strip().splitlines() or [""])[0]
    return Failure(
        redact(f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__),
        hint="--debug shows where it was raised",
    )


def let_the_first_tell() -> None:
    """Wait, on a rank that is silent because the first of its machine tells why all end: torchrun ends that one with this."""
    time.sleep(_TELLING_S)


def send_failure(report_fd: int, failure: Failure) -> None:
    """Tell our launcher; it may be gone already."""
    try:
        os.write(report_fd, failure.to_json() + b"\n")
    except OSError:
        return


def print_failure(failure: Failure) -> None:
    """Print a failure where no launcher does."""
    lines = [f"error: {failure.message}"] + ([f"hint: {failure.hint}"] if failure.hint else [])
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()


def print_traceback(error: BaseException, *, rank: int) -> None:
    """Print where an error was raised, without credentials, for ``--debug``."""
    sys.stderr.write(f"rank {rank}:\n" + redact("".join(traceback.format_exception(error))))
    sys.stderr.flush()
