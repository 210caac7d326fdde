"""Writer "tokens": Megatron's ``.bin`` and ``.idx``, from text through a tokenizer or from documents of token ids.

The layout is that of the format "tokens"; every sample is a document of one sequence, which ends with the tokenizer's end
of text. Ids are uint16 where the vocabulary allows it, by Megatron's own bound, else int32.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iostack import hookimpl
from iostack.corpus.contracts import Sample, Tokenizer
from iostack.errors import SampleError, UsageError
from iostack.prepare.contracts import Layout, Writer
from iostack.prepare.types import Types

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_UINT16_VOCABULARY = 65500
_CODES = {"uint16": 8, "int32": 4}
_HEADER = struct.Struct("<9sQBQQ")


@hookimpl
def iostack_writers() -> Mapping[str, Callable[..., Writer]]:
    return {"tokens": build}


def build(*, tokenizer: str = "", text_column: str = "text") -> TokensWriter:
    """Build the writer; without a tokenizer the samples must hold ids already, in the column ``tokens``."""
    from iostack.loader.order.named import find_tokenizer

    return TokensWriter(find_tokenizer(tokenizer) if tokenizer else None, text_column)


class TokensWriter(Writer):
    """Pairs ``tokens-NNNNNN.bin`` and ``.idx``."""

    format = "tokens"

    def __init__(self, tokenizer: Tokenizer | None, text_column: str) -> None:
        self._tokenizer = tokenizer
        self._text_column = text_column
        self.identity: dict[str, Any] = {"text_column": text_column, "tokenizer": None}
        if tokenizer is not None:
            self.identity |= {"tokenizer": tokenizer.name, "vocab_size": tokenizer.vocab_size}

    def layout(self, samples: Sequence[Sample], types: Types) -> Layout:
        if self._tokenizer is None:
            for sample in samples:
                if not hasattr(sample.get("tokens"), "dtype"):
                    raise UsageError(
                        "samples without token ids need a tokenizer",
                        hint="name one: --tokenizer huggingface:tokenizer.json",
                    )
            fits = all(_fits(sample["tokens"], "uint16") for sample in samples)
            is_narrow = fits and all(sample["tokens"].dtype.itemsize <= 2 for sample in samples)
            return {"dtype": "uint16" if is_narrow else "int32"}
        if samples and not any(isinstance(sample.get(self._text_column), str) for sample in samples):
            columns = ", ".join(f"{name} ({type(value).__name__})" for name, value in samples[0].items())
            raise UsageError(
                f"the source has no text in a column {self._text_column!r}; there are: {columns}",
                hint="name the column with --text-column; bytes become text with the transform decode",
            )
        return {"dtype": "uint16" if self._tokenizer.vocab_size < _UINT16_VOCABULARY else "int32"}

    def names(self, number: int) -> Sequence[str]:
        return [f"tokens-{number:06}.bin", f"tokens-{number:06}.idx"]

    def open(self, folder: Path, number: int, layout: Layout) -> TokensSink:
        return TokensSink([folder / name for name in self.names(number)], self._encode, layout["dtype"])

    def _encode(self, samples: Sequence[Sample]) -> list[NDArray[np.integer[Any]] | SampleError]:
        import numpy as np

        if self._tokenizer is None:
            return [_ids(sample) for sample in samples]
        texts = [sample.get(self._text_column) for sample in samples]
        encoded = iter(self._tokenizer.encode([text for text in texts if isinstance(text, str)]))
        end = np.array([self._tokenizer.end_of_text], np.int64)
        return [
            np.concatenate([next(encoded), end], dtype=np.int64)
            if isinstance(text, str)
            else SampleError(f"column {self._text_column!r} holds {type(text).__name__}, not text")
            for text in texts
        ]


class TokensSink:
    """Streams the ids to disk; keeps 4 bytes per document."""

    def __init__(
        self,
        files: Sequence[Path],
        encode: Callable[[Sequence[Sample]], list[NDArray[np.integer[Any]] | SampleError]],
        dtype: str,
    ) -> None:
        self._stream = files[0].open("wb")
        self._index_file = files[1]
        self._encode = encode
        self._dtype = dtype
        self._lengths = array("i")

    def write(self, samples: Sequence[Sample], rows: Sequence[int]) -> Sequence[Sample | Exception]:
        return [ids if isinstance(ids, SampleError) else self._append(ids) for ids in self._encode(samples)]

    def _append(self, ids: NDArray[np.integer[Any]]) -> Sample | Exception:
        if len(ids) and not _fits(ids, self._dtype):
            return SampleError(
                f"column 'tokens' holds ids from {ids.min()} to {ids.max()}, which {self._dtype} does not hold"
            )
        stored = ids.astype(f"<{'u2' if self._dtype == 'uint16' else 'i4'}")
        self._stream.write(stored.data)
        self._lengths.append(len(stored))
        return {"tokens": stored}

    def close(self) -> None:
        import numpy as np

        self._stream.close()
        lengths = np.frombuffer(self._lengths, np.int32) if self._lengths else np.zeros(0, np.int32)
        ends = np.cumsum(lengths, dtype=np.int64) * (2 if self._dtype == "uint16" else 4)
        with self._index_file.open("wb") as index:
            index.write(_HEADER.pack(b"MMIDIDX\x00\x00", 1, _CODES[self._dtype], len(lengths), len(lengths) + 1))
            index.write(lengths.astype("<i4").data)
            index.write((ends - lengths.astype(np.int64) * (2 if self._dtype == "uint16" else 4)).astype("<i8").data)
            index.write(np.arange(len(lengths) + 1, dtype="<i8").data)


def _ids(sample: Sample) -> NDArray[np.integer[Any]] | SampleError:
    ids = sample.get("tokens")
    if getattr(getattr(ids, "dtype", None), "kind", "") in ("i", "u") and getattr(ids, "ndim", 0) == 1:
        found: NDArray[np.integer[Any]] = ids  # type: ignore[assignment]
        return found
    return SampleError(f"column 'tokens' holds {type(ids).__name__}, not an array of token ids")


def _fits(ids: NDArray[np.integer[Any]], dtype: str) -> bool:
    import numpy as np

    bounds = np.iinfo(dtype)
    return not len(ids) or (int(ids.min()) >= bounds.min and int(ids.max()) <= bounds.max)
