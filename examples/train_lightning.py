"""An iostack loader in Lightning: train, stop, and go on exactly where the checkpoint was taken.

    python examples/train_lightning.py CORPUS [--steps 20] [--checkpoint FILE]

CORPUS is anything that ``iostack inspect`` shows as text. Run it again with more steps: it resumes from FILE. Lightning takes
a batch ahead of the step, so each batch comes with the state of the loader after it, and that of the last step is saved.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import iostack


class Batches:
    """The batches of a loader, each with the loader's state after it."""

    def __init__(self, loader: iostack.Loader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[tuple[torch.Tensor, str]]:
        for batch in self.loader:
            yield batch["tokens"], json.dumps(self.loader.state_dict())


class Model(lightning.LightningModule):
    """Predicts each token from the one before it."""

    def __init__(self, loader: iostack.Loader) -> None:
        super().__init__()
        assert loader.vocab_size is not None, "this example needs a corpus of text"
        self.loader = loader
        self.loader_state = json.dumps(loader.state_dict())
        self.net = nn.Sequential(nn.Embedding(loader.vocab_size, 64), nn.Linear(64, loader.vocab_size))

    def train_dataloader(self) -> Batches:
        return Batches(self.loader)

    def training_step(self, batch: tuple[torch.Tensor, str], step: int) -> torch.Tensor:
        tokens, self.loader_state = batch  # int64[8, 64 + 1]
        loss = cross_entropy(self.net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        print(f"step {self.global_step + 1}  loss {loss.item():.4f}")
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # On several ranks: gather the states of all, and save iostack.merge_states(states).
        checkpoint["loader"] = self.loader_state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loader_state = checkpoint["loader"]
        self.loader.load_state_dict(json.loads(self.loader_state))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--checkpoint", type=Path, default=Path("lightning.ckpt"))
    options = parser.parse_args()
    lightning.seed_everything(0, verbose=False)
    # rank and ranks come from the environment that Lightning's strategies set for each process.
    with iostack.Loader(iostack.open_corpus(options.corpus), batch_size=8, seq_len=64) as loader:
        trainer = lightning.Trainer(
            max_steps=options.steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Model(loader), ckpt_path=options.checkpoint if options.checkpoint.exists() else None)
        trainer.save_checkpoint(options.checkpoint)


if __name__ == "__main__":
    main()
