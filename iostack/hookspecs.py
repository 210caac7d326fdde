"""Every hook of iostack, in the order in which a run calls them.

A plugin is a module (or any object) with functions of these names, marked with ``iostack.hookimpl`` and registered
under the entry-point group ``iostack``. Hooks *build*: each returns the objects it offers, once per process; none runs
per sample or per batch. A hook may return None to offer nothing. Import heavy libraries inside the hook, or inside what
it returns, never at the top of a plugin: listing the plugins must stay cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from iostack.corpus.contracts import Filter, Format, OpenOrigin, Tokenizer, Transform
    from iostack.prepare.contracts import Engine, Writer
    from iostack.preview.contracts import ReadRun
    from trainer.contracts import BuildCallback, BuildModel, Parallelism

hookspec = pluggy.HookspecMarker("iostack")
hookimpl = pluggy.HookimplMarker("iostack")


@hookspec
def iostack_origins() -> Mapping[str, OpenOrigin] | None:
    """Storage: URI schemes and how each is opened.

    Maps a scheme (``"s3"``; ``"*"`` for any scheme that nobody names) to ``open(uri, options) -> Origin``.
    """


@hookspec
def iostack_formats() -> Sequence[Format] | None:
    """Formats: each says which objects of a listing are its shards, and reads one shard."""


@hookspec
def iostack_filters() -> Mapping[str, Callable[..., Filter]] | None:
    """Filters by name: ``build(**options) -> Filter``, a callable that says of one sample whether it is kept."""


@hookspec
def iostack_transforms() -> Mapping[str, Callable[..., Transform]] | None:
    """Transforms by name: ``build(**options) -> Transform``, a callable that maps one sample to one sample."""


@hookspec
def iostack_tokenizers() -> Mapping[str, Callable[[str], Tokenizer]] | None:
    """Tokenizers by name: ``build(argument: str) -> Tokenizer``; the setting ``name:argument`` chooses one."""


@hookspec
def iostack_writers() -> Mapping[str, Callable[..., Writer]] | None:
    """Writers of shards by name: ``build(**options) -> Writer``; ``iostack prepare --to NAME`` chooses one."""


@hookspec
def iostack_engines() -> Mapping[str, Callable[..., Engine]] | None:
    """Engines by name: ``build(jobs=..., **options) -> Engine``; ``iostack prepare --engine NAME`` runs its pieces there."""


@hookspec
def iostack_models() -> Mapping[str, BuildModel] | None:
    """Models by name: ``build(options, vocab_size=..., seq_len=...) -> trainer.contracts.Model``."""


@hookspec
def iostack_parallelisms() -> Sequence[type[Parallelism]] | None:
    """Parallelisms: subclasses of ``trainer.contracts.Parallelism``; ``[parallel] use = [...]`` or a size asks for one."""


@hookspec
def iostack_callbacks() -> Mapping[str, BuildCallback] | None:
    """Callbacks by name: ``build(**options) -> trainer.contracts.Callback``; ``[callbacks.NAME]`` asks for one."""


@hookspec
def iostack_runs() -> Sequence[ReadRun] | None:
    """Runs: ``read(path, uri) -> PlannedRun | None`` of a settings file or run folder, for ``iostack plan -c``."""


@hookspec
def iostack_commands() -> Sequence[click.Command] | None:
    """Commands of the command line: ``iostack NAME``."""
