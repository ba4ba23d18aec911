"""Joins tokenized examples into batches of padding-free rows, in which a common beginning of examples stands once.

    examples   system question 1 answer 1 │ system question 2 answer 2 │ system question 2 answer 3
    a row      system │ question 1 answer 1 │ question 2 │ answer 2 │ answer 3

Examples of one run begin alike: a system turn is the same in all of them, a question in all answers to it. A token that
sees the same tokens before it has the same states in each of them, so it needs to be computed only once, and its
gradient is the sum of theirs: loss and gradients equal those of whole examples. Each part of a row is a document of
`distill.training.document_attention`, which goes on from the one that is its beginning.

Labels stay those of the whole examples, and so do the tokens that are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.utils.data import DataLoader

from distill.training.completion_loss import IGNORED
from distill.training.document_attention import NAME, Documents
from distill.training.train_config import DEFAULTS, TrainConfig
from distill.training.validation import Batch

ROW_TOKENS: int = DEFAULTS["row_tokens"]
WORTH = 32
"""Tokens that a common beginning must save: attention computes more, and smaller, products for it."""
MULTIPLE = 4
"""A common beginning is cut to a multiple of as many tokens, so that attention's products keep even shapes."""

Tokenized = Mapping[str, list[int]]
"""An example's `input_ids` and `labels`."""


@dataclass(frozen=True)
class Stretch:
    """Tokens `begin` to `end` of an example, which may be those of others too, after the part number `earlier`."""

    example: int
    begin: int
    end: int
    earlier: int


def parts_of(examples: Sequence[list[int]]) -> list[Stretch]:
    """Divide examples into parts, so that a beginning which several have in common is one part.

    Every example has a last part of its own, of at least one token. A part comes after the one that it goes on from.
    """
    order = sorted(range(len(examples)), key=lambda n: examples[n])  # examples that begin alike are neighbours
    common = [_common(examples[a], examples[b]) for a, b in pairwise(order)]
    parts: list[Stretch] = []
    waiting = [(0, len(order), 0, -1)]  # neighbours from … to …, which begin alike; how many tokens are in parts; where
    while waiting:
        first, last, begin, earlier = waiting.pop()
        if last - first == 1:
            parts.append(Stretch(order[first], begin, len(examples[order[first]]), earlier))
            continue
        alike = min(common[first : last - 1])
        end = alike // MULTIPLE * MULTIPLE
        if (end - begin) * (last - first - 1) >= WORTH:
            parts.append(Stretch(order[first], begin, end, earlier))
            begin, earlier = end, len(parts) - 1
        cuts = [first, *(n + 1 for n in range(first, last - 1) if common[n] == alike), last]
        waiting += [(start, end, begin, earlier) for start, end in pairwise(cuts)]
    return parts


def bears_sharing(config: TrainConfig) -> bool:
    """Return whether a common beginning computed once is what it is in each example: not with noise or dropout."""
    return not config.neftune_noise and not config.lora_dropout


def _common(one: list[int], other: list[int]) -> int:
    """Count the tokens with which both begin, but for one that each keeps."""
    most = min(len(one), len(other)) - 1
    return next((n for n in range(most) if one[n] != other[n]), most)


def collate(examples: Sequence[Tokenized], *, shares: bool = False) -> Batch:
    """Join examples into one padding-free row, with positions from 0 in each.

    `shares`: whether a common beginning stands in the row once, which the documents' attention can read.
    """
    # nothing predicts an example's first token; as part of the prompt it is not in the loss
    assert all(example["labels"][0] == IGNORED for example in examples)
    ids = [example["input_ids"] for example in examples]
    parts = parts_of(ids) if shares else []
    is_shared = len(parts) > len(ids)
    if not is_shared:
        parts = [Stretch(n, 0, len(each), -1) for n, each in enumerate(ids)]
    last = {part.example: n for n, part in enumerate(parts) if part.end == len(ids[part.example])}
    return {
        "input_ids": torch.tensor([[id for part in parts for id in ids[part.example][part.begin : part.end]]]),
        "labels": torch.tensor([[label for example in examples for label in example["labels"]]]),
        "position_ids": torch.cat([torch.arange(part.begin, part.end) for part in parts])[None],
        "documents": Documents(
            [part.end - part.begin for part in parts],
            [part.earlier for part in parts],
            [last[n] for n in range(len(ids))] if is_shared else [],
        ),
    }


def within(examples: Sequence[Tokenized], tokens: int, *, shares: bool = False) -> list[Batch]:
    """Collate padding-free rows of at most `tokens` tokens, or of a single longer example."""
    lengths = [len(example["input_ids"]) for example in examples]
    return [collate([examples[i] for i in row], shares=shares) for row in packed(lengths, tokens)]


def packed(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Divide examples of some lengths into rows of at most `tokens` tokens, or of a single longer one, in order."""
    rows: list[list[int]] = []
    used = tokens
    for i, length in enumerate(lengths):
        if used + length > tokens:
            rows.append([])
            used = 0
        rows[-1].append(i)
        used += length
    return rows


def batch_of(
    examples: Sequence[Tokenized],
    rank: int = 0,
    processes: int = 1,
    row_tokens: int = ROW_TOKENS,
    *,
    shares: bool = False,
) -> Batch:
    """Make a process's part of a batch: its rows, and all their labels, by which the trainer counts trained tokens.

    All processes get equally many rows, so that they stay in step; one that teaches nothing fills up a shorter part.
    """
    parts = [within(part, row_tokens, shares=shares) for part in shared_out(examples, processes)]
    missing = max(len(part) for part in parts) - len(parts[rank])
    rows = parts[rank] + [_nothing_to_learn(examples[0]) for _ in range(missing)]
    return {"rows": rows, "labels": torch.cat([row["labels"] for row in rows], dim=1)}


def shared_out(examples: Sequence[Tokenized], processes: int) -> list[Sequence[Tokenized]]:
    """Divide examples among processes by their lengths: the longest go first, each to whoever has the fewest tokens."""
    if processes == 1:
        return [examples]
    parts: list[list[Tokenized]] = [[] for _ in range(processes)]
    tokens = [0] * processes
    for example in sorted(examples, key=lambda each: -len(each["input_ids"])):
        least = tokens.index(min(tokens))
        parts[least].append(example)
        tokens[least] += len(example["input_ids"])
    return list(parts)


def _nothing_to_learn(example: Tokenized) -> Batch:
    return collate([{"input_ids": example["input_ids"][:1], "labels": [IGNORED]}])


def undivided(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Let a loader that accelerate prepared for one of several processes give whole batches, those of one process.

    accelerate would fill up an epoch's last batch with examples from its beginning, which are then learned twice.
    """
    sampler: Any = loader.batch_sampler
    sampler.num_processes, sampler.process_index, sampler.even_batches = 1, 0, False
    return loader


def shares_beginnings(causal_lm: Any, config: TrainConfig) -> bool:
    """Return whether what examples begin with is computed once; not on a GPU, whose attention knows no documents."""
    return causal_lm.config._attn_implementation == NAME and bears_sharing(config)
