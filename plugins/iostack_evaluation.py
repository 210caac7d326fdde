"""The callback "evaluation": the loss on a held-out corpus, which ``[evaluation] uri = ...`` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import iostack

if TYPE_CHECKING:
    from trainer.contracts import BuildCallback, Callback


def build(**options: Any) -> Callback:
    """Import the trainer only where an evaluation is wanted."""
    from trainer.evaluation import Evaluation

    return Evaluation(**options)


@iostack.hookimpl
def iostack_callbacks() -> Mapping[str, BuildCallback]:
    """Offer ``[evaluation]``."""
    return {"evaluation": build}
