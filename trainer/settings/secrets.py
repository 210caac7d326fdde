"""Which settings are credentials, and a tree of settings without them.

Two rules hold for the whole tree, lists and options of plugins included: what has the name of a credential, or is an
option of a storage client, is hidden; every other string goes through ``redact``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from iostack.errors import redact

HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"(?i)secret|passw(or)?d|passphrase|credential|authorization|connection[_-]?string|signature"
    r"|(api|access|private|account|signing)[_-]?key|(^|[_-])(?<!pad_)(?<!bos_)(?<!eos_)(?<!unk_)(?<!mask_)token$"
)
_STORAGE_OPTIONS = "storage_options"


def is_secret(name: str) -> bool:
    """Whether a value of this name is a credential; special tokens of a vocabulary (``eos_token``) are none."""
    return _SECRET_NAME.search(name) is not None


def without_secrets(values: Mapping[str, Any], *, replacement: str | None) -> dict[str, Any]:
    """Return a tree of values in which secrets are ``replacement``, or left out where it is None."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if name == _STORAGE_OPTIONS and isinstance(value, Mapping):
            kept[name] = {} if replacement is None else dict.fromkeys(value, replacement)
        elif not is_secret(name):
            kept[name] = _clean(value, replacement)
        elif replacement is not None:
            kept[name] = replacement
    return kept


def _clean(value: Any, replacement: str | None) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return without_secrets(value, replacement=replacement)
    if isinstance(value, list | tuple):
        return [_clean(item, replacement) for item in value]
    return value
