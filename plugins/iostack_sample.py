"""The callback "sample": text that the model writes, in samples.txt of the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import iostack
from iostack.errors import SettingsError
from trainer.contracts import BuildCallback, Callback

if TYPE_CHECKING:
    from trainer.run import Run


class Sample(Callback):
    """Lets the model continue ``prompt`` by ``tokens`` tokens at the last step, and every ``every`` steps if not 0."""

    def __init__(
        self, *, prompt: str = "\n", tokens: int = 200, temperature: float = 0.8, every: int = 0, seed: int = 0
    ) -> None:
        self._prompt = prompt
        self._num_tokens = tokens
        self._temperature = temperature
        self._every = every
        self._seed = seed

    def on_run_start(self, run: Run) -> None:
        """Refuse a corpus without text here, not at the end."""
        if run.loader.tokenizer is None:
            raise SettingsError("callbacks.sample needs a corpus of text, not of tokens", hint="leave it out")

    def on_step_end(self, run: Run, report: Any) -> None:
        """Write a sample if it is time to; rank 0 holds the whole model and is alone in this."""
        is_due = report.step == run.settings.train.steps or (self._every and report.step % self._every == 0)
        if not is_due or run.folder is None or run.loader.tokenizer is None:
            return
        tokenizer = run.loader.tokenizer
        prompt_ids = [int(token) for token in tokenizer.encode([self._prompt])[0]]
        ids = run.program.generate(prompt_ids, self._num_tokens, temperature=self._temperature, seed=self._seed)
        with (run.folder.path / "samples.txt").open("a", encoding="utf-8") as file:
            file.write(f"--- step {report.step}\n{self._prompt}{tokenizer.decode(ids)}\n")


@iostack.hookimpl
def iostack_callbacks() -> Mapping[str, BuildCallback]:
    """Offer ``[callbacks.sample]``."""
    return {"sample": Sample}
