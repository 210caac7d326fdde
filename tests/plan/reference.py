"""The plan once more, as slow and as plain as possible: Python integers, lists and fractions, nothing of iostack.

Everything is built in full and then looked up, so that what is compared with it by arithmetic cannot share a mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from math import gcd, lcm

MASK = 2**64 - 1
SHARD_ORDER, WINDOW_ORDER, PHASE = 1, 2, 3

Sample = tuple[int, int, int]
"""(epoch, shard, row)"""


def mix(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


def derive_key(*parts: int) -> int:
    key = len(parts)
    for part in parts:
        key = mix(mix((part + 0x9E3779B97F4A7C15) % 2**64) ^ ((key * 0x9E3779B97F4A7C15 + 1) % 2**64))
    return key


def keyed_hash(key: int, value: int) -> int:
    return mix((mix(value ^ key) + mix(key ^ 0x9E3779B97F4A7C15)) % 2**64)


def permutation(key: int, length: int) -> list[int]:
    return sorted(range(length), key=lambda number: keyed_hash(key, number) >> 32)


def stride(lanes: int) -> int:
    """How far apart successive segments stand: coprime to L and nearest to 0.618034 L, the smaller of two."""
    wanted, distance = lanes * 618_034 // 1_000_000, 0
    while True:
        for candidate in (wanted - distance, wanted + distance):
            if candidate > 0 and gcd(candidate, lanes) == 1:
                return candidate
        distance += 1


class Source:
    """The order of one source, epoch by epoch as whole lists of samples."""

    def __init__(self, counts: Sequence[int], *, seed: int, lanes: int, window: int) -> None:
        self.counts, self.seed, self.lanes, self.window = list(counts), seed, lanes, window
        self.num_samples = sum(counts)
        self.axis = cache(self.axis)  # type: ignore[method-assign]
        self.shuffled_windows = cache(self.shuffled_windows)  # type: ignore[method-assign]

    def axis(self, epoch: int) -> list[Sample]:
        """All samples of an epoch, shard after shard in permuted order."""
        shards = permutation(derive_key(self.seed, SHARD_ORDER, epoch), len(self.counts))
        return [(epoch, shard, row) for shard in shards for row in range(self.counts[shard])]

    def segment(self, epoch: int, number: int) -> list[Sample]:
        """One of the L parts that an axis is cut into; the first N mod L hold one sample more."""
        sizes = [self.num_samples // self.lanes + (j < self.num_samples % self.lanes) for j in range(self.lanes)]
        places = [j * stride(self.lanes) % self.lanes for j in range(self.lanes)]
        start = sum(size for size, place in zip(sizes, places) if place < places[number])
        return self.axis(epoch)[start : start + sizes[number]]

    def windows(self, epoch: int, number: int) -> list[list[Sample]]:
        """A segment cut at shift, shift + W, shift + 2W, ...; the first may be empty, and is counted all the same."""
        samples = self.segment(epoch, number)
        shift = (2 * number + 1) * self.window // (2 * self.lanes)
        windows = [samples[:shift]]
        for start in range(shift, len(samples), self.window):
            windows.append(samples[start : start + self.window])
        return windows

    def shuffled_windows(self, epoch: int, number: int) -> list[list[Sample]]:
        return [
            [
                samples[draw]
                for draw in permutation(derive_key(self.seed, WINDOW_ORDER, epoch, number, index), len(samples))
            ]
            for index, samples in enumerate(self.windows(epoch, number))
        ]

    def window_of(self, position: int) -> tuple[list[Sample], int]:
        """The shuffled window that a position falls into, and its offset there."""
        epoch, within = divmod(position, self.num_samples)
        offset, number = divmod(within, self.lanes)
        assert number == (position % self.lanes - epoch * self.num_samples) % self.lanes
        for samples in self.shuffled_windows(epoch, number):
            if offset < len(samples):
                return samples, offset
            offset -= len(samples)
        raise AssertionError("a position beyond its segment")

    def at(self, position: int) -> Sample:
        samples, offset = self.window_of(position)
        return samples[offset]

    def substitutes(self, position: int) -> list[Sample]:
        samples, offset = self.window_of(position)
        draws = [samples[(offset + draw) % len(samples)] for draw in range(1, len(samples))]
        if len(samples) < self.window:
            after, start = self.window_of(position + (len(samples) - offset) * self.lanes)
            assert start == 0
            draws += after
        return draws


def cycle(weights: Sequence[int]) -> list[int]:
    """Tijdeman's rule in fractions; of sources whose turn ends at the same time the first is taken."""
    if len(weights) == 1:
        return [0] * weights[0]
    shares = [Fraction(weight, sum(weights)) for weight in weights]
    slack = Fraction(1, 2 * len(weights) - 2)
    given = [0] * len(weights)
    order = []
    for step in range(1, sum(weights) + 1):
        due = [share * step - number for share, number in zip(shares, given)]
        ready = [source for source in range(len(weights)) if due[source] >= slack]
        chosen = min(ready, key=lambda source: (1 - slack - due[source]) / shares[source])
        given[chosen] += 1
        order.append(chosen)
    return order


