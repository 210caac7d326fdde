"""The loader: a corpus in, batches out, in an order that is the same on any number of ranks.

plan ──> residency ──> assemble ──> slot ──> device ──> consumer
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self

import torch
from torch.utils.data import IterableDataset, get_worker_info

from iostack import logs
from iostack.corpus.contracts import Tokenizer
from iostack.corpus.corpus import Corpus
from iostack.errors import PlanError, UsageError
from iostack.forks import renew_in_children
from iostack.loader.ahead.in_flight import InFlight
from iostack.loader.ahead.memory import memory_of
from iostack.loader.building import build_batches
from iostack.loader.device.copies import LoadedBatch, find_device, to_device
from iostack.loader.live import next_number, note_iterated
from iostack.loader.metering.meter import Meter, StageFigures
from iostack.loader.metering.trace import Trace
from iostack.loader.order.named import FilterSpec, TransformSpec
from iostack.loader.order.phases import PhaseSpec
from iostack.loader.order.planned import LoaderPlan, Source, as_sources
from iostack.loader.order.planning import plan_loader
from iostack.loader.order.scheduling import epochs_of_the_pass, make_schedule
from iostack.loader.order.skip_list import SkipSpec
from iostack.loader.reading import Reading
from iostack.loader.resuming import refuse_missing_cursors
from iostack.loader.state import Cursors, State, make_state, read_state
from iostack.loader.threads import Threads
from iostack.loader.transforming.bad_samples import BadSamples
from iostack.loader.transforming.slow_samples import SlowSample, SlowSamples
from iostack.loader.transforming.watch import KeepSlow
from iostack.plan.topology import Topology, own_lanes
from iostack.sizes import parse_bytes

Batch = dict[str, Any]

log = logs.logger(__name__)


class Loader(IterableDataset[Batch]):
    """Batches of one corpus, or of a weighted mix, for one data rank.

    With ``seq_len``, batches are ``{"tokens": int64[b, seq_len + 1], "valid": bool[b], "sample_ids": int64[b]}`` with
    b = batch_size / ranks: token shards are cut into sequences, documents are tokenised on the fly. Without it, batches
    are whole samples, collated by column. ``sample_ids`` are 64-bit hashes of the samples' identities; rows that only
    pad a finite pass have ``valid`` False and id 0. Batches belong to the consumer.

    Iterating goes on from ``position``, endlessly or for ``epochs``; a finished pass starts over at the next ``iter``. Where
    only the data can tell when a pass ends (text, and rows that were not counted), each rank ends after its own last
    sample. One loader has one iterator and belongs to one thread; threads run only between the first batch of an iterator
    and its end, or ``close``. Leaving the loop ends the iterator.

    Args:
        corpus: a ``Corpus``, or a list of ``(Corpus, weight)`` or ``Source``.
        batch_size: samples of a step over all ranks.
        rank, ranks: this data rank of how many; by default RANK and WORLD_SIZE of the environment, else 0 of 1.
        lanes: fixed sub-streams of the order; chosen for a new run, and part of its state ever after.
        window_bytes: samples are shuffled within windows of about this size in each lane.
        tokenizer, text_column: for documents: ``"name[:argument]"``, and the column that holds the text.
        transforms: names, tables with options, or callables; they map one sample to one sample.
        packing: ``"none"`` cuts token shards and text into sequences as they come; ``"split"`` and ``"best_fit"`` pack
            documents, and say where they begin; see ``iostack.packing``.
        filters: names, tables with options, or callables that say of a sample whether it is kept; they look at samples as
            they stand in the shards, before any transform. A filtered source is read by units.
        phases: ``{"after_samples": n, "weights": [...]}``: from the n-th sample on, rounded up to a multiple of the lanes,
            the sources of a mix have other weights; 0 leaves one out.
        skip: a skip list, as ``iostack plan --write-skip`` writes it, or sample ids: these never come. Where counts tell the
            order, another sample of the window comes in the place of each; units give fewer samples.
        epochs: end after so many; None never ends. The sources of a mix have epochs of their own: each of their samples then
            comes exactly so often, and the pass ends when nothing is left that the last phase draws.
        device: batches go there; on CUDA through pinned memory and a stream of their own.
        lookahead_bytes: bound of what each source fetches, and of what it decodes, before it is needed; one shard, unit or
            two batches are taken ahead in any case. Sources of a mix share it equally, and what is fetched because it is needed
            now counts too.
        memory: bytes that the loader may hold, besides mapped shards, with what batches take in worker processes, but not what an
            interpreter takes there: look-ahead gets shorter, then blocks smaller, and fewer workers have work; by default
            a quarter of what the machine, its cgroup and the limit of addresses allow, shared by the ranks of the machine.
        pinned_memory: bytes of it that may be pinned, for CUDA devices; by default a half.
        threads: for decoding; by default up to 4.
        workers: processes that read, transform and tokenise instead of threads: for Python transforms that hold the GIL.
            Transforms must be importable by name. Token shards are read here in any case.
        transform_timeout_s: a worker that transforms one sample for longer is killed, and the sample is bad.
        max_bad_samples: how many bad samples may be met before it is an error.
        trace: a file to write a timeline of the threads to, until ``close``; https://ui.perfetto.dev opens it.

    Raises:
        PlanError: sizes that cannot be planned, or do not fit into memory.
        SettingsError: an unknown tokenizer, transform or packing.
        UsageError: the device is not there.
    """

    def __init__(
        self,
        corpus: Corpus | Sequence[Corpus | tuple[Corpus, float] | Source],
        *,
        batch_size: int,
        seq_len: int | None = None,
        seed: int = 0,
        rank: int | None = None,
        ranks: int | None = None,
        lanes: int | None = None,
        window_bytes: int | str = "256 MiB",
        tokenizer: str | Tokenizer = "bytes",
        text_column: str = "text",
        transforms: Sequence[TransformSpec] = (),
        packing: str = "none",
        filters: Sequence[FilterSpec] = (),
        phases: Sequence[PhaseSpec] = (),
        skip: SkipSpec = (),
        epochs: int | None = None,
        device: str | torch.device = "cpu",
        lookahead_bytes: int | str = "256 MiB",
        memory: int | str | None = None,
        pinned_memory: int | str | None = None,
        threads: int | None = None,
        workers: int = 0,
        transform_timeout_s: float = 600.0,
        max_bad_samples: int = 1000,
        trace: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        if seq_len is not None and seq_len < 1:
            raise PlanError(f"seq_len must be at least 1, not {seq_len}")
        threads = threads if threads is not None else min(4, os.cpu_count() or 1)
        if threads < 1 or min(max_bad_samples, workers) < 0 or not transform_timeout_s > 0:
            raise PlanError(
                f"threads ({threads}) must be at least 1, max_bad_samples ({max_bad_samples}) and workers ({workers}) at"
                f" least 0, and transform_timeout_s ({transform_timeout_s}) above 0"
            )
        sources = as_sources(corpus)
        epochs = epochs_of_the_pass(sources, epochs)
        ranks = ranks if ranks is not None else _from_environment("WORLD_SIZE", 1)
        rank = rank if rank is not None else _from_environment("RANK", 0)
        topology = Topology(batch_size, rank, ranks)
        self.plan: LoaderPlan = plan_loader(
            sources,
            ranks=ranks,
            seed=seed,
            lanes=lanes,
            seq_len=seq_len,
            packing=packing,
            window_bytes=parse_bytes(window_bytes),
            tokenizer=tokenizer,
            text_column=text_column,
            transforms=transforms,
            filters=filters,
            phases=phases,
            skip=skip,
        )
        self.epochs = epochs
        self.ranks = ranks
        self.threads = threads
        """Threads that decode, where no worker processes do."""
        self.position = 0
        self._trace = Trace(trace, name=f"iostack rank {rank} of {ranks}") if trace is not None else None
        self.meter = Meter(self._trace)
        self.bad_samples = BadSamples(max_bad_samples)
        self._cursors: Cursors = {}
        self._iteration = 0
        self._iterated_in: int | None = None
        renew_in_children(self)
        self.number = next_number()
        """Tells the loaders of a process apart."""
        self._running: Generator[LoadedBatch, None, None] | None = None
        self._device = find_device(device)
        self._memory = memory_of(memory, pinned_memory)
        self._schedule = make_schedule(self.plan, topology, epochs)
        self._slow_samples = SlowSamples(self.plan.shard_name)
        self._elsewhere = elsewhere = None
        if workers and any(source.kind not in ("tokens", "documents") for source in self.plan.sources):
            from iostack.loader.tasks.elsewhere import Elsewhere

            self._elsewhere = elsewhere = Elsewhere(
                self.plan,
                workers,
                bad_samples=self.bad_samples,
                slow_samples=self._slow_samples,
                meter=self.meter,
                transform_timeout_s=transform_timeout_s,
            )
        num_threads = elsewhere.num_threads if elsewhere else threads
        reading = Reading(
            plan=self.plan,
            meter=self.meter,
            own_lanes=own_lanes(topology, self.plan.lanes),
            bad_samples=self.bad_samples,
            watch=KeepSlow(self._slow_samples),
            epochs=epochs,
            lookahead_bytes=parse_bytes(lookahead_bytes) // len(sources),
            memory=self._memory,
            pinned=self._device.type == "cuda",
            threads=num_threads,
            unit_threads=Threads(num_threads, "unit"),
            in_flight=InFlight(parse_bytes(lookahead_bytes)),
            elsewhere=elsewhere,
            slack_s=elsewhere.slack_s if elsewhere else 0.0,
        )
        self._batches = build_batches(reading, self._schedule)

    @property
    def lanes(self) -> int:
        """The number of lanes; a run keeps it for ever."""
        return self.plan.lanes

    @property
    def batch_size(self) -> int:
        """Samples of a step over all ranks."""
        return self._schedule.topology.batch_size

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the first source of documents, if any."""
        return next((source.tokenizer for source in self.plan.sources if source.tokenizer is not None), None)

    @property
    def vocab_size(self) -> int | None:
        """Token ids are below this; None where the corpus holds tokens and does not say."""
        sizes = [
            source.tokenizer.vocab_size if source.tokenizer else source.corpus.manifest.vocab_size
            for source in self.plan.sources
        ]
        known = [size for size in sizes if size is not None]
        return max(known) if known and len(known) == len(sizes) else None

    @property
    def data_wait_s(self) -> float:
        """Seconds that the consumer has waited for batches, in all."""
        return self.meter.waited_s

    @property
    def num_samples(self) -> int:
        """Rows handed out so far, padding included."""
        return self.meter.batches * self._schedule.topology.rows

    @property
    def num_steps(self) -> int | None:
        """Steps of a finite pass where arithmetic can tell; None if endless, or if only the data can tell."""
        end = self._schedule.end
        return None if end is None else -(-end // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches from ``position`` on; a new iterator ends the one before."""
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise UsageError(
                f"an iostack.Loader in {worker.num_workers} DataLoader workers would give every batch that often",
                hint="use DataLoader(loader, batch_size=None, num_workers=0); the loader has threads of its own",
            )
        self._end_iteration()
        return self._iterate(self._iteration)

    def _iterate(self, iteration: int) -> Generator[Batch, None, None]:
        self._refuse_ended(iteration)
        self._iterated_in = os.getpid()
        note_iterated(self)
        self._running = host = self._batches.batches(self.position, self._schedule.end, self._cursors)
        meter = self.meter
        batches = to_device(host, self._device, meter, pinned_bytes=self._memory.pinned)
        try:
            started = time.perf_counter()
            for columns, next_position, cursors in batches:
                ended = time.perf_counter()
                meter.waited_s += ended - started
                meter.batches += 1
                self.position = next_position
                if cursors:
                    for source, lanes in cursors.items():
                        self._cursors.setdefault(source, {}).update(lanes)
                yield columns
                if iteration != self._iteration:
                    self._refuse_ended(iteration)
                started = time.perf_counter()
                meter.consumer_s += started - ended
                if meter.sink is not None:
                    meter.sink.span("consumer", ended, started, None)
            meter.waited_s += time.perf_counter() - started
        finally:
            host.close()
        self.position, self._cursors = 0, {}

    def renew_after_fork(self) -> None:
        """End the iterator in a forked child; the parent's goes on."""
        self._iteration += 1

    def _refuse_forked(self) -> None:
        if self._iterated_in not in (None, os.getpid()):
            raise UsageError(
                f"this loader was iterated by process {self._iterated_in}, and this is a fork of it",
                hint="make a Loader in each process that reads; a corpus may be shared",
            )

    def _refuse_ended(self, iteration: int) -> None:
        self._refuse_forked()
        if iteration != self._iteration:
            raise UsageError("this iterator was ended by a newer one, by load_state_dict() or by close()")

    def _end_iteration(self) -> None:
        self._iteration += 1
        if self._running is not None:
            self._running.close()
            self._running = None

    def stages(self) -> dict[str, StageFigures]:
        """Return what each stage has done so far, and its part of ``data_wait_s``; in any thread. See ``iostack.stages``."""
        return self.meter.figures()

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the workers that run now."""
        return self._elsewhere.pool.pids if self._elsewhere else []

    def slow_samples(self) -> list[SlowSample]:
        """Return the samples whose transforms took longest so far, slowest first, at most ten."""
        return self._slow_samples.slowest()

    def state_dict(self) -> State:
        """Return where the loader is after the last batch handed out; merge those of all ranks with ``merge_states``."""
        return make_state(self.plan.fingerprint, self.plan.fields(), self.position, self._cursors)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, of this rank or merged; an iterator that exists is ended.

        Another skip list than the saved one holds from the position on, where counts tell the order of all sources.

        Raises:
            StateError: it is of another corpus or plan, or lacks cursors of lanes of this rank; nothing has changed.
        """
        fields = self.plan.fields()
        by_units = any(source.uses_units for source in self.plan.sources)
        position, cursors = read_state(state, self.plan.fingerprint, fields, may_differ=() if by_units else ("skip",))
        if position and state["plan"].get("skip") != fields.get("skip"):
            log.info("the skip list is another one than before: it holds from position %s on", f"{position:,}")
        refuse_missing_cursors(self.plan, self._schedule, position, cursors)
        self._end_iteration()
        own = set(own_lanes(self._schedule.topology, self.lanes))
        self.position = position
        self._cursors = {
            source: {lane: cursor for lane, cursor in lanes.items() if lane in own} for source, lanes in cursors.items()
        }

    def close(self) -> None:
        """End the iterator and its threads, and let go of the shards; the corpora stay open. Iterating again goes on."""
        self._end_iteration()
        self._batches.close()
        if self._trace is not None:
            self._trace.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __getstate__(self) -> NoReturn:
        raise UsageError(
            "a Loader cannot be copied or sent to another process",
            hint="make it in the process that reads it, and hand over its state_dict()",
        )


def _from_environment(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    try:
        return int(value)
    except ValueError as error:
        raise PlanError(
            f"the environment has {name}={value!r}, which is no number", hint="unset it, or give rank and ranks"
        ) from error
