"""Every setting of a training run, with its meaning, its unit and when to change it.

The classes are the tables of the TOML file: ``DataSettings`` is ``[data]``, and so on. Values are checked as they are
written: a number in quotes is not a number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_UNIT_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_INTERVAL = re.compile(r"(\d+(?:\.\d+)?)\s*(step|second|minute|hour|day)s?")


@dataclass(frozen=True)
class Interval:
    """How often something happens: every ``steps`` steps, or every ``seconds`` seconds; both 0 mean never."""

    steps: int = 0
    seconds: float = 0.0


def parse_interval(text: str) -> Interval:
    """Return the interval that ``"100 steps"``, ``"2 hours"`` or ``"never"`` means.

    Raises:
        ValueError: it is none of these.
    """
    if text == "never":
        return Interval()
    found = _INTERVAL.fullmatch(text.strip())
    if found is None or float(found[1]) == 0 or (found[2] == "step" and "." in found[1]):
        raise ValueError('expected "100 steps", "2 hours", "never" or a number of steps')
    if found[2] == "step":
        return Interval(steps=int(found[1]))
    return Interval(seconds=float(found[1]) * _UNIT_SECONDS[found[2]])


def _spell_interval(value: Any) -> Any:
    return f"{value} steps" if isinstance(value, int) and not isinstance(value, bool) else value


def _check_interval(text: str) -> str:
    parse_interval(text)
    return text


Every = Annotated[str, BeforeValidator(_spell_interval), AfterValidator(_check_interval)]
Count = Annotated[int, Field(ge=1)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Options = dict[str, Any]
Operators = Annotated[tuple[str | Options, ...], Field(strict=False)]


class Section(BaseModel):
    """One table of the settings: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class SourceSettings(Section):
    """One corpus of a mix: ``[[data.sources]]``."""

    uri: str = Field(min_length=1)
    """URI of the corpus."""
    columns: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Columns that are read of this source; empty: those of ``data.columns``."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Samples drawn from this source, relative to the other sources, such as 7 and 3."""
    transforms: Operators = ()
    """Transforms of this source's samples, before those of ``data.transforms``, by their plugins' names."""
    filters: Operators = ()
    """Filters of this source's samples, before those of ``data.filters``, by their plugins' names."""
    epochs: Annotated[int, Field(ge=0)] = 0
    """Passes over this source, after which it leaves the mix and the others go on; 0: as many as the run takes. Its
    samples must be counted, and be no text that is tokenised on the fly."""
    storage_options: Options = {}
    """Options of the storage client for this source; empty: those of ``[data]``, unless it is a local path."""


class PhaseSettings(Section):
    """Other weights of the sources from some sample on: ``[[data.phases]]``."""

    after_samples: Annotated[int, Field(ge=0)]
    """Samples of all sources that come before the phase, rounded up to a multiple of the lanes."""
    weights: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False)]
    """One weight for each source, in their order; 0 leaves a source out."""


