"""Checkpoints in an object store or any other place that fsspec reaches.

A PUT of an object is atomic by itself. The conditional create is the file system's ``pipe_file(mode="create")``
(``If-None-Match`` on S3); a file system that only checks and then writes is refused, since two runs could both pass.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, cast

from iostack.errors import BrokenStepError, CheckpointError, MissingExtraError, redact

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}


class FsspecStore:
    """A prefix of an fsspec file system."""

    def __init__(self, uri: str, storage_options: Mapping[str, Any]) -> None:
        fsspec = importlib.import_module("fsspec")
        options = {"skip_instance_cache": True, "use_listings_cache": False, **storage_options}
        try:
            self._fs, root = fsspec.url_to_fs(uri, **options)
        except ImportError as error:
            extra = _EXTRAS.get(uri.partition("://")[0], "")
            hint = f'pip install "iostack[{extra}]"' if extra else str(error)
            raise MissingExtraError(f"no file system for {redact(uri)}: {error}", hint=hint) from error
        except ValueError as error:
            raise CheckpointError(f"checkpoints cannot lie at {redact(uri)}: {error}") from error
        self.uri = redact(uri)
        self._root = root.rstrip("/")
        _check_conditional_create(self._fs, self.uri)

    def create(self, path: str, data: bytes) -> bool:
        try:
            self._fs.pipe_file(self._name(path), data, mode="create")
        except FileExistsError:
            return False
        except NotImplementedError as error:
            raise _no_conditional_create(self.uri) from error
        except OSError as error:
            if not _is_failed_condition(error):
                raise
            return False
        return True

    def put(self, path: str, data: bytes) -> None:
        self._fs.pipe_file(self._name(path), data)

    @contextmanager
    def open_new(self, path: str) -> Iterator[BinaryIO]:
        file = self._fs.open(self._name(path), "wb")
        try:
            yield file
        except BaseException:
            with suppress(Exception):
                file.discard()
            raise
        file.close()

    def read(self, path: str, *, limit: int) -> bytes:
        num_bytes = self._fs.size(self._name(path))
        if num_bytes is None or num_bytes > limit:
            raise BrokenStepError(f"{self.uri}/{path} has {num_bytes} bytes, more than the {limit} that it can have")
        return cast(bytes, self._fs.cat_file(self._name(path)))

    def read_range(self, path: str, begin: int, end: int) -> bytes:
        return cast(bytes, self._fs.cat_file(self._name(path), start=begin, end=end))

    def files(self, folder: str) -> dict[str, int]:
        return {name: size for name, kind, size in self._list(folder) if kind == "file"}

    def folders(self, folder: str) -> list[str]:
        return [name for name, kind, _ in self._list(folder) if kind == "directory"]

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._name(path))

    def delete_folder(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm(self._name(path), recursive=True)

    def _name(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _list(self, folder: str) -> list[tuple[str, str, int]]:
        try:
            entries = self._fs.ls(self._name(folder), detail=True)
        except FileNotFoundError:
            return []
        return [(entry["name"].rstrip("/").rpartition("/")[2], entry["type"], entry["size"] or 0) for entry in entries]


def _check_conditional_create(fs: Any, uri: str) -> None:
    spec = importlib.import_module("fsspec.spec")
    method = getattr(type(fs), "_pipe_file", None) or type(fs).pipe_file
    if method is spec.AbstractFileSystem.pipe_file or "mode" not in inspect.signature(method).parameters:
        raise _no_conditional_create(uri)


def _is_failed_condition(error: OSError) -> bool:
    """Return whether a store said that the object exists: s3fs makes an OSError of radosgw's and S3's answer."""
    response = getattr(error.__cause__, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return code in ("PreconditionFailed", "412")


def _no_conditional_create(uri: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoints cannot lie at {uri}: this store cannot create an object only if it does not exist",
        hint="use a local or mounted folder, or an object store with conditional writes (S3, GCS, Azure)",
    )
