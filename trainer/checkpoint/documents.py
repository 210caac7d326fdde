"""The JSON documents of a checkpoint: their fields, their seal, and the checks that make foreign ones safe to use.

A sealed document begins with the digest of the rest, so that a flipped bit anywhere in it is seen:

    {"digest":"<blake2b-128 of the document without this field>", ...}

Documents are data: everything read here is checked for type, range and consistency before anybody acts on it, and a
document that does not hold raises BrokenStepError. Large tables are stored by column: a list per field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, cast

import zstandard
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from iostack.errors import BrokenStepError, CheckpointError

JSON = JsonValue
Count = Annotated[int, Field(ge=0, le=2**62)]
Crc = Annotated[int, Field(ge=0, lt=2**32)]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]

MAX_DOCUMENT_BYTES = 512 << 20
_SEAL = b'{"digest":"'


class Document(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class ParentField(Document):
    step: Count
    generation: Count


class RunFile(Document):
    """``run.json``: what makes this run this run."""

    format: Literal["iostack checkpoint"] = "iostack checkpoint"
    version: Literal[1] = 1
    run: dict[str, JSON]


class GenerationFile(Document):
    """``generations/<n>.json``: who started, for the message that a superseded run gets."""

    generation: Count
    host: str
    pid: Count
    world: Count
    started: str


class FileColumns(Document):
    names: list[str]
    bytes: list[Count]


class PieceColumns(Document):
    """Pieces by column; ``tensor`` and ``file`` are row numbers of their tables, ``begin`` is a byte of the file.

    ``offsets`` and ``sizes`` hold as many numbers per piece as its tensor has dimensions.
    """

    tensor: list[Count]
    file: list[Count]
    begin: list[Count]
    offsets: list[Count]
    sizes: list[Count]


class TensorColumns(Document):
    names: list[str]
    dtypes: list[str]
    shapes: list[list[Count]]


class IndexFile(Document):
    """``index.json.zst``: which rectangle of which tensor lies where."""

    tensors: TensorColumns
    pieces: PieceColumns


class RankFile(Document):
    """``rank-NNNNN.json``: what one rank wrote; it is written last, so it says that the rank is done.

    ``crc32`` holds a list per file, one checksum per block. ``settings`` and ``state`` are rank 0's.
    """

    step: Count
    generation: Count
    attempt: Count
    rank: Count
    world: Annotated[int, Field(ge=1, le=2**24)]
    parent: ParentField | None
    files: FileColumns
    crc32: list[list[Crc]]
    tensors: TensorColumns
    pieces: PieceColumns
    settings: dict[str, JSON] | None
    state: dict[str, JSON] | None
    rank_state: dict[str, JSON] | None


class ManifestFile(Document):
    """``manifests/<step>.<generation>.json``: a pure function of the files of all ranks."""

    format: Literal["iostack checkpoint"] = "iostack checkpoint"
    version: Literal[1] = 1
    step: Count
    generation: Count
    attempt: Count
    world: Annotated[int, Field(ge=1, le=2**24)]
    parent: ParentField | None
    ranks: FileColumns
    rank_digests: list[Hex]
    files: FileColumns
    index_bytes: Count
    index_digest: Hex
    settings: dict[str, JSON]
    state: dict[str, JSON]


Model = TypeVar("Model", bound=Document)


def digest(data: bytes) -> str:
    """Return the blake2b-128 of ``data`` as hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def plain(value: Mapping[str, JSON], *, what: str) -> dict[str, JSON]:
    """Return a mapping as JSON will give it back: mappings as dict, tuples as lists.

    NaN and infinities are kept, as Python writes them: a loss may be one. Raises CheckpointError that names the place
    of the first thing that JSON cannot hold, for instance ``state.optimizer.lr``.
    """
    return cast(dict[str, JSON], _plain(value, what, 0))


def _plain(value: object, where: str, depth: int) -> JSON:
    if depth > 100:
        raise CheckpointError(f"{where[:200]} is nested more than 100 levels deep: it cannot be saved")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise CheckpointError(f"{where} has the key {key!r}: JSON keys are strings", hint="convert it")
        return {str(key): _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{number}]", depth + 1) for number, item in enumerate(value)]
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise CheckpointError(
        f"{where} is a {type(value).__name__}: state is saved as JSON",
        hint="pass tensors among the tensors, and convert the rest to numbers, strings, lists and mappings",
    )


def encode(value: object) -> bytes:
    """Return plain JSON as compact text with sorted keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def seal(document: Document) -> bytes:
    """Return the bytes of a document, led by the digest of all other fields."""
    body = encode(document.model_dump())
    return _SEAL + digest(body).encode() + b'",' + body[1:]


def unseal(kind: type[Model], data: bytes, *, what: str) -> Model:
    """Check the seal and the fields of a document; ``what`` names it in the BrokenStepError."""
    end = len(_SEAL) + 32
    body = b"{" + data[end + 2 :]
    if data[: len(_SEAL)] != _SEAL or data[end : end + 2] != b'",' or digest(body).encode() != data[len(_SEAL) : end]:
        raise BrokenStepError(f"{what} is damaged: its digest does not fit its {len(data)} bytes")
    return parse(kind, body, what=what)


def parse(kind: type[Model], data: bytes, *, what: str) -> Model:
    """Return the document in ``data``, or raise BrokenStepError that names its first wrong field."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first: Any = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BrokenStepError(f"{what} is not valid: {field or 'the document'}: {first['msg']}") from error


def compress(document: Document) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(encode(document.model_dump()))


def decompress(kind: type[Model], data: bytes, *, what: str) -> Model:
    """Return the document in zstd ``data``; one that would grow beyond ``MAX_DOCUMENT_BYTES`` is refused."""
    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data) as reader:
            body = reader.read(MAX_DOCUMENT_BYTES + 1)
    except zstandard.ZstdError as error:
        raise BrokenStepError(f"{what} is not valid zstd: {error}") from error
    if len(body) > MAX_DOCUMENT_BYTES:
        raise BrokenStepError(f"{what} decompresses to more than {MAX_DOCUMENT_BYTES} bytes")
    return parse(kind, body, what=what)
