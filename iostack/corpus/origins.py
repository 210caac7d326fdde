"""From a URI to the storage behind it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from iostack.corpus.contracts import Origin
from iostack.corpus.matching_origin import MatchingOrigin, split_pattern
from iostack.errors import OriginError, redact
from iostack.registry import registry

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]*)(?=://|::)")
_HTTP = re.compile(r"(?i)^(?:[\w+.\-]+::)*https?://")


def scheme_of(uri: str) -> str:
    """Return the scheme of a URI in lower case; a plain path is ``"file"``."""
    found = _SCHEME.match(uri)
    return found.group(1).lower() if found else "file"


def split_query(uri: str) -> tuple[str, str]:
    """Return an HTTP URI without its query, and the query with its ``?``; other schemes may have ``?`` in a name."""
    if not _HTTP.match(uri):
        return uri, ""
    base, mark, query = uri.partition("?")
    return base, mark + query


def uri_below(uri: str, path: str) -> str:
    """Return the URI of an object below ``uri``; the query of ``uri``, such as a token, goes along."""
    base, query = split_query(uri)
    return f"{base.rstrip('/')}/{path}{query}"


def object_uri(uri: str, path: str) -> str:
    """Return how messages name an object of the corpus at ``uri``, which may be that object itself."""
    if _HTTP.match(uri) is None:
        uri, _ = split_pattern(uri)
    return uri if split_query(uri)[0].endswith(f"/{path}") else uri_below(uri, path)


def open_origin(uri: str, options: Mapping[str, Any]) -> Origin:
    """Open the storage behind ``uri`` with the plugin that serves its scheme; a star in the last part chooses objects.

    Raises:
        OriginError: no plugin serves it.
    """
    scheme = scheme_of(uri)
    openers = registry().named("iostack_origins")
    opener = openers.get(scheme) or openers.get("*")
    if opener is None:
        raise OriginError(
            f"no plugin opens {scheme}:// ({redact(uri)}){registry().blame_broken()}",
            hint="run: iostack plugins",
        )
    folder, pattern = (uri, "") if _HTTP.match(uri) else split_pattern(uri)
    origin = cast(Origin, opener(folder, options))
    return MatchingOrigin(origin, pattern) if pattern else origin
