"""A child that is forked while another thread logs can log too."""

from __future__ import annotations

import io
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from iostack import logs

NAME = "iostack.loader"
DEADLINE_S = 20


class Slow(io.StringIO):
    """A stream whose buffer has a lock of its own, as those of files have, and which takes its time to write."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.is_writing = threading.Event()

    def write(self, text: str) -> int:
        with self.lock:
            self.is_writing.set()
            time.sleep(0.2)
            return super().write(text)


class Waits(logging.Handler):
    """Ends with a line only when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.is_inside, self.go_on = threading.Event(), threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.is_inside.set()
        self.go_on.wait(DEADLINE_S)


def test_a_child_forked_while_a_thread_logs_can_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_PATIENCE_S", DEADLINE_S)
    stream = Slow()
    with _logging_to(logging.StreamHandler(stream)), _thread(lambda: logs.logger(NAME).warning("of the parent")):
        assert stream.is_writing.wait(DEADLINE_S)

        def in_child() -> bool:
            logs.logger(NAME).warning("of the child")
            return stream.getvalue().split("\n")[:2] == ["of the parent", "of the child"]

        assert _code_of_fork(in_child) == 0
    with _thread(lambda: logs.logger(NAME).warning("of another thread")):
        pass


def test_a_handler_that_waits_for_the_forking_thread_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_PATIENCE_S", 0.01)
    handler = Waits()
    with _logging_to(handler), _thread(lambda: logs.logger(NAME).warning("a line")):
        assert handler.is_inside.wait(DEADLINE_S)
        assert _code_of_fork(lambda: True) == 0
        handler.go_on.set()


def test_a_handler_that_forks_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_PATIENCE_S", DEADLINE_S)
    codes = []

    class Forks(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            codes.append(_code_of_fork(lambda: True))

    with _logging_to(Forks()):
        logs.logger(NAME).warning("a line")
        logs.logger(NAME).warning("another")
    assert codes == [0, 0]


def test_a_line_names_who_logged_it(caplog: pytest.LogCaptureFixture) -> None:
    logs.logger(NAME).warning("%d of %s", 1, "two")
    (record,) = caplog.records
    assert (record.name, record.filename, record.funcName) == (NAME, "test_logs.py", "test_a_line_names_who_logged_it")
    assert record.getMessage() == "1 of two"


@contextmanager
def _logging_to(handler: logging.Handler) -> Iterator[None]:
    logging.getLogger(NAME).addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger(NAME).removeHandler(handler)


@contextmanager
def _thread(target: Callable[[], None]) -> Iterator[None]:
    """Run ``target`` in a thread, which must end soon after the block does."""
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    yield
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def _code_of_fork(in_child: Callable[[], bool]) -> int:
    """Return the exit code of a forked child, 0 where ``in_child`` is true; -9 of one that does not end."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if in_child() else 1)
        finally:
            os._exit(2)
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -9
