"""Tokenizer "huggingface:FILE": a ``tokenizer.json`` through the ``tokenizers`` library."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iostack import hookimpl
from iostack.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "<|im_end|>", "[EOS]", "[SEP]")


@hookimpl
def iostack_tokenizers() -> Mapping[str, Any]:
    return {"huggingface": build}


def build(argument: str) -> HuggingFaceTokenizer:
    """Build the tokenizer from the path of its file.

    Raises:
        MissingExtraError: the library is not installed.
        UsageError: the file is missing, no tokenizer, or names no token that ends a text.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError(
            "the tokenizer 'huggingface' needs the library tokenizers", hint='pip install "iostack[hf]"'
        ) from error
    path = Path(argument).expanduser()
    try:
        definition = path.read_bytes()
        tokenizer = Tokenizer.from_buffer(definition)
    except Exception as error:  # the library raises bare Exception
        raise UsageError(
            f"{argument or '(no file)'} is no tokenizer: {error}", hint="write huggingface:path/to/tokenizer.json"
        ) from error
    return HuggingFaceTokenizer(tokenizer, digest=hashlib.blake2b(definition, digest_size=8).hexdigest())


class HuggingFaceTokenizer:
    """A tokenizer without padding, truncation or added special tokens; named by the digest of its file."""

    def __init__(self, tokenizer: Any, *, digest: str) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.name = f"huggingface:{digest}"
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        found = [end for token in _END_OF_TEXT if (end := tokenizer.token_to_id(token)) is not None]
        if not found:
            raise UsageError(
                "the tokenizer has no token that ends a text", hint=f"add one of {', '.join(_END_OF_TEXT)} to its file"
            )
        self.end_of_text: int = found[0]

    def encode(self, texts: Sequence[str]) -> Sequence[NDArray[np.integer[Any]]]:
        import numpy as np

        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(each.ids, np.int32) for each in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode([int(each) for each in ids], skip_special_tokens=False))
