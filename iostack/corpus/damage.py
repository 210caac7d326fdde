"""Several shards may be damaged at once: all of them are looked at, so that whoever repairs a corpus does it once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from iostack.errors import DamagedShardsError, ShardError

T = TypeVar("T")
R = TypeVar("R")


def or_damage(work: Callable[[T], R]) -> Callable[[T], R | ShardError]:
    """Return ``work``, but with the error of a damaged shard returned instead of raised."""

    def guarded(item: T) -> R | ShardError:
        try:
            return work(item)
        except ShardError as error:
            return error

    return guarded


def refuse_damaged(found: Sequence[object], *, uri: str) -> None:
    """Raise what is wrong with the shards of ``uri``, given what was found for each.

    Raises:
        ShardError: one is damaged, or an index that many share.
        DamagedShardsError: several are; holds the error of each.
    """
    by_message: dict[str, ShardError] = {}
    for each in found:
        if isinstance(each, ShardError):
            by_message.setdefault(each.message, each)
    if not by_message:
        return
    first, *others = by_message.values()
    if not others:
        raise first
    raise DamagedShardsError(
        f"{uri}: {len(by_message):,} of {len(found):,} shards are damaged, the first: {first.message}",
        hint=first.hint,
        shards=(first, *others),
    ) from first
