"""Archives that are truncated, damaged or made to harm: refused by name, without a crash or a large allocation."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import corpora
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iostack.corpus.tar_index import members
from iostack.errors import ShardError


def _archive(*infos: tarfile.TarInfo, format: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as archive:
        for info in infos:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return stream.getvalue()


def _info(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def _signed(header: bytes) -> bytes:
    """Return a header block with its checksum set right."""
    header = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../a.txt", "climbs out"),
        ("a/../../b.txt", "climbs out"),
        ("/etc/passwd", "is absolute"),
        ("/dev/zero", "is absolute"),
        ("..\\a.txt", "climbs out"),
        ("NUL", "named like a device"),
        ("dir/con.txt", "named like a device"),
        ("COM1.jpg", "named like a device"),
    ],
)
def test_a_name_that_leads_out_or_names_a_device_is_refused(name: str, said: str) -> None:
    with pytest.raises(ShardError, match=said):
        list(members(_archive(_info("fine.txt"), _info(name)), source="a.tar"))


def test_names_that_only_resemble_those_are_fine() -> None:
    names = ["a..b.txt", "...txt", "console.txt", "null.json", "lpt.txt", "dev/zero.txt", "a/./b.txt"]
    assert [member.name for member in members(_archive(*map(_info, names)), source="a.tar")] == names


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.CHRTYPE, "a character device"),
        (tarfile.BLKTYPE, "a block device"),
        (tarfile.FIFOTYPE, "a named pipe"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
    ],
)
def test_what_is_no_plain_file_is_refused(kind: bytes, said: str) -> None:
    with pytest.raises(ShardError, match=f"'x.txt' is {said}"):
        list(members(_archive(_info("a.txt"), _info("x.txt", kind, linkname="a.txt")), source="a.tar"))


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_sparse_files_of_gnu_tar_are_refused(tmp_path: Path, format: str) -> None:
    with (tmp_path / "holes.bin").open("wb") as file:
        file.seek(10 << 20)
        file.write(b"end")
    command = ["tar", "-C", str(tmp_path), f"--format={format}", "--sparse", "-cf", "-", "holes.bin"]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    with pytest.raises(ShardError, match="a sparse file"):
        list(members(archive, source="a.tar"))


def test_an_archive_cut_anywhere_is_truncated(tmp_path: Path) -> None:
    path = corpora.write_tar(tmp_path / "a.tar", [("a.txt", b"x" * 700), ("p" * 150 + ".txt", b"y" * 100)])
    whole = path.read_bytes()
    end = max(i for i, byte in enumerate(whole) if byte) + 1
    for size in [0, 1, 511, 512, 513, 1535, 1536, 2048, *range(1, end, 97)]:
        with pytest.raises(ShardError, match=r"truncated|damaged"):
            list(members(whole[:size], source="a.tar"))


def test_archives_glued_together_are_refused(tmp_path: Path) -> None:
    one = corpora.write_tar(tmp_path / "a.tar", [("a.txt", b"x")]).read_bytes()
    with pytest.raises(ShardError, match="a second archive follows"):
        list(members(one + one, source="a.tar"))


@pytest.mark.parametrize(
    "size",
    [b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"not a size!!", b"-0000000001\0", b"\x81" + bytes(11)],
)
def test_a_hostile_size_allocates_nothing(size: bytes) -> None:
    archive = _archive(_info("a.txt", size=5), format=tarfile.GNU_FORMAT)
    hostile = _signed(archive[:124] + size + archive[136:512]) + archive[512:]
    tracemalloc.start()
    with pytest.raises(ShardError):
        list(members(hostile, source="a.tar"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "records",
    [
        b"-5 path=x\n",
        b"999999999999999999999999 path=x\n",
        b"5 path=x\n",
        b"9 pathxx\n",
        b"x path=x\n",
        b"10 size=-1\n",
    ],
)
def test_an_extended_header_that_does_not_add_up_is_refused(records: bytes) -> None:
    extended = _info("pax", tarfile.XHDTYPE, size=len(records))
    stream = _archive(extended, _info("a.txt"), format=tarfile.USTAR_FORMAT)
    at = stream.index(b"pax") + 512
    with pytest.raises(ShardError):
        list(members(stream[:at] + records.ljust(512, b"\0") + stream[at + 512 :], source="a.tar"))


def test_a_million_shared_records_are_not_looked_at_for_every_member() -> None:
    records = b"".join(b"13 k%06d=v\n" % number for number in range(1_000_000))
    shared = _info("pax", tarfile.XGLTYPE, size=len(records))
    stream = shared.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)
    archive = stream + _archive(*(_info(f"{number}.txt") for number in range(2000)))
    assert len(list(members(archive, source="a.tar"))) == 2000


def test_an_extended_header_without_a_member_is_refused() -> None:
    archive = _archive(_info("n" * 300 + ".txt"), format=tarfile.GNU_FORMAT)
    with pytest.raises(ShardError, match="without a member"):
        list(members(archive[:1024] + bytes(10240), source="a.tar"))


def test_a_damaged_header_is_named_by_its_place() -> None:
    archive = bytearray(_archive(_info("a.txt", size=600), _info("b.txt")))
    archive[1536] ^= 1
    with pytest.raises(ShardError, match=r"a\.tar: byte 1,536: .*checksum"):
        list(members(bytes(archive), source="a.tar"))


BASE = _archive(
    _info("a.txt", size=700), _info("n" * 300 + ".txt", size=10), _info("d", tarfile.DIRTYPE), _info("ü.x", size=3)
)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damaged_archives_give_members_inside_the_file_or_our_error(data: st.DataObject) -> None:
    archive = bytearray(BASE)
    for _ in range(data.draw(st.integers(1, 4))):
        block = data.draw(st.integers(0, 10)) * 512
        at = block + data.draw(st.one_of(st.integers(0, 511), st.sampled_from([124, 125, 156, 257, 345])))
        archive[at] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):
            archive[block : block + 512] = _signed(bytes(archive[block : block + 512]))
    content = bytes(archive[: data.draw(st.integers(0, len(archive)))]) if data.draw(st.booleans()) else bytes(archive)
    try:
        for member in members(content, source="a.tar"):
            assert 0 <= member.offset <= member.offset + member.size <= len(content)
    except ShardError:
        pass


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes_at_all_end_in_our_error(content: bytes) -> None:
    if not content.startswith(bytes(512)):
        with pytest.raises(ShardError):
            list(members(content, source=os.devnull))