class DataSettings(Section):
    """What is read, in which order, and how."""

    uri: str = ""
    """URI of the corpus; the command line's URI replaces it. Use ``[[data.sources]]`` instead to mix several."""
    sources: Annotated[tuple[SourceSettings, ...], Field(strict=False)] = ()
    """Corpora to mix, each with ``uri`` and ``weight``. Decides the order of samples."""
    phases: Annotated[tuple[PhaseSettings, ...], Field(strict=False)] = ()
    """Changes of the weights, in order, each with ``after_samples`` and ``weights``. Decides the order of samples."""
    seq_len: Count = 1024
    """Tokens per sequence. Decides the order of samples; longer sequences cost memory and quadratic attention."""
    batch_size: Count = 32
    """Sequences per step over all ranks. The data ranks and the microbatches must divide it."""
    packing: Literal["none", "split", "best_fit"] = "none"
    """How documents become sequences. ``"none"``: token shards and text are cut as they come. ``"split"``: documents are
    shuffled, joined and cut, and attention stays inside each. ``"best_fit"``: whole documents, with a little padding.
    Decides the order of samples."""
    seed: int = 0
    """Seed of the order of samples. Change it for another order of the same corpus."""
    tokenizer: str = "bytes"
    """``name`` or ``name:argument`` of the tokenizer of text corpora; corpora of tokens ignore it."""
    text_column: str = "text"
    """Column that holds the text. Change it where ``iostack inspect`` shows another name."""
    columns: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Columns that are read of Parquet and Arrow shards; empty: the text alone where no transform needs more, else all.
    Name those that transforms need: the others then cost neither time nor disk."""
    transforms: Operators = ()
    """Transforms of every sample, in order: a name, or ``{name = "...", option = ...}``. Decides what a sample is."""
    filters: Operators = ()
    """Filters that all must keep a sample, such as ``{name = "length", column = "text", min = 200}``; they look at it before
    any transform, and not at held-out corpora. Decides the order of samples."""
    skip: str = ""
    """File of samples that must never come, as ``iostack plan --write-skip`` writes it; empty: none. Decides the order."""
    vocab_size: Count | Literal["auto"] = "auto"
    """Number of token ids; ``"auto"``: the tokenizer's. Needed for corpora of tokens, which do not say it."""
    lanes: Count | Literal["auto"] = "auto"
    """Independent sub-streams of the order, fixed for the life of a run. ``"auto"``: 64, fewer for a small corpus,
    rounded up to a multiple of the data ranks. Choose a multiple of every number of ranks that the run will see."""
    window: int | str = "256 MiB"
    """Bytes of a lane inside which samples are shuffled. Smaller needs less cache, larger shuffles better."""
    max_bad_samples: Annotated[int, Field(ge=0)] = 1000
    """Damaged samples that one rank replaces by others before it gives up. Lower it to notice a bad corpus early."""
    lookahead: int | str = "256 MiB"
    """Bytes that the loader fetches and decodes ahead of the step, at most. Lower it where memory is short."""
    memory: int | str = "auto"
    """Bytes that the loader of a rank may hold besides mapped shards: with less it looks less far ahead, then fills smaller
    blocks, in the same order. ``"auto"``: a quarter of what the machine and its cgroup allow, shared by the ranks there."""
    pinned_memory: int | str = "auto"
    """Bytes of ``memory`` that may be pinned, for CUDA devices; ``"auto"``: a half."""
    threads: Count | Literal["auto"] = "auto"
    """Threads that fetch and decode, per rank; ``"auto"``: up to 4. Raise it where the log shows time waiting for data."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes per rank that read, transform and tokenise instead of threads; 0: threads. For transforms in Python that hold
    the GIL. The order of samples stays the same."""
    transform_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds after which a worker process that still transforms one sample is killed, and the sample counts as damaged;
    a tenth of it gives a warning. Raise it for transforms that are meant to take long."""
    cache_dir: str = ""
    """Folder for copies of remote and compressed shards; empty: the user's cache folder. Choose a fast local disk."""
    storage_options: Options = {}
    """Options of the storage client, such as ``endpoint_url``; local paths take none. Never written to the run folder
    or to checkpoints, since they may hold credentials: keep those in the environment, or repeat them when the run
    resumes."""


class ModelSettings(BaseModel):
    """Which model: its name, and options that the model itself declares and checks."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, use_attribute_docstrings=True)

    name: str = "decoder"
    """Model, by its plugin's name. All other keys of the table are options of that model, such as ``dim``."""

    @property
    def options(self) -> Options:
        """All keys but the name."""
        return dict(self.model_extra or {})


class TrainSettings(Section):
    """The optimisation, the device and its arithmetic."""

    steps: Count = 1000
    """Steps of the whole run, and the end of the learning-rate schedule. Raise it to train on after the end."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate, reached after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps over which the learning rate rises from 0; capped at the steps of the run."""
    minimum_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate at the last step, where the cosine ends."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay of AdamW, on matrices only."""
    betas: Annotated[tuple[float, float], Field(strict=False)] = (0.9, 0.95)
    """Decay rates of AdamW's two averages. Lower the second where the loss spikes."""
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0
    """Global norm to which gradients are clipped; 0 turns clipping off."""
    microbatch_size: Count | Literal["auto"] = "auto"
    """Sequences per forward pass on one rank; ``"auto"``: all of the rank's share. Lower it where memory is short:
    gradients of the microbatches are accumulated, the result stays the same."""
    dtype: Literal["bf16", "fp32"] = "fp32"
    """Arithmetic of the model: ``"bf16"`` on accelerators (parameters stay fp32), ``"fp32"`` to compare exactly."""
    seed: int = 0
    """Seed of the initial weights and of every other random stream of the model."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; ``"auto"``: CUDA where there is one."""
    threads: Count | Literal["auto"] = "auto"
    """Threads of torch on the CPU, per rank, the same on every rank; ``"auto"``: the cores of the machine shared out to
    its ranks. A resumed run on as many ranks keeps its first number, since sums depend on it."""
    silence_s: Annotated[float, Field(gt=0)] = 20.0
    """Seconds without a sign of life after which a rank counts as lost and the run ends. Raise it where machines stall."""


