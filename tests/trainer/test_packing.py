"""A packed sequence trains as its documents do one by one: the same loss and the same gradients."""

from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

import iostack
from iostack.errors import SettingsError
from iostack.packing import cu_seqlens, document_ids
from tests.trainer.test_decoder import decoder
from trainer.loss import count_valid, cross_entropy_sum, label_batch
from trainer.model.attention import inside_documents
from trainer.model.decoder import Decoder
from trainer.settings import resolve_settings
from trainer.setup import build_model, build_request

VOCAB_SIZE, SEQ_LEN = 17, 9


def _gradients(model: Decoder) -> dict[str, Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("packing", ["split", "best_fit"])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_a_packed_batch_has_the_loss_and_gradients_of_its_documents(
    tmp_path: Path, packing: str, kv_heads: int
) -> None:
    random = np.random.default_rng(0)
    documents = [[random.integers(1, VOCAB_SIZE, n).tolist()] for n in random.integers(0, 14, 60)]
    corpora.write_tokens(tmp_path / "a", documents)
    model = decoder(kv_heads=kv_heads)
    with iostack.Loader(iostack.open_corpus(tmp_path), batch_size=4, seq_len=SEQ_LEN, packing=packing) as loader:
        for batch in islice(loader, 3):
            labelled = label_batch(batch, torch.device("cpu"))
            tokens, labels = labelled.pop("tokens"), labelled.pop("labels")
            packed, _ = cross_entropy_sum(model(tokens, **labelled), labels)
            packed.backward()
            gradients = _gradients(model)
            one_by_one = torch.zeros((), dtype=torch.float64)
            bounds = cu_seqlens(batch["position_ids"])[0].tolist()
            for start, stop in pairwise(bounds):
                alone, targets = tokens.flatten()[start:stop].unsqueeze(0), labels.flatten()[start:stop].unsqueeze(0)
                loss, _ = cross_entropy_sum(model(alone), targets)
                loss.backward()
                one_by_one += loss.detach()
            assert count_valid({"labels": labels}) > 0
            assert packed.item() == pytest.approx(one_by_one.item(), abs=1e-10)
            for name, gradient in _gradients(model).items():
                assert (gradient - gradients[name]).abs().max().item() <= 1e-10, name


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_flex_attention_and_a_run_per_document_attend_as_the_decoder_does(tmp_path: Path, kv_heads: int) -> None:
    lengths = np.random.default_rng(1).integers(1, 40, 40)
    corpora.write_tokens(tmp_path / "a", [[list(range(1, n + 1))] for n in lengths])
    generator = torch.Generator().manual_seed(0)
    with iostack.Loader(iostack.open_corpus(tmp_path), batch_size=3, seq_len=32, packing="best_fit") as loader:
        for batch in islice(loader, 2):
            documents = document_ids(batch["position_ids"])
            query = torch.randn(3, 4, 32, 8, dtype=torch.float64, generator=generator)
            key, value = torch.randn(2, 3, kv_heads, 32, 8, dtype=torch.float64, generator=generator)
            expected = scaled_dot_product_attention(
                query, key, value, attn_mask=inside_documents(documents), enable_gqa=True
            )

            def inside(row: Tensor, _: Tensor, place: Tensor, other: Tensor, documents: Tensor = documents) -> Tensor:
                return (documents[row, place] == documents[row, other]) & (other <= place)

            blocks = create_block_mask(inside, 3, None, 32, 32, device="cpu")
            flex = flex_attention(query, key, value, block_mask=blocks, enable_gqa=True)
            torch.testing.assert_close(flex, expected, rtol=0, atol=1e-12)
            flat = [each.transpose(1, 2).flatten(0, 1) for each in (query, key, value)]
            runs = [
                scaled_dot_product_attention(
                    *(each[start:stop].transpose(0, 1) for each in flat), is_causal=True, enable_gqa=True
                )
                for start, stop in pairwise(cu_seqlens(batch["position_ids"])[0].tolist())
            ]
            one_by_one = torch.cat(runs, 1).unflatten(1, (3, 32)).transpose(0, 1)
            torch.testing.assert_close(one_by_one, expected, rtol=0, atol=1e-12)


def test_tokens_of_another_document_change_nothing() -> None:
    model = decoder()
    tokens = torch.arange(8).unsqueeze(0)
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2]])
    inputs = label_batch(
        {"tokens": torch.cat([tokens, tokens[:, :1]], 1), "position_ids": positions}, torch.device("cpu")
    )
    changed = tokens.clone()
    changed[0, 3:5] = 16
    extras = {name: inputs[name] for name in ("positions", "documents")}
    before, after = model(tokens, **extras), model(changed, **extras)
    torch.testing.assert_close(before[0, :3], after[0, :3], rtol=0, atol=0)
    torch.testing.assert_close(before[0, 5:], after[0, 5:], rtol=0, atol=0)
    assert not torch.allclose(before[0, 3:5], after[0, 3:5])


def test_a_model_that_does_not_know_documents_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, _ = resolve_settings(assignments=["data.packing=split", "model.dim=32", "data.seq_len=8"])
    request = build_request(settings, 1)
    init = Decoder.__init__

    def forgetful(self: Decoder, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.features -= {"documents"}

    assert build_model(settings, request, vocab_size=17, device=torch.device("cpu"))
    monkeypatch.setattr(Decoder, "__init__", forgetful)
    with pytest.raises(
        SettingsError, match=r"data\.packing = 'split': the model 'decoder' does not keep attention inside"
    ):
        build_model(settings, request, vocab_size=17, device=torch.device("cpu"))
