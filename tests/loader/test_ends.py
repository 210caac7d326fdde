"""However a process with workers ends, it ends soon and nothing of it stays; forks of it do no harm."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import corpora
import pytest
import worker_transforms

from iostack.errors import UsageError
from iostack.loader.threads import Threads

from .pipelines import Corpora, make

PROGRAM = """
import os, sys
sys.path.insert(0, sys.argv[1])
import iostack
from worker_transforms import Stand, with_pid
folder, at, how = sys.argv[2:]
transforms = [with_pid] if how == "leave" else [Stand(at, in_c=how == "in C")]
loader = iostack.Loader(iostack.open_corpus(folder), batch_size=2, workers=2, transforms=transforms)
print(os.getpid(), flush=True)
for batch in loader:
    print(*loader.worker_pids, flush=True)
    raise RuntimeError("the loop broke")
"""
DEADLINE_S = 60
SOON_S = 5
"""By hand, Ctrl-C takes well under a second; a machine that runs many tests at once takes longer."""


@pytest.fixture
def program(tmp_path: Path, cache_dir: Path) -> Any:
    corpora.write_jsonl(tmp_path / "corpus" / "a.jsonl", corpora.texts(100))
    started = []
    (tmp_path / "temporary").mkdir()

    def start(how: str) -> subprocess.Popen[str]:
        arguments = [str(Path(__file__).parent.parent), str(tmp_path / "corpus"), str(tmp_path / "at"), how]
        command = [sys.executable, "-c", PROGRAM, *arguments]
        environment = os.environ | {"TMPDIR": str(tmp_path / "temporary"), "IOSTACK_TEST_MARK": str(tmp_path)}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _left_behind(mark: Path) -> list[str]:
    """What processes started with this mark left: temporary files, processes, and shared memory."""
    shared = Path("/dev/shm").glob("*iostack*")
    return [*map(str, (mark / "temporary").iterdir()), *map(str, shared), *map(str, _marked(mark))]


def _marked(mark: Path) -> list[int]:
    """The processes that are there, and no zombies, and have the mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"IOSTACK_TEST_MARK={mark}\0".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def wait_for(path: Path) -> int:
    """Return the number that a worker writes to ``path``: its process id."""
    deadline = time.monotonic() + DEADLINE_S
    while not (path.exists() and (text := path.read_text())):
        assert time.monotonic() < deadline
        os.sched_yield()
    return int(text)


def wait_until_gone(pid: int) -> None:
    """Wait until a process is no more, or is a zombie that its new parent has not seen yet."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        os.sched_yield()
    pytest.fail(f"process {pid} is still there")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("number", "how"),
    [(signal.SIGINT, "asleep"), (signal.SIGINT, "in C"), (signal.SIGTERM, "in C"), (signal.SIGKILL, "in C")],
)
def test_a_signal_ends_a_process_and_its_workers_and_leaves_nothing(
    program: Any, tmp_path: Path, number: int, how: str
) -> None:
    process = program(how)
    worker = wait_for(tmp_path / "at")
    began = time.monotonic()
    process.send_signal(number)
    _, told = process.communicate(timeout=DEADLINE_S)
    wait_until_gone(worker)
    assert time.monotonic() - began < SOON_S
    assert process.returncode == (-number if number != signal.SIGINT else -signal.SIGINT)
    assert ("KeyboardInterrupt" in told) == (number == signal.SIGINT)
    assert "left behind" not in told
    assert _left_behind(tmp_path) == []


def test_a_thread_whose_start_was_interrupted_ends_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(event: threading.Event, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    threads = Threads(2, "test")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Event, "wait", interrupted)  # where the thread that starts another stands
        with pytest.raises(KeyboardInterrupt):
            threads.submit(int)
    (thread,) = threads._running
    threads.close()
    thread._started.wait()  # type: ignore[attr-defined]
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_control_c_ends_a_process_whose_workers_are_starting(program: Any, tmp_path: Path) -> None:
    process = program("asleep")
    process.stdout.readline()
    while len(_marked(tmp_path)) < 2:  # a worker imports the loader now, for some tenths of a second
        assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=DEADLINE_S)
    assert time.monotonic() - began < SOON_S
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in told
    for pid in _marked(tmp_path):
        wait_until_gone(pid)
    assert _left_behind(tmp_path) == []


def test_an_exception_in_the_loop_ends_the_workers_before_the_process(program: Any) -> None:
    process = program("leave")
    out, told = process.communicate(timeout=DEADLINE_S)
    assert told.rstrip().endswith("RuntimeError: the loop broke")
    for pid in out.split()[1:]:
        assert not Path(f"/proc/{pid}").exists()


def test_leaving_the_loop_closing_and_forgetting_the_loader_end_its_workers(small: Corpora) -> None:
    pids = []
    before = len(os.listdir("/proc/self/fd"))
    with make(small, "rows transformed", workers=2) as loader:
        for _ in loader:
            pids += loader.worker_pids
            break
        assert loader.worker_pids == []
        batches = iter(loader)
        next(batches)
        pids += loader.worker_pids
    forgotten: Any = iter(held := make(small, "rows transformed", workers=2))
    next(forgotten)
    pids += held.worker_pids
    del forgotten, held, loader, batches
    gc.collect()
    assert len(pids) == 6
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert len(os.listdir("/proc/self/fd")) <= before + 8  # shards of the corpus


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_transform_has_started_ends_with_its_worker(small: Corpora, tmp_path: Path) -> None:
    with make(
        small, "rows transformed", workers=1, transforms=[worker_transforms.Spawn(str(tmp_path / "pid"))]
    ) as loader:
        next(iter(loader))
        pid = wait_for(tmp_path / "pid")
        os.kill(pid, 0)
    wait_until_gone(pid)


def test_a_worker_has_no_descriptors_but_those_made_for_it(small: Corpora, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as mine, make(small, "rows transformed", workers=1) as loader:
        os.set_inheritable(mine.fileno(), True)
        next(batches := iter(loader))
        (pid,) = loader.worker_pids
        names = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        batches.close()
    assert not [name for name in names if "secret" in name]
    assert len([name for name in names if name.startswith("socket:")]) == 2
    assert os.readlink("/proc/self/fd/0") == "/dev/null" or names.count(os.readlink("/proc/self/fd/0")) <= 1


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_loader_made_in_a_child_of_any_kind_works(small: Corpora, method: str) -> None:
    with make(small, "rows counted transformed", batch_size=6, lanes=2, seed=0, window_bytes="256 MiB") as loader:
        batches = iter(loader)
        expected = [next(batches)["sample_ids"].tolist() for _ in range(3)]
        context = multiprocessing.get_context(method)  # the loader's threads run while it forks
        answers: Any = context.SimpleQueue()
        arguments = (small["tar counted"], 1, answers)
        child = context.Process(target=worker_transforms.put_ids, args=arguments)
        child.start()
        found = answers.get()
        child.join(DEADLINE_S)
    assert child.exitcode == 0
    assert found == expected


def test_a_loader_that_was_iterated_before_a_fork_is_refused_in_the_child_and_goes_on_in_the_parent(
    small: Corpora,
) -> None:
    with make(small, "rows transformed", workers=1) as loader:
        batches = iter(loader)
        next(batches)
        pids = loader.worker_pids
        child = os.fork()
        if child == 0:
            try:
                next(batches)
            except UsageError as error:
                loader.close()
                os._exit(0 if "is a fork of it" in str(error) else 1)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        next(batches)
        assert loader.worker_pids == pids
