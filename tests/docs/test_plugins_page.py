"""docs/plugins.md: its examples are taken from the page, installed as one distribution, and used."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from pathlib import Path

import pages
import pytest
import runs

from iostack import hookspecs
from iostack.registry import Registry, registry

PAGE = pages.read_page("plugins.md")
EXAMPLES = [block for block in pages.blocks(PAGE, "python") if block.file]
HOOKS = sorted(name for name in dir(hookspecs) if name.startswith("iostack_"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on which the distribution of the page is installed, to be put on PYTHONPATH."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for block in pages.blocks(PAGE):
        if block.file:
            (source / block.file).write_text(block.text)
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q"]
    pages.run([sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(source)], cwd=source)
    return target


@pytest.fixture
def env(installed: Path, tmp_path: Path) -> dict[str, str]:
    return pages.environment(PYTHONPATH=str(installed), LAB_CORPORA=str(tmp_path))


def test_every_hook_has_a_section_with_its_contract_and_an_example() -> None:
    titles = {heading.rpartition("`")[0].rpartition("`")[2]: heading for heading in pages.headings(PAGE)}
    for hook in HOOKS:
        text = pages.section(PAGE, titles[hook])
        for word in ("**Offers**", "**Called**", "**Returns**"):
            assert word in text, f"{hook} lacks {word}"
        assert any(f"def {hook}()" in block.text for block in pages.blocks(text, "python")), hook


def test_the_page_documents_no_hook_that_does_not_exist() -> None:
    named = {heading.rpartition("`")[0].rpartition("`")[2] for heading in pages.headings(PAGE) if "`" in heading}
    assert named == set(HOOKS)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.file)
def test_each_example_has_at_most_20_lines_of_code(example: pages.Block) -> None:
    assert example.lines_of_code <= 20


def test_each_example_has_an_entry_point_and_each_shipped_plugin_is_named() -> None:
    [project] = [block for block in pages.blocks(PAGE, "toml") if block.file == "pyproject.toml"]
    entries = tomllib.loads(project.text)["project"]["entry-points"]["iostack"]
    assert sorted(f"{module}.py" for module in entries.values()) == sorted(example.file for example in EXAMPLES)
    for plugin in sorted((pages.ROOT / "plugins").glob("iostack_*.py")):
        assert f"(../plugins/{plugin.name})" in PAGE, plugin.name


def test_the_distribution_is_listed_with_its_hooks(env: dict[str, str], tmp_path: Path) -> None:
    listed = json.loads(pages.run("iostack plugins --json", cwd=tmp_path, env=env))
    ours = {plugin["name"]: plugin for plugin in listed if plugin["distribution"] == "my-plugins"}
    assert {name: plugin["hooks"] for name, plugin in ours.items()} == {
        "my_alias": ["iostack_origins"],
        "my_dict": ["iostack_origins"],
        "my_lines": ["iostack_formats"],
        "my_short": ["iostack_filters"],
        "my_shorten": ["iostack_transforms"],
        "my_words": ["iostack_tokenizers"],
        "my_lines_writer": ["iostack_writers"],
        "my_serial": ["iostack_engines"],
        "my_convolution": ["iostack_models"],
        "my_sum": ["iostack_parallelisms"],
        "my_csv_log": ["iostack_callbacks"],
        "my_json_run": ["iostack_runs"],
        "my_head": ["iostack_commands"],
    }
    assert {plugin["state"] for plugin in ours.values()} == {"loaded"}
    assert listed[: len(ours)] == [ours[name] for name in sorted(ours)], "third parties come first, by name"


def test_storage_format_transform_and_tokenizer_give_the_expected_batch(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("one two three")
    program = """
