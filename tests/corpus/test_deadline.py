"""Work in threads that nobody waits for at the exit: what happens when one piece of it fails."""

from __future__ import annotations

import threading

import pytest
from runs import wait_until

from iostack.corpus.deadline import in_threads


def test_results_come_with_their_numbers() -> None:
    assert dict(in_threads(lambda item: item * 2, [5, 6, 7], threads=2)) == {0: 10, 1: 12, 2: 14}


def test_after_an_error_nothing_more_is_begun_even_where_the_error_is_taken_late() -> None:
    begun: list[int] = []
    threads: list[threading.Thread] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            threads.append(threading.current_thread())
            raise ValueError(f"item {item}")
        return item

    results = in_threads(work, [0, 1, 2, 3], threads=1)
    assert next(results) == (0, 0)
    wait_until(lambda: bool(threads), "the error")
    threads[0].join(10)  # it ends when it has no more to begin
    assert not threads[0].is_alive()
    with pytest.raises(ValueError, match="item 1"):
        next(results)
    assert begun == [0, 1]
