"""Limits of memory: found, shared out and kept, without any change of the order."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iostack.errors import PlanError
from iostack.loader.ahead.lookahead import LookAhead
from iostack.loader.ahead.memory import cgroup_limits, memory_limit, memory_of
from iostack.loader.metering.meter import Meter, Pending
from iostack.loader.sequences import aside
from iostack.loader.sequences.aside import Aside
from iostack.loader.threads import Threads

from .pipelines import Corpora, make

GIB = 1 << 30


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


CGROUPS = {
    "v2": ({"proc/self/cgroup": "0::/job/task\n", "sys/fs/cgroup/job/task/memory.max": "1000\n"}, [1000]),
    "v2, of a group around it": (
        {
            "proc/self/cgroup": "0::/job/task\n",
            "sys/fs/cgroup/job/task/memory.max": "max\n",
            "sys/fs/cgroup/job/memory.max": "2000\n",
        },
        [2000],
    ),
    "v2, in a container that sees only its own": (
        {"proc/self/cgroup": "0::/../elsewhere\n", "sys/fs/cgroup/memory.max": "3000\n"},
        [3000],
    ),
    "v1": (
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/docker/0:1\n1:name=systemd:/b\n0::/c\n",
            "sys/fs/cgroup/memory/docker/0:1/memory.limit_in_bytes": "4000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
        [4000],
    ),
    "v1, in a container": (
        {
            "proc/self/cgroup": "4:memory:/docker/1\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "5000\n",
        },
        [5000],
    ),
    "none": ({"proc/self/cgroup": "0::/\n"}, []),
    "nothing there": ({}, []),
    "nonsense": ({"proc/self/cgroup": "0::/a\nx\n", "sys/fs/cgroup/a/memory.max": "lots\n"}, []),
}


@pytest.mark.parametrize("kind", CGROUPS)
def test_the_limit_of_a_control_group_is_found(tmp_path: Path, kind: str) -> None:
    files, limits = CGROUPS[kind]
    root = _write(tmp_path, files)
    assert list(cgroup_limits(root)) == limits
    assert memory_limit(root) == min([*limits, memory_limit(tmp_path / "none")])


def test_ranks_of_one_machine_share_what_nobody_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = memory_of(None, None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert memory_of(None, None).host == alone.host // 8
    assert memory_of("1 GiB", None).host == GIB
    assert memory_of("1 GiB", "1 MiB").pinned == 1 << 20


def test_look_ahead_shrinks_before_blocks() -> None:
    memory = memory_of("16 MiB", None)
    batches = memory.block_batches(1 << 18, slots=2, pinned=False)
    assert batches == 16  # 4 MiB, as with plenty
    assert memory.lookahead_bytes(256 << 20, 2 * batches << 18) == 8 << 20
    assert memory_of("2 MiB", None).block_batches(1 << 18, slots=2, pinned=False) == 2


def test_a_batch_that_cannot_fit_is_refused_with_the_sizes(small: Corpora) -> None:
    with pytest.raises(PlanError, match=r"2 must fit into memory, which is 1.0 KiB") as caught:
        make(small, "tokens", memory=1024)
    assert "data.memory" in caught.value.hint


def test_look_ahead_learns_from_what_was_loaded() -> None:
    meter, threads = Meter(), Threads(1, "test")
    pending: list[Pending[None]] = []

    def room() -> int:
        pending.clear()
        while lookahead.has_room(pending) and len(pending) < 100:
            pending.append(meter.submit(threads, "assemble", lambda: None))
            pending[-1].result(deadline_s=10, awaited=lambda: "nothing")
        return len(pending)

    lookahead = LookAhead(1000, 100)
    assert room() == 10
    lookahead.measured(500)
    assert room() == 2
    for _ in range(50):
        lookahead.measured(10)
    assert room() > 80
    lookahead.measured(5000)
    assert room() == 1
    threads.close()


LIMITED = """
import json, resource, sys, threading
from itertools import islice
import iostack
folder, spare, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
corpus = iostack.open_corpus(folder)
def loader(**settings):
    return iostack.Loader(corpus, batch_size=16, seed=3, threads=1, **settings)
