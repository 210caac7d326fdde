"""The byte tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iostack.errors import UsageError
from iostack.registry import registry


def _tokenizer(argument: str = "") -> Any:
    return registry().named("iostack_tokenizers")["bytes"](argument)


@given(st.lists(st.text()))
def test_ids_are_the_bytes_of_the_text_and_give_it_back(texts: list[str]) -> None:
    tokenizer = _tokenizer()
    encoded = tokenizer.encode(texts)
    assert [ids.tolist() for ids in encoded] == [list(text.encode()) for text in texts]
    assert [tokenizer.decode(ids) for ids in encoded] == texts


def test_ids_that_are_no_text_become_replacement_characters() -> None:
    tokenizer = _tokenizer()
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (257, 256)
    assert tokenizer.decode([72, 105, 256, 33, 255, -1, 10**6]) == "Hi\ufffd!\ufffd\ufffd\ufffd"
    assert tokenizer.decode([]) == ""


def test_half_a_surrogate_pair_has_ids() -> None:
    assert _tokenizer().encode(["\ud800"])[0].tolist() == [0xED, 0xA0, 0x80]


def test_an_argument_is_refused() -> None:
    with pytest.raises(UsageError, match="takes no argument, not 'utf-16'"):
        _tokenizer("utf-16")
