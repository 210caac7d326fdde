"""The arithmetic of a request: axes fill the world, microbatches and data ranks divide the batch."""

from __future__ import annotations

import math

from iostack.errors import ResolveError
from iostack.suggest import closest
from trainer.contracts import AXES, Request

_SETTINGS = {axis.name: axis.setting for axis in AXES}
_DTYPES = ("fp32", "bf16", "fp64")


def check_sizes(request: Request) -> None:
    """Refuse sizes that do not fit each other, naming the nearest that do.

    Raises:
        ResolveError: an axis is unknown or below 1, the axes do not multiply to the world size, or the batch does not
            divide.
    """
    for name, size in request.axes.items():
        if name not in _SETTINGS:
            raise ResolveError(f"there is no axis {name!r}", hint=closest(name, _SETTINGS))
        if size < 1:
            raise ResolveError(f"parallel.{_SETTINGS[name]} = {size} is not a size", hint="sizes are at least 1")
    if request.dtype not in _DTYPES:
        raise ResolveError(f"there is no dtype {request.dtype!r}", hint=f"it is one of {', '.join(_DTYPES)}")
    if request.seq_len < 1:
        raise ResolveError(f"data.seq_len = {request.seq_len} is not a length", hint="it is at least 1")
    _check_world(request)
    _check_batch(request)


def _check_world(request: Request) -> None:
    sizes = [request.size(axis.name) for axis in AXES]
    if math.prod(sizes) == request.world_size:
        return
    asked = " x ".join(f"{axis.setting} {size}" for axis, size in zip(AXES, sizes) if size > 1) or "data 1"
    others = math.prod(sizes) // request.size("dp_replicate")
    if request.world_size % others == 0:
        hint = f"set parallel.data = {request.world_size // others}, or start {math.prod(sizes)} processes"
    else:
        hint = f"start {_nearest(request.world_size, others)} processes, and set parallel.data to match"
    raise ResolveError(
        f"the axes multiply to {asked} = {math.prod(sizes)}, but there are {request.world_size} processes", hint=hint
    )


def _check_batch(request: Request) -> None:
    microbatch = request.microbatch_size
    if microbatch is not None and microbatch < 1:
        raise ResolveError(f"train.microbatch_size = {microbatch} is not a size", hint="it is at least 1")
    unit = request.data_ranks * (microbatch or 1)
    if request.batch_size >= 1 and request.batch_size % unit == 0:
        return
    of = f"{request.data_ranks} data ranks" + (f" x microbatches of {microbatch}" if microbatch else "")
    raise ResolveError(
        f"data.batch_size = {request.batch_size} is not a multiple of {of} = {unit}",
        hint=f"the nearest sizes are {_nearest(request.batch_size, unit)}",
    )


def _nearest(value: int, unit: int) -> str:
    below = value // unit * unit
    return f"{below} or {below + unit}" if below >= unit else str(unit)
