"""An index file that many shards share: read and parsed once per corpus, whichever shard comes first."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from iostack.corpus.contracts import ObjectInfo, Origin, ShardFiles
from iostack.errors import ShardError

Parsed = TypeVar("Parsed")

_MAX_BYTES = 1 << 30
_KEPT = 64


class SharedIndexes(Generic[Parsed]):
    """The parsed indexes of one corpus; ``parse`` makes one of the JSON object in it and its URI. Thread-safe.

    The last 64 are kept: corpora of more streams than that read some again.
    """

    def __init__(self, parse: Callable[[dict[str, Any], str], Parsed]) -> None:
        self._parse = parse
        self._kept: OrderedDict[object, Parsed] = OrderedDict()
        self._lock = threading.Lock()

    def remote(self, info: ObjectInfo, origin: Origin) -> Parsed:
        """Return the index behind ``info``, read from its origin.

        Raises:
            ShardError: it is damaged or hostile.
        """
        name = f"{origin.uri} {info.path}"
        return self._once(info, info.bytes, lambda: origin.read(info.path, 0, info.bytes), name)

    def local(self, files: ShardFiles) -> Parsed:
        """Return the index that is the first companion of an open shard.

        Raises:
            ShardError: it is damaged or hostile, or the manifest names none.
        """
        if not files.companions:
            raise ShardError(f"{files.name}: the manifest names no index for it", hint="run: iostack index URI")
        path = files.companions[0]
        name = f"{files.name.removesuffix(files.shard.object.path)}{files.shard.companions[0].path}"
        try:
            status = path.stat()
        except OSError as error:
            raise ShardError(f"{name}: cannot be read: {error.strerror}", hint="check that it is there") from error
        return self._once((path, status.st_mtime_ns, status.st_size), status.st_size, path.read_bytes, name)

    def _once(self, key: object, size: int, read: Callable[[], bytes], name: str) -> Parsed:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._parse(_json_object(size, read, name), name)
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]


def _json_object(size: int, read: Callable[[], bytes], name: str) -> dict[str, Any]:
    if size > _MAX_BYTES:
        raise ShardError(f"{name}: {size:,} bytes, the limit for an index is {_MAX_BYTES:,}")
    try:
        found = json.loads(read())
    except OSError as error:
        raise ShardError(f"{name}: cannot be read: {error.strerror}", hint="check that it is there") from error
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{name}: is no JSON: {error}", hint="copy or write it again") from error
    if not isinstance(found, dict):
        raise ShardError(f"{name}: a JSON object was expected, not {type(found).__name__}")
    return found


class Fields:
    """Checked access to a JSON object that others wrote; ``source`` names it in errors."""

    def __init__(self, found: Any, source: str) -> None:
        self.source = source
        if not isinstance(found, dict):
            raise self.bad(f"an object was expected, not {_short(found)}")
        self._found = found

    def text(self, name: str) -> str:
        return str(self._typed(name, str))

    def optional_text(self, name: str) -> str | None:
        return None if self._found.get(name) is None else self.text(name)

    def number(self, name: str, *, limit: int) -> int:
        """Return an integer of [0, limit]."""
        value = self._typed(name, int)
        if isinstance(value, bool) or not 0 <= value <= limit:
            raise self.bad(f"{name} is {_short(value)}")
        return int(value)

    def listed(self, name: str) -> list[Any]:
        return list(self._typed(name, list))

    def inner(self, name: str) -> Fields:
        return Fields(self._found.get(name), f"{self.source}: {name}")

    def get(self, name: str) -> Any:
        return self._found.get(name)

    def bad(self, reason: str) -> ShardError:
        """Return the error that says what is wrong here."""
        return ShardError(f"{self.source}: {reason}", hint="copy or write the index again")

    def _typed(self, name: str, kind: type) -> Any:
        if not isinstance(value := self._found.get(name), kind):
            raise self.bad(f"{name} is {_short(value)}, which is no {kind.__name__}")
        return value


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
