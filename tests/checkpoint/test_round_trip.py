"""What is saved comes back, bit by bit, and other programs can read it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import trainer.checkpoint
from iostack.errors import CheckpointError
from trainer.checkpoint import Checkpointer
from trainer.checkpoint.pieces import DTYPES
from trainer.checkpoint.safetensors_file import BlockSink, pack
from trainer.checkpoint.save_plan import describe

from .layouts import as_bytes
from .steps import loaded_step, save_steps, tensors_of


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpointer]:
    opened = Checkpointer(str(tmp_path / "checkpoints"))
    opened.begin({})
    yield opened
    opened.close()


def any_bytes(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Return a tensor that holds every byte pattern, NaNs of every kind among them."""
    count = math.prod(shape) * dtype.itemsize
    pattern = torch.arange(count).remainder(2 if dtype is torch.bool else 251).to(torch.uint8)
    return pattern.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def check_round_trip(checkpoints: Checkpointer, tensors: dict[str, torch.Tensor]) -> None:
    checkpoints.save(1, tensors, {}, settings={})
    loaded = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    assert checkpoints.load(loaded) is not None
    for name, tensor in tensors.items():
        assert torch.equal(as_bytes(loaded[name]), as_bytes(tensor)), name


def test_every_dtype_of_the_format_round_trips(checkpoints: Checkpointer) -> None:
    tensors = {
        f"{name}{list(shape)}": any_bytes(d, *shape) for name, d in DTYPES.items() for shape in ((), (7, 3), (0, 2))
    }
    check_round_trip(checkpoints, tensors)


def test_memory_in_any_order_round_trips(checkpoints: Checkpointer) -> None:
    base = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    tensors = {
        "transposed": base.T,
        "strided": base[::3, 1::2],
        "shared": base,
        "expanded": torch.ones(1, 5).expand(4, 5),
        "parameter": torch.nn.Parameter(base[:4]),
        "conjugated": torch.view_as_complex(base.reshape(40, 25, 2)).conj(),
    }
    checkpoints.save(1, tensors, {}, settings={})
    loaded = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors.items()}
    loaded["transposed"] = torch.zeros(40, 50).T
    loaded["parameter"] = torch.nn.Parameter(torch.zeros(4, 50))
    assert checkpoints.load(loaded) is not None
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor.resolve_conj()), name


def test_state_comes_back_as_json_gives_it(checkpoints: Checkpointer) -> None:
    state = {"loader": {"position": 2**63, "cursors": (1, 2)}, "loss": float("inf"), "name": "π", "none": None}
    checkpoints.save(1, {}, state, settings={"dim": 8}, rank_state={"rng": [1, 2]})
    restored = checkpoints.load({})
    assert restored is not None
    assert restored.state == {**state, "loader": {"position": 2**63, "cursors": [1, 2]}}
    assert (restored.settings, restored.rank_state, restored.skipped) == ({"dim": 8}, {"rng": [1, 2]}, [])


def test_nothing_saved_is_none(checkpoints: Checkpointer) -> None:
    assert checkpoints.load({}) is None
    assert checkpoints.latest() is None


def test_latest_describes_the_newest_step(checkpoints: Checkpointer) -> None:
    checkpoints.save(1, tensors_of(1), {"a": 1}, settings={})
    report = checkpoints.save(2, tensors_of(2), {"a": 2}, settings={"b": 1})
    latest = checkpoints.latest()
    assert latest is not None
    assert (latest.step, latest.generation, latest.world, latest.bytes) == (2, 1, 1, report.bytes)
    assert (latest.state, latest.settings) == ({"a": 2}, {"b": 1})


def test_tensors_larger_than_a_file_are_divided_among_files(tmp_path: Path) -> None:
    pieces = [piece for piece, _ in describe(tensors_of(1))]
    files = pack(pieces, file_bytes=1_300_000)
    assert [[piece.name for piece in file] for file in files] == [["count"], ["moment"], ["layer.weight", "layer.bias"]]


def test_plain_safetensors_reads_the_files(tmp_path: Path) -> None:
    save_steps(tmp_path, 3)
    (file,) = tmp_path.glob("steps/*/*.safetensors")
    with safe_open(file, "pt") as opened:
        assert {name: opened.get_tensor(name).tolist() for name in opened.keys()} == {  # noqa: SIM118
            name: tensor.tolist() for name, tensor in tensors_of(3).items()
        }


def test_steps_lie_in_memory_or_any_other_fsspec_file_system() -> None:
    save_steps("memory://checkpoint-test", 1, 2)
    assert loaded_step("memory://checkpoint-test") == 2


def test_some_of_the_tensors_can_be_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_steps(tmp_path, 1)
    weight = torch.zeros(500, 600)
    assert Checkpointer(str(tmp_path)).load({"layer.weight": weight}) is not None
    assert torch.equal(weight, tensors_of(1)["layer.weight"])
    assert "holds 3 tensors that nothing asked for: count" in caplog.text


@pytest.mark.parametrize(
    ("tensors", "state", "message"),
    [
        ({"a": torch.zeros(1, dtype=torch.complex128)}, {}, r"tensor a is of torch.complex128"),
        ({"a": torch.zeros(2, device="meta")}, {}, "tensor a has no plain memory: meta"),
        ({"a": torch.zeros(2).to_sparse()}, {}, "tensor a has no plain memory"),
        ({"a": 1.0}, {}, "a is a float among the tensors"),
        ({}, {"x": {"y": [1, {2}]}}, r"state.x.y\[1\] is a set"),
        ({}, {"x": {1: 2}}, "state.x has the key 1"),
    ],
)
def test_what_cannot_be_saved_is_named(
    checkpoints: Checkpointer, tensors: dict[str, torch.Tensor], state: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        checkpoints.save(1, tensors, state, settings={})
    assert checkpoints.latest() is None


@settings(deadline=None)
@given(parts=st.lists(st.integers(0, 3 << 19), max_size=8))
def test_checksums_do_not_depend_on_how_a_file_is_written(parts: list[int]) -> None:
    class Nothing:
        def write(self, data: memoryview) -> None:
            pass

    data = memoryview(bytes(range(256)) * (sum(parts) // 256 + 1))[: sum(parts)]
    whole, divided = BlockSink(Nothing()), BlockSink(Nothing())
    whole.write(data)
    at = 0
    for part in parts:
        divided.write(data[at : at + part])
        at += part
    assert divided.checksums() == whole.checksums()
    assert len(whole.checksums()) == -(-len(data) // (1 << 20))


def test_nothing_here_is_pickled() -> None:
    source = "\n".join(file.read_text() for file in Path(trainer.checkpoint.__file__).parent.glob("*.py"))
    assert not re.search(r"import.*pickle|torch\.(load|save)\(|_object(_list)?\(|weights_only", source)
