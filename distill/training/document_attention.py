"""Causal attention within each document of a padding-free batch, made for CPUs.

A padding-free batch is one row of N tokens, one document after another: projections, norms and MLPs compute no padding.
Only attention needs documents of one length, so it sorts them into buckets, one batched product each:

    tokens  N │ doc 0 ──── │ doc 1 ── │ doc 2 ──── │          documents of 70, 40, 75 tokens
    rows    M │ doc 1 ── ···│ doc 0 ──── ····│ doc 2 ──── ···│  buckets of 64 (one) and 96 (two) rows per document

Padding is at a document's end, where causal attention does not look. The result equals attention under a block-diagonal
causal mask (a test compares both). On the machine in docs/explanation/training-speed.md, torch's own CPU kernel takes
five times as long for short documents, mostly in its backward pass.

A document may go on from others, whose tokens it sees first, all of them: what several examples begin with is then
in the row once (`distill.training.packed_rows`). Documents of a bucket go on from the same ones, whose keys, P past
tokens, are put before each document's own; their gradients are summed.

It keeps all weights for the backward pass, which would grow with the square of a document's length. A row with a
document of more than `LONG` tokens is left to torch's kernel, document by document: there it is the faster one, and its
memory grows with the length alone.

It is registered with transformers as `NAME`; a model's forward takes the batch's layout as `documents=Documents(...)`.
"""

# Shapes: N tokens, M rows (documents padded to their bucket), B documents of a bucket, T rows of a document,
# P past tokens, S = P + T keys of a document, H query heads, G kv heads, R query heads a kv head, A head dim.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby, pairwise
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
    """`count` documents of `length` rows each, from row `start` on, which all go on from the tokens `past_P`."""

    start: int
    count: int
    length: int
    past_P: Tensor

    def rows(self, values_MHA: Tensor) -> Tensor:
        _, heads, width = values_MHA.shape
        return values_MHA[self.start : self.start + self.count * self.length].view(
            self.count, self.length, heads, width
        )

    def before(self, own_XTA: Tensor, values_NGA: Tensor) -> Tensor:
        """Put the past tokens' values before each document's own: X[P + T]A; X = documents × kv heads."""
        if not len(self.past_P):
            return own_XTA
        past_GPA = values_NGA.index_select(0, self.past_P).transpose(0, 1)
        return torch.cat([past_GPA.repeat(self.count, 1, 1), own_XTA], dim=1)

    def add_to_past(self, d_values_NGA: Tensor, d_past_XPA: Tensor) -> None:
        """Sum over the documents what they add to the gradients of their past tokens."""
        groups = d_values_NGA.shape[1]
        d_past_BGPA = d_past_XPA.unflatten(0, (self.count, groups))
        d_values_NGA.index_add_(0, self.past_P, d_past_BGPA.sum(dim=0).transpose(0, 1))


