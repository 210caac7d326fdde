"""Names that come from data: those in manifests and archives must not lead out of their root."""

from __future__ import annotations

from iostack.errors import ShardError


def check_path(path: str, *, source: str) -> str:
    """Return ``path`` if it is relative and stays below its root; ``source`` says in the error where it came from.

    Raises:
        ShardError: it is empty, absolute, or climbs with ``..``.
    """
    if not path or "\0" in path:
        reason = "is empty or holds a zero byte"
    elif path[0] in "/\\":
        reason = "is absolute"
    elif ".." in path and ".." in path.replace("\\", "/").split("/"):
        reason = "climbs out of its root"
    else:
        return path
    raise ShardError(
        f"{source}: the name {path[:200]!r} {reason}",
        hint="the data is hostile or damaged: make it anew with plain relative names",
    )
