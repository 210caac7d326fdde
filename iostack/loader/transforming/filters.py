"""Apply filters to one sample as it stands in its shard, before any transform: keep it, leave it out, or find it bad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from iostack.corpus.contracts import Filter, Sample
from iostack.corpus.corpus import Corpus
from iostack.errors import SampleError
from iostack.loader.transforming.transforms import refuse_failing_storage


class Filtered(Protocol):
    """A corpus, and what says which of its samples are kept."""

    @property
    def corpus(self) -> Corpus: ...
    @property
    def filters(self) -> Sequence[Filter]: ...


class Filtering:
    """The filters of one source, of which all must agree to keep a sample; thread-safe if they are."""

    def __init__(self, source: Filtered) -> None:
        self._corpus = source.corpus
        self._filters = source.filters

    def judge(self, sample: Sample | Exception, shard: int, row: int) -> bool | Exception:
        """Return whether the sample of a row is kept, or the error that makes it bad.

        Raises:
            OriginError, CacheError, PluginError: storage or memory failed a filter; the sample may well be good.
        """
        if isinstance(sample, Exception):
            return sample
        try:
            for keeps in self._filters:
                verdict = keeps(sample)
                if not isinstance(verdict, bool | np.bool_):
                    return SampleError(f"a filter returned {type(verdict).__name__}, not True or False")
                if not verdict:
                    return False
        except Exception as error:  # noqa: BLE001 (whatever a foreign filter raises makes the sample bad, but for storage)
            refuse_failing_storage(error, f"a filter failed on {self._corpus.shard_name(shard)} row {row}")
            return error
        return True
