"""The manual says of every command, setting, variable and file what the program does."""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import inspect
import json
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pages
import pytest
import runs

import iostack
from iostack import errors
from iostack.cli import cli
from iostack.corpus.manifest import SIDECAR
from iostack.registry import registry
from iostack.stages import STAGES
from trainer.evaluation import EvaluationMetrics
from trainer.metrics import StepMetrics
from trainer.run_folder import _ORDER
from trainer.settings import resolve_settings
from trainer.settings.tree import Section, Settings

PAGES = sorted(pages.DOCS.glob("*.md"))
COMMANDS, SETTINGS, RUNS, CORPORA = (
    pages.read_page(f"{name}.md") for name in ("commands", "settings", "runs", "corpora")
)


@pytest.fixture(scope="module")
def refresh() -> ModuleType:
    """docs/refresh.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("refresh", pages.DOCS / "refresh.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _table(text: str) -> dict[str, str]:
    """Return the rows of the tables in a text: the code in the first cell, and the rest."""
    rows = re.findall(r"^\| (.+?) \| (.*) \|$", text, re.MULTILINE)
    return {name: rest for cell, rest in rows for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_generated_parts_are_up_to_date(page: Path, refresh: ModuleType) -> None:
    text = page.read_text("utf-8")
    assert refresh.refreshed(text) == text, "run: python docs/refresh.py"


def test_every_command_has_its_help_on_the_page() -> None:
    names = cli.list_commands(click.Context(cli))
    assert {"index", "inspect", "plugins", "train"} <= set(names)
    for name in ["iostack", *names]:
        assert f"<!-- help: {name} -->" in COMMANDS, name


def test_every_setting_is_in_a_table() -> None:
    for name, field in Settings.model_fields.items():
        if inspect.isclass(field.annotation):
            text = pages.section(SETTINGS, f"`[{name}]`")
            assert f"<!-- settings: {name} -->" in text
            assert set(field.annotation.model_fields) <= set(_table(text))
        else:
            assert f"`[{name}.NAME]`" in pages.headings(SETTINGS)


def test_every_setting_says_what_it_means() -> None:
    for key, rest in _table(SETTINGS).items():
        assert len(rest.rpartition("| ")[2]) > 5, key


@pytest.mark.parametrize("hook", ["iostack_parallelisms", "iostack_callbacks"])
def test_options_of_shipped_parallelisms_and_callbacks_are_in_a_table(hook: str) -> None:
    for plugin, offers in registry().call(hook):
        if plugin == "evaluation":  # has settings of its own
            continue
        kinds = {kind.name: kind for kind in offers} if hook == "iostack_parallelisms" else offers
        for name, kind in kinds.items():
            for key, option in inspect.signature(kind).parameters.items():
                shown = json.dumps(option.default)
                heading = "`[parallel]`" if hook == "iostack_parallelisms" else "`[callbacks.NAME]`"
                text = pages.section(SETTINGS, heading)
                line = next((line for line in text.splitlines() if f"`{key}`" in line and line.startswith("|")), "")
                assert f"`{shown}`" in line, f"{name}.{key} = {shown}"


@pytest.mark.parametrize("block", pages.blocks(SETTINGS, "toml"))
def test_settings_that_the_page_shows_are_accepted(block: pages.Block, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(block.text)
    settings, _ = resolve_settings(file=file)
    assert set(tomllib.loads(block.text)) <= set(settings.model_fields_set)


def test_settings_that_a_run_cannot_change_are_named() -> None:
    text = pages.section(SETTINGS, "What a resumed run may change")
    assert set(re.findall(r"`([a-z_]+)`", text)) == set(_ORDER)
    assert "`[model]`" in text


def test_settings_are_closed_to_unknown_keys_as_the_page_says() -> None:
    assert Section.model_config["extra"] == "forbid"


def test_every_environment_variable_is_in_the_table() -> None:
    known = _table(pages.section(COMMANDS, "Environment variables"))
    sources = [path for part in ("iostack", "trainer", "plugins") for path in (pages.ROOT / part).rglob("*.py")]
    texts = "\n".join(path.read_text("utf-8") for path in sources)
    used = set(re.findall(r"IOSTACK_[A-Z]+", texts)) | set(re.findall(r"environ(?:\.get\(|\[)\"([A-Z_]+)\"", texts))
    used |= set(re.findall(r"environment(?:\.get\(|\[)\"([A-Z_]+)\"", texts))
    assert {"IOSTACK_CACHE", "NO_COLOR", "RANK", "MASTER_ADDR"} <= used
    documented = {*known, "IOSTACK_LAUNCH", "XDG_CACHE_HOME"}
    internal = {name for name in used if name.startswith("TORCHELASTIC_")}
    assert used - internal <= documented
    assert "`IOSTACK_LAUNCH`" in COMMANDS


def test_every_exit_code_is_in_the_table() -> None:
    shown = set(re.findall(r"^\| (\d+) \|", pages.section(COMMANDS, "Exit codes"), re.MULTILINE))
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.IostackError)]
    assert shown == {"0", "130", "143"} | {str(kind.exit_code) for kind in kinds}


@pytest.mark.parametrize(
    ("file", "kind"),
    [("metrics.jsonl", StepMetrics), ("evaluation.jsonl", EvaluationMetrics)],
    ids=["step", "evaluation"],
)
def test_every_key_of_metrics_is_in_the_table(file: str, kind: type[Any]) -> None:
    assert list(_table(pages.section(RUNS, file))) == [field.name for field in dataclasses.fields(kind)]


@pytest.mark.slow
def test_a_run_writes_the_files_and_keys_that_the_page_names(tmp_path: Path) -> None:
    runs.write_corpus(tmp_path / "corpus", shards=1)
    settings = '[evaluation]\nuri = "corpus"\nsteps = 1\n[callbacks.sample]\ntokens = 3\n'
    (tmp_path / "run.toml").write_text(runs.SETTINGS.replace("steps = 60", "steps = 2") + settings)
    pages.run("iostack train corpus -c run.toml", cwd=tmp_path)
    listed = {name.rstrip("/") for name in _table(pages.section(RUNS, "The run folder"))}
    assert {path.name for path in (tmp_path / "run").iterdir()} == listed
    for file, optional in (("metrics.jsonl", {"mfu"}), ("evaluation.jsonl", set())):
        [first, *_] = runs.read_lines(tmp_path / "run" / file)
        assert set(first) == set(_table(pages.section(RUNS, file))) - optional


def test_the_manifest_has_the_columns_and_the_place_that_the_page_names(tmp_path: Path) -> None:
    import pyarrow as pa

    runs.write_corpus(tmp_path / "corpus", shards=2)
    pages.run("iostack index corpus", cwd=tmp_path)
    schema = pa.ipc.open_file(pa.memory_map(str(tmp_path / "corpus" / SIDECAR))).schema
    text = pages.section(CORPORA, "The manifest")
    assert {name: rest.partition(" | ")[0] for name, rest in _table(text).items()} == {
        field.name: str(field.type) for field in schema
    }
    for name in (SIDECAR, *(key.decode() for key in schema.metadata)):
        assert f"`{name}`" in text


def test_the_cache_folder_holds_what_the_page_names(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n'))
    with iostack.open_corpus(corpus, cache_dir=tmp_path / "cache") as opened:
        opened.open_shard(0)
    names = [
        name.replace("...", "*").replace("abcd*.", "*.") for name in _table(pages.section(CORPORA, "The cache folder"))
    ]
    patterns = [name.replace("ab/abcd*", "??/*") for name in names if "/" in name]
    found = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert found
    assert all(any(path.relative_to(tmp_path / "cache").match(pattern) for pattern in patterns) for path in found)


def test_bench_prints_the_keys_that_the_page_names(tmp_path: Path) -> None:
    runs.write_corpus(tmp_path / "corpus", shards=1)
    printed = json.loads(pages.run("iostack bench corpus --seq-len 8 --steps 1 --json", cwd=tmp_path))
    table = _table(pages.section(COMMANDS, "`iostack bench`"))
    assert set(printed) == set(table) - {"--json"} - {*STAGES}
    for stage in printed["wait_s"]:
        assert f"`{stage}`" in table["wait_s"]


def test_batches_have_the_columns_that_the_page_names(tmp_path: Path) -> None:
    with iostack.open_corpus(runs.write_corpus(tmp_path / "corpus", shards=1)) as corpus:
        loader = iostack.Loader(corpus, batch_size=2, seq_len=8)
        batch = next(iter(loader))
        loader.close()
    shown = ", ".join(
        f'"{name}": {str(column.dtype).removeprefix("torch.")}[{"b, seq_len + 1" if column.ndim == 2 else "b"}]'
        for name, column in batch.items()
    )
    assert f"{{{shown}}}" in CORPORA


def test_every_format_is_in_the_table() -> None:
    formats = {each.name for each in registry().listed("iostack_formats")}
    assert formats <= set(_table(pages.section(CORPORA, "Formats")))


@pytest.mark.parametrize("page", ["commands.md", "settings.md"])
def test_consoles_show_what_the_commands_print(page: str, tmp_path: Path) -> None:
    shown = pages.blocks(pages.read_page(page), "console")
    assert shown
    for block in shown:
        pages.check_console(block, cwd=tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_python_on_the_pages_is_python(page: Path) -> None:
    for block in pages.blocks(page.read_text("utf-8"), "python"):
        if not block.text.startswith(">>>"):
            compile(block.text, page.name, "exec")


@pytest.mark.parametrize(
    "page",
    [*PAGES, *(pages.ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))],
    ids=lambda p: p.name,
)
def test_links_lead_somewhere(page: Path) -> None:
    for link in pages.links(page.read_text("utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in pages.anchors(target.read_text("utf-8")), link
