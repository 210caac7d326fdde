"""From the start of a process to its first batch of tokens: ours and peers', fresh and restored at half of the data.

Each figure is a process of its own over the same tokens, alternating, which ends at once after its first batch (leaving an
interpreter in order takes torch 0.3 to 0.5 s more); the seconds are those above a process that only imports torch. Peers: torch's
DataLoader on a memory map (restored by skipping in its sampler), litData, MosaicML streaming.

    python benchmarks/start_up.py [--runs 5] [--tokens 64_000_000] [--folder DIR]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from alternating import alternately, spread
from loader_tokens import BATCH_SIZE, SEQ_LEN, write_shards

OURS = """
import sys, torch, iostack
loader = iostack.Loader(iostack.open_corpus(sys.argv[1] + "/tokens"), batch_size=8, seq_len=2048)
if sys.argv[2] == "restored":
    loader.load_state_dict(loader.state_dict() | {"position": int(sys.argv[3]) // 2 // 8 * 8})
assert next(iter(loader))["tokens"].shape == (8, 2049)
"""
DATALOADER = """
import sys, numpy, torch
class Windows(torch.utils.data.Dataset):
    def __init__(self):
        self.tokens = numpy.memmap(sys.argv[1] + "/tokens/000.bin", numpy.uint16, "r")
    def __len__(self):
        return int(sys.argv[3])
    def __getitem__(self, index):
        return torch.from_numpy(self.tokens[index * 2048 : index * 2048 + 2049].astype(numpy.int64))
windows = Windows()
order = torch.randperm(len(windows)).tolist()
start = len(order) // 2 if sys.argv[2] == "restored" else 0
loader = torch.utils.data.DataLoader(windows, batch_size=8, sampler=order[start:])
assert next(iter(loader)).shape == (8, 2049)
"""
LITDATA = """
import sys, torch, litdata
from litdata.streaming.item_loader import TokensLoader
dataset = litdata.StreamingDataset(sys.argv[1] + "/litdata", item_loader=TokensLoader(block_size=2049), shuffle=True)
loader = litdata.StreamingDataLoader(dataset, batch_size=8)
if sys.argv[2] == "restored":
    step = len(dataset) // 2 // 8
    state = dataset.state_dict(num_samples_yielded=step * 8, num_workers=0, batch_size=8)
    dataset.load_state_dict(state)
assert next(iter(loader)).shape == (8, 2049)
"""
MOSAIC = """
import sys, torch, streaming
dataset = streaming.StreamingDataset(local=sys.argv[1] + "/mds", batch_size=8, shuffle=True)
loader = streaming.StreamingDataLoader(dataset, batch_size=8)
if sys.argv[2] == "restored":
    loader.load_state_dict(dataset.state_dict(len(dataset) // 2, True))
assert next(iter(loader))["tokens"].shape == (8, 2049)
"""
_END_AT_ONCE = "\nimport os; os._exit(0)"
COMPILED = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""Users run bytecode: pip compiles what it installs. A checkout is compiled by the run that is not counted."""
CONTENDERS = {
    "import torch": ("torch", "import torch"),
    "iostack": ("iostack", OURS),
    "DataLoader": ("torch", DATALOADER),
    "litData": ("litdata", LITDATA),
    "Mosaic": ("streaming", MOSAIC),
}


def write_litdata(folder: Path, tokens: np.ndarray) -> None:
    """Write the tokens as litData chunks, in a process of its own: its writers start others."""
    code = """
import sys, numpy, torch
from litdata import optimize
from litdata.streaming.item_loader import TokensLoader
tokens = numpy.fromfile(sys.argv[1], numpy.uint16)
def part(index):
    yield torch.from_numpy(tokens[index << 20 : (index + 1) << 20].astype(numpy.int32))
if __name__ == "__main__":
    optimize(part, list(range(len(tokens) >> 20)), sys.argv[2], chunk_size=2049 * 4096, item_loader=TokensLoader(), num_workers=1)
"""
    source = folder / "tokens.u16"
    tokens.tofile(source)
    script = folder / "write_litdata.py"
    script.write_text(code)
    subprocess.run([sys.executable, str(script), str(source), str(folder / "litdata")], check=True, capture_output=True)


def write_mosaic(folder: Path, tokens: np.ndarray) -> None:
    """Write the tokens as MDS shards, one window a sample."""
    from streaming import MDSWriter

    with MDSWriter(out=str(folder / "mds"), columns={"tokens": "ndarray:int32:2049"}) as writer:
        for start in range(0, len(tokens) - SEQ_LEN - 1, SEQ_LEN):
            writer.write({"tokens": tokens[start : start + SEQ_LEN + 1].astype(np.int32)})


def seconds(code: str, *arguments: str) -> float:
    """Return how long a process takes that runs ``code`` with the arguments.

    Raises:
        RuntimeError: it failed; the message is the end of what it said.
    """
    started = time.perf_counter()
    command = [sys.executable, "-c", code + _END_AT_ONCE, *arguments]
    done = subprocess.run(command, env=COMPILED, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64_000_000)
    parser.add_argument("--folder", type=Path, help="where the data are made; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        (folder / "tokens").mkdir()
        write_shards(folder / "tokens", 1, options.tokens)
        tokens = np.fromfile(folder / "tokens" / "000.bin", np.uint16)
        num_windows = (len(tokens) - 1) // SEQ_LEN
        for package, write in (("litdata", write_litdata), ("streaming", write_mosaic)):
            if find_spec(package):
                try:
                    write(folder, tokens)
                except (ImportError, subprocess.CalledProcessError) as error:
                    print(f"{package} is left out: {error}", file=sys.stderr)
        steps = str(num_windows // BATCH_SIZE * BATCH_SIZE)
        runs: dict[str, Callable[[], float]] = {}
        for contender, (package, code) in CONTENDERS.items():
            for how in ("fresh", "restored") if find_spec(package) else ():
                run = partial(seconds, code, str(folder), how, steps)
                try:
                    run()
                except RuntimeError as error:
                    print(f"{contender}, {how}, is left out: {error}", file=sys.stderr)
                else:
                    runs[f"{contender}, {how}"] = run
        results = alternately(runs, options.runs)
    torch_s = statistics.median(results["import torch, fresh"] + results["import torch, restored"])
    print(f"import torch {torch_s:.2f} s; above it:")
    for name, spent in results.items():
        if not name.startswith("import torch"):
            print(f"{name:21} {spread([each - torch_s for each in spent], '+.2f')} s")


if __name__ == "__main__":
    main()
