"""Work in threads that nobody waits for at the exit: what happens when one piece of it fails."""

from __future__ import annotations

import threading
import time

import pytest

from iostack.corpus.deadline import in_threads


def test_results_come_with_their_numbers() -> None:
    assert dict(in_threads(lambda item: item * 2, [5, 6, 7], threads=2)) == {0: 10, 1: 12, 2: 14}


def test_after_an_error_nothing_more_is_begun_even_where_the_error_is_taken_late() -> None:
    begun: list[int] = []
    failed = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            failed.set()
            raise ValueError(f"item {item}")
        return item

    results = in_threads(work, [0, 1, 2, 3], threads=1)
    assert next(results) == (0, 0)
    assert failed.wait(10)
    time.sleep(0.1)  # long enough for the thread to go on to another
    with pytest.raises(ValueError, match="item 1"):
        next(results)
    assert begun == [0, 1]
