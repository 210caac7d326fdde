"""The Hugging Face tokenizer: made from a real tokenizer.json."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from iostack.errors import MissingExtraError, UsageError
from iostack.registry import registry

TEXTS = ["the quick brown fox", "jumps over", "", "the lazy dog"]


def _build(argument: str | Path) -> Any:
    return registry().named("iostack_tokenizers")["huggingface"](str(argument))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return _train(tmp_path / "tokenizer.json", ["<|endoftext|>"])


def _train(path: Path, special_tokens: list[str]) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=special_tokens, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding()
    tokenizer.save(str(path))
    return path


def test_texts_come_back_whole_without_padding_or_truncation(file: Path) -> None:
    tokenizer = _build(file)
    encoded = tokenizer.encode(TEXTS)
    assert [tokenizer.decode(ids) for ids in encoded] == TEXTS
    assert all(ids.max(initial=0) < tokenizer.vocab_size for ids in encoded)
    assert tokenizer.end_of_text == 0


def test_its_name_changes_with_the_file_and_not_with_its_place(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"
    copy.write_bytes(file.read_bytes())
    assert _build(copy).name == _build(file).name
    other = _train(tmp_path / "other.json", ["<|endoftext|>", "<extra>"])
    assert _build(other).name != _build(file).name


def test_a_tokenizer_that_cannot_end_a_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no token that ends a text"):
        _build(_train(tmp_path / "tokenizer.json", []))


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"tokenizer\.json is no tokenizer"):
        _build(path)


def test_a_missing_library_answers_with_the_install_command(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError) as caught:
        _build(file)
    assert caught.value.hint == 'pip install "iostack[hf]"'