with loader(memory="40 MiB") as first:  # so that all is imported, and the shards are mapped
    list(islice(first, 4))
if spare:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, used + spare))
found = []
with loader(**settings) as limited:
    for batch in islice(limited, 8):
        found.append(batch["sample_ids"].tolist())
        threading.Event().wait(0.02)  # so that the thread comes as far ahead as it may
print(json.dumps(found))
"""


def _order(folder: Path, spare: int, settings: dict[str, object]) -> tuple[int, str]:
    command = [sys.executable, "-c", LIMITED, str(folder), str(spare), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout or done.stderr


@pytest.mark.slow
def test_a_loader_under_a_real_limit_gives_the_same_order(tmp_path: Path) -> None:
    # Batches of 4 MiB: the 32 of them that may be taken ahead with plenty of memory do not fit into 96 MiB.
    for shard in range(4):
        lines = [json.dumps({"text": f"{16 * shard + row:02d}" * (128 << 10)}) for row in range(16)]
        (tmp_path / f"{shard}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    plenty = _order(tmp_path, 0, {})
    assert plenty[0] == 0, plenty[1]
    assert _order(tmp_path, 96 << 20, {}) == plenty
    assert _order(tmp_path, 96 << 20, {"memory": "40 MiB"}) == plenty


@pytest.mark.parametrize("pipeline", ["tokens", "texts", "rows transformed", "mix of three"])
def test_little_memory_changes_no_batch(small: Corpora, pipeline: str) -> None:
    with make(small, pipeline) as plenty, make(small, pipeline, memory="8 KiB") as little:
        for expected, batch in zip(islice(plenty, 30), islice(little, 30), strict=True):
            assert batch["sample_ids"].tolist() == expected["sample_ids"].tolist()


def test_units_that_are_set_aside_on_disk_give_the_same_batches(
    small: Corpora, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def first_batches() -> list[list[int]]:
        with make(small, "texts") as loader:
            return [batch["tokens"].flatten().tolist() for batch in islice(loader, 20)]

    in_memory = first_batches()
    monkeypatch.setattr(aside, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(aside, "_LEAST_BYTES", 0)
    kept: list[Any] = []
    join = Aside.joined
    monkeypatch.setattr(Aside, "joined", lambda self, parts: kept.append(join(self, parts)) or kept[-1])
    assert first_batches() == in_memory
    assert kept
    assert not any(array.flags.owndata or array.flags.writeable for array in kept if len(array))


def test_what_is_set_aside_is_mapped_and_leaves_no_file(tmp_path: Path) -> None:
    tokens = np.arange(200_000, dtype=np.int32)
    kept = Aside(tmp_path / "cache" / "aside", num_lanes=64).joined(np.array_split(tokens, 7))
    assert kept.dtype == tokens.dtype
    assert (kept == tokens).all()
    assert not kept.flags.owndata
    assert list((tmp_path / "cache" / "aside").iterdir()) == []


def test_parts_that_lie_in_the_file_are_let_go_of(tmp_path: Path) -> None:
    made: list[weakref.ref[np.ndarray]] = []

    def parts() -> Iterator[np.ndarray]:
        for number in range(8):
            assert sum(ref() is not None for ref in made) < 3
            part = np.full(100_000, number)
            made.append(weakref.ref(part))
            yield part
            del part

    kept = Aside(tmp_path, num_lanes=64).joined(parts())
    assert kept.tolist() == np.repeat(np.arange(8), 100_000).tolist()


def test_units_stay_in_memory_where_they_are_few_or_the_disk_takes_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = np.arange(200_000, dtype=np.int32)
    assert Aside(tmp_path, num_lanes=8).joined([tokens]) is tokens
    (tmp_path / "file").touch()
    full = Aside(tmp_path / "file", num_lanes=64)
    assert full.joined([tokens]) is tokens
    assert full.joined([tokens]) is tokens
    assert [record.message for record in caplog.records] == [
        f"units stay in memory, since {tmp_path / 'file'} takes none: File exists"
    ]


@pytest.mark.parametrize("room", [0, 100, 399_999, 400_000, 1_000_000])
def test_a_disk_that_gets_full_costs_no_token(tmp_path: Path, room: int) -> None:
    # A limit on the size of files fails a write in the same way: after a part of the bytes.
    tokens = np.arange(300_000, dtype=np.int32)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        kept = Aside(tmp_path, num_lanes=64).joined(iter(np.array_split(tokens, 3)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert kept.dtype == tokens.dtype
    assert kept.tolist() == tokens.tolist()


def test_the_units_of_a_mix_are_loaded_by_as_many_threads_as_those_of_one_source(small: Corpora) -> None:
    with make(small, "mix of three", threads=2) as loader:
        next(iter(loader))
        names = [thread.name for thread in threading.enumerate() if thread.name.startswith("iostack-unit")]
        assert len(names) <= 2


@pytest.mark.parametrize(
    ("workers", "memory", "has_room"), [(0, 20_000, True), (0, 19_999, False), (2, 60_000, True), (2, 59_999, False)]
)
def test_a_second_batch_is_begun_only_where_memory_holds_both(
    small: Corpora, workers: int, memory: int, has_room: bool
) -> None:
    with make(small, "rows transformed", workers=workers, memory=memory) as loader:
        batches: Any = loader._batches
        batches._lookahead.measured(10_000)
        threads = Threads(1, "test")
        first = Meter().submit(threads, "assemble", lambda: None)
        assert batches._has_room([first]) == has_room
        threads.close()


@pytest.mark.parametrize("pipeline", ["texts", "rows transformed"])
def test_little_memory_changes_no_batch_of_workers(small: Corpora, pipeline: str) -> None:
    with make(small, pipeline) as plenty, make(small, pipeline, workers=2, memory="8 KiB") as little:
        for expected, batch in zip(islice(plenty, 6), islice(little, 6), strict=True):
            assert batch["sample_ids"].tolist() == expected["sample_ids"].tolist()


MOUNTS = {"/sys/fs/cgroup": "memory.max", "/sys/fs/cgroup/memory": "memory.limit_in_bytes"}


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A control group of 700 MB."""
    for mount, limit in MOUNTS.items():
        group = Path(mount) / f"iostack-test-{os.getpid()}"
        if not Path(mount, "cgroup.procs").exists():
            continue
        try:
            group.mkdir()
        except OSError:
            continue
        if not (group / limit).exists():
            group.rmdir()
            continue
        (group / limit).write_text(str(700 << 20))
        yield group
        deadline = time.monotonic() + 60
        while True:
            try:
                group.rmdir()
                return
            except OSError:  # a process in it has just ended
                assert time.monotonic() < deadline
    pytest.skip("no control group with a limit of memory can be made here: needs root, and a writable /sys/fs/cgroup")


GROUPED = """
import sys
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text("0")
import iostack
from iostack.loader.ahead.memory import memory_limit
from worker_transforms import shout
corpus = iostack.open_corpus(sys.argv[2])
with iostack.Loader(corpus, batch_size=16, seed=3, transforms=[shout], workers=2) as loader:
    for number, batch in zip(range(12), loader):
        pass
print(memory_limit(), loader._memory.host)
"""


@pytest.mark.slow
def test_a_loader_stays_below_the_limit_of_a_real_control_group(tmp_path: Path, cgroup: Path) -> None:
    # Batches of 16 MiB, of which a quarter of the limit holds three of workers; it is the kernel that ends what takes more.
    for shard in range(4):
        lines = [json.dumps({"text": f"{32 * shard + row:02d}" * (512 << 10)}) for row in range(32)]
        (tmp_path / f"{shard}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    done = subprocess.run(
        [sys.executable, "-c", GROUPED, str(cgroup), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(700 << 20), str(175 << 20)]
