"""An iostack loader in a plain PyTorch loop: train, save, and go on exactly where the loop stopped.

    python examples/train_loop.py CORPUS [--steps 20] [--state FILE]

CORPUS is anything that ``iostack inspect`` shows as text: a folder of .jsonl files, an s3:// prefix. Run it again with
more steps: it resumes from FILE, and no sample is lost or repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy

import iostack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--state", type=Path, default=Path("loop-state"))
    options = parser.parse_args()

    corpus = iostack.open_corpus(options.corpus)
    loader = iostack.Loader(corpus, batch_size=8, seq_len=64, seed=0)  # rank and ranks come from torchrun, if any
    assert loader.vocab_size is not None, "this example needs a corpus of text"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(loader.vocab_size, 64), nn.Linear(64, loader.vocab_size))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    weights, state = options.state.with_suffix(".safetensors"), options.state.with_suffix(".json")
    done = 0
    if state.exists():
        saved = json.loads(state.read_text())
        done = saved["step"]
        loader.load_state_dict(saved["loader"])
        model.load_state_dict(load_file(weights))

    batches = iter(loader)
    for step in range(done + 1, options.steps + 1):
        batch = next(batches)
        tokens = batch["tokens"]  # int64[8, 64 + 1]
        loss = cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}  loss {loss.item():.4f}  first sample {int(batch['sample_ids'][0]):x}")

    # On several ranks: gather the states of all, and save iostack.merge_states(states) once.
    save_file(model.state_dict(), weights)
    state.write_text(json.dumps({"step": max(done, options.steps), "loader": loader.state_dict()}))
    loader.close()
    corpus.close()


if __name__ == "__main__":
    main()