class Documents:
    """Maps the tokens of a batch to the rows of the buckets."""

    def __init__(self, lengths: Sequence[int], earlier: Sequence[int] = (), last: Sequence[int] = ()) -> None:
        """`earlier`: for each document the one before it that it goes on from, or -1; without it, none does.

        `last`: for each example its last document, where examples are several documents.
        """
        self.lengths = tuple(lengths)
        earlier = earlier or [-1] * len(lengths)
        starts = [0, *accumulate(lengths)]
        own = [list(range(start, end)) for start, end in pairwise(starts)]
        self.pasts: list[list[int]] = []
        """The tokens before each document's own."""
        for other in earlier:
            self.pasts.append([] if other < 0 else self.pasts[other] + own[other])
        places = [token for i in last for token in self.pasts[i] + own[i]]
        self.token_of_place = torch.tensor(places) if places else None
        """The token at each place of the examples, one after another, where that is not the row itself."""
        self.longest = max(len(past) + length for past, length in zip(self.pasts, lengths, strict=True))
        kind = {i: (_padded(length), earlier[i]) for i, length in enumerate(lengths)}
        self.buckets: list[Bucket] = []
        token_of_row: list[int] = []
        row_of_token = torch.zeros(starts[-1], dtype=torch.long)
        padding: list[int] = []
        for (length, _), group in groupby(sorted(kind, key=lambda i: kind[i]), key=lambda i: kind[i]):
            members, first = list(group), len(token_of_row)
            past_P = torch.tensor(self.pasts[members[0]], dtype=torch.long)
            self.buckets.append(Bucket(start=first, count=len(members), length=length, past_P=past_P))
            for i, start in zip(members, range(first, first + length * len(members), length), strict=True):
                used = lengths[i]
                token_of_row += [*own[i], *[starts[i]] * (length - used)]
                row_of_token[starts[i] : starts[i] + used] = torch.arange(start, start + used)
                padding += range(start + used, start + length)
        self.token_of_row_M = torch.tensor(token_of_row)
        self.row_of_token_N = row_of_token
        self.padding = torch.tensor(padding, dtype=torch.long)
        self._bias: dict[tuple[int, int, int, torch.dtype, int], Tensor] = {}

    def causal_bias(self, length: int, past: int, repeats: int, dtype: torch.dtype, window: int) -> Tensor:
        """Return the mask of a bucket: 0 where a query (rows: `repeats` heads × T) may look, −inf elsewhere.

        `window`: how many tokens it may look at, itself included; a window that no document exceeds changes nothing.
        """
        window = min(window, past + length)
        key = (length, past, repeats, dtype, window)
        if key not in self._bias:
            unseen_TS = ~_seen(torch.arange(past, past + length), torch.arange(past + length), window)
            bias_TS = torch.zeros(length, past + length, dtype=dtype).masked_fill(unseen_TS, float("-inf"))
            self._bias[key] = bias_TS.repeat(repeats, 1)
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
            k_XSA = bucket.before(_by_group(bucket.rows(k_MGA), groups), k_NGA)
            v_XSA = bucket.before(_by_group(bucket.rows(v_MGA), groups), v_NGA)
            bias_YS = documents.causal_bias(bucket.length, len(bucket.past_P), repeats, q_NHA.dtype, window)
            scores_XYS = torch.baddbmm(bias_YS, q_XYA, k_XSA.transpose(1, 2), alpha=scaling)
            weights_XYS = torch.softmax(scores_XYS, dim=-1)
            _write_back(bucket.rows(out_MHA), torch.bmm(weights_XYS, v_XSA), groups)
            saved += [q_XYA, k_XSA, v_XSA, weights_XYS]
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
        of_past = []
        for i, bucket in enumerate(documents.buckets):
            q_XYA, k_XSA, v_XSA, weights_XYS = saved[4 * i : 4 * i + 4]
            d_out_XYA = _by_group(bucket.rows(d_out_MHA), groups)
            d_weights_XYS = torch.bmm(d_out_XYA, v_XSA.transpose(1, 2))
            d_scores_XYS = torch._softmax_backward_data(d_weights_XYS, weights_XYS, -1, weights_XYS.dtype)
            d_scores_XYS *= ctx.scaling
            _write_back(bucket.rows(d_q_MHA), torch.bmm(d_scores_XYS, k_XSA), groups)
            d_k_XSA = torch.bmm(d_scores_XYS.transpose(1, 2), q_XYA)
            d_v_XSA = torch.bmm(weights_XYS.transpose(1, 2), d_out_XYA)
            past = len(bucket.past_P)
            _write_back(bucket.rows(d_k_MGA), d_k_XSA[:, past:], groups)
            _write_back(bucket.rows(d_v_MGA), d_v_XSA[:, past:], groups)
            if past:
                of_past.append((bucket, d_k_XSA[:, :past], d_v_XSA[:, :past]))
        token_rows = documents.row_of_token_N
        d_q_NHA, d_k_NGA, d_v_NGA = (d.index_select(0, token_rows) for d in (d_q_MHA, d_k_MGA, d_v_MGA))
        for bucket, d_k_XPA, d_v_XPA in of_past:
            bucket.add_to_past(d_k_NGA, d_k_XPA)
            bucket.add_to_past(d_v_NGA, d_v_XPA)
        return d_q_NHA, d_k_NGA, d_v_NGA, None, None, None


def _one_by_one(
    query_1HNA: Tensor, key_1GNA: Tensor, value_1GNA: Tensor, scaling: float, documents: Documents, window: int
) -> Tensor:
    """Attend in each document by torch's kernel; returns 1HNA."""
    parts = []
    split = (states.split(documents.lengths, dim=2) for states in (query_1HNA, key_1GNA, value_1GNA))
    for past, q, k, v in zip(documents.pasts, *split, strict=True):
        if past:
            past_P = torch.tensor(past)
            k = torch.cat([key_1GNA.index_select(2, past_P), k], dim=2)
            v = torch.cat([value_1GNA.index_select(2, past_P), v], dim=2)
        parts.append(_in_one(q, k, v, scaling, window))
    return torch.cat(parts, dim=2)


def _in_one(query_1HTA: Tensor, key_1GSA: Tensor, value_1GSA: Tensor, scaling: float, window: int) -> Tensor:
    """Attend in one document, whose queries are its last tokens.

    Where its window is shorter, or tokens are before its own, that is done piece by piece, each to the tokens that it
    can see.
    """
    length, past = key_1GSA.shape[2], key_1GSA.shape[2] - query_1HTA.shape[2]
    attention = partial(torch.nn.functional.scaled_dot_product_attention, scale=scaling, enable_gqa=True)
    if window >= length and not past:
        return attention(query_1HTA, key_1GSA, value_1GSA, is_causal=True)
    pieces = []
    for start in range(past, length, LONG):
        end, first = min(start + LONG, length), max(0, start - window + 1)
        seen = slice(first, end)
        mask_TS = _seen(torch.arange(start, end), torch.arange(first, end), window)
        query = query_1HTA[:, :, start - past : end - past]
        pieces.append(attention(query, key_1GSA[:, :, seen], value_1GSA[:, :, seen], attn_mask=mask_TS))
    return torch.cat(pieces, dim=2)


def _seen(query_T: Tensor, key_S: Tensor, window: int) -> Tensor:
    """Return which keys each query may look at, by their places in the document."""
    distance_TS = query_T[:, None] - key_S
    return (distance_TS >= 0) & (distance_TS < window)


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
