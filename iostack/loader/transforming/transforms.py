"""Apply transforms to one sample: what they raise, or return that is no sample, makes it a bad one, but for failing storage."""

from __future__ import annotations

import time as clock
from collections.abc import Sequence
from typing import Protocol

from iostack.corpus.contracts import KeyedTransform, Sample, Transform
from iostack.corpus.corpus import Corpus
from iostack.errors import CacheError, IostackError, OriginError, PluginError, SampleError
from iostack.loader.transforming.watch import Watch
from iostack.plan.keyed import derive_key

_TRANSFORM = 9
"""Purpose of keys; see ``iostack.plan.indexed``."""


class Transformed(Protocol):
    """A corpus, what is made of its samples, and the seed of what draws at random."""

    @property
    def corpus(self) -> Corpus: ...
    @property
    def seed(self) -> int: ...
    @property
    def transforms(self) -> Sequence[Transform]: ...


class Transforming:
    """The transforms of one source; thread-safe if they are. ``watch`` is told of each sample."""

    def __init__(self, source: Transformed, *, number: int = 0, watch: Watch | None = None) -> None:
        self._watch = watch
        self._number = number
        self._corpus = source.corpus
        self._seed = source.seed
        self._transforms = [(each, each if isinstance(each, KeyedTransform) else None) for each in source.transforms]

    @property
    def is_needed(self) -> bool:
        """Whether there are any."""
        return bool(self._transforms)

    def apply(self, sample: Sample | Exception, epoch: int, shard: int, row: int) -> Sample | Exception:
        """Return what the transforms make of the sample of a row in an epoch, or the error that makes it bad.

        Raises:
            OriginError, CacheError, PluginError: storage or memory failed a transform; the sample may well be good.
        """
        if isinstance(sample, Exception) or not self._transforms:
            return sample
        place = (self._number, shard, row)
        if self._watch and (refusal := self._watch.begin(place)):
            return SampleError(refusal)
        started = clock.perf_counter()
        try:
            for number, (transform, keyed) in enumerate(self._transforms):
                if keyed is None:
                    sample = transform(sample)
                else:
                    sample = keyed.with_key(sample, derive_key(self._seed, _TRANSFORM, number, epoch, shard, row))
                if not isinstance(sample, dict):
                    return SampleError(f"a transform returned {type(sample).__name__}, not a sample")
        except Exception as error:  # noqa: BLE001 (whatever a foreign transform raises makes the sample bad, but for storage)
            refuse_failing_storage(error, f"a transform failed on {self._corpus.shard_name(shard)} row {row}")
            return error
        except SystemExit as error:
            raise PluginError(
                f"a transform tried to end the process on {self._corpus.shard_name(shard)} row {row}: exit code {error.code}",
                hint="raise an exception that says what is wrong with the sample",
            ) from error
        finally:
            if self._watch:
                self._watch.end(place, clock.perf_counter() - started)
        return sample


def refuse_failing_storage(error: Exception, told: str) -> None:
    """Return if an error of a transform or filter tells of damaged data, so that it makes the sample bad.

    Raises:
        OriginError, CacheError, PluginError: storage or memory failed, begun with ``told``; the sample may well be good.
    """
    if _is_of_the_sample(error):
        return
    if isinstance(error, IostackError):
        raise type(error)(f"{told}: {error.message}", hint=error.hint) from error
    raise PluginError(
        f"{told}: {type(error).__name__}: {error}",
        hint="storage or memory failed, which does not make a sample bad: look at what it opens",
    ) from error


def _is_of_the_sample(error: Exception) -> bool:
    """Return whether an error tells of damaged data, not of failing storage or memory."""
    if not isinstance(error, OSError):
        return not isinstance(error, MemoryError | OriginError | CacheError)
    # Pillow tells of damaged images by OSErrors that carry no number: bare ones, and UnidentifiedImageError.
    is_bare = type(error) is OSError or type(error).__module__.partition(".")[0] == "PIL"
    return is_bare and error.errno is None
