"""Which format holds the objects of a listing, and which of them are its shards."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from iostack.corpus.contracts import COMPRESSIONS, Format, IndexedFormat, ObjectInfo, Shard
from iostack.errors import FormatError, UsageError
from iostack.registry import registry
from iostack.suggest import closest

_COMPRESSED = (*COMPRESSIONS, ".tgz")


@dataclass(frozen=True)
class Detected:
    """What a listing turned out to be; ``ignored`` are the objects that the format does not claim."""

    format: Format
    shards: Sequence[Shard]
    ignored: tuple[ObjectInfo, ...]


def formats() -> dict[str, Format]:
    """Return the installed formats by name."""
    found: dict[str, Format] = {}
    for format in registry().listed("iostack_formats"):
        found.setdefault(format.name, format)
    return found


def format_named(name: str) -> Format:
    """Return one installed format.

    Raises:
        UsageError: there is none of that name.
    """
    known = formats()
    if name not in known:
        raise UsageError(
            f"there is no format {name!r}{registry().blame_broken()}",
            hint=closest(name, known),
        )
    return known[name]


def detect(objects: Sequence[ObjectInfo], *, format: str | None, uri: str) -> Detected:
    """Find the one format (or take the one named ``format``) whose shards are among ``objects``.

    Raises:
        FormatError: none claims anything, several do, or a shard is incomplete.
    """
    candidates = [format_named(format)] if format else list(formats().values())
    try:
        claims = [(candidate, shards) for candidate in candidates if (shards := candidate.find_shards(objects))]
    except FormatError as error:  # a format sees the names below the URI alone
        raise FormatError(f"{uri}: {error}", hint=error.hint) from error
    if not claims:
        wanted = f"no {format} shards" if format else "no known format"
        raise FormatError(
            f"{uri}: {wanted} among {len(objects):,} objects ({_suffixes(objects)}){registry().blame_broken()}",
            hint="run: iostack plugins, for the formats that are installed",
        )
    if len(claims) > 1:
        found = "; ".join(f"{len(shards):,} of {each.name} ({shards[0].object.path}, ...)" for each, shards in claims)
        raise FormatError(
            f"{uri}: shards of several formats: {found}",
            hint="choose one with --format (format= in Python), or keep one format per folder",
        )
    chosen, shards = claims[0]
    used = {info.path for shard in shards for info in (shard.object, *shard.companions)}
    if isinstance(chosen, IndexedFormat):
        used |= {info.path for info in chosen.find_indexes()}
    return Detected(chosen, shards, tuple(info for info in objects if info.path not in used))


def shards_by_suffix(objects: Sequence[ObjectInfo], suffixes: Sequence[str]) -> list[Shard]:
    """Return the objects that end in one of ``suffixes``, plain or with ``.gz`` or ``.zst`` behind it."""
    wanted, found = tuple(suffixes), []
    for info in objects:  # there may be millions: a path object of each would take 4 us
        name, compression = info.path.lower(), ""
        if name.endswith(_COMPRESSED):
            name, dot, outer = re.sub(r"\.tgz$", ".tar.gz", name).rpartition(".")
            compression = COMPRESSIONS[dot + outer]
        if name.endswith(wanted):
            found.append(Shard(info, compression=compression))
    return found


def _suffixes(objects: Sequence[ObjectInfo]) -> str:
    counted = Counter(PurePosixPath(info.path).suffix or "no suffix" for info in objects)
    return ", ".join(f"{number:,} {suffix}" for suffix, number in counted.most_common(4))
