"""Causal attention within each document of a padding-free batch, made for CPUs.

A padding-free batch is one row of N tokens, one document after another: projections, norms and MLPs compute no padding.
Only attention needs documents of one length, so it sorts them into buckets, one batched product each:

    tokens  N │ doc 0 ──── │ doc 1 ── │ doc 2 ──── │          documents of 70, 40, 75 tokens
    rows    M │ doc 1 ── ···│ doc 0 ──── ····│ doc 2 ──── ···│  buckets of 64 (one) and 96 (two) rows per document

Padding is at a document's end, where causal attention does not look. The result equals attention under a block-diagonal
causal mask (a test compares both). On the machine in docs/explanation/training-speed.md, torch's own CPU kernel takes
five times as long for short documents, mostly in its backward pass.

It keeps all weights for the backward pass, which would grow with the square of a document's length. A row with a
document of more than `LONG` tokens is left to torch's kernel, document by document: there it is the faster one, and its
memory grows with the length alone.

It is registered with transformers as `NAME`; a model's forward takes the batch's layout as `documents=Documents(...)`.
"""

# Shapes: N tokens, M rows (documents padded to their bucket), B documents of a bucket, T rows of a document,
# H query heads, G kv heads, R query heads a kv head, A head dim.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

NAME = "documents"
BUCKET = 32
"""Documents are padded to a multiple of this: small enough to waste little, large enough to give few shapes."""
LONG = 1024
"""Documents with more tokens are torch's."""


@dataclass(frozen=True)
class Bucket:
    """`count` documents of `length` rows each, from row `start` on."""

    start: int
    count: int
    length: int

    def rows(self, values_MHA: Tensor) -> Tensor:
        _, heads, width = values_MHA.shape
        return values_MHA[self.start : self.start + self.count * self.length].view(
            self.count, self.length, heads, width
        )


class Documents:
    """Maps the tokens of a batch to the rows of the buckets."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)
        self.longest = max(lengths)
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        order = sorted(range(len(lengths)), key=lambda i: _padded(lengths[i]))
        self.buckets: list[Bucket] = []
        token_of_row: list[int] = []
        row_of_token = torch.zeros(sum(lengths), dtype=torch.long)
        padding: list[int] = []
        for i in order:
            start, used, length = len(token_of_row), lengths[i], _padded(lengths[i])
            if self.buckets and self.buckets[-1].length == length:
                last = self.buckets.pop()
                self.buckets.append(Bucket(last.start, last.count + 1, length))
            else:
                self.buckets.append(Bucket(start, 1, length))
            token_of_row += [*range(starts[i], starts[i] + used), *[starts[i]] * (length - used)]
            row_of_token[starts[i] : starts[i] + used] = torch.arange(start, start + used)
            padding += range(start + used, start + length)
        self.token_of_row_M = torch.tensor(token_of_row)
        self.row_of_token_N = row_of_token
        self.padding = torch.tensor(padding, dtype=torch.long)
        self._bias: dict[tuple[int, int, torch.dtype, int], Tensor] = {}

    def causal_bias(self, length: int, repeats: int, dtype: torch.dtype, window: int) -> Tensor:
        """Return the mask of a bucket: 0 where a query (rows: `repeats` heads × T) may look, −inf elsewhere.

        `window`: how many tokens it may look at, itself included; a window that no document exceeds changes nothing.
        """
        window = min(window, length)
        key = (length, repeats, dtype, window)
        if key not in self._bias:
            unseen_TT = torch.ones(length, length, dtype=torch.bool).triu(1)
            unseen_TT |= torch.ones(length, length, dtype=torch.bool).tril(-window)
            bias_TT = torch.zeros(length, length, dtype=dtype).masked_fill(unseen_TT, float("-inf"))
            self._bias[key] = bias_TT.repeat(repeats, 1)
        return self._bias[key]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_NHA: Tensor, k_NGA: Tensor, v_NGA: Tensor, scaling: float, documents: Documents, window: int
    ) -> Tensor:
        q_MHA = q_NHA.index_select(0, documents.token_of_row_M)
        k_MGA = k_NGA.index_select(0, documents.token_of_row_M)
        v_MGA = v_NGA.index_select(0, documents.token_of_row_M)
        groups = k_NGA.shape[1]
        repeats = q_NHA.shape[1] // groups
        out_MHA = torch.empty_like(q_MHA)
        saved = []
        for bucket in documents.buckets:
            q_XYA = _by_group(bucket.rows(q_MHA), groups)  # X = documents × kv heads, Y = heads per kv head × T
            k_XTA = _by_group(bucket.rows(k_MGA), groups)
            v_XTA = _by_group(bucket.rows(v_MGA), groups)
            bias_YT = documents.causal_bias(bucket.length, repeats, q_NHA.dtype, window)
            scores_XYT = torch.baddbmm(bias_YT, q_XYA, k_XTA.transpose(1, 2), alpha=scaling)
            weights_XYT = torch.softmax(scores_XYT, dim=-1)
            _write_back(bucket.rows(out_MHA), torch.bmm(weights_XYT, v_XTA), groups)
            saved += [q_XYA, k_XTA, v_XTA, weights_XYT]
        ctx.save_for_backward(*saved)
        ctx.documents, ctx.scaling, ctx.groups = documents, scaling, groups
        return out_MHA.index_select(0, documents.row_of_token_N)

    @staticmethod
    def backward(ctx: Any, d_out_NHA: Tensor) -> tuple[Tensor | None, ...]:
        documents, groups = ctx.documents, ctx.groups
        d_out_MHA = d_out_NHA.index_select(0, documents.token_of_row_M)
        d_out_MHA.index_fill_(0, documents.padding, 0)
        rows, _, width = d_out_MHA.shape
        d_q_MHA = torch.empty_like(d_out_MHA)
        d_k_MGA = d_out_MHA.new_empty(rows, groups, width)
        d_v_MGA = d_out_MHA.new_empty(rows, groups, width)
        saved = ctx.saved_tensors  # only once: a checkpointed layer computes them again for each request
        for i, bucket in enumerate(documents.buckets):
            q_XYA, k_XTA, v_XTA, weights_XYT = saved[4 * i : 4 * i + 4]
            d_out_XYA = _by_group(bucket.rows(d_out_MHA), groups)
            d_weights_XYT = torch.bmm(d_out_XYA, v_XTA.transpose(1, 2))
            d_scores_XYT = torch._softmax_backward_data(d_weights_XYT, weights_XYT, -1, weights_XYT.dtype)
            d_scores_XYT *= ctx.scaling
            _write_back(bucket.rows(d_q_MHA), torch.bmm(d_scores_XYT, k_XTA), groups)
            _write_back(bucket.rows(d_k_MGA), torch.bmm(d_scores_XYT.transpose(1, 2), q_XYA), groups)
            _write_back(bucket.rows(d_v_MGA), torch.bmm(weights_XYT.transpose(1, 2), d_out_XYA), groups)
        token_rows = documents.row_of_token_N
        d_q_NHA, d_k_NGA, d_v_NGA = (d.index_select(0, token_rows) for d in (d_q_MHA, d_k_MGA, d_v_MGA))
        return d_q_NHA, d_k_NGA, d_v_NGA, None, None, None


def _one_by_one(
    query_1HNA: Tensor, key_1GNA: Tensor, value_1GNA: Tensor, scaling: float, documents: Documents, window: int
) -> Tensor:
    """Attend in each document by torch's kernel; returns 1HNA."""
    parts = [
        _in_one(q, k, v, scaling, window)
        for q, k, v in zip(
            *(states.split(documents.lengths, dim=2) for states in (query_1HNA, key_1GNA, value_1GNA)), strict=True
        )
    ]
    return torch.cat(parts, dim=2)


