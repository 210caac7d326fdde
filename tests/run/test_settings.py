"""Settings: which layer wins, where each value came from, and what is refused in which words."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from iostack.errors import SettingsError
from trainer.command import train
from trainer.settings import Interval, Settings, parse_interval, resolve_settings
from trainer.settings.merge import parse_assignment
from trainer.settings.show import plain_settings, shown_settings, to_toml


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(
        '[data]\nuri = "from/file"\nseq_len = 64\n[model]\ndim = 32\n[train]\nsteps = 7\n[parallel.ddp]\nbucket_mb = 5\n'
    )
    return path


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(file):
    settings, origins = resolve_settings(
        file=file, uri="from/line", flags={"train.device": "cpu"}, assignments=["train.steps=60", "model.layers=3"]
    )

    assert (settings.data.uri, settings.data.seq_len, settings.train.steps) == ("from/line", 64, 60)
    assert settings.data.batch_size == Settings().data.batch_size
    assert settings.model.options == {"dim": 32, "layers": 3}
    assert settings.parallel.options == {"ddp": {"bucket_mb": 5}}
    assert origins["data.uri"] == "command line"
    assert origins["data.seq_len"] == str(file)
    assert origins["train.device"] == "command line"
    assert origins["train.steps"] == "-s train.steps"
    assert "data.batch_size" not in origins


def test_the_uri_of_the_command_line_replaces_a_mix(tmp_path):
    file = tmp_path / "mix.toml"
    file.write_text('[[data.sources]]\nuri = "a"\nweight = 3\n[[data.sources]]\nuri = "b"\n')

    assert [source.weight for source in resolve_settings(file=file)[0].data.sources] == [3, 1]
    settings, _ = resolve_settings(file=file, uri="c")
    assert (settings.data.uri, settings.data.sources) == ("c", ())


@pytest.mark.parametrize(
    ("text", "value"),
    [("a=1", 1), ("a=1e-3", 1e-3), ("a=[1, 2]", [1, 2]), ("a=true", True), ('a="1"', "1"), ("a=s3://b/c", "s3://b/c")],
)
def test_a_value_is_toml_or_else_a_string(text, value):
    assert parse_assignment(text) == ("a", value)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.stepz=3", "unknown setting 'train.stepz' (from -s train.stepz); did you mean 'train.steps'?"),
        ("data.steps=3", "unknown setting 'data.steps' (from -s data.steps); did you mean 'train.steps'?"),
        ("trian.steps=3", "unknown setting 'trian' (from -s trian.steps); did you mean 'train'?"),
        ("parallel.dta=3", "unknown setting 'parallel.dta' (from -s parallel.dta); did you mean 'parallel.data'?"),
        ("train.steps=x", "train.steps = 'x' (from -s train.steps): must be a valid integer"),
        ("train.steps=0", "train.steps = 0 (from -s train.steps): must be greater than or equal to 1"),
        ("train.steps=true", "train.steps = True (from -s train.steps): must be a valid integer"),
        ("train.learning_rate=nan", "train.learning_rate = nan (from -s train.learning_rate): must be a finite number"),
        ("data.lanes=few", "data.lanes = 'few' (from -s data.lanes): must be a valid integer or must be 'auto'"),
        ("train.betas=[1, 'q']", "train.betas[1] = 'q' (from -s train.betas): must be a valid number"),
        ("data.sources=[{weight=1}]", "data.sources[0].uri is missing (from -s data.sources)"),
        ("data=3", "data = 3 (from -s data): a table, not a value"),
        ("model.name=3", "model.name = 3 (from -s model.name): must be a valid string"),
        ("train.minimum_learning_rate=1.0", "train.minimum_learning_rate = 1 is above train.learning_rate = 0.0003"),
        ("steps", "-s steps: expected key.path=value"),
    ],
)
def test_a_wrong_setting_is_refused_with_key_value_and_origin(file, assignment, message):
    with pytest.raises(SettingsError) as caught:
        resolve_settings(file=file, assignments=[assignment])
    assert caught.value.message == message
    assert caught.value.exit_code == 2


def test_all_mistakes_are_told_at_once(file):
    with pytest.raises(SettingsError, match=r"data\.sed.*did you mean 'data\.seed'.*; train\.steps = 0"):
        resolve_settings(file=file, assignments=["train.steps=0", "data.sed=1"])


def test_a_mistake_in_the_file_names_the_file(file):
    file.write_text("[train]\nsteps = -1\n")
    with pytest.raises(SettingsError, match=r"train\.steps = -1 \(from .*run\.toml\)"):
        resolve_settings(file=file)


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("100 steps", Interval(steps=100)),
        ("1 step", Interval(steps=1)),
        ("2 hours", Interval(seconds=7200)),
        ("0.5 minutes", Interval(seconds=30)),
        ("never", Interval()),
    ],
)
def test_an_interval_counts_steps_or_time(text, interval):
    assert parse_interval(text) == interval


@pytest.mark.parametrize("text", ["0 steps", "1.5 steps", "3 parsecs", "often", ""])
def test_other_intervals_are_refused(text):
    with pytest.raises(ValueError, match="expected"):
        parse_interval(text)


def test_a_bare_number_counts_steps():
    assert resolve_settings(assignments=["checkpoint.every=7"])[0].checkpoint.every == "7 steps"


def test_every_setting_says_what_it_means():
    for section in Settings.model_fields.values():
        model = section.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            assert model.__doc__
            for name, field in model.model_fields.items():
                assert field.description, f"{model.__name__}.{name} is not documented"


_values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, min_size=1, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1), _values, max_size=4))
def test_what_is_written_as_toml_reads_the_same(values):
    assert tomllib.loads(to_toml(values)) == values


SECRETS = [
    "data.storage_options.secret=hunter2",
    "data.storage_options.client_kwargs.aws_secret_access_key=hunter2",
    "checkpoint.storage_options.key=hunter2",
    "callbacks.tracker.api_key=hunter2",
    "callbacks.tracker.nested.password=hunter2",
    "data.uri=s3://user:hunter2@host/bucket",
    "checkpoint.uri='https://host/x?token=hunter2'",
]


def test_secrets_are_neither_shown_nor_saved():
    settings, _ = resolve_settings(assignments=[*SECRETS, "callbacks.tracker.project=mine"])

    assert settings.data.storage_options["secret"] == "hunter2"
    shown, plain = shown_settings(settings), plain_settings(settings)
    assert "hunter2" not in json.dumps([shown, plain])
    assert shown["data"]["storage_options"]["secret"] == "***"
    assert plain["data"]["storage_options"] == {}
    assert plain["callbacks"]["tracker"]["project"] == "mine"


def test_show_config_prints_toml_with_the_origin_of_each_line(file):
    result = CliRunner().invoke(train, ["-c", str(file), "-s", "train.steps=60", "--show-config"])

    assert result.exit_code == 0
    shown = tomllib.loads(result.stdout)
    assert (shown["data"]["seq_len"], shown["train"]["steps"], shown["model"]["dim"]) == (64, 60, 32)
    lines = [line for line in result.stdout.splitlines() if "=" in line]
    assert all("  # " in line for line in lines)
    assert next(line for line in lines if line.startswith("steps")).endswith("# -s train.steps")
    assert next(line for line in lines if line.startswith("batch_size")).endswith("# default")


def test_show_config_as_json_is_json_only(file):
    result = CliRunner().invoke(train, ["-c", str(file), "--show-config", "--json", *(f"-s{s}" for s in SECRETS[:3])])

    printed = json.loads(result.stdout)
    assert printed["settings"]["data"]["seq_len"] == 64
    assert printed["origins"]["data.seq_len"] == str(file)
    assert "hunter2" not in result.stdout


def test_the_help_ends_with_examples():
    result = CliRunner().invoke(train, ["--help"])
    assert result.exit_code == 0
    assert "torchrun --nnodes 8" in result.stdout
