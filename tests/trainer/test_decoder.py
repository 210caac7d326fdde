"""The decoder computes what the papers say: compared with loops over heads and positions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from iostack.errors import SettingsError
from trainer.build import build_on_meta, materialise
from trainer.model.attention import Rotary, rotate
from trainer.model.decoder import Decoder
from trainer.model.options import parse_options

VOCAB_SIZE, SEQ_LEN = 17, 9


def decoder(seed: int = 0, **options: object) -> Decoder:
    sizes = {"dim": 24, "layers": 2, "heads": 4, "hidden": 32} | options
    model = build_on_meta("decoder", sizes, vocab_size=VOCAB_SIZE, seq_len=SEQ_LEN).double()
    materialise(model, seed=seed, device=torch.device("cpu"))
    assert isinstance(model, Decoder)
    return model


def reference(model: Decoder, tokens_S: Tensor) -> Tensor:
    """Compute the logits of one sequence from the weights alone, one head and one position at a time."""
    options = model.options
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    width, per_key_head = options.head_dim, options.heads // options.num_kv_heads

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean() + options.norm_epsilon).sqrt() * weights[name]

    def turned(x: Tensor, position: int) -> Tensor:
        out = x.clone()
        for pair in range(width // 2):
            angle = position / options.rope_theta ** (2 * pair / width)
            one, other = x[pair], x[pair + width // 2]
            out[pair] = one * math.cos(angle) - other * math.sin(angle)
            out[pair + width // 2] = other * math.cos(angle) + one * math.sin(angle)
        return out

    stream = [weights["embedding.weight"][token] for token in tokens_S]
    for layer in model.layer_names():
        normed = [norm(x, f"{layer}.attention_norm.weight") for x in stream]
        mixed = [torch.zeros(options.dim, dtype=torch.float64) for _ in stream]
        for head in range(options.heads):
            own = slice(head * width, (head + 1) * width)
            shared = slice(head // per_key_head * width, (head // per_key_head + 1) * width)
            queries = [turned((weights[f"{layer}.attention.query.weight"] @ x)[own], at) for at, x in enumerate(normed)]
            keys = [turned((weights[f"{layer}.attention.key.weight"] @ x)[shared], at) for at, x in enumerate(normed)]
            values = [(weights[f"{layer}.attention.value.weight"] @ x)[shared] for x in normed]
            for at, query in enumerate(queries):
                scores = torch.stack([query @ keys[past] / math.sqrt(width) for past in range(at + 1)]).softmax(0)
                mixed[at][own] = sum(score * value for score, value in zip(scores, values))
        stream = [x + weights[f"{layer}.attention.output.weight"] @ m for x, m in zip(stream, mixed)]
        for at, x in enumerate(stream):
            normed_x = norm(x, f"{layer}.feed_forward_norm.weight")
            gate = weights[f"{layer}.feed_forward.gate.weight"] @ normed_x
            up = weights[f"{layer}.feed_forward.up.weight"] @ normed_x
            stream[at] = x + weights[f"{layer}.feed_forward.down.weight"] @ (gate / (1 + (-gate).exp()) * up)
    head = weights["embedding.weight" if options.tied_embeddings else "head.weight"]
    return torch.stack([head @ norm(x, "norm.weight") for x in stream])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_equal_the_loops(kv_heads: int, tied: bool) -> None:
    model = decoder(kv_heads=kv_heads, tied_embeddings=tied, rope_theta=100.0)
    tokens = torch.randint(0, VOCAB_SIZE, (2, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    logits = model(tokens)
    for row in range(2):
        torch.testing.assert_close(logits[row], reference(model, tokens[row]), rtol=0, atol=1e-11)


def test_stages_in_a_row_equal_the_whole() -> None:
    whole = decoder(layers=3, tied_embeddings=True)
    with torch.device("meta"):
        stages = [stage.double() for stage in whole.split([0, 1, 3])]
    tokens = torch.arange(SEQ_LEN).unsqueeze(0)
    x = tokens
    for stage in stages:
        materialise(stage, seed=0, device=torch.device("cpu"))
        x = stage(x)
    assert torch.equal(x, whole(tokens))
    names = {name for stage in stages for name, _ in stage.named_parameters()}
    assert names == {name for name, _ in whole.named_parameters()}


@given(shift=st.integers(0, 1000), distance=st.integers(0, 1000), seed=st.integers(0, 10))
def test_rotary_scores_depend_on_distance_only(shift: int, distance: int, seed: int) -> None:
    rotary = Rotary(8, 2001, 10_000.0).double()
    rotary.reset_parameters()
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def score(at: int, past: int) -> Tensor:
        return (rotate(query, *rotary(1, torch.tensor([[at]]))) * rotate(key, *rotary(1, torch.tensor([[past]])))).sum()

    assert score(distance + shift, shift).item() == pytest.approx(score(distance, 0).item(), abs=1e-9)


def test_given_positions_replace_the_counted_ones() -> None:
    model, tokens = decoder(), torch.arange(6).unsqueeze(0)
    assert torch.equal(model(tokens, positions=torch.arange(6).unsqueeze(0)), model(tokens))
    torch.testing.assert_close(model(tokens, positions=torch.arange(3, 9).unsqueeze(0)), model(tokens))
    assert not torch.allclose(model(tokens, positions=2 * torch.arange(6).clamp(max=4).unsqueeze(0)), model(tokens))


def test_later_tokens_do_not_change_earlier_logits() -> None:
    model, tokens = decoder(), torch.arange(SEQ_LEN).unsqueeze(0)
    changed = tokens.clone()
    changed[0, 5:] = 3
    torch.testing.assert_close(model(tokens)[0, :5], model(changed)[0, :5])


def test_flops_count_six_per_weight_and_attention() -> None:
    model = decoder(tied_embeddings=True)
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 2)
    assert model.flops_per_token(SEQ_LEN) == 6 * weights + 12 * 2 * 24 * SEQ_LEN
    untied = decoder(tied_embeddings=False)
    assert untied.flops_per_token(SEQ_LEN) == model.flops_per_token(SEQ_LEN)


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"dims": 64}, "no option 'dims'", "'dim'"),
        ({"dim": 30, "heads": 4}, "must be an even whole number", ""),
        ({"heads": 4, "kv_heads": 3}, "kv_heads 3 must divide heads 4", ""),
        ({"layers": 0}, "layers: Input should be greater than 0", ""),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_options(options)
    assert message in caught.value.message
    assert hint in caught.value.hint
