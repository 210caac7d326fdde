"""Format "mds-text": shards that MosaicML streaming wrote as JSON lines or separated values (``JSONWriter``, ``CSVWriter``,
``TSVWriter``, ``XSVWriter``), with the ``index.json`` that describes them.

A shard is text, ``shard.00000.csv``, and where its rows lie, ``shard.00000.csv.meta``: u32 rows N, u32[N + 1] where each
begins and the end, then JSON, which is ignored (``streaming/base/format/{json,xsv}/writer.py``). Values are never quoted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iostack import hookimpl
from iostack.corpus.contracts import COMPRESSIONS, Counts, Format, ObjectInfo, Origin, Sample, Shard, ShardFiles
from iostack.corpus.mapping import Mapped, map_shard, map_shard_index
from iostack.corpus.mosaicml_index import MosaicIndexes, StoredFile, index_above, indexes_of, parse_file, verify
from iostack.corpus.shared_index import Fields
from iostack.errors import FormatError, SampleError, ShardError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NAME = re.compile(r"(?P<stem>.+\.(?:json|csv|tsv|xsv))(?P<meta>\.meta)?(?P<packed>\.\w+)?")
_SEPARATORS = {"csv": ",", "tsv": "\t"}
_DECODERS: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float}


@hookimpl
def iostack_formats() -> Sequence[Format]:
    return [MdsText()]


@dataclass(frozen=True)
class Rows:
    """How the text of a row becomes a sample; no ``columns``: it is a JSON object."""

    newline: bytes = b""
    separator: str = ""
    columns: tuple[tuple[str, str], ...] = ()

    def sample(self, line: bytes) -> Any:
        """Return what MosaicML's reader returns.

        Raises:
            ValueError, RecursionError: it is no row of these columns.
        """
        if not self.columns:
            return json.loads(line.decode())
        if not line.endswith(self.newline):
            raise ValueError("it does not end with the newline of its shard")
        values = line[: len(line) - len(self.newline)].decode().split(self.separator)
        if len(values) != len(self.columns):
            raise ValueError(f"{len(values):,} values for {len(self.columns):,} columns")
        return {name: _DECODERS[kind](value) for (name, kind), value in zip(self.columns, values, strict=True)}


@dataclass(frozen=True)
class Entry:
    """What the index says of one shard."""

    samples: int
    data: StoredFile
    meta: StoredFile
    rows: Rows


class MdsText:
    """Shards ``.json``, ``.csv``, ``.tsv`` and ``.xsv`` that have a ``.meta`` beside them, plain or compressed."""

    name = "mds-text"
    holds_tokens = False

    def __init__(self) -> None:
        self._indexes = MosaicIndexes(_parse_shard)

    def find_shards(self, objects: Sequence[ObjectInfo]) -> Sequence[Shard]:
        texts, metas = _by_stem(objects)
        indexes = indexes_of(objects)
        self._indexes.expect(texts.keys() & metas.keys())
        return [
            Shard(texts[stem], (index_above(stem, indexes), metas[stem]), _compression(texts[stem].path))
            for stem in texts
            if stem in metas
        ]

    def count(self, shard: Shard, origin: Origin) -> Counts:
        entry = self._indexes.remote(shard, _stem(shard), origin)
        for info, stored in ((shard.object, entry.data), (shard.companions[1], entry.meta)):
            stored.check_listed(info, is_packed=bool(_compression(info.path)), uri=origin.uri)
        return Counts(entry.samples)

    def open(self, files: ShardFiles) -> TextReader:
        entry = self._indexes.local(files, _stem(files.shard))
        meta_name = files.name.removesuffix(files.shard.object.path) + files.shard.companions[1].path
        mapped = map_shard(files.path, name=files.name)
        meta = map_shard_index(files.companions[1], name=meta_name)
        verify(files, [(files.name, entry.data, mapped), (meta_name, entry.meta, meta)])
        return TextReader(files.name, mapped, _starts(meta, entry.samples, len(mapped), meta_name), entry.rows)


class TextReader:
    """Rows of one shard, sliced out of its map."""

    def __init__(self, name: str, mapped: Mapped, starts: NDArray[np.int64], rows: Rows) -> None:
        self._name, self._mapped, self._starts, self._rows = name, mapped, starts, rows
        self.counts = Counts(len(starts) - 1)

    def read(self, rows: Sequence[int]) -> Sequence[Sample | Exception]:
        import numpy as np

        wanted = np.asarray(rows, np.int64)
        starts, stops = self._starts[wanted].tolist(), self._starts[wanted + 1].tolist()
        return [self._sample(*place) for place in zip(wanted.tolist(), starts, stops, strict=True)]

    def _sample(self, row: int, start: int, stop: int) -> Sample | Exception:
        try:
            sample = self._rows.sample(self._mapped[start:stop])
        except (ValueError, RecursionError) as error:
            return self._bad(row, str(error))
        return sample if isinstance(sample, dict) else self._bad(row, f"no JSON object, but {type(sample).__name__}")

    def _bad(self, row: int, reason: str) -> SampleError:
        return SampleError(f"{self._name}: row {row:,}: {reason}", hint="write the shard again without it")

    def close(self) -> None:
        self._mapped = b""


def _by_stem(objects: Sequence[ObjectInfo]) -> tuple[dict[str, ObjectInfo], dict[str, ObjectInfo]]:
    """Return the texts and the metas by path before compression; a plain one is taken before its compressed form."""
    texts: dict[str, ObjectInfo] = {}
    metas: dict[str, ObjectInfo] = {}
    for info in objects:
        if (found := _NAME.fullmatch(info.path)) and (found["packed"] is None or found["packed"] in COMPRESSIONS):
            of_kind = metas if found["meta"] else texts
            if found["packed"] is None or found["stem"] not in of_kind:
                of_kind[found["stem"]] = info
    return texts, metas


def _stem(shard: Shard) -> str:
    packed = _compression(shard.object.path)
    return shard.object.path.rpartition(".")[0] if packed else shard.object.path


def _compression(path: str) -> str:
    return COMPRESSIONS.get(f".{path.rpartition('.')[2]}", "")


def _parse_shard(fields: Fields) -> Entry:
    kind = fields.get("format")
    if kind not in ("json", "csv", "tsv", "xsv"):
        raise FormatError(f"{fields.source}: is of format {kind!r}, only json, csv, tsv and xsv are text"[:300])
    data, meta = parse_file(fields, "data"), parse_file(fields, "meta")
    samples = fields.number("samples", limit=meta.bytes // 4)
    return Entry(samples, data, meta, Rows() if kind == "json" else _separated(fields, kind))


def _separated(fields: Fields, kind: str) -> Rows:
    names, kinds = fields.listed("column_names"), fields.listed("column_encodings")
    newline, separator = fields.text("newline"), _SEPARATORS.get(kind) or fields.text("separator")
    if not newline or not separator or not names or len(names) != len(kinds) or len({*map(str, names)}) < len(names):
        raise fields.bad("columns, separator or newline that do not fit together")
    for name, encoding in zip(names, kinds, strict=True):
        if not isinstance(name, str) or encoding not in tuple(_DECODERS):
            raise fields.bad(f"column {name!r} of encoding {encoding!r}"[:200])
    return Rows(newline.encode(errors="surrogatepass"), separator, tuple(zip(names, kinds, strict=True)))


def _starts(meta: memoryview, samples: int, num_bytes: int, name: str) -> NDArray[np.int64]:
    """Return where each row begins, and the end.

    Raises:
        ShardError: it is not the meta of so many rows in so many bytes.
    """
    import numpy as np

    def damaged(reason: str) -> ShardError:
        return ShardError(f"{name}: {reason}", hint="copy or write the shard again")

    if len(meta) < 4 * (samples + 2) or int.from_bytes(meta[:4], "little") != samples:
        raise damaged(f"it does not place the {samples:,} rows that index.json says")
    starts = np.frombuffer(meta, "<u4", samples + 1, 4).astype(np.int64)
    if starts[-1] > num_bytes or (starts[1:] < starts[:-1]).any():
        raise damaged("rows that lie outside of the shard or not in order")
    return starts