def turn_offsets(weights: Sequence[int], lanes: int) -> list[int]:
    """Where each turn begins in the cycle: one place of every remainder, where later prefixes stray least."""
    order, total = cycle(weights), sum(weights)
    ahead = [
        [order[:place].count(source) - Fraction(weight * place, total) for source, weight in enumerate(weights)]
        for place in range(total)
    ]

    def strays(place: int) -> Fraction:
        return max(abs(later - here) for other in ahead for later, here in zip(other, ahead[place]))

    classes = gcd(total, lanes)
    return [0] + [min(range(first, total, classes), key=strays) for first in range(1, classes)]


class Mixed:
    """Several sources in one stream: at every position, the source and its own position."""

    def __init__(self, weights: Sequence[int], lanes: int) -> None:
        self.cycle, self.lanes = cycle(weights), lanes
        self.offsets = turn_offsets(weights, lanes)

    def source_of(self, position: int) -> int:
        turn = position // lcm(len(self.cycle), self.lanes) % len(self.offsets)
        return self.cycle[(position + self.offsets[turn]) % len(self.cycle)]

    def draws_before(self, lane: int, step: int, source: int) -> int:
        return sum(self.source_of(lane + earlier * self.lanes) == source for earlier in range(step))

    def at(self, position: int) -> tuple[int, int]:
        step, lane = divmod(position, self.lanes)
        source = self.source_of(position)
        return source, self.draws_before(lane, step, source) * self.lanes + lane


def rank_positions(start: int, num_batches: int, batch_size: int, rank: int, ranks: int) -> list[int]:
    stop = start + num_batches * batch_size
    return [position for position in range(start, stop) if position % ranks == rank]


def finite_steps(num_samples: int, batch_size: int) -> list[list[tuple[int, bool]]]:
    """A pass that ends: (position, valid) of each step; the last is padded."""
    steps: list[list[tuple[int, bool]]] = []
    for position in range(num_samples):
        if position % batch_size == 0:
            steps.append([])
        steps[-1].append((position, True))
    while steps and len(steps[-1]) < batch_size:
        steps[-1].append((steps[-1][-1][0] + 1, False))
    return steps


def sequences(tokens: int, seq_len: int, seed: int, epoch: int, shard: int) -> list[range]:
    """The sequences of a shard in an epoch, each one token longer than seq_len, as ranges of tokens."""
    count = max(tokens - 1, 0) // seq_len
    unused = max(tokens - 1, 0) - count * seq_len
    phase = keyed_hash(derive_key(seed, PHASE, epoch), shard) % (unused + 1)
    return [range(phase + row * seq_len, phase + (row + 1) * seq_len + 1) for row in range(count)]


def units(counts: Sequence[int], unit_rows: int) -> list[list[range | None]]:
    """The units of each shard as ranges of rows; None where the rows are unknown."""
    return [
        [None] if count < 0 else [range(row, min(row + unit_rows, count)) for row in range(0, count, unit_rows)]
        for count in counts
    ]


class Curriculum:
    """A mix whose weights change, lane by lane and time by time: at every position, the source and its own position."""

    def __init__(self, phases: Sequence[tuple[int, Sequence[int]]], lanes: int, limits: Sequence[int | None]) -> None:
        self.phases, self.lanes, self.limits = list(phases), lanes, list(limits)

    def lane(self, lane: int, num_times: int) -> list[tuple[int, int]]:
        """What a lane gives at its first times; shorter where it is over."""
        given: list[tuple[int, int]] = []
        drawn = [0] * len(self.limits)
        phase = began = -1
        weights: list[int] = []
        while len(given) < num_times:
            time = len(given)
            now = phase
            while now < 0 or (now + 1 < len(self.phases) and time * self.lanes >= self.phases[now + 1][0]):
                now += 1
            left = self._left(now, drawn, lane)
            while not any(left):
                now += 1
                if now == len(self.phases):
                    return given
                left = self._left(now, drawn, lane)
            if (now, left) != (phase, weights):
                phase, weights, began = now, left, time
                members = [source for source, weight in enumerate(left) if weight]
                divisor = gcd(*(left[source] for source in members))
                mixed = Mixed([left[source] // divisor for source in members], self.lanes)
            source = members[mixed.source_of((time - began) * self.lanes + lane)]
            given.append((source, drawn[source] * self.lanes + lane))
            drawn[source] += 1
        return given

    def _left(self, phase: int, drawn: Sequence[int], lane: int) -> list[int]:
        """The weights of a phase, without those of sources that have given all."""
        return [
            weight if limit is None or drawn[source] * self.lanes + lane < limit else 0
            for source, (weight, limit) in enumerate(zip(self.phases[phase][1], self.limits))
        ]
