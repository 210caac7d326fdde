"""Memory of loaders beyond a process that imported torch, and what their state costs: ours and torch's DataLoader.

Each is a process of its own. Anonymous memory is what it holds itself; mapped pages the system takes back when it needs to. The
largest of samples taken between batches counts. With --manifest-shards, tokens come with a manifest of so many shards too.

    python benchmarks/memory.py [--batches 2000] [--manifest-shards 1000000] [--folder DIR]
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from loader_tokens import write_shards

MEASURE = """
import json, re, sys, time, torch
def memory():
    status = open("/proc/self/status").read()
    return [int(re.search(name + r":\\s+(\\d+)", status)[1]) / 1024 for name in ("RssAnon", "RssFile")]
folder, num_batches = sys.argv[1], int(sys.argv[2])
torch.ones(8) + 1
before = most = memory()
def watched(batches):
    global most
    for number, batch in zip(range(num_batches), batches):
        if number % 20 == 0:
            most = [max(pair) for pair in zip(most, memory())]
    return batch
state_us = None
{work}
print(json.dumps([most[0] - before[0], most[1] - before[1], state_us]))
"""
STATE = """
times = []
for _ in range(200):
    started = time.perf_counter()
    loader.state_dict()
    times.append(time.perf_counter() - started)
state_us = sorted(times)[100] * 1e6
"""
OURS = """
import iostack
loader = iostack.Loader(iostack.open_corpus(folder), batch_size={batch_size}, {settings})
watched(iter(loader))
"""
DATALOADER = """
import glob, numpy
class Windows(torch.utils.data.Dataset):
    def __init__(self):
        self.maps = [numpy.memmap(path, numpy.uint16, "r") for path in sorted(glob.glob(folder + "/*.bin"))]
        self.each = (len(self.maps[0]) - 1) // 2048
    def __len__(self):
        return self.each * len(self.maps)
    def __getitem__(self, index):
        shard, row = divmod(index, self.each)
        return torch.from_numpy(self.maps[shard][row * 2048 : row * 2048 + 2049].astype(numpy.int64))
watched(iter(torch.utils.data.DataLoader(Windows(), batch_size=8, shuffle=True)))
"""


def write_images(folder: Path, num_shards: int, per_shard: int) -> None:
    """Write tars of incompressible bytes of about 70 KB with JSON beside them."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for shard in range(num_shards):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as archive:
            for row in range(per_shard):
                key = f"{shard:03d}{row:05d}"
                for suffix, data in (("jpg", random.bytes(70_000)), ("json", json.dumps({"key": key}).encode())):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def write_photos(folder: Path, num_shards: int, per_shard: int) -> None:
    """Write tars of JPEGs of 224 x 224 pixels, each of its own smooth picture."""
    from PIL import Image

    folder.mkdir()
    random = np.random.default_rng(0)
    for shard in range(num_shards):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as archive:
            for row in range(per_shard):
                picture = Image.fromarray(random.integers(0, 256, (14, 14, 3), np.uint8)).resize((224, 224))
                file = io.BytesIO()
                picture.save(file, "JPEG")
                member = tarfile.TarInfo(f"{shard:03d}{row:05d}.jpg")
                member.size = file.tell()
                file.seek(0)
                archive.addfile(member, file)


def write_text(folder: Path, num_shards: int) -> None:
    """Write JSONL shards of words."""
    folder.mkdir()
    for shard in range(num_shards):
        words = " ".join(str(number) for number in range(shard, 3000 + shard))
        (folder / f"{shard:03d}.jsonl").write_text("".join(json.dumps({"text": words}) + "\n" for _ in range(200)))


def measure(name: str, work: str, folder: Path, num_batches: int) -> None:
    """Run ``work`` in a process of its own and print what it took."""
    code = MEASURE.replace("{work}", work)
    command = [sys.executable, "-c", code, str(folder), str(num_batches)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        print(f"{name:44} failed: {done.stderr.strip().splitlines()[-1]}")
        return
    anonymous, mapped, state_us = json.loads(done.stdout)
    state = f", state_dict() {state_us:.0f} us" if state_us else ""
    print(f"{name:44} {anonymous:6.0f} MB anonymous, {mapped:6.0f} MB mapped{state}")


def with_manifest(folder: Path, num_shards: int) -> None:
    """Index the corpus as one of ``num_shards`` shards: of those that are there, again and again under other names."""
    for number in range(16, num_shards):
        for suffix in (".bin", ".idx"):
            (folder / f"{number:07d}{suffix}").hardlink_to(folder / f"{number % 16:03d}{suffix}")
    subprocess.run([sys.executable, "-m", "iostack", "index", str(folder)], check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=2000)
    parser.add_argument("--manifest-shards", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the data are made; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        (folder / "tokens").mkdir()
        write_shards(folder / "tokens", 16, 4_000_000)
        write_images(folder / "images", 4, 400)
        write_text(folder / "text", 64)
        few = max(1, options.batches // 10)
        tokens = OURS.format(batch_size=8, settings="seq_len=2048")
        measure("tokens, iostack", tokens + STATE, folder / "tokens", options.batches)
        measure("tokens, torch DataLoader on memory maps", DATALOADER, folder / "tokens", options.batches)
        measure("images as bytes, iostack", OURS.format(batch_size=64, settings="") + STATE, folder / "images", few)
        write_photos(folder / "photos", 4, 400)
        decoded = OURS.format(batch_size=32, settings='transforms=[{"name": "image"}]')
        measure("images decoded, 32 of 224 x 224, iostack", decoded + STATE, folder / "photos", few)
        for packing in ("split", "best_fit"):
            packed = OURS.format(batch_size=8, settings=f'seq_len=2048, packing="{packing}"')
            measure(f"tokens packed ({packing}), iostack", packed + STATE, folder / "tokens", options.batches)
        for lanes in (64, 256):
            text = OURS.format(batch_size=64, settings=f"seq_len=2048, lanes={lanes}")
            measure(f"text, {lanes} lanes, iostack", text + STATE, folder / "text", few)
        mix = "(lambda c: [(c, 3), (c, 2), (c, 1), (c, 1)])(iostack.open_corpus(folder))"
        four = text.replace("iostack.open_corpus(folder)", mix)
        measure("text, 4 sources of 256 lanes, iostack", four + STATE, folder / "text", few)
        if options.manifest_shards:
            with_manifest(folder / "tokens", options.manifest_shards)
            measure(
                f"tokens of {options.manifest_shards:,} shards, iostack", tokens, folder / "tokens", options.batches
            )


if __name__ == "__main__":
    main()
