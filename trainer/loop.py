"""The training run, from settings to the last checkpoint. Read ``run_training`` first, then ``_train``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from iostack.errors import SettingsError, redact
from trainer.callbacks import build_callbacks
from trainer.checkpoint import Checkpointer
from trainer.checkpoint.exchange import Exchange
from trainer.metrics import JsonLines, metrics_line
from trainer.observing import trace_path
from trainer.optimizer import learning_rate
from trainer.progress import RunProgress
from trainer.recorder import Recorder
from trainer.run import Run
from trainer.run_folder import RunFolder, refuse_changes
from trainer.saving import RunState, Saver
from trainer.settings import Settings
from trainer.settings.show import plain_settings
from trainer.setup import build_model, build_request, choose_threads, data_rank_of, open_loader, open_sources
from trainer.sizes import check_sizes
from trainer.supervise.heartbeat import Heartbeat
from trainer.supervise.signals import StopRequest, exit_code_of
from trainer.supervise.world import World

logger = logging.getLogger(__name__)

_COLLECTIVE_S = 1800.0


def run_training(
    settings: Settings,
    *,
    world: World,
    device: torch.device,
    checkpoint_uri: str,
    folder: RunFolder | None,
    heartbeat: Heartbeat | None = None,
) -> int:
    """Train, or go on where the last checkpoint is; return 0, or the exit code of the signal that stopped the run.

    Every rank calls it, inside the process group; rank 0 gives the locked run folder.

    Raises:
        IostackError: the settings do not fit each other, the machines, the corpus or what was saved before.
    """
    request = build_request(settings, world.size)
    check_sizes(request)
    exchange = Exchange(None, timeout_s=_COLLECTIVE_S)
    _refuse_different_settings(exchange.gather(plain_settings(settings)))
    checkpoints = Checkpointer(
        checkpoint_uri, storage_options=settings.checkpoint.storage_options, keep=settings.checkpoint.keep
    )
    before = checkpoints.latest()
    if before is not None:
        refuse_changes(dict(before.settings), plain_settings(settings), where=f"the checkpoint of step {before.step}")
    saved = RunState.from_json(before.state) if before else None
    threads_before = saved.threads if saved and before and before.world == world.size else None
    threads = min(exchange.gather(choose_threads(settings, world, before=threads_before)))
    torch.set_num_threads(threads)

    loader = open_loader(
        open_sources(settings.data),
        settings.data,
        data_rank=data_rank_of(request, world.rank),
        data_ranks=request.data_ranks,
        device=device,
        saved=saved.loader if saved else None,
        trace=trace_path(settings.metrics, world.rank),
    )
    _refuse_too_many_steps(settings.train.steps, loader.num_steps)
    program = build_model(settings, request, vocab_size=loader.vocab_size, device=device)
    restored = checkpoints.load(program.tensors())
    if restored is not None:
        saved = RunState.from_json(restored.state)
        program.load_state(saved.program)
        loader.load_state_dict(saved.loader)
    step = restored.step if restored else 0

    progress = RunProgress(first_step=step, total_steps=settings.train.steps, is_shown=world.rank == 0)
    run = Run(settings, world, program, loader, folder, build_callbacks(settings), progress, step)
    _announce(run, is_resumed=restored is not None, threads=threads)
    stop_signal = 0
    if step < settings.train.steps:
        stop = StopRequest(is_quiet=world.rank != 0, is_one_of_several=world.size > 1)
        with _callbacks_around(run), _metrics_file(run) as lines, progress, stop:
            checkpoints.begin({})
            if folder:
                folder.write_settings(plain_settings(settings))
            saver = Saver(run, checkpoints, exchange, threads=threads)
            stop_signal = _train(run, saver, lines, stop, heartbeat)
    else:
        run.say(f"nothing to do: step {step} of {settings.train.steps} is saved; raise train.steps to go on")
    loader.close()
    checkpoints.close()
    exchange.close()
    return exit_code_of(stop_signal) if stop_signal else 0


def _refuse_too_many_steps(steps: int, available: int | None) -> None:
    if available is not None and steps > available:
        raise SettingsError(
            f"train.steps = {steps}, but the sources are used up after {available} steps",
            hint=f"set train.steps to {available} at most, or give the sources more epochs",
        )


def _train(run: Run, saver: Saver, lines: JsonLines | None, stop: StopRequest, heartbeat: Heartbeat | None) -> int:
    """Make the steps that are left; return the signal that ended them early, or 0."""
    settings, program, loader = run.settings.train, run.program, run.loader
    recorder = Recorder(program, rank=run.world.rank, num_ranks=run.world.size, dtype=settings.dtype)
    batches = iter(loader)
    while run.step < settings.steps:
        recorder.begin_step()
        position, waited = loader.position, loader.data_wait_s
        batch = next(batches)
        rate = learning_rate(
            run.step,
            peak=settings.learning_rate,
            warmup_steps=min(settings.warmup_steps, settings.steps),
            total_steps=settings.steps,
            minimum=settings.minimum_learning_rate,
        )
        report = program.step(batch, learning_rate=rate)
        run.step += 1
        metrics, asked = recorder.end_step(
            report,
            batch,
            step=run.step,
            position=position,
            data_wait_s=loader.data_wait_s - waited,
            wants_save=saver.is_due(run.step),
            stop_signal=stop.signal,
        )
        if heartbeat:
            heartbeat.step = run.step
        if lines:
            lines.write(metrics_line(metrics))
        run.progress.show(metrics, loader.stages)
        for callback in run.callbacks:
            callback.on_step_end(run, metrics)
        if asked.save or asked.stop_signal or run.step == settings.steps:
            saver.save(lines)
        if asked.stop_signal:
            run.say(f"stopped after step {run.step} of {settings.steps}, which is saved; the same command resumes")
            return asked.stop_signal
    run.say(f"done: {settings.steps} steps")
    return 0


@contextmanager
def _callbacks_around(run: Run) -> Iterator[None]:
    """Start all callbacks, and end each of them whatever else fails; the first error is the one that is raised."""
    try:
        for callback in run.callbacks:
            callback.on_run_start(run)
        yield
    except BaseException:
        _end_callbacks(run)
        raise
    failed = _end_callbacks(run)
    if failed:
        raise failed[0]


def _end_callbacks(run: Run) -> list[Exception]:
    """Tell every callback of the end; return what they raised, which is logged."""
    failed: list[Exception] = []
    for callback in run.callbacks:
        try:
            callback.on_run_end(run)
        except Exception as error:  # noqa: BLE001 (the others must end too)
            kind = type(callback).__name__
            logger.warning("the end of callback %s failed: %s", kind, redact(f"{type(error).__name__}: {error}"))
            failed.append(error)
    return failed


@contextmanager
def _metrics_file(run: Run) -> Iterator[JsonLines | None]:
    if run.folder is None:
        yield None
        return
    lines = JsonLines(run.folder.metrics, last_step=run.step)
    try:
        yield lines
    finally:
        lines.close()


def _announce(run: Run, *, is_resumed: bool, threads: int) -> None:
    run.say(str(run.program.resolution))
    device = run.program.device
    run.say(f"device: {device}" + (f", {threads} threads per rank" if device.type == "cpu" else ""))
    if is_resumed:
        run.say(f"resuming after step {run.step}, at position {run.loader.position:,}")


def _refuse_different_settings(of_ranks: Sequence[dict[str, Any]]) -> None:
    """Refuse a job whose machines read different settings files: the ranks would train different models."""
    for rank, other in enumerate(of_ranks):
        for section, values in of_ranks[0].items():
            if values != other[section]:
                key = next(key for key in {**values, **other[section]} if values.get(key) != other[section].get(key))
                raise SettingsError(
                    f"{section}.{key} is {values.get(key)!r} on rank 0 and {other[section].get(key)!r} on rank {rank}",
                    hint="give every machine the same settings",
                )
