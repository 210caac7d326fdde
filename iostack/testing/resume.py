"""Checks for plugin authors: what passes them loads the same samples on any number of ranks, stopped at any step or never.

    def test_my_format_resumes(tmp_path):
        corpus = iostack.open_corpus(write_shards(tmp_path))
        check_resume_at_every_step(
            lambda rank, ranks: iostack.Loader(corpus, batch_size=12, rank=rank, ranks=ranks, lanes=4)
        )

Importing this imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from iostack.loader.loader import Batch, Loader
from iostack.loader.state import State, merge_states

MakeLoader = Callable[[int, int], Loader]
"""``make(rank, ranks)`` returns a new loader of that rank; all else must be the same at every call."""

Row = dict[str, Any]
"""One sample as it came in a batch: column -> value, as plain Python."""


def take_steps(loaders: Sequence[Loader], num_steps: int) -> Iterator[list[Row]]:
    """Yield the valid rows of each step, of all ranks, in the order of their positions; ends early where the pass does.

    ``loaders`` are those of rank 0, 1, ... of one run, all at the same position.
    """
    iterators = [iter(loader) for loader in loaders]
    start, batch_size = loaders[0].position, loaders[0].batch_size
    for _ in range(num_steps):
        batches = [next(iterator, None) for iterator in iterators]
        if all(batch is None for batch in batches):
            return
        rows = [_rows(batch) for batch in batches]
        by_position = [next(rows[position % len(loaders)], {}) for position in range(start, start + batch_size)]
        yield [row for row in by_position if row.get("valid")]
        start += batch_size


def check_resume_at_every_step(make_loader: MakeLoader, *, num_steps: int = 6, ranks: Sequence[int] = (1, 2)) -> None:
    """Check that saving after every step and loading the state on any number of ranks equals never stopping.

    Contents are compared, not only identities. Every number in ``ranks`` must divide the batch size; those that do not
    divide the number of lanes are the hard ones. Takes about num_steps**2 * len(ranks)**2 / 2 steps.

    Raises:
        AssertionError: names the ranks, the step, and what differs.
    """
    with _ranks(make_loader, 1) as loaders:
        whole = list(take_steps(loaders, num_steps))
    assert any(whole), "the loader gave nothing, so nothing was checked"
    for saving in ranks:
        with _ranks(make_loader, saving) as loaders:
            steps, states = _steps_and_states(loaders, num_steps)
        _assert_same(steps, whole, f"{saving} ranks and 1 rank", 0)
        for step, state in enumerate(states):
            for loading in ranks:
                with _ranks(make_loader, loading) as loaders:
                    for loader in loaders:
                        loader.load_state_dict(state)
                    rest = list(take_steps(loaders, num_steps - step))
                told = f"saved by {saving} ranks after {step} steps and loaded by {loading}, and never stopped,"
                _assert_same(rest, whole[step:], told, step)


@contextmanager
def _ranks(make_loader: MakeLoader, ranks: int) -> Iterator[list[Loader]]:
    with ExitStack() as stack:
        yield [stack.enter_context(make_loader(rank, ranks)) for rank in range(ranks)]


def _steps_and_states(loaders: Sequence[Loader], num_steps: int) -> tuple[list[list[Row]], list[State]]:
    """Return the steps, and the merged state before the first and after each, as JSON gives it back.

    Where ranks end a pass at different steps, states end with the first of them.
    """
    steps, states = [], [_merged(loaders)]
    for step in take_steps(loaders, num_steps):
        steps.append(step)
        positions = {loader.position for loader in loaders}
        if len(positions) == 1:
            states.append(_merged(loaders))
    return steps, states


def _merged(loaders: Sequence[Loader]) -> State:
    states = [loader.state_dict() for loader in loaders]
    assert states == [loader.state_dict() for loader in loaders], "taking the state changed the state"
    merged: State = json.loads(json.dumps(merge_states(states)))
    return merged


def _rows(batch: Batch | None) -> Iterator[Row]:
    if batch is None:
        return
    columns = {name: list(map(_plain, column)) for name, column in batch.items()}
    for values in zip(*columns.values(), strict=True):
        yield {name: value for name, value in zip(columns, values, strict=True) if value is not None}


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor | np.ndarray) else value


def _assert_same(found: list[list[Row]], expected: list[list[Row]], told: str, first_step: int) -> None:
    assert len(found) == len(expected), f"{told} give {len(found)} and {len(expected)} steps"
    for step, (left, right) in enumerate(zip(found, expected, strict=True), start=first_step):
        assert len(left) == len(right), f"{told} differ in step {step}: {len(left)} and {len(right)} valid samples"
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            names = [name for name in {**one, **other} if repr(one.get(name)) != repr(other.get(name))]
            assert not names, (
                f"{told} differ in step {step}, sample {index}, column {names[0]!r}:"
                f" {one.get(names[0])!r:.200} and {other.get(names[0])!r:.200}"
            )
