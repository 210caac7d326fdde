"""The callback "sample": text that the model writes, in samples.txt of the run folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import iostack
from iostack.errors import SettingsError
from trainer.contracts import BuildCallback, Callback

if TYPE_CHECKING:
    from trainer.run import Run

_HEAD = re.compile(rb"(?m)^--- step (\d+)$")


class Sample(Callback):
    """Lets the model continue ``prompt`` by ``tokens`` tokens at the last step, and every ``every`` steps if not 0.

    Each sample stands in ``samples.txt`` once: a resumed run first removes those of the steps that it makes again.
    """

    def __init__(
        self, *, prompt: str = "\n", tokens: int = 200, temperature: float = 0.8, every: int = 0, seed: int = 0
    ) -> None:
        self._prompt = prompt
        self._num_tokens = tokens
        self._temperature = temperature
        self._every = every
        self._seed = seed

    def on_run_start(self, run: Run) -> None:
        """Refuse a corpus without text here, not at the end; remove samples of steps that are to come."""
        if run.loader.tokenizer is None:
            raise SettingsError("callbacks.sample needs a corpus of text, not of tokens", hint="leave it out")
        if run.folder is not None and (path := run.folder.path / "samples.txt").exists():
            os.truncate(path, _end_of(path.read_bytes(), run.step))

    def on_step_end(self, run: Run, report: Any) -> None:
        """Write a sample if it is time to; rank 0 holds the whole model and is alone in this."""
        is_due = report.step == run.settings.train.steps or (self._every and report.step % self._every == 0)
        if not is_due or run.folder is None or run.loader.tokenizer is None:
            return
        tokenizer = run.loader.tokenizer
        prompt_ids = [int(token) for token in tokenizer.encode([self._prompt])[0]]
        ids = run.program.generate(prompt_ids, self._num_tokens, temperature=self._temperature, seed=self._seed)
        with (run.folder.path / "samples.txt").open("a", encoding="utf-8") as file:
            text = f"{self._prompt}{tokenizer.decode(ids)}"
            # A line of the text that looks like the head of a sample must not become one.
            text = re.sub(r"(?m)^(?=--- step )", " ", text)
            file.write(f"--- step {report.step}\n{text}\n")


def _end_of(samples: bytes, last_step: int) -> int:
    """Return the offset at which the first sample after ``last_step`` begins."""
    later = (head for head in _HEAD.finditer(samples) if int(head[1]) > last_step)
    return next((head.start() for head in later), len(samples))


@iostack.hookimpl
def iostack_callbacks() -> Mapping[str, BuildCallback]:
    """Offer ``[callbacks.sample]``."""
    return {"sample": Sample}
