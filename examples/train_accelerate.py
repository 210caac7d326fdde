"""An iostack loader in Accelerate: train on any number of processes, save, and go on exactly where the state was saved.

    accelerate launch examples/train_accelerate.py CORPUS [--steps 20] [--state FOLDER]

CORPUS is anything that ``iostack inspect`` shows as text. The loader is not given to ``accelerator.prepare``: it already
reads this rank's part of every batch. Run it again with more steps, on as many processes as you like: it resumes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import nn
from torch.nn.functional import cross_entropy

import iostack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--state", type=Path, default=Path("accelerate-state"))
    options = parser.parse_args()

    accelerator = Accelerator(cpu=True)
    set_seed(0)
    corpus = iostack.open_corpus(options.corpus)
    loader = iostack.Loader(
        corpus, batch_size=8, seq_len=64, rank=accelerator.process_index, ranks=accelerator.num_processes
    )
    assert loader.vocab_size is not None, "this example needs a corpus of text"
    model = nn.Sequential(nn.Embedding(loader.vocab_size, 64), nn.Linear(64, loader.vocab_size))
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.5))

    done, progress = 0, options.state / "progress.json"
    if progress.exists():
        saved = json.loads(progress.read_text())
        done = saved["step"]
        accelerator.load_state(str(options.state))
        loader.load_state_dict(saved["loader"])

    batches = iter(loader)
    for step in range(done + 1, options.steps + 1):
        tokens = next(batches)["tokens"]  # int64[8 / processes, 64 + 1]
        loss = cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        mean_loss = accelerator.reduce(loss.detach(), "mean").item()
        accelerator.print(f"step {step}  loss {mean_loss:.4f}")

    accelerator.save_state(str(options.state))
    states = gather_object([loader.state_dict()])  # the same on any number of ranks
    if accelerator.is_main_process:
        step = max(done, options.steps)
        progress.write_text(json.dumps({"step": step, "loader": iostack.merge_states(states)}))
    loader.close()
    accelerator.end_training()


if __name__ == "__main__":
    main()
