"""Credentials: recognised in any text, and kept out of everything that is shown, logged or saved."""

from __future__ import annotations

import json

import pytest

from iostack.errors import OriginError, SettingsError, redact
from trainer.run_folder import refuse_changes
from trainer.settings import resolve_settings
from trainer.settings.show import plain_settings, shown_settings
from trainer.supervise.report import failure_of, print_traceback

SECRET_TEXTS = [
    "cannot read s3://AKIA:hunter/2hunter@bucket/key today",
    "s3://AKIA:h@hunter2@bucket/key",
    "https://hunter2@host/x",
    "https://host/x?X-Amz-Signature=hunter2&part=1",
    "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=hunter2+/x==;EndpointSuffix=core",
    "BlobEndpoint=https://me;SharedAccessSignature=sv=2024&sig=hunter2",
    "sent Authorization: Bearer hunter2",
    "{'Authorization': 'Basic hunter2'}",
    "Authorization: AWS4-HMAC-SHA256 Credential=hunter2/20260101, Signature=hunter2",
    "token refused: Bearer hunter2hunter2",
    "client_kwargs={'aws_secret_access_key': 'hunter2'}",
    "password=hunter2",
    "Bucket create failed 'AKIA:hunter2@bucket': Parameter validation failed",
    'no endpoint "http://localhost:9/b/x%3Ftoken%3Dhunter2/part-0.jsonl"',
]
PLAIN_TEXTS = [
    "http://localhost:8080/corpus@v1/part-0.jsonl",
    "s3://bucket/corpus@v1?part=1",
    "zip://inner.jsonl::s3://bucket/outer@v1.zip",
    "callbacks.journal.key=3, monkey=4",
    "the bearer of news",
]


@pytest.mark.parametrize("text", SECRET_TEXTS)
def test_credentials_of_every_form_are_redacted_whole(text):
    assert "hunter" not in redact(text)
    assert "***" in redact(text)
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize("text", PLAIN_TEXTS)
def test_text_without_credentials_stays(text):
    assert redact(text) == text


EVERYWHERE = [
    'data.transforms=[{name="fetch", api_key="hunter2", from=["s3://u:hunter2@b/x"]}]',
    'data.sources=[{uri="s3://u:hunter2@b", transforms=[{name="t", nested=[{password="hunter2"}]}]}]',
    'model.weights="https://host/w?token=hunter2"',
    "model.hub_token=hunter2",
    "parallel.ddp.store.secret=hunter2",
    'callbacks.tracker.uris=["s3://u:hunter2@b", "s3://c/d"]',
    'callbacks.tracker.storage_options={key="hunter2"}',
    "callbacks.tracker.headers={Authorization='hunter2'}",
]


def test_no_table_of_the_settings_shows_or_saves_a_secret():
    settings, _ = resolve_settings(assignments=[*EVERYWHERE, "model.eos_token=stop"])

    shown, plain = shown_settings(settings), plain_settings(settings)

    assert "hunter2" not in json.dumps([shown, plain])
    assert shown["data"]["transforms"][0]["api_key"] == "***"
    assert "api_key" not in plain["data"]["transforms"][0]
    assert plain["callbacks"]["tracker"]["uris"] == ["s3://***@b", "s3://c/d"]
    assert plain["model"]["eos_token"] == "stop"


@pytest.mark.parametrize(
    "assignments",
    [
        ["data.storage_options=hunter2"],
        ["data.storage_options.key.secret=1", "data.storage_options.key=hunter2"],
        ['data.sources=[{uri="a", wieght={token="hunter2"}}]'],
        ['train.steps={token="hunter2"}'],
    ],
)
def test_a_refused_setting_does_not_show_a_secret(assignments):
    with pytest.raises(SettingsError) as caught:
        resolve_settings(assignments=assignments)
    assert "hunter2" not in caught.value.message


def test_what_a_rank_tells_of_its_end_holds_no_secret(capsys):
    error = OriginError("s3://u:hunter2@b does not answer", hint="see s3://u:hunter2@b")
    assert b"hunter2" not in failure_of(error).to_json()
    print_traceback(error, rank=1)
    assert "hunter2" not in capsys.readouterr().err


def test_a_run_resumes_with_a_new_credential_and_from_a_checkpoint_that_still_holds_one():
    def settings_with(secret):
        fetch = f'{{name="fetch", api_key="{secret}", origin="s3://u:{secret}@b"}}'
        return resolve_settings(assignments=[f"data.transforms=[{fetch}]", f"model.hub_token={secret}"])[0]

    before, now = settings_with("hunter2"), plain_settings(settings_with("hunter3"))

    refuse_changes(plain_settings(before), now, where="there")
    refuse_changes(before.model_dump(mode="json"), now, where="there")
