"""Attention inside packed documents, three ways: a mask, flex attention, and one run per document.

    python examples/packed_attention.py CORPUS [--batches 3]

CORPUS is anything that ``iostack inspect`` shows as text, or tokens in documents. For each batch it prints how many documents
there are and how far the ways are apart, which is rounding. It runs eagerly, on the CPU and in float64, to show what they compute;
on a GPU compile flex attention, and hand ``cu_seqlens`` to a kernel for varying lengths, such as
``torch.nn.attention.varlen.varlen_attn`` or ``flash_attn_varlen_func``.
"""

from __future__ import annotations

import argparse
import warnings
from itertools import islice, pairwise

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

import iostack
from iostack.packing import cu_seqlens, document_ids

HEADS, HEAD_DIM = 4, 16


def with_mask(query: Tensor, key: Tensor, value: Tensor, position_ids: Tensor) -> Tensor:
    """A mask of seq_len squared bytes per sequence, for any kernel of torch."""
    documents = document_ids(position_ids)
    mask = (documents.unsqueeze(2) == documents.unsqueeze(1)).tril().unsqueeze(1)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask)


def with_flex(query: Tensor, key: Tensor, value: Tensor, position_ids: Tensor) -> Tensor:
    """A function says who sees whom; blocks in which nobody does cost nothing once it is compiled."""
    documents = document_ids(position_ids)
    rows, seq_len = position_ids.shape

    def inside(row: Tensor, _: Tensor, place: Tensor, other: Tensor) -> Tensor:
        return (documents[row, place] == documents[row, other]) & (other <= place)

    blocks = create_block_mask(inside, rows, None, seq_len, seq_len, device=str(query.device))
    return flex_attention(query, key, value, block_mask=blocks)


def one_by_one(query: Tensor, key: Tensor, value: Tensor, position_ids: Tensor) -> Tensor:
    """What a kernel for varying lengths computes: plain causal attention for each document of the flattened batch."""
    offsets, _ = cu_seqlens(position_ids)
    flat = [each.transpose(1, 2).flatten(0, 1) for each in (query, key, value)]  # [rows * seq_len, heads, width]
    mixed = [
        scaled_dot_product_attention(*(each[start:stop].transpose(0, 1) for each in flat), is_causal=True)
        for start, stop in pairwise(offsets.tolist())
    ]
    return torch.cat(mixed, dim=1).unflatten(1, position_ids.shape).transpose(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--batches", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
    torch.manual_seed(0)
    corpus = iostack.open_corpus(options.corpus)
    with iostack.Loader(corpus, batch_size=4, seq_len=64, packing="best_fit") as loader:
        for batch in islice(loader, options.batches):
            position_ids = batch["position_ids"]
            rows, seq_len = position_ids.shape
            heads = torch.randn(3, rows, HEADS, seq_len, HEAD_DIM, dtype=torch.float64)
            ways = [way(*heads, position_ids) for way in (with_mask, with_flex, one_by_one)]
            apart = max((way - ways[0]).abs().max().item() for way in ways)
            print(f"documents {len(cu_seqlens(position_ids)[0]) - 1} apart {apart:.0e}")


if __name__ == "__main__":
    main()
