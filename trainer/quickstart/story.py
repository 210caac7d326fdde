"""The quickstart, step by step: pack, inspect, train, kill, resume, prove, look. Read ``tell`` first.

Every part of it is a command that a user can run alone; each is printed before it runs.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from iostack.cli.progress import show_progress
from iostack.errors import MissingExtraError, RunError
from trainer.proof import prove_samples
from trainer.quickstart.pack import PackedCorpus, pack_standard_library
from trainer.quickstart.picture import draw_loss
from trainer.settings import resolve_settings

_CONFIG = """\
# A small byte-level decoder: every key can also be set with -s, such as -s train.steps=2000.
[data]
seq_len = 256
batch_size = 16                 # sequences per step over all ranks
[model]
name = "decoder"
dim = 128
layers = 4
heads = 4
kv_heads = 2
[train]
steps = {steps}
learning_rate = 3e-3
minimum_learning_rate = 3e-4
warmup_steps = {warmup_steps}
[checkpoint]
every = "{save_every} steps"
[evaluation]
uri = {held_out}
every = "{evaluate_every} steps"
steps = 16
[callbacks.sample]
prompt = "def "
tokens = 240
"""


def tell(folder: Path, *, steps: int, procs: int) -> None:
    """Run the whole quickstart in ``folder``; what a former one left there is begun anew, but for the packed corpus.

    Raises:
        RunError: a command failed, or the proof did.
    """
    started = time.monotonic()
    corpus = _pack(folder)
    config, run_dir = _prepare(folder, corpus, steps)
    command = ["train", corpus.train, "-c", str(config), "--run-dir", str(run_dir), "--procs", str(procs)]

    for uri in (corpus.train, corpus.held_out):
        _iostack("index", uri)
    _iostack("inspect", corpus.train)
    _heading(f"Training on {procs} processes, to be killed in the middle")
    killed_after = _train_and_kill(command, run_dir, kill_after=steps // 2)
    _heading(f"Killed with SIGKILL after step {killed_after}; the same command again resumes")
    _iostack(*command)

    _heading("Was any sample lost or repeated?")
    _prove(command, run_dir)
    _heading("What it learnt")
    click.echo(_last_sample(run_dir))
    _report(folder, run_dir, corpus, killed_after)
    click.echo(f"All of it took {time.monotonic() - started:.0f} s.\n")
    _say_what_next(corpus, config)


def _pack(folder: Path) -> PackedCorpus:
    _heading("Packing the standard library's sources: real text, no network")
    folder.mkdir(parents=True, exist_ok=True)
    with show_progress("packing", "files") as progress:
        corpus = pack_standard_library(folder / "corpus", progress)
    click.echo(
        f"{corpus.documents:,} files, {corpus.text_bytes / 1e6:.1f} MB of text in {corpus.packed_bytes / 1e6:.1f} MB of"
        f" multi-frame .jsonl.zst shards in {corpus.train}"
    )
    return corpus


def _prepare(folder: Path, corpus: PackedCorpus, steps: int) -> tuple[Path, Path]:
    config, run_dir = folder / "run.toml", folder / "run"
    shutil.rmtree(run_dir, ignore_errors=True)
    text = _CONFIG.format(
        steps=steps,
        warmup_steps=max(1, steps // 10),
        save_every=max(1, steps // 12),
        evaluate_every=max(1, steps // 4),
        held_out=json.dumps(corpus.held_out),
    )
    config.write_text(text, encoding="utf-8")
    return config, run_dir


def _train_and_kill(command: Sequence[str], run_dir: Path, *, kill_after: int) -> int:
    """Start a run, kill all its processes once ``kill_after`` steps are made; return the last step it logged."""
    _show(command)
    process = subprocess.Popen([sys.executable, "-m", "iostack", *command], start_new_session=True)
    try:
        while (step := _last_step(run_dir)) < kill_after:
            if process.poll() is not None:
                raise RunError(
                    f"the training run ended by itself after step {step}, with exit code {process.returncode}"
                )
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return _last_step(run_dir)


def _iostack(*command: str) -> None:
    _show(command)
    process = subprocess.Popen([sys.executable, "-m", "iostack", *command])
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    if code:
        raise RunError(f"iostack {command[0]} ended with exit code {code}", hint="its own message stands above")


def _prove(command: Sequence[str], run_dir: Path) -> None:
    settings, _ = resolve_settings(file=Path(command[3]), uri=command[1])
    with show_progress("proving", "steps") as progress:
        proof = prove_samples(settings, run_dir, progress)
    if proof.distinct != proof.samples:
        raise RunError(f"{proof.samples - proof.distinct} of {proof.samples} samples were repeated within an epoch")
    click.echo(
        f"No: a process that never stopped computes the same samples for each of the {proof.steps} steps, and the"
        f" {proof.samples:,} samples are all different."
    )


def _report(folder: Path, run_dir: Path, corpus: PackedCorpus, killed_after: int) -> None:
    steps, evaluations = _lines(run_dir / "metrics.jsonl"), _lines(run_dir / "evaluation.jsonl")
    loss = statistics.mean(step["loss"] for step in steps[-20:])
    seconds = sum(step["seconds"] for step in steps)
    waited = sum(step["data_wait_s"] for step in steps)
    click.echo(f"loss of a model of byte frequencies  {corpus.byte_frequency_loss:.3f} nats per byte")
    click.echo(f"loss of the last 20 steps            {loss:.3f}")
    if evaluations:
        click.echo(f"loss on held-out text                {evaluations[-1]['evaluation_loss']:.3f}")
    click.echo(f"throughput                           {sum(s['tokens'] for s in steps) / seconds:,.0f} tokens/s")
    click.echo(f"share of time waiting for data       {waited / seconds:.2%}")
    picture = folder / "loss.png"
    try:
        draw_loss(
            picture, steps, evaluations, killed_after=killed_after, byte_frequency_loss=corpus.byte_frequency_loss
        )
        click.echo(f"picture of the loss                  {picture}")
    except MissingExtraError as error:
        click.echo(f"picture of the loss                  left out: {error.message}; {error.hint}")
    if loss > 0.9 * corpus.byte_frequency_loss:
        raise RunError(
            f"the loss {loss:.3f} is not well below that of byte frequencies {corpus.byte_frequency_loss:.3f}",
            hint="train for more steps: --steps",
        )


def _say_what_next(corpus: PackedCorpus, config: Path) -> None:
    click.echo("Try next:")
    for command in (
        ["bench", corpus.train, "--seq-len", "256"],
        ["train", corpus.train, "-c", str(config), "--run-dir", "longer", "--procs", "2", "-s", "train.steps=3000"],
        ["train", "--show-config", "-c", str(config)],
        ["plugins"],
    ):
        click.echo(f"  {shlex.join(['iostack', *command])}")


def _last_step(run_dir: Path) -> int:
    lines = _lines(run_dir / "metrics.jsonl")
    return int(lines[-1]["step"]) if lines else 0


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    text = path.read_text("utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _last_sample(run_dir: Path) -> str:
    text = (run_dir / "samples.txt").read_text("utf-8")
    return "\n".join(f"  | {line}" for line in text.split("--- step ")[-1].split("\n")[1:]).rstrip(" |\n")


def _heading(text: str) -> None:
    click.echo("\n" + click.style(text, bold=True) if not os.environ.get("NO_COLOR") else f"\n{text}")


def _show(command: Sequence[str]) -> None:
    click.echo(f"$ {shlex.join(['iostack', *command])}")
    sys.stdout.flush()
