"""The cache folder: where it is, and how what lies in it is named.

FOLDER/objects/ab/abcd...      a whole object, decompressed or unpacked where it had to be
FOLDER/objects/ab/abcd....part being filled; never read
FOLDER/objects/ab/abcd....lock held by the process that fills it
FOLDER/index/abcd....rows      row index of a shard
FOLDER/manifests/abcd....arrow manifest of a corpus that cannot be written to
FOLDER/aside/                  units of text that lanes stand in: files without a name, gone with their process
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path


def cache_folder(chosen: str | os.PathLike[str] | None = None) -> Path:
    """Return the cache folder: ``chosen``, else ``$IOSTACK_CACHE``, else ``iostack`` in the user's cache folder.

    It is not created here.
    """
    if chosen is None:
        chosen = os.environ.get("IOSTACK_CACHE") or None
    if chosen is not None:
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "iostack"


def object_id(*parts: str | int) -> str:
    """Return the name of an object in the cache: blake2b-128 of all that tells it from others."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
