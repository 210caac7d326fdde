"""What importing costs, which way imports run, and that the plugins' folder is what is installed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import corpora
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "pyarrow", "pandas", "fsspec", "webdataset", "tokenizers", "pydantic", "rich", "matplotlib")


def _entry_points() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return dict(project["entry-points"]["iostack"])


def test_importing_iostack_and_every_plugin_imports_nothing_heavy() -> None:
    program = (
        "import importlib, sys, iostack, iostack.registry\n"
        "for plugin in iostack.registry.registry().plugins:\n"
        "    print(plugin.name, plugin.state, plugin.error)\n"
        f"    print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert set(lines[1::2]) == {"[]"}, done.stdout
    assert sorted(lines[::2]) == [f"{name} loaded " for name in sorted(_entry_points())]


def test_each_plugin_alone_imports_nothing_heavy() -> None:
    program = (
        "import importlib, sys\n"
        "importlib.import_module(sys.argv[1])\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    for module in _entry_points().values():
        done = subprocess.run([sys.executable, "-c", program, module], capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n", module


def test_the_plugins_folder_is_what_is_installed() -> None:
    files = {path.stem for path in (ROOT / "plugins").glob("iostack_*.py")}
    assert {f"iostack_{name}": value for name, value in _entry_points().items()} == {name: name for name in files}


def test_opening_a_corpus_imports_neither_torch_nor_pandas(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n')
    program = (
        "import sys, iostack\n"
        "corpus = iostack.open_corpus(sys.argv[1])\n"
        "assert corpus.open_shard(0).read([0]) == [{'n': 1}]\n"
        "print([name for name in ('torch', 'pandas', 'fsspec', 'webdataset') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_first_batch_of_tokens_needs_neither_pyarrow_nor_processes(tmp_path: Path) -> None:
    corpora.write_tokens(tmp_path / "a", [[range(100)]])
    program = (
        "import sys, iostack\n"
        "loader = iostack.Loader(iostack.open_corpus(sys.argv[1]), batch_size=2, seq_len=8)\n"
        "next(iter(loader))\n"
        "print([name for name in ('pyarrow', 'numpy.ma', 'iostack.loader.workers.pool') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("tokens", 'seq_len=8, packing="split"'), ("jsonl", "seq_len=8"), ("parquet", "")],
)
def test_the_first_batch_needs_no_pandas(tmp_path: Path, kind: str, settings: str) -> None:
    match kind:
        case "tokens":
            corpora.write_tokens(tmp_path / "a", [[range(100), range(50)]])
        case "jsonl":
            corpora.write_jsonl(tmp_path / "a.jsonl", corpora.texts(9))
        case "parquet":
            pq.write_table(pa.Table.from_pylist(corpora.texts(9)), tmp_path / "a.parquet")
    program = (
        "import sys, iostack\n"
        f"loader = iostack.Loader(iostack.open_corpus(sys.argv[1]), batch_size=2, {settings})\n"
        "next(iter(loader))\n"
        "print('pandas' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
