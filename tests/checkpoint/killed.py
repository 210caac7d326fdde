"""Saves in child processes that die by SIGKILL; prints what can be loaded after each. A program, not a test."""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[2]))

from tests.checkpoint.steps import loaded_step, save_steps, tensors_of
from trainer.checkpoint import Checkpointer

FILE_OPERATIONS = {"open", "os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.scandir", "shutil.rmtree"}


def in_child(action: Callable[[], None]) -> int:
    """Run ``action`` in a forked child; returns its process id."""
    child = os.fork()
    if not child:
        action()
        os._exit(0)
    return child


def save_two(folder: Path) -> None:
    save_steps(folder, 2, keep=1)


def kill_before_each_operation(root: Path) -> None:
    """Kill a save before its first, second, third ... file operation, until one gets through."""
    save_steps(root / "first", 1)
    for number in count():
        folder = Path(shutil.copytree(root / "first", root / f"{number}"))

        def save(folder: Path = folder, number: int = number) -> None:
            remaining = number

            def hook(event: str, arguments: tuple[object, ...]) -> None:
                nonlocal remaining
                if event in FILE_OPERATIONS and any(str(folder) in str(argument) for argument in arguments):
                    if not remaining:
                        os.kill(os.getpid(), signal.SIGKILL)
                    remaining -= 1

            sys.addaudithook(hook)
            save_two(folder)

        _, status = os.waitpid(in_child(save), 0)
        report(folder)
        shutil.rmtree(folder)
        if not os.WIFSIGNALED(status):
            return


def kill_at_random_moments(root: Path) -> None:
    """Kill processes that save step after step, some milliseconds after one that they reported."""
    chance = random.Random(0)
    folder = root / "run"
    step = 1
    save_steps(folder, step)
    for _ in range(25):
        reader, writer = os.pipe()

        def save(writer: int = writer, first: int = step + 1) -> None:
            checkpoints = Checkpointer(str(folder), keep=2)
            checkpoints.begin({"model": "test"})
            checkpoints.load(tensors_of(0))
            for number in count(first):
                checkpoints.save(number, tensors_of(number), {"position": number * 10}, settings={})
                os.write(writer, b"%d\n" % number)

        child = in_child(save)
        os.close(writer)
        with open(reader, "rb", buffering=0) as reports:
            reported = reports.read(1 << 16)
            select.select([], [], [], chance.uniform(0, 0.05))  # the random moment
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            reported += reports.readall()
        last = int(reported.split()[-1])
        step = loaded_step(folder) or 0
        print(json.dumps({"loaded": step, "reported": last}))


def report(folder: Path) -> None:
    loaded = loaded_step(folder)
    save_steps(folder, 3, keep=1)
    Checkpointer(str(folder)).begin({"model": "test"})  # deletes the data of the steps that the save has dropped
    attempts = len({path.name for path in folder.glob("steps/*")}) - (loaded is not None)
    print(json.dumps({"loaded": loaded, "resumed": loaded_step(folder), "attempts": attempts}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"each": kill_before_each_operation, "random": kill_at_random_moments}[sys.argv[1]](Path(sys.argv[2]))
