"""Text to Megatron tokens: ``iostack prepare`` against a plain script over ``datasets.map``, the same tokenizer and data.

Both are whole programs with as many processes, started anew for every run, alternating; the peer's script writes the
stream of ids and their lengths with numpy, and verifies nothing. The ids of both are compared once.

    python benchmarks/prepare.py [--runs 5] [--megabytes 64] [--jobs 2]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from alternating import alternately, spread

_PEER = """
import sys
import datasets
import numpy as np
from tokenizers import Tokenizer
folder, tokenizer_file, out, jobs = sys.argv[1:]
tokenizer = Tokenizer.from_file(tokenizer_file)
end = tokenizer.token_to_id("<|endoftext|>")
def encode(batch):
    return {"ids": [[*each.ids, end] for each in tokenizer.encode_batch(batch["text"], add_special_tokens=False)]}
data = datasets.load_dataset("json", data_files=sorted(__import__("glob").glob(folder + "/*.jsonl")), split="train")
data = data.map(encode, batched=True, num_proc=int(jobs), remove_columns=data.column_names)
lengths = []
with open(out + "/tokens.bin", "wb") as file:
    for batch in data.with_format("arrow").iter(1000):
        ids = batch["ids"].combine_chunks()
        file.write(np.asarray(ids.flatten()).astype(np.uint16).tobytes())
        lengths.append(np.diff(np.asarray(ids.offsets)))
np.concatenate(lengths).astype(np.int32).tofile(out + "/lengths.bin")
"""


def write_texts(folder: Path, megabytes: int) -> None:
    """Write JSONL from the standard library's sources: real text, of uneven length."""
    folder.mkdir()
    sources = [path.read_text("utf-8", "replace") for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    written, shard = 0, 0
    while written < megabytes * 1_000_000:
        lines = [json.dumps({"text": text[: 40_000 + 13 * shard]}) + "\n" for text in sources]
        (folder / f"part-{shard:03}.jsonl").write_text("".join(lines))
        written, shard = written + sum(map(len, lines)), shard + 1


def train_tokenizer(folder: Path, file: Path) -> None:
    """Train a byte-level BPE of 8,000 ids on the first shard."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8000, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    texts = [json.loads(line)["text"] for line in (folder / "part-000.jsonl").read_text().splitlines()]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(file))


def measured(command: Sequence[str], environment: dict[str, str]) -> tuple[float, float]:
    """Return wall and CPU seconds of a program and its children."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, and print one line per program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts, tokenizer = folder / "texts", folder / "tokenizer.json"
        write_texts(texts, options.megabytes)
        train_tokenizer(texts, tokenizer)

        def program(name: str) -> tuple[float, float]:
            out = folder / name.replace(" ", "")
            shutil.rmtree(out, ignore_errors=True)
            environment = {**os.environ, "IOSTACK_CACHE": str(out / "cache"), "HF_HOME": str(out / "cache")}
            environment["TOKENIZERS_PARALLELISM"] = "false"
            if name == "datasets":
                out.mkdir()
                words = [sys.executable, "-c", _PEER, *map(str, (texts, tokenizer, out, options.jobs))]
            else:
                words = [sys.executable, "-m", "iostack", "prepare", str(texts), str(out / "tokens")]
                words += ["--to", "tokens", "--tokenizer", f"huggingface:{tokenizer}", "--shard-bytes", "4MB"]
                words += ["--jobs", str(options.jobs), *name.split()[1:]]
            return measured(words, environment)

        names = ("iostack", "iostack --no-verify", "datasets")
        results = alternately({name: partial(program, name) for name in names}, options.runs)
        ours = np.concatenate([np.fromfile(path, np.uint16) for path in sorted((folder / "iostack").rglob("*.bin"))])
        assert np.array_equal(ours, np.fromfile(folder / "datasets" / "tokens.bin", np.uint16)), "the ids differ"
        size = sum(path.stat().st_size for path in texts.iterdir()) / 1e6
    print(f"{size:.0f} MB of text, {len(ours):,} tokens, {options.jobs} processes, medians of {options.runs}")
    for name, taken in results.items():
        walls, cpus = zip(*taken, strict=True)
        print(
            f"{name:20} {spread([size / wall for wall in walls], '.1f')} MB/s, {spread(walls)} s, {spread(cpus)} CPU s"
        )


if __name__ == "__main__":
    main()
