"""Every error that iostack raises, as one tree.

A message says what happened, the value, and where it came from; ``hint`` says what to do next. The command line prints
both on one line each and exits with ``exit_code``: 2 where the request was wrong, 1 where the world was.

    IostackError
    ├── UsageError              the request is wrong: settings, sizes, arguments (exit code 2)
    │   ├── SettingsError       an unknown or impossible setting
    │   ├── PlanError           sizes that cannot be planned: batch size, ranks, lanes
    │   └── ResolveError        parallelisms that cannot be combined
    ├── StateError              a state of another corpus, seed or plan; names the field
    ├── PluginError             a plugin is missing, broken, or raised
    │   └── MissingExtraError   an optional dependency is not installed
    ├── CorpusError             what is behind a URI cannot be used
    │   ├── CorpusNotFoundError
    │   ├── FormatError         no format, or several, claim what is there
    │   ├── ShardError          one shard is damaged: truncated, shrunken, hostile
    │   │   └── DamagedShardsError  several are: holds the error of each
    │   └── SampleError         one sample is bad: the loader substitutes it
    ├── OriginError             storage did not answer as it should
    ├── CacheError              the cache folder cannot take an object: full, not writable
    ├── PrepareError            a conversion cannot start, go on, or be what it should
    ├── SubstitutionError       too many bad samples, or nothing good to take instead
    ├── CheckpointError         a checkpoint cannot be written or read
    │   └── BrokenStepError     one saved step cannot be used: loading skips it
    └── RunError                a training run cannot start or go on
        ├── RunLockedError      another run holds the run folder
        └── RankLostError       a rank died or fell silent; names it
"""

from __future__ import annotations

import re


class IostackError(Exception):
    """Base of all errors of iostack.

    ``hint`` is one line that says what to do next, or an empty string.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(kind: type[IostackError], message: str, hint: str) -> IostackError:
    return kind(message, hint=hint)


class UsageError(IostackError):
    """The request itself is wrong."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting is unknown, or its value is impossible."""


class PlanError(UsageError):
    """Sizes that cannot be planned: batch size, ranks, lanes, sequence length."""


class ResolveError(UsageError):
    """Parallelisms that cannot be combined, or sizes that do not fit the world."""


class StateError(IostackError):
    """A saved state belongs to another corpus, seed or plan; the message names the field."""


class PluginError(IostackError):
    """A plugin is missing, broken, or raised an error that is not ours."""


class MissingExtraError(PluginError):
    """An optional dependency is not installed; the hint holds the exact ``pip install``."""


class CorpusError(IostackError):
    """What is behind a URI cannot be used as a corpus."""


class CorpusNotFoundError(CorpusError):
    """Nothing is behind the URI."""


class FormatError(CorpusError):
    """No format claims what is there, or several do."""


class ShardError(CorpusError):
    """One shard is damaged: truncated, shrunken since it was indexed, or hostile."""


class DamagedShardsError(ShardError):
    """Several shards of one corpus are damaged; ``shards`` holds the error of each."""

    def __init__(self, message: str, *, hint: str = "", shards: tuple[ShardError, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.shards = shards

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_damaged, (self.message, self.hint, self.shards)


def _rebuild_damaged(message: str, hint: str, shards: tuple[ShardError, ...]) -> DamagedShardsError:
    return DamagedShardsError(message, hint=hint, shards=shards)


class SampleError(CorpusError):
    """One sample is bad; the loader substitutes it and reports its identity."""


class OriginError(IostackError):
    """The storage behind a URI failed or answered nonsense."""


class CacheError(IostackError):
    """The cache folder cannot take an object: the disk is full, or the folder is not writable."""


class PrepareError(IostackError):
    """A conversion cannot start or go on: another one runs, it was begun with other options, the disk is full."""


class SubstitutionError(IostackError):
    """More samples were bad than the budget allows, or a whole window was."""


class CheckpointError(IostackError):
    """A checkpoint cannot be written, or none can be read."""


class BrokenStepError(CheckpointError):
    """One saved step is damaged, incomplete, or of other tensors; loading takes the one before it."""


class RunError(IostackError):
    """A training run cannot start or cannot go on."""


class RunLockedError(RunError):
    """Another run holds the run folder."""


class RankLostError(RunError):
    """A rank died or fell silent; the message names it."""


_USER_INFO = re.compile(
    r"(?<=://)(?:"
    r"[^/\s:@]*:(?!:|\d{1,5}(?:[/?#\s]|$))\S*"  # user:secret, which may hold / and @; but neither host:port nor a::b://
    r"|[^/\s]+"
    r")@"
)
# Clients name a bucket without its scheme: 'user:secret@bucket'.
_QUOTED_USER_INFO = re.compile(r"(?<=['\"])[^\s/:@'\"]+:[^\s/@'\"]+@(?=\w)")
_SECRET_QUERY = re.compile(  # also as clients encode it in a path: %3Ftoken%3D...
    r"(?i)(?:(?<=[?&])|(?<=%3F)|(?<=%26))"
    r"((?:[\w-]*(?:secret|token|password|signature|credential|key)[\w-]*|sig|sv|se)(?:=|%3D))(?:(?!%26)[^&#\s])*"
)
_CONNECTION_STRING = re.compile(r"(?i)\b((?:AccountKey|SharedAccessKey|SharedAccessSignature)=)[^;\s\"']*")
_AUTHORIZATION = re.compile(
    r"(?i)\b((?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?)"
    r"(?:AWS4-HMAC-SHA256[^\r\n\"']*|(?:(?:basic|bearer|digest|negotiate|token)\s+)?[^\s\"',]+)"
)
_BEARER = re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}")
_ASSIGNMENT = re.compile(
    r"(?i)((?:secret(?:_?access)?(?:_?key)?|password|passwd|api_?key|account_?key|(?:access|session|refresh)_?token)"
    r"[\"']?\s*[:=]\s*[\"']?)[^\s\"',;&]+"
)


def redact(text: str) -> str:
    """Return ``text`` without the credentials that can be told by their form.

    These are user info and secret query parameters of URIs, keys in connection strings, authorization headers, and
    values that are assigned to names such as ``password``. Redacting twice changes nothing more.
    """
    text = _QUOTED_USER_INFO.sub("***@", _USER_INFO.sub("***@", text))
    for secret in (_SECRET_QUERY, _CONNECTION_STRING, _AUTHORIZATION, _BEARER, _ASSIGNMENT):
        text = secret.sub(r"\1***", text)
    return text
