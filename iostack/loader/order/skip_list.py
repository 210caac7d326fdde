"""Skip lists: JSON files that name the samples which a loader must never give.

    {"version": 1, "fingerprint": "...", "numbered_by": {"seq_len": 2048, "packing": "none"},
     "samples": [{"sample_id": -81, "source": 0, "shard": "a/00017.bin", "row": 5}, ...]}

The identities count; source, shard and row are for people. A list belongs to the corpora that it was written for, and to what
their samples are numbered by: the length of sequences, and where documents are joined or tokenised, all that decides how.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from iostack.errors import SettingsError
from iostack.plan.skipping import SkipList

_VERSION = 1
SkipSpec = str | os.PathLike[str] | Iterable[int]
"""The path of a skip list, or identities as in ``sample_ids``."""


def read_skip_list(skip: SkipSpec, *, fingerprint: str, numbered_by: Mapping[str, Any]) -> SkipList:
    """Return the identities of a file, or those that are given as they are.

    Raises:
        SettingsError: the file cannot be read, is no skip list, or belongs to another corpus or numbering.
    """
    if not isinstance(skip, str | os.PathLike):
        return _as_list(skip, "the skip list")
    path = Path(skip)
    try:
        table = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"the skip list {path} cannot be read: {error}", hint="see: iostack plan --help") from error
    if not isinstance(table, Mapping) or table.get("version") != _VERSION:
        raise SettingsError(
            f"{path} is no skip list", hint="write one with: iostack plan URI --spike STEP --write-skip FILE"
        )
    theirs = {"fingerprint": table.get("fingerprint"), **_table(table.get("numbered_by"))}
    ours = {"fingerprint": fingerprint, **json.loads(json.dumps(numbered_by))}
    for name in {**ours, **theirs}:
        if theirs.get(name) != ours.get(name):
            raise SettingsError(
                f"the skip list {path} was written for {name} {theirs.get(name)!r}, and here it is {ours.get(name)!r}",
                hint="write it anew for this corpus and these settings: iostack plan URI --spike STEP --write-skip FILE",
            )
    samples = table.get("samples")
    if not isinstance(samples, list) or not all(isinstance(sample, Mapping) for sample in samples):
        raise SettingsError(f"{path} is no skip list: its samples are not a list of tables")
    return _as_list([sample.get("sample_id") for sample in samples], f"the skip list {path}")


def write_skip_list(
    path: Path, samples: Sequence[Mapping[str, Any]], *, fingerprint: str, numbered_by: Mapping[str, Any]
) -> None:
    """Write the list of some samples, each with at least its ``sample_id``; replaces the file at once or not at all."""
    table = {"version": _VERSION, "fingerprint": fingerprint, "numbered_by": dict(numbered_by)}
    lines = ",\n".join(json.dumps(dict(sample)) for sample in samples)
    text = json.dumps(table)[:-1] + f', "samples": [\n{lines}\n]}}\n'
    partial = path.parent / f"{path.name}.{os.getpid()}.partial"
    try:
        partial.write_text(text, "utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise SettingsError(
            f"the skip list {path} cannot be written: {error}", hint="name a file in a folder that can be written to"
        ) from error


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def digest_of(skip: SkipList) -> str:
    """Return what tells a list from others, in the plan of a loader."""
    return xxhash.xxh3_128_hexdigest(skip.identities.tobytes())


def _as_list(identities: Iterable[Any], what: str) -> SkipList:
    whole = [_identity(identity, what) for identity in identities]
    return SkipList(whole)


def _identity(value: Any, what: str) -> int:
    try:
        number = value.__index__() if not isinstance(value, bool) else None
    except AttributeError:
        number = None
    if not isinstance(number, int) or not -(1 << 63) <= number < 1 << 63:
        raise SettingsError(f"{what} holds {value!r:.100}, which is no sample_id", hint="sample ids are 64-bit numbers")
    return number
