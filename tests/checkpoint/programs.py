"""What the ranks of the distributed tests do; each program prints JSON last. ``ranks.py`` starts them."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.append(str(Path(__file__).parent))

from layouts import LAYOUTS, check_equal, lay_out
from models import PARALLEL, full, parallel_model, training_tensors
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

from iostack.errors import CheckpointError
from trainer.checkpoint import Checkpointer


def save_layouts(folder: Path, arguments: list[str]) -> Any:
    """Save the tensor set in every layout, each as a run of its own."""
    sizes = {}
    for layout in LAYOUTS:
        checkpoints = Checkpointer(f"{folder}/{arguments[0]}-{layout}")
        checkpoints.begin({"layout": layout})
        report = checkpoints.save(
            1, lay_out(layout), {"layout": layout}, settings={}, rank_state={"rank": dist.get_rank()}
        )
        sizes[layout] = report.bytes
        checkpoints.close()
    return sizes


def load_layouts(folder: Path, arguments: list[str]) -> Any:
    """Load every saved layout into every layout of these ranks."""
    num_loaded = 0
    for saved in LAYOUTS:
        checkpoints = Checkpointer(f"{folder}/{arguments[0]}-{saved}")
        for layout in LAYOUTS:
            tensors = lay_out(layout, empty=True)
            restored = checkpoints.load(tensors)
            assert restored is not None
            assert restored.state == {"layout": saved}
            same_world = int(arguments[0]) == dist.get_world_size()
            assert restored.rank_state == ({"rank": dist.get_rank()} if same_world else None)
            check_equal(tensors)
            num_loaded += 1
        checkpoints.close()
    return num_loaded


def failures(folder: Path, arguments: list[str]) -> Any:
    """Let one thing after the other go wrong on one rank only; returns what each rank was told."""
    rank = dist.get_rank()
    checkpoints = Checkpointer(f"{folder}/failures")
    checkpoints.begin({})
    good = {"w": torch.arange(6.0), "v": torch.ones(2, 2)}
    checkpoints.save(1, good, {"step": 1}, settings={})
    told = {}

    def attempt(name: str, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        try:
            checkpoints.save(step, tensors, state, settings={})
        except CheckpointError as error:
            told[name] = str(error)

    last = dist.get_world_size() - 1
    attempt("differs", 2, {**good, "w": good["w"] + (rank == last)}, {})
    attempt("other shape", 2, {**good, "w": torch.zeros(6 + (rank == last))}, {})
    attempt("other step", 2 + (rank == last), good, {})
    attempt("state", 2, good, {"bad": torch.ones(1)} if rank == last else {})
    attempt("no tensor", 2, {**good, "w": 3} if rank == last else good, {})
    if rank == last:
        Path(f"{folder}/failures/steps").rename(f"{folder}/failures/hidden")
        Path(f"{folder}/failures/steps").write_text("a file where a folder should be")
    dist.barrier()
    attempt("disk", 2, good, {})
    if rank == last:
        Path(f"{folder}/failures/steps").unlink()
        Path(f"{folder}/failures/hidden").rename(f"{folder}/failures/steps")
    dist.barrier()
    restored = checkpoints.load(good)
    assert restored is not None
    report = checkpoints.save(2, good, {}, settings={})
    checkpoints.close()
    return {"told": told, "restored": restored.step, "saved": report.step}


def fall_back(folder: Path, arguments: list[str]) -> Any:
    """Load where a block that only one rank reads is damaged in the newest step."""
    checkpoints = Checkpointer(f"{folder}/{arguments[0]}")
    tensors = lay_out("rows", empty=True)
    restored = checkpoints.load(tensors)
    assert restored is not None
    check_equal(tensors)
    checkpoints.close()
    return {"step": restored.step, "skipped": restored.skipped}


def save_rows(folder: Path, arguments: list[str]) -> Any:
    """Save two steps, sharded by rows."""
    checkpoints = Checkpointer(f"{folder}/{arguments[0]}")
    checkpoints.begin({})
    for step in (1, 2):
        checkpoints.save(step, lay_out("rows"), {}, settings={})
    checkpoints.close()
    return None


def lost_rank(folder: Path, arguments: list[str]) -> Any:
    """Rank 1 dies before a save; the others must not wait for it for ever."""
    checkpoints = Checkpointer(f"{folder}/lost", timeout_s=20.0)
    checkpoints.begin({})
    if dist.get_rank() == 1:
        print("null", flush=True)
        os._exit(0)
    try:
        checkpoints.save(1, lay_out("plain"), {}, settings={})
    except CheckpointError as error:
        return str(error)
    return "saved"


def train(folder: Path, arguments: list[str]) -> Any:
    """Train a model with AdamW in every parallel layout, save each, and load each into every other."""
    whole_of: dict[str, dict[str, torch.Tensor]] = {}
    for layout in PARALLEL:
        model, optimizer = parallel_model(layout, steps=2)
        tensors, scalars = training_tensors(model, optimizer)
        checkpoints = Checkpointer(f"{folder}/{layout}")
        checkpoints.begin({})
        checkpoints.save(2, tensors, {"optimizer": scalars}, settings={})
        checkpoints.close()
        whole_of[layout] = full(tensors)
    for saved in PARALLEL:
        checkpoints = Checkpointer(f"{folder}/{saved}")
        for layout in PARALLEL:
            model, optimizer = parallel_model(layout, steps=1, seed=1)
            tensors, _ = training_tensors(model, optimizer)
            restored = checkpoints.load(tensors)
            assert restored is not None
            set_state_dict(
                model,
                optimizer,
                model_state_dict={name[6:]: value for name, value in tensors.items() if name.startswith("model.")},
                optim_state_dict={
                    **{name[10:]: value for name, value in tensors.items() if name.startswith("optimizer.")},
                    **restored.state["optimizer"],
                },
                options=StateDictOptions(flatten_optimizer_state_dict=True),
            )
            now = full(training_tensors(model, optimizer)[0])
            assert now.keys() == whole_of[saved].keys()
            for name, value in now.items():
                assert torch.equal(value, whole_of[saved][name]), (saved, layout, name)
        checkpoints.close()
    return len(whole_of["fsdp"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("world", type=int)
    parser.add_argument("meeting")
    parser.add_argument("folder", type=Path)
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--rank", type=int, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    dist.init_process_group(
        "gloo", init_method=f"file://{options.meeting}", rank=options.rank, world_size=options.world
    )
    result = globals()[options.program](options.folder, options.arguments)
    print(json.dumps(result), flush=True)
    if options.program == "lost_rank":
        os._exit(0)  # a group with a dead peer cannot be left
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
