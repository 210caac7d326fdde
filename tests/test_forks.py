"""A child that is forked while another thread logs can log too."""

from __future__ import annotations

import io
import logging
import os
import threading
import time

import pytest

from iostack import forks

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


@pytest.mark.parametrize("name", ["iostack.loader", "iostack"])
def test_a_child_forked_while_a_thread_logs_can_log(name: str) -> None:
    stream = Slow()
    handler, logger = logging.StreamHandler(stream), logging.getLogger(name)
    logger.addHandler(handler)
    try:
        thread = threading.Thread(target=logging.getLogger("iostack.loader").warning, args=["of the parent"])
        thread.start()
        assert stream.is_writing.wait(DEADLINE_S)
        child = os.fork()
        if child == 0:
            logging.getLogger("iostack.loader").warning("of the child")
            os._exit(0 if stream.getvalue().split("\n")[:2] == ["of the parent", "of the child"] else 1)
        thread.join()
        assert _code_of(child) == 0
        assert not handler.lock or handler.lock.acquire(blocking=False)
        handler.release()
    finally:
        logger.removeHandler(handler)


def test_a_handler_that_waits_for_the_forking_thread_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "_PATIENCE_S", 0.01)
    inside, forked = threading.Event(), threading.Event()

    class Waits(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            inside.set()
            forked.wait(DEADLINE_S)

    handler, logger = Waits(), logging.getLogger("iostack.loader")
    logger.addHandler(handler)
    try:
        thread = threading.Thread(target=logger.warning, args=["a line"])
        thread.start()
        assert inside.wait(DEADLINE_S)
        child = os.fork()
        if child == 0:
            os._exit(0)
        forked.set()
        thread.join()
        assert _code_of(child) == 0
    finally:
        logger.removeHandler(handler)


def _code_of(child: int) -> int:
    """Return the exit code of a child; -9 of one that does not end."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -9
