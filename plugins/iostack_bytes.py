"""Tokenizer "bytes": the UTF-8 bytes of a text are its ids 0 to 255; 256 ends a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from iostack import hookimpl
from iostack.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@hookimpl
def iostack_tokenizers() -> Mapping[str, Any]:
    return {"bytes": build}


def build(argument: str) -> ByteTokenizer:
    """Build the tokenizer; it takes no argument."""
    if argument:
        raise UsageError(f"the tokenizer 'bytes' takes no argument, not {argument!r}", hint='write tokenizer = "bytes"')
    return ByteTokenizer()


class ByteTokenizer:
    """Every text has ids, and ids that are valid UTF-8 have their text back."""

    name = "bytes"
    vocab_size = 257
    end_of_text = 256

    def encode(self, texts: Sequence[str]) -> Sequence[NDArray[np.integer[Any]]]:
        import numpy as np

        # JSON can hold half of a surrogate pair: it gets the bytes that UTF-8 would give it.
        return [np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.uint16) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        import numpy as np

        values = np.asarray(ids, np.int64)
        # 0xFF occurs in no UTF-8, so ids that are no bytes become U+FFFD.
        return (
            np.where((values >= 0) & (values < 256), values, 0xFF).astype(np.uint8).tobytes().decode("utf-8", "replace")
        )
