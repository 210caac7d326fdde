"""A small vision model on JPEGs in tar shards: decoded, cropped and mirrored at random in threads of the loader.

    python examples/train_vision.py FOLDER [--steps 60]

FOLDER holds tar shards of samples ``KEY.jpg`` and ``KEY.cls``; where it does not exist, 600 drawings of circles, squares and
triangles are written there first. Needs ``pip install "iostack[images]"``.
"""

from __future__ import annotations

import argparse
import io
import random
import tarfile
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import iostack

SHAPES = ("circle", "square", "triangle")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    if not options.folder.exists():
        write_drawings(options.folder, num_shards=6, per_shard=100)

    transforms = [
        {"name": "image", "crop": 32, "random": True},
        {"name": "decode", "columns": {"cls": "json"}},
        {"name": "keep", "columns": ["image", "cls"]},
    ]
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more would only wait for each other over so small a model, and for the loader's threads
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, stride=2), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64 * 3 * 3, len(SHAPES))),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    corpus = iostack.open_corpus(options.folder)
    with corpus, iostack.Loader(corpus, batch_size=64, transforms=transforms) as loader:
        for step, batch in zip(range(1, options.steps + 1), loader):
            images_BCHW = batch["image"].float() / 127.5 - 1  # uint8[64, 3, 32, 32]
            logits = model(images_BCHW)
            loss = cross_entropy(logits, batch["cls"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 10 == 0 or step == options.steps:
                accuracy = (logits.argmax(1) == batch["cls"]).float().mean().item()
                print(f"step {step}  loss {loss.item():.3f}  accuracy {accuracy:.0%}")


def write_drawings(folder: Path, *, num_shards: int, per_shard: int) -> None:
    """Write tar shards of labelled JPEGs."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    for shard in range(num_shards):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as archive:
            for number in range(per_shard):
                label = draw.randrange(len(SHAPES))
                _, jpeg = cv2.imencode(".jpg", drawing(SHAPES[label], draw))
                for suffix, data in (("jpg", jpeg.tobytes()), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{shard:03d}{number:05d}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def drawing(shape: str, draw: random.Random) -> np.ndarray:
    """Return uint8[48, 48, 3]: one shape of a random colour on a random ground."""
    image = np.full((48, 48, 3), [draw.randrange(100) for _ in range(3)], np.uint8)
    color = [draw.randrange(150, 256) for _ in range(3)]
    x, y, r = draw.randrange(18, 30), draw.randrange(18, 30), draw.randrange(11, 17)
    if shape == "circle":
        cv2.circle(image, (x, y), r, color, -1)
    elif shape == "square":
        cv2.rectangle(image, (x - r, y - r), (x + r, y + r), color, -1)
    else:
        cv2.fillPoly(image, [np.array([[x, y - r], [x - r, y + r], [x + r, y + r]])], color)
    return image


if __name__ == "__main__":
    main()
