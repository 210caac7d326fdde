"""Where a corpus is and where its bytes go: from the objects of an origin to local files that are what they were."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from iostack.cache.folder import object_id
from iostack.cache.residency import Item, Residency, Unpacking
from iostack.cache.whole_objects import WholeObjects
from iostack.corpus.contracts import COMPRESSIONS, Columns, Format, ObjectInfo, Origin, Shard, ShardFiles, TableFormat
from iostack.corpus.manifest import SIDECAR, Manifest, load_manifest
from iostack.corpus.origins import object_uri, open_origin, uri_below
from iostack.errors import ShardError, UsageError, redact

_ALLOW_PICKLE = "allow_pickle"


class Place:
    """One URI with its storage options: an origin, the cache folder, and the residency between them."""

    def __init__(self, uri: str, folder: Path, options: dict[str, Any]) -> None:
        self.arguments = (uri, folder, options)
        self.folder = folder
        self._allow_pickle = _columns(options.get(_ALLOW_PICKLE, ()))
        options = {key: value for key, value in options.items() if key != _ALLOW_PICKLE}
        self.origin: Origin = open_origin(uri, options)
        self.uri = self.origin.uri
        # With its secrets, of which only the digest is kept: a query may choose the object.
        exact_uri = uri if self.uri == redact(uri) else self.uri
        self.namespace = object_id(exact_uri, *_endpoints(options), os.environ.get("AWS_ENDPOINT_URL", ""))
        self.residency: Residency = WholeObjects(self.origin, folder, namespace=self.namespace)

    @property
    def own_manifest(self) -> Path:
        """Path in the cache folder of the manifest of a corpus that cannot be written to."""
        return self.folder / "manifests" / f"{self.namespace}.arrow"

    def load_manifest(self) -> Manifest | None:
        """Return the manifest beside the corpus, else the one in the cache folder, else None."""
        info = self.origin.info(SIDECAR)
        if info is None:
            if not self.own_manifest.exists():
                return None
            return load_manifest(self.own_manifest, source=str(self.own_manifest))
        source = uri_below(self.uri, SIDECAR)
        if info.etag:
            return load_manifest(self.residency.bring(Item(info.path, info.bytes, info.etag)), source=source)
        return load_manifest(self.origin.read(SIDECAR, 0, info.bytes), source=source)

    def shard_files(self, shard: Shard, format: Format, columns: Columns = None) -> ShardFiles:
        """Bring the objects of a shard here and return their local files; ``columns`` are those that will be read.

        Raises:
            ShardError: one of them is gone, or is not the size that it was.
        """
        files = [self._bring(*each) for each in _wanted(shard, format, columns)]
        info = self._local_info(shard.object) or shard.object
        variant = [format.unpacking(columns).name] if isinstance(format, TableFormat) else []
        index_id = object_id(self.namespace, info.path, info.bytes, info.etag, format.name, *variant)
        index = self.folder / "index" / index_id
        with suppress(OSError):  # an index that cannot be kept is built in memory
            index.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        companions = tuple(files[1:])
        return ShardFiles(self.name(info.path), files[0], companions, index, shard, self._allow_pickle, columns)

    def is_resident(self, shard: Shard, format: Format, columns: Columns = None) -> bool:
        """Return whether all objects of a shard are here, ready to be read."""
        return all(self.residency.find(self._item(*each)) is not None for each in _wanted(shard, format, columns))

    def name(self, path: str) -> str:
        """Return the URI of one object, without credentials."""
        return object_uri(self.uri, path)

    def _item(self, info: ObjectInfo, compression: str, unpacking: Unpacking | None) -> Item:
        """Return what the residency is asked for; a local file of which another is made counts as it is now."""
        current = (self._local_info(info) if compression or unpacking else None) or info
        return Item(current.path, current.bytes, current.etag, compression, unpacking)

    def _bring(self, info: ObjectInfo, compression: str, unpacking: Unpacking | None) -> Path:
        item = self._item(info, compression, unpacking)
        found = self.residency.find(item)
        if found is None or self.origin.local_path(info.path) is not None:
            self._check_unchanged(info)
        return found or self.residency.bring(item)

    def _local_info(self, info: ObjectInfo) -> ObjectInfo | None:
        return self.origin.info(info.path) if self.origin.local_path(info.path) is not None else None

    def _check_unchanged(self, info: ObjectInfo) -> None:
        now = self.origin.info(info.path)
        if now is None:
            change = "is gone"
        elif now.bytes < info.bytes:
            change = f"shrank from {info.bytes:,} to {now.bytes:,} bytes"
        elif now.bytes > info.bytes:
            change = f"grew from {info.bytes:,} to {now.bytes:,} bytes"
        else:
            return
        raise ShardError(f"{self.name(info.path)} {change} since it was indexed", hint=f"run: iostack index {self.uri}")


def _columns(named: object) -> frozenset[str]:
    columns = named.split(",") if isinstance(named, str) else named
    if not isinstance(columns, list | tuple | set | frozenset) or not all(isinstance(each, str) for each in columns):
        raise UsageError(f"{_ALLOW_PICKLE} takes names of columns, not {named!r}")
    return frozenset(columns)


def _wanted(shard: Shard, format: Format, columns: Columns) -> list[tuple[ObjectInfo, str, Unpacking | None]]:
    """Return the objects of a shard with what is to be made of each; a companion's name tells its compression."""
    unpacking = format.unpacking(columns) if isinstance(format, TableFormat) else None
    companions = [(each, COMPRESSIONS.get(PurePosixPath(each.path).suffix, ""), None) for each in shard.companions]
    return [(shard.object, shard.compression, unpacking), *companions]


def _endpoints(options: Any) -> list[str]:
    """Return the options that say which server is meant, as text: two servers may hold the same bucket and key."""
    found = []
    for key, value in sorted(options.items()):
        if isinstance(value, dict):
            found += _endpoints(value)
        elif any(word in str(key).lower() for word in ("endpoint", "url", "host", "port", "account_name")):
            found.append(f"{key}={value}")
    return found
