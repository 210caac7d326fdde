"""Checks of origins: listing, ranges, whole objects, small writes, and what is not there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from iostack.corpus.contracts import OpenOrigin, Origin
from iostack.errors import CorpusNotFoundError, OriginError

_ABSENT = "there-is/no-such-object.bin"
_THREADS = 4


def check_origin(
    open_origin: OpenOrigin, uri: str, objects: Mapping[str, bytes], options: Mapping[str, Any] | None = None
) -> None:
    """Check an origin at ``uri``, where exactly ``objects`` (path -> content) lie; one small object may be written there.

    Raises:
        AssertionError: says what differs from what lies there.
    """
    options = dict(options or {})
    origin = open_origin(uri, options)
    _check_listing(origin, objects)
    for path, content in objects.items():
        _check_object(origin, path, content)
    _check_absent(origin)
    _check_threads(origin, objects)
    _check_single(open_origin, uri, objects, options)
    _check_write(origin)
    nowhere = open_origin(f"{uri.rstrip('/')}/there-is-nothing-here", options)
    try:
        found = list(nowhere.list())
    except CorpusNotFoundError:
        return
    raise AssertionError(f"{nowhere.uri}: nothing is there, and {len(found)} objects were listed")


def _check_listing(origin: Origin, objects: Mapping[str, bytes]) -> None:
    listed = list(origin.list())
    paths = [info.path for info in listed]
    assert paths == sorted(objects), f"{origin.uri}: {paths[:5]} were listed, {sorted(objects)[:5]} lie there"
    for info in listed:
        assert info.bytes == len(objects[info.path]), f"{info.path}: {info.bytes} bytes listed"
        found = origin.info(info.path)
        assert found == info, f"{info.path}: info says {found}, the listing {info}"


def _check_object(origin: Origin, path: str, content: bytes) -> None:
    size = len(content)
    for start, stop in ((0, size), (0, min(1, size)), (size // 3, size // 2), (max(0, size - 3), size)):
        found = origin.read(path, start, stop)
        assert found == content[start:stop], f"{path}: bytes {start} to {stop} are {found[:20]!r}, {len(found)} of them"
    with tempfile.TemporaryDirectory() as folder:
        destination = Path(folder) / "object"
        origin.fetch(path, destination)
        assert destination.read_bytes() == content, f"{path}: fetching brought other bytes"
        assert list(Path(folder).iterdir()) == [destination], f"{path}: fetching left more than the object"
    local = origin.local_path(path)
    assert local is None or local.read_bytes() == content, f"{path}: {local} holds other bytes"


def _check_absent(origin: Origin) -> None:
    assert origin.info(_ABSENT) is None, f"{origin.uri}: info tells of an object that is not there"
    try:
        origin.read(_ABSENT, 0, 10)
    except OriginError as error:
        told = error.message
    else:
        raise AssertionError(f"{origin.uri}: an object that is not there was read")
    assert _ABSENT.rpartition("/")[2] in told, f"the error does not name the object: {told}"


def _check_threads(origin: Origin, objects: Mapping[str, bytes]) -> None:
    wanted = list(objects.items()) * _THREADS
    with ThreadPoolExecutor(_THREADS) as threads:
        for (path, content), found in zip(
            wanted, threads.map(lambda item: origin.read(item[0], 0, len(item[1])), wanted)
        ):
            assert found == content, f"{path}: other bytes in {_THREADS} threads"


def _check_single(open_origin: OpenOrigin, uri: str, objects: Mapping[str, bytes], options: Mapping[str, Any]) -> None:
    path, content = next(iter(objects.items()))
    origin = open_origin(f"{uri.rstrip('/')}/{path}", options)
    listed = list(origin.list())
    name = path.rpartition("/")[2]
    assert [info.path for info in listed] == [name], f"{origin.uri}: one object lists {[info.path for info in listed]}"
    assert origin.read(name, 0, len(content)) == content, f"{origin.uri}: reading one object gives other bytes"


def _check_write(origin: Origin) -> None:
    path, first, second = ".iostack/check", b"first", b"second, longer"
    if not origin.write(path, first):
        return
    for content in (first, second, first):
        assert origin.write(path, content), f"{origin.uri}: a second write was refused"
        found = origin.read(path, 0, len(content))
        info = origin.info(path)
        assert found == content, f"{origin.uri}: {found!r} was read after {content!r} was written"
        assert info is not None, f"{origin.uri}: info does not know what was written"
        assert info.bytes == len(content), f"{origin.uri}: {info.bytes} bytes after {len(content)} were written"
