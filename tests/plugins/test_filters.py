"""The shipped filters: what they keep, what they find bad, and which options they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from iostack.corpus.contracts import Filter
from iostack.errors import SampleError, SettingsError
from iostack.registry import registry


def build(name: str, **options: Any) -> Filter:
    keeps: Filter = registry().named("iostack_filters")[name](**options)
    return keeps


SAMPLE = {
    "text": "größe",
    "n": 7,
    "txt": b"cat",
    "json": b'{"score": 0.5, "meta": {"lang": "de"}}',
    "table": {"a": {"b": 3}},
    "seg.json": '{"k": [1, 2]}',
    "pixels": np.zeros((4, 3), np.uint8),
}


@pytest.mark.parametrize(
    ("column", "op", "value", "kept"),
    [
        ("n", "==", 7, True),
        ("n", "!=", 7, False),
        ("n", "<", 7, False),
        ("n", "<=", 7, True),
        ("n", ">", 6.5, True),
        ("n", ">=", 8, False),
        ("n", "in", [1, 7], True),
        ("n", "not in", [1, 7], False),
        ("text", "contains", "öß", True),
        ("text", "matches", "^gr", True),
        ("text", "matches", "^ö", False),
        ("txt", "==", "cat", True),
        ("json.score", ">", 0.4, True),
        ("json.meta.lang", "in", ["de", "en"], True),
        ("table.a.b", "==", 3, True),
        ("seg.json.k", "contains", 2, True),
    ],
)
def test_where_compares_a_column_or_what_a_path_names_in_it(column: str, op: str, value: Any, kept: bool) -> None:
    assert build("where", column=column, op=op, value=value)(SAMPLE) is kept


@pytest.mark.parametrize(
    ("column", "op", "value", "told"),
    [
        ("score", "==", 1, "no column 'score'; there are text, n"),
        ("json.nothing", "==", 1, "column 'json' has no 'nothing'"),
        ("json.score.deeper", "==", 1, "column 'json' has no 'score.deeper'"),
        ("txt.a", "==", 1, "column 'txt' is no json"),
        ("text", "<", 3, "column 'text' does not compare with 3"),
        ("n", "contains", 3, "column 'n' does not compare with 3"),
    ],
)
def test_a_sample_that_where_cannot_compare_is_bad(column: str, op: str, value: Any, told: str) -> None:
    with pytest.raises(SampleError, match=told):
        build("where", column=column, op=op, value=value)(SAMPLE)


def test_length_counts_letters_bytes_and_items_and_includes_both_ends() -> None:
    for column, length in (("text", 5), ("txt", 3), ("pixels", 4), ("seg.json.k", 2)):
        assert build("length", column=column, min=length, max=length)(SAMPLE)
        assert not build("length", column=column, min=length + 1)(SAMPLE)
        assert not build("length", column=column, max=length - 1)(SAMPLE)
    with pytest.raises(SampleError, match="column 'n' has no length: it is int"):
        build("length", column="n")(SAMPLE)


def test_keep_fraction_keeps_about_its_share_by_content_alone() -> None:
    samples = [{"text": f"document {number}", "n": number % 3} for number in range(4000)]
    tenth = build("keep_fraction", fraction=0.1)
    kept = [tenth(sample) for sample in samples]
    assert 300 < sum(kept) < 500
    assert kept == [build("keep_fraction", fraction=0.1)(dict(reversed(sample.items()))) for sample in samples]
    assert kept != [build("keep_fraction", fraction=0.1, seed=1)(sample) for sample in samples]
    half = [build("keep_fraction", fraction=0.5)(sample) for sample in samples]
    assert all(more for few, more in zip(kept, half) if few)
    by_column = build("keep_fraction", fraction=0.5, columns=["n"])
    assert len({by_column(sample) for sample in samples if sample["n"] == 1}) == 1
    assert all(build("keep_fraction", fraction=1)(sample) for sample in (*samples[:50], SAMPLE))


def test_where_a_column_ends_makes_a_difference_to_keep_fraction() -> None:
    pairs = [({"a": "x" * n + "1", "b": "2"}, {"a": "x" * n, "b": "12"}) for n in range(64)]
    keeps = build("keep_fraction", fraction=0.5)
    assert any(keeps(one) != keeps(other) for one, other in pairs)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("where", {"column": "n", "op": "=", "value": 1}, "where knows no op '='"),
        ("where", {"column": "n", "op": "matches", "value": "("}, "is no regular expression"),
        ("length", {"column": "n", "min": 3, "max": 2}, "max = 2 is below min = 3"),
        ("keep_fraction", {"fraction": 0}, "0 is no fraction"),
        ("keep_fraction", {"fraction": 1.5}, "1.5 is no fraction"),
    ],
)
def test_options_that_make_no_sense_are_refused(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        build(name, **options)
