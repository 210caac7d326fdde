"""Identities of samples: no two samples of a corpus share one, however they are read."""

from __future__ import annotations

import numpy as np
from hypothesis import given

from iostack.plan.identity import row_identities, unit_identities

from .strategies import Setup, corpora, examples


def test_rows_of_several_sources_all_differ() -> None:
    shards, rows = (grid.ravel() for grid in np.meshgrid(np.arange(300), np.arange(200), indexing="ij"))
    identities = np.concatenate([row_identities(source, shards, rows) for source in range(3)])
    assert identities.dtype == np.int64
    assert len(np.unique(identities)) == 3 * 300 * 200


def test_outputs_of_several_units_all_differ() -> None:
    identities = np.concatenate([unit_identities(source, unit, 50) for source in range(3) for unit in range(200)])
    assert identities.dtype == np.int64
    assert len(np.unique(identities)) == 3 * 200 * 50


def test_the_first_outputs_of_a_unit_are_the_same_however_many_follow() -> None:
    assert unit_identities(1, 4, 9)[:3].tolist() == unit_identities(1, 4, 3).tolist()


@examples(40)
@given(setup=corpora)
def test_every_epoch_has_the_same_identities(setup: Setup) -> None:
    plan, size = setup.plan(), setup.num_samples
    epochs = [plan.locate(np.arange(epoch * size, (epoch + 1) * size)) for epoch in range(3)]
    identities = [np.sort(row_identities(0, found.shards, found.rows)).tolist() for found in epochs]
    assert identities[0] == identities[1] == identities[2]
    assert len(set(identities[0])) == size
