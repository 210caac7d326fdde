"""Where the members of a tar archive lie: POSIX ustar and PAX, GNU, and old V7 archives, without unpacking them.

Rules (POSIX.1-2017 "pax", GNU tar manual "Basic Tar Format"): directories are skipped; links, devices, pipes and
sparse files are refused, since their bytes are not in the archive as they stand; so are names that lead out of the
archive or name a device. An archive ends with a block of zeros; one that ends without it was cut short.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from iostack.corpus.mapping import Mapped
from iostack.corpus.paths import check_path
from iostack.errors import ShardError

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_MAX_EXTENDED_BYTES = 16 << 20
_PADDING_BLOCKS = 64
_FILE_KINDS = (b"0", b"\0", b"7")
_REFUSED_KINDS = {
    b"1": "a hard link (repack with tar --hard-dereference)",
    b"2": "a symbolic link (repack with tar --dereference)",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"S": "a sparse file (repack without --sparse)",
    b"M": "the rest of a file from another volume",
}
_DEVICE = re.compile(r"(?i)(?:^|/)(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:[./]|$)")


class Member(NamedTuple):
    """A regular file of an archive: its name, and where its bytes are."""

    name: str
    offset: int
    size: int


def members(data: Mapped, *, source: str) -> Iterator[Member]:
    """Yield the regular files of an archive in order.

    Raises:
        ShardError: truncated, damaged or hostile; says at which byte.
    """
    at = 0
    shared: dict[str, bytes] = {}
    extended: dict[str, bytes] = {}
    while (header := data[at : at + _BLOCK]) != _ZEROS:
        where = f"{source}: byte {at:,}"
        _check_header(header, where)
        kind, size, body = header[156:157], _number(header[124:136], where), at + _BLOCK
        if kind in (b"x", b"X", b"g", b"L", b"K"):
            stop = _end(data, body, size, where)
            if size > _MAX_EXTENDED_BYTES:
                raise _damaged(where, f"an extended header of {size:,} bytes")
            if kind == b"L":
                extended["path"] = data[body:stop].split(b"\0", 1)[0]
            elif kind != b"K":
                (shared if kind == b"g" else extended).update(_records(data[body:stop], where))
            at = _round_up(stop)
            continue
        fields, extended = {**shared, **extended}, {}
        name = (fields.get("path") or _name(header)).decode("utf-8", "surrogateescape")
        _check_member(name, kind, fields, where)
        if kind == b"5" or (kind == b"\0" and name.endswith("/")):
            at = body
            continue
        size = _decimal(fields["size"], where) if "size" in fields else size
        at = _round_up(_end(data, body, size, where))
        if kind in _FILE_KINDS:
            yield Member(name, body, size)
    if extended:
        raise _damaged(f"{source}: byte {at:,}", "an extended header without a member")
    _refuse_second_archive(data, at, source)


def _check_header(header: bytes, where: str) -> None:
    if len(header) < _BLOCK:
        raise ShardError(
            f"{where}: the archive is truncated: it stops without its end mark", hint="copy or write the shard again"
        )
    stored = _number(header[148:156], where)
    unsigned = _sum(header[:256]) + _sum(header[256:]) - sum(header[148:156]) + 8 * ord(" ")
    if stored != unsigned:
        signed = unsigned - 256 * sum(byte > 127 for byte in header[:148] + header[156:])
        if stored != signed:
            raise _damaged(where, "a header whose checksum is wrong")


def _sum(data: bytes) -> int:
    """Return the sum of at most 256 bytes, as the low half of their Adler-32: a seventh of the time of ``sum``."""
    return (zlib.adler32(data) & 0xFFFF) - 1


def _check_member(name: str, kind: bytes, fields: dict[str, bytes], where: str) -> None:
    check_path(name, source=where)
    if _DEVICE.search(name):
        raise ShardError(f"{where}: the member {name[:200]!r} is named like a device", hint="rename it and repack")
    sparse = any(key.startswith("GNU.sparse.") for key in fields)
    if reason := _REFUSED_KINDS.get(b"S" if sparse else kind):
        raise ShardError(f"{where}: the member {name[:200]!r} is {reason}", hint="shards hold plain files only")


def _end(data: Mapped, body: int, size: int, where: str) -> int:
    if size > len(data) - body:
        raise ShardError(
            f"{where}: the archive is truncated: a member runs to byte {body + size:,} of {len(data):,}",
            hint="copy or write the shard again",
        )
    return body + size


def _round_up(at: int) -> int:
    return -(-at // _BLOCK) * _BLOCK


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    # Only POSIX archives have a prefix there; old GNU ones keep times in its place.
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _number(field: bytes, where: str) -> int:
    """Parse an octal number, or GNU's base-256 for those that do not fit: the first bit set, then big endian."""
    if field[0] & 0x80:
        if field[0] != 0x80:
            raise _damaged(where, "a negative number")
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip() or b"0"
    if digits.strip(b"01234567"):
        raise _damaged(where, f"{digits!r} instead of an octal number")
    return int(digits, 8)


def _decimal(digits: bytes, where: str) -> int:
    if not digits.isdigit() or len(digits) > 19:
        raise _damaged(where, f"{digits[:40]!r} instead of a size")
    return int(digits)


def _records(block: bytes, where: str) -> Iterator[tuple[str, bytes]]:
    """Yield the PAX records that matter here of an extended header: ``LENGTH KEY=VALUE`` and a newline, LENGTH counting all of it."""
    at = 0
    while at < len(block) and block[at]:
        space = block.find(b" ", at, at + 20)
        stop = at + _decimal(block[at : max(at, space)], where)
        key, equals, value = block[space + 1 : stop - 1].partition(b"=")
        if stop <= space or stop > len(block) or block[stop - 1 : stop] != b"\n" or not equals:
            raise _damaged(where, "an extended header that does not add up")
        # The others are dropped: the shared ones are looked at for every member, and there may be a million of them.
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
            yield key.decode("utf-8", "replace"), value
        at = stop


def _refuse_second_archive(data: Mapped, at: int, source: str) -> None:
    """Refuse archives glued together: readers stop at the first end mark and would lose the rest without a word."""
    for block in range(at, min(len(data), at + _PADDING_BLOCKS * _BLOCK), _BLOCK):
        if data[block + 257 : block + 262] == b"ustar":
            raise ShardError(
                f"{source}: a second archive follows the first at byte {block:,}",
                hint="join archives with tar --concatenate, or keep them apart",
            )


def _damaged(where: str, reason: str) -> ShardError:
    return ShardError(f"{where}: the archive is damaged: {reason}", hint="copy or write the shard again")
