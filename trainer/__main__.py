"""``python -m trainer URI ...``: one rank of a training run, as torchrun or our launcher starts it."""

from __future__ import annotations

import os
import sys

from iostack.cli import main
from trainer.supervise.world import World, adopt_launch


def run() -> int:
    """Tie this process to its launcher, if there is one, and run ``iostack train``."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # N ranks would print each warning N times
    world = World.from_environment()
    if world.launch:
        adopt_launch(world.launch)
    return main(["train", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(run())
