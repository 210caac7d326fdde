"""Build what a run needs, from its settings: request ─> corpora ─> loader ─> program, and what was saved before.

All of it refuses what cannot work before anything is written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import iostack
from iostack.corpus.origins import scheme_of
from iostack.errors import SettingsError, UsageError
from iostack.loader.order.planned import Source
from trainer.contracts import AXES, Request
from trainer.program import Program, build_program
from trainer.settings import DataSettings, Settings
from trainer.supervise.world import World


def choose_device(settings: Settings, world: World) -> torch.device:
    """Return this rank's device, and make it the current one.

    Raises:
        SettingsError: CUDA is asked for and not there, or there are fewer devices than ranks on this machine.
    """
    wanted = settings.train.device
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    num_devices = torch.cuda.device_count()
    if num_devices < world.local_size:
        raise SettingsError(
            f"train.device = {wanted!r}: there are {world.local_size} ranks on this machine, and torch finds"
            f" {num_devices} CUDA devices",
            hint="start fewer ranks per machine, or set train.device = 'cpu'",
        )
    device = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(device)
    return device


def choose_threads(settings: Settings, world: World, *, before: int | None) -> int:
    """Return the threads of torch per rank: as set, as before on as many ranks, or the machine's cores shared out."""
    if settings.train.threads != "auto":
        return settings.train.threads
    if before is not None:
        return before
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // world.local_size)


def build_request(settings: Settings, world_size: int) -> Request:
    """Return what the resolver is asked for; ``parallel.data = "auto"`` takes the ranks that the other axes leave."""
    parallel, train = settings.parallel, settings.train
    axes = {axis.name: getattr(parallel, axis.setting) for axis in AXES}
    if parallel.data == "auto":
        others = parallel.data_shard * parallel.tensor * parallel.pipeline * parallel.context
        axes["dp_replicate"] = max(1, world_size // others)
    return Request(
        batch_size=settings.data.batch_size,
        seq_len=settings.data.seq_len,
        world_size=world_size,
        axes=axes,
        use=parallel.use,
        microbatch_size=None if train.microbatch_size == "auto" else train.microbatch_size,
        dtype=train.dtype,
        options=parallel.options,
    )


def data_rank_of(request: Request, rank: int) -> int:
    """Return which part of every batch a rank reads: ranks are numbered along the axes, the last varying fastest."""
    data_rank, stride = 0, request.world_size
    for axis in AXES:
        stride //= request.size(axis.name)
        if axis.splits_data:
            data_rank = data_rank * request.size(axis.name) + rank // stride % request.size(axis.name)
    return data_rank


def open_sources(data: DataSettings) -> list[Source]:
    """Open the corpus, or all corpora of the mix.

    Raises:
        UsageError: the settings name none.
    """
    if not data.uri and not data.sources:
        raise UsageError("no corpus to train on", hint="give a URI, or set data.uri or [[data.sources]]")
    if data.uri:
        options = _unless_local(data.uri, data.storage_options)
        return [Source(_open(data.uri, data, options, data.columns), 1.0, ())]
    return [
        Source(
            _open(
                source.uri,
                data,
                source.storage_options or _unless_local(source.uri, data.storage_options),
                source.columns or data.columns,
            ),
            source.weight,
            source.transforms,
            source.epochs or None,
            source.filters,
        )
        for source in data.sources
    ]


def open_held_out(uri: str, data: DataSettings, storage_options: Mapping[str, Any]) -> iostack.Corpus:
    """Open a corpus that is not trained on; without options of its own it gets those that ``data`` has for its scheme."""
    schemes = {scheme_of(used) for used in (data.uri, *(source.uri for source in data.sources)) if used}
    inherited = data.storage_options if scheme_of(uri) in schemes else {}
    return _open(uri, data, storage_options or _unless_local(uri, inherited))


def _open(
    uri: str, data: DataSettings, storage_options: Mapping[str, Any], columns: Sequence[str] = ()
) -> iostack.Corpus:
    return iostack.open_corpus(uri, columns=columns or None, cache_dir=data.cache_dir or None, **storage_options)


def _unless_local(uri: str, storage_options: Mapping[str, Any]) -> Mapping[str, Any]:
    return {} if scheme_of(uri) in ("file", "local") else storage_options


def open_loader(
    sources: Sequence[Source],
    data: DataSettings,
    *,
    data_rank: int,
    data_ranks: int,
    device: torch.device,
    saved: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    trace: Path | None = None,
) -> iostack.Loader:
    """Return the loader of one rank, at the start or where ``saved`` (a merged loader state) was.

    Raises:
        StateError: the saved state is of another corpus or order; names the field.
    """
    lanes = None if data.lanes == "auto" else data.lanes
    if saved is not None and data.lanes == "auto":
        lanes = int(saved["plan"]["lanes"])
    loader = iostack.Loader(
        list(sources),
        batch_size=data.batch_size,
        seq_len=data.seq_len,
        packing=data.packing,
        seed=data.seed,
        rank=data_rank,
        ranks=data_ranks,
        lanes=lanes,
        window_bytes=data.window,
        tokenizer=data.tokenizer,
        text_column=data.text_column,
        transforms=data.transforms,
        filters=data.filters,
        phases=[phase.model_dump() for phase in data.phases],
        skip=data.skip or (),
        epochs=epochs,
        device=device,
        lookahead_bytes=data.lookahead,
        memory=None if data.memory == "auto" else data.memory,
        pinned_memory=None if data.pinned_memory == "auto" else data.pinned_memory,
        max_bad_samples=data.max_bad_samples,
        threads=None if data.threads == "auto" else data.threads,
        trace=trace,
        workers=data.workers,
        transform_timeout_s=data.transform_timeout_s,
    )
    if saved is not None:
        loader.load_state_dict(saved)
    return loader


def build_model(settings: Settings, request: Request, *, vocab_size: int | None, device: torch.device) -> Program:
    """Build the program; ``vocab_size`` is what the loader knows.

    Raises:
        SettingsError: the number of token ids is neither set nor known, or the model cannot take packed documents.
    """
    if settings.data.vocab_size != "auto":
        vocab_size = settings.data.vocab_size
    if vocab_size is None:
        raise SettingsError(
            "data.vocab_size is not set, and a corpus of tokens does not say how many token ids there are",
            hint="set it to that of the tokenizer that wrote the tokens, for instance -s data.vocab_size=50304",
        )
    train = settings.train
    program = build_program(
        request,
        model_name=settings.model.name,
        model_options=settings.model.options,
        vocab_size=vocab_size,
        device=device,
        seed=train.seed,
        weight_decay=train.weight_decay,
        betas=train.betas,
        gradient_clip=train.gradient_clip or None,
    )
    if settings.data.packing != "none" and "documents" not in program.resolution.facts.features:
        raise SettingsError(
            f"data.packing = {settings.data.packing!r}: the model {settings.model.name!r} does not keep attention inside"
            " documents",
            hint='set data.packing = "none", or give the model the feature "documents"',
        )
    return program