import iostack
corpus = iostack.open_corpus("dict://notes", objects={"a.txt": b"one two three four five\\n" * 3})
assert corpus.format.name == "lines", corpus
loader = iostack.Loader(
    corpus, batch_size=1, seq_len=3, tokenizer="words:words.txt", epochs=1,
    transforms=[{"name": "shorten", "characters": 18}],
)
[first, *_] = [batch["tokens"].tolist() for batch in loader]
print(first, loader.tokenizer.decode(first[0]), loader.vocab_size)
loader.close()
corpus.close()
"""
    # Each of the three lines is cut to "one two three four": four tokens and the end, 15 in all.
    out = pages.run([sys.executable, "-c", program], cwd=tmp_path, env=env)
    endless = [0, 1, 2, 3, 4] * 3
    ids, _, rest = out.partition("]] ")
    first = json.loads(ids + "]]")[0]
    assert any(endless[start : start + 4] == first for start in range(12))
    assert rest.split() == [*(["one", "two", "three", "<unknown>", "<end>"][each] for each in first), "5"]


def test_the_alias_and_the_command(env: dict[str, str], tmp_path: Path) -> None:
    runs.write_corpus(tmp_path / "novels", shards=1, rows=5)
    shown = pages.run("iostack head lab://novels -n 2", cwd=tmp_path, env=env).splitlines()
    assert [json.loads(line)["text"][:13] for line in shown] == ["shard 0 row 0", "shard 0 row 1"]
    assert "head" in pages.run("iostack --help", cwd=tmp_path, env=env)


def test_the_writer_and_the_engine_convert_a_corpus(env: dict[str, str], tmp_path: Path) -> None:
    runs.write_corpus(tmp_path / "corpus", shards=2, rows=20)
    command = "iostack prepare corpus lines --to lines --engine serial --shard-bytes 500 --json"
    told = json.loads(pages.run(command, cwd=tmp_path, env=env))
    assert (told["format"], told["samples"], told["shards"] > 2) == ("lines", 40, True)
    text = "".join(path.read_text() for path in sorted((tmp_path / "lines").glob("*.txt")))
    assert [line.partition(":")[0] for line in text.splitlines()[18:22]] == [
        f"shard {s} row {r}" for s, r in ((0, 18), (0, 19), (1, 0), (1, 1))
    ]


@pytest.mark.slow
@pytest.mark.distributed
def test_model_parallelism_and_callback_train_as_one_process_does(env: dict[str, str], tmp_path: Path) -> None:
    runs.write_corpus(tmp_path / "corpus")
    settings = tmp_path / "run.toml"
    settings.write_text(
        '[data]\nseq_len = 16\nbatch_size = 8\nlanes = 4\n[model]\nname = "convolution"\ndim = 16\n'
        "[train]\nsteps = 12\nwarmup_steps = 2\nlearning_rate = 1e-2\nthreads = 1\n[callbacks.csv_log]\nevery = 4\n"
    )
    train = "iostack train corpus -c run.toml --run-dir"
    pages.run(f"{train} one", cwd=tmp_path, env=env)
    pages.run(f"{train} two --procs 2 -s 'parallel.use=[\"sum\"]'", cwd=tmp_path, env=env)
    one, two = (runs.read_lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 12
    for single, double in zip(one, two, strict=True):
        assert double["samples_digest"] == single["samples_digest"]
        assert double["loss"] == pytest.approx(single["loss"], rel=1e-5)
        assert double["grad_norm"] == pytest.approx(single["grad_norm"], rel=1e-4)
    assert one[-1]["loss"] < one[0]["loss"]
    logged = (tmp_path / "two" / "loss.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in logged] == ["4", "8", "12"]


def test_what_the_page_says_of_broken_plugins(tmp_path: Path) -> None:
    for block in pages.blocks(pages.section(PAGE, "Debugging"), "console"):
        pages.check_console(block, cwd=tmp_path)


def test_every_hook_has_a_shipped_plugin_that_uses_it() -> None:
    shipped: Registry = registry()
    used = {hook for plugin in shipped.plugins if plugin.distribution == "iostack" for hook in plugin.hooks}
    assert used >= set(HOOKS)


def test_the_complete_distribution_is_where_the_page_says() -> None:
    assert "(../examples/custom_parallelism)" in PAGE
    assert shutil.which("iostack", path=pages.environment()["PATH"]), "the command is not beside this Python"