class ParallelSettings(BaseModel):
    """How the work is split over the ranks. A table ``[parallel.NAME]`` holds the options of one parallelism."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, use_attribute_docstrings=True)
    __pydantic_extra__: dict[str, Options] = Field(init=False)

    data: Count | Literal["auto"] = "auto"
    """Replicas of the model, each on its own samples; ``"auto"``: what the other sizes leave of the ranks."""
    data_shard: Count = 1
    """Ranks that share one replica's parameters, each on its own samples. Raise it where the model does not fit."""
    tensor: Count = 1
    """Ranks that split each layer's matrices. Keep it within one machine."""
    pipeline: Count = 1
    """Stages that the layers are split into. Needs at least as many microbatches as stages."""
    context: Count = 1
    """Ranks that split one sequence. Raise it for very long sequences."""
    use: Names = ()
    """Parallelisms to use beyond those that the sizes ask for, by their plugins' names, such as ``["recompute"]``."""

    @property
    def options(self) -> dict[str, Options]:
        """Options by the name of their parallelism."""
        return dict(self.model_extra or {})


class CheckpointSettings(Section):
    """When and where the run is saved. It is always saved at its end, and when it is asked to stop."""

    every: Every = "100 steps"
    """``"100 steps"``, ``"2 hours"``, a number of steps, or ``"never"``. What is lost when a rank dies is at most this."""
    keep: Count = 3
    """Newest checkpoints that are kept."""
    uri: str = ""
    """Where checkpoints go; empty: ``checkpoints/`` in the run folder. All machines must reach it."""
    storage_options: Options = {}
    """Options of the storage client for ``checkpoint.uri``; kept out of all files, as those of the data are."""


class EvaluationSettings(Section):
    """The loss on a held-out corpus, written to ``evaluation.jsonl``."""

    uri: str = ""
    """URI of the held-out corpus; empty: no evaluation."""
    every: Every = "500 steps"
    """How often; always at the last step too. Only steps count here, so that every rank agrees."""
    steps: Annotated[int, Field(ge=0)] = 0
    """Batches of ``data.batch_size`` per evaluation; 0: one whole pass."""
    storage_options: Options = {}
    """Options of the storage client for ``evaluation.uri``; empty: those of ``[data]`` where that reads the same kind of
    storage. Kept out of all files too."""


class MetricsSettings(Section):
    """What a run tells about its loaders while it runs; nothing by default."""

    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Serve the figures of the loaders to Prometheus at this port, rank 1 of a machine at the next one, and so on; 0: no port is
    opened."""
    address: str = "127.0.0.1"
    """Where to serve them: ``"0.0.0.0"`` lets other machines read them."""
    trace: str = ""
    """File to write a timeline of the loader to, which https://ui.perfetto.dev opens; ranks above 0 add their number to its
    name. Empty: none."""


class Settings(Section):
    """All settings of a run."""

    data: DataSettings = Field(default_factory=DataSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    parallel: ParallelSettings = Field(default_factory=ParallelSettings)
    checkpoint: CheckpointSettings = Field(default_factory=CheckpointSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    callbacks: dict[str, Options] = {}
    """Callbacks to call around the steps, by their plugins' names: ``[callbacks.NAME]`` holds the options."""

    @model_validator(mode="after")
    def _check_together(self) -> Settings:
        if self.data.uri and self.data.sources:
            raise ValueError("data.uri and data.sources exclude each other: give one corpus or a mix")
        if self.train.minimum_learning_rate > self.train.learning_rate:
            raise ValueError(
                f"train.minimum_learning_rate = {self.train.minimum_learning_rate:g} is above"
                f" train.learning_rate = {self.train.learning_rate:g}"
            )
        if parse_interval(self.evaluation.every).seconds:
            raise ValueError(f"evaluation.every = {self.evaluation.every!r}: only steps count here")
        return self
