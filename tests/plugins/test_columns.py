"""Transforms of columns."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from iostack.corpus.contracts import Transform
from iostack.errors import SampleError, UsageError
from iostack.registry import registry

SAMPLE = {"__key__": "a", "txt": b"Gr\xc3\xbc\xc3\x9fe", "json": b'{"n": 1}', "n": 5}


def _build(name: str, columns: Any) -> Transform:
    transform: Transform = registry().named("iostack_transforms")[name](columns=columns)
    return pickle.loads(pickle.dumps(transform))  # worker processes receive it this way


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [
        ("keep", ["n", "__key__"], {"n": 5, "__key__": "a"}),
        ("rename", {"n": "m"}, {"__key__": "a", "txt": SAMPLE["txt"], "json": SAMPLE["json"], "m": 5}),
        ("rename", {"n": "json", "json": "n"}, {**SAMPLE, "json": 5, "n": SAMPLE["json"]}),
        ("decode", {"txt": "text", "json": "json"}, {**SAMPLE, "txt": "Grüße", "json": {"n": 1}}),
    ],
)
def test_each_does_what_it_says_and_leaves_its_argument_alone(name: str, columns: Any, expected: Any) -> None:
    sample = dict(SAMPLE)
    assert _build(name, columns)(sample) == expected
    assert sample == SAMPLE


@pytest.mark.parametrize("name", ["keep", "rename", "decode"])
def test_a_missing_column_makes_the_sample_bad(name: str) -> None:
    columns = ["x"] if name == "keep" else {"x": "text"}
    with pytest.raises(SampleError, match="no column 'x'; there are __key__, txt, json, n"):
        _build(name, columns)(SAMPLE)


@pytest.mark.parametrize("value", [b"\xff", 5, "text already"])
def test_what_cannot_be_decoded_makes_the_sample_bad(value: object) -> None:
    with pytest.raises(SampleError, match="column 'txt' is no text"):
        _build("decode", {"txt": "text"})({"txt": value})


def test_impossible_requests_are_refused_when_they_are_built() -> None:
    with pytest.raises(UsageError, match="two columns the same name"):
        _build("rename", {"a": "x", "b": "x"})
    with pytest.raises(UsageError, match="decode knows no png"):
        _build("decode", {"a": "png"})
