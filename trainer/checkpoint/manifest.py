"""The manifest of a step: building it from the files of all ranks, committing it, and reading it back."""

from __future__ import annotations

import re

from iostack.errors import BrokenStepError, CheckpointError
from trainer.checkpoint.documents import (
    MAX_DOCUMENT_BYTES,
    FileColumns,
    IndexFile,
    ManifestFile,
    RankFile,
    compress,
    decompress,
    digest,
    seal,
    unseal,
)
from trainer.checkpoint.index import join, read_index
from trainer.checkpoint.layout import Attempt, StepId, index_path, manifest_path, rank_path
from trainer.checkpoint.store import Store, locate

_DATA_FILE = re.compile(r"rank-\d{5,8}-\d{3,6}\.safetensors")


def commit(store: Store, attempt: Attempt, *, world: int) -> ManifestFile:
    """Make an attempt whose ranks are all done the saved step; returns its manifest.

    Any process that sees the files of all ranks may call this, more than once: the manifest is a pure function of them
    and its conditional creation is the commit. Raises CheckpointError if another attempt was committed already.
    """
    ranks, documents = [], []
    for rank in range(world):
        data = store.read(rank_path(attempt, rank), limit=MAX_DOCUMENT_BYTES)
        ranks.append(unseal(RankFile, data, what=locate(store, rank_path(attempt, rank))))
        documents.append(data)
    manifest, index = _build(attempt, ranks, documents)
    store.create(index_path(attempt), index)
    path = manifest_path(attempt.id)
    data = seal(manifest)
    if not store.create(path, data) and store.read(path, limit=MAX_DOCUMENT_BYTES) != data:
        raise CheckpointError(
            f"{locate(store, path)} exists already and is another attempt's",
            hint="a generation saves a step once; start the run anew to save it again",
        )
    return manifest


def read_manifest(store: Store, step: StepId) -> ManifestFile:
    """Return the manifest of a step, or raise BrokenStepError that says what is wrong with it."""
    path = manifest_path(step)
    what = locate(store, path)
    manifest = unseal(ManifestFile, _read_document(store, path), what=what)
    parent = manifest.parent
    if (manifest.step, manifest.generation) != (step.step, step.generation):
        raise BrokenStepError(f"{what} is the manifest of step {manifest.step}.{manifest.generation}")
    if parent and (StepId(step=parent.step, generation=parent.generation) >= step or parent.step > step.step):
        raise BrokenStepError(f"{what} names a parent that comes after it: {parent.step}.{parent.generation}")
    if not _same_length(manifest.ranks, manifest.rank_digests) or len(manifest.ranks.names) != manifest.world:
        raise BrokenStepError(f"{what} lists {len(manifest.ranks.names)} ranks of {manifest.world}")
    attempt = attempt_of(manifest)
    expected = [rank_path(attempt, rank).rpartition("/")[2] for rank in range(manifest.world)]
    if manifest.ranks.names != expected or not all(map(_DATA_FILE.fullmatch, manifest.files.names)):
        raise BrokenStepError(f"{what} names files that no rank writes")
    if len(manifest.files.names) != len(manifest.files.bytes):
        raise BrokenStepError(f"{what} has columns of different lengths")
    return manifest


def attempt_of(manifest: ManifestFile) -> Attempt:
    return Attempt(StepId(step=manifest.step, generation=manifest.generation), manifest.attempt)


def check_complete(store: Store, manifest: ManifestFile) -> None:
    """Raise BrokenStepError if a file of the step is missing or has another size; costs one listing."""
    attempt = attempt_of(manifest)
    present = store.files(attempt.folder)
    expected = dict(zip(manifest.ranks.names, manifest.ranks.bytes))
    expected |= dict(zip(manifest.files.names, manifest.files.bytes))
    expected[index_path(attempt).rpartition("/")[2]] = manifest.index_bytes
    for name, num_bytes in expected.items():
        path = locate(store, f"{attempt.folder}/{name}")
        if name not in present:
            raise BrokenStepError(f"{path} is missing")
        if present[name] != num_bytes:
            raise BrokenStepError(f"{path} has {present[name]} bytes instead of {num_bytes}")


def read_index_file(store: Store, manifest: ManifestFile) -> bytes:
    """Return the compressed index of a step, checked against the manifest."""
    path = index_path(attempt_of(manifest))
    data = _read_document(store, path)
    if digest(data) != manifest.index_digest:
        raise BrokenStepError(f"{locate(store, path)} is damaged: its digest is not the one in the manifest")
    return data


def open_index(store: Store, manifest: ManifestFile, data: bytes) -> IndexFile:
    return decompress(IndexFile, data, what=locate(store, index_path(attempt_of(manifest))))


def read_rank(store: Store, manifest: ManifestFile, rank: int) -> RankFile:
    """Return the rank file of a step, checked against the manifest."""
    path = rank_path(attempt_of(manifest), rank)
    data = _read_document(store, path)
    what = locate(store, path)
    if digest(data) != manifest.rank_digests[rank]:
        raise BrokenStepError(f"{what} is damaged: its digest is not the one in the manifest")
    return unseal(RankFile, data, what=what)


def _build(attempt: Attempt, ranks: list[RankFile], documents: list[bytes]) -> tuple[ManifestFile, bytes]:
    first = ranks[0]
    for number, rank in enumerate(ranks):
        is_ours = (rank.step, rank.generation, rank.attempt) == (attempt.id.step, attempt.id.generation, attempt.number)
        if not is_ours or rank.rank != number or rank.world != len(ranks) or rank.parent != first.parent:
            raise CheckpointError(f"{rank_path(attempt, number)} was written for another attempt")
    if first.state is None or first.settings is None:
        raise CheckpointError(f"{rank_path(attempt, 0)} holds no state")
    files, index = join(ranks)
    read_index(index, files.bytes)
    packed = compress(index)
    manifest = ManifestFile(
        step=attempt.id.step,
        generation=attempt.id.generation,
        attempt=attempt.number,
        world=len(ranks),
        parent=first.parent,
        ranks=FileColumns(
            names=[rank_path(attempt, rank).rpartition("/")[2] for rank in range(len(ranks))],
            bytes=[len(data) for data in documents],
        ),
        rank_digests=[digest(data) for data in documents],
        files=files,
        index_bytes=len(packed),
        index_digest=digest(packed),
        settings=first.settings,
        state=first.state,
    )
    return manifest, packed


def _read_document(store: Store, path: str) -> bytes:
    try:
        return store.read(path, limit=MAX_DOCUMENT_BYTES)
    except FileNotFoundError as error:
        raise BrokenStepError(f"{locate(store, path)} is missing") from error


def _same_length(columns: FileColumns, other: list[str]) -> bool:
    return len(columns.names) == len(columns.bytes) == len(other)