def _in_one(query_1HTA: Tensor, key_1GTA: Tensor, value_1GTA: Tensor, scaling: float, window: int) -> Tensor:
    """Attend in one document; where its window is shorter, piece by piece, each to the tokens that it can see."""
    length = query_1HTA.shape[2]
    attention = partial(torch.nn.functional.scaled_dot_product_attention, scale=scaling, enable_gqa=True)
    if window >= length:
        return attention(query_1HTA, key_1GTA, value_1GTA, is_causal=True)
    pieces = []
    for start in range(0, length, LONG):
        end, first = min(start + LONG, length), max(0, start - window + 1)
        seen = slice(first, end)
        distance_PS = torch.arange(start, end)[:, None] - torch.arange(first, end)
        mask_PS = (distance_PS >= 0) & (distance_PS < window)
        pieces.append(
            attention(query_1HTA[:, :, start:end], key_1GTA[:, :, seen], value_1GTA[:, :, seen], attn_mask=mask_PS)
        )
    return torch.cat(pieces, dim=2)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    documents: Documents,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention under transformers' interface: query 1HNA, key and value 1GNA; returns 1NHA."""
    assert attention_mask is None and dropout == 0.0 and query.shape[0] == 1
    window = sliding_window or documents.longest
    if documents.longest > LONG:
        return _one_by_one(query, key, value, scaling, documents, window).transpose(1, 2), None
    q_NHA, k_NGA, v_NGA = (states[0].transpose(0, 1) for states in (query, key, value))
    out_NHA: Tensor = _Attention.apply(q_NHA, k_NGA, v_NGA, scaling, documents, window)  # type: ignore[no-untyped-call]
    return out_NHA[None], None


def _padded(length: int) -> int:
    return -(-length // BUCKET) * BUCKET


def _by_group(values_BTHA: Tensor, groups: int) -> Tensor:
    """Bring the rows of each kv head's query heads together: [B·G, R·T, A]."""
    count, length, heads, width = values_BTHA.shape
    values_BGRTA = values_BTHA.view(count, length, groups, heads // groups, width).permute(0, 2, 3, 1, 4)
    return values_BGRTA.reshape(count * groups, heads // groups * length, width)


def _write_back(target_BTHA: Tensor, values_XYA: Tensor, groups: int) -> None:
    """Write into the rows of a bucket; the inverse of `_by_group`."""
    count, length, heads, width = target_BTHA.shape
    values_BGRTA = values_XYA.view(count, groups, heads // groups, length, width)
    target_BTHA.view(count, length, groups, heads // groups, width).copy_(values_BGRTA.permute(0, 3, 1, 2, 4))


AttentionInterface.register(NAME, attend)
