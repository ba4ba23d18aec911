"""Runs an exported folder as a `toolkit.generation.generate.Decoder`: a batch of prompts that start and end together.

    start(prompts)   reads them row by row, so rows of different lengths need no padding
    step(tokens_B)   runs all rows at once

The beginning of a single prompt need not be computed: the cache may hold it from the previous turn (`keeps_prefix`), or
a file from another process may (`prefix_bytes`). Rows that come and go one by one have a pool:
`export.runtime.rows.row_pool`.

Shapes: B rows of the batch, T new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from export.runtime.exported_model import Cache, chosen_cache, open_exported
from export.runtime.kernels.library import kernels_digest
from export.runtime.machine import machine_key
from export.runtime.rows.cached_model import Floats, Ints
from export.runtime.rows.prefix import PROMPT_CHUNK, Prefix
from export.runtime.rows.prefix_cache import PrefixCache, prefix_folder
from toolkit.errors import InputError
from toolkit.runs import files_digest


class OnnxDecoder:
    """Decodes a batch of rows with the model of an exported folder."""

    def __init__(
        self,
        folder: Path,
        *,
        cache: Cache | Literal["auto"] = "auto",
        keeps_prefix: bool = False,
        prefix_bytes: int = 0,
        prepacked: bool = False,
        own_kernels: bool = True,
        adapter: Path | None = None,
    ) -> None:
        """Open a folder; `cache`, `prepacked`, `own_kernels` and the errors are those of `open_exported`.

        `adapter`: PEFT's folder of a low-rank adapter, which computes every row.

        `keeps_prefix`: reuse the beginning of a single prompt that the cache already holds, as between the turns of a
        chat. Reused positions may differ from fresh ones by the rounding of int8.

        `prefix_bytes`: reuse beginnings across processes too, bit for bit, from files of at most so many bytes in all
        (`export.runtime.rows.prefix_cache`); 0 writes none.
        """
        adapters = [adapter] if adapter else []
        cache = chosen_cache(folder, adapters) if cache == "auto" else cache
        self.model = open_exported(folder, cache=cache, prepacked=prepacked, own_kernels=own_kernels, adapters=adapters)
        self.adapter = adapter
        self._number = self.model.adapters
        """The adapter's in the model, if there is one; else 0."""
        self.max_length = self.model.max_length
        self._keeps_prefix = keeps_prefix
        self._rows: list[Prefix] = []
        """The contents of each row of the cache."""
        self._store: PrefixCache | None = None
        if prefix_bytes:
            facts = [files_digest(adapter)] if adapter else []
            key = machine_key(folder, cache, PROMPT_CHUNK, kernels_digest() if own_kernels else "", *facts)
            self._store = PrefixCache(prefix_folder(), key, self.model.shape, max_bytes=prefix_bytes)

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        """Forget everything and read the prompts; returns logits_BV after each prompt's last token.

        A decoder that keeps prefixes keeps what a single prompt shares with the cache's row.
        """
        longest = max(len(prompt) for prompt in prompts)
        if longest > self.max_length:
            raise InputError(
                f"the prompt ({longest} tokens) must fit the model's context ({self.max_length}); shorten it"
            )
        if len(prompts) > 1:
            self._rows = [Prefix() for _ in prompts]
            self.model.make_room(len(prompts), longest, used=0)
            return np.stack([self._read(place, prompt) for place, prompt in enumerate(prompts)])
        [prompt] = prompts
        self._continue_from(self._kept(prompt[:-1]), longest)
        if self._store:
            [row] = self._rows
            loaded = self._store.load(prompt[:-1], self.model.row(0), beyond=row.length)
            if loaded:
                self._rows = [Prefix(tokens=list(prompt[:loaded]), read=loaded, whole=loaded)]
        logits_V = self._read(0, prompt)
        if self._store:
            self._store.save(prompt[: self._rows[0].whole], self.model.row(0))
        return logits_V[None]

    def read_ahead(self, prompt: Sequence[int]) -> bool:
        """Read the next whole chunk of a single prompt ahead of `start`; returns False if none is left before its end.

        Only a decoder that keeps prefixes reads ahead. `start` then continues from there with the same result.
        """
        kept = self._kept(prompt)
        end = kept + PROMPT_CHUNK
        if not self._keeps_prefix or end >= len(prompt) or len(prompt) > self.max_length:
            return False
        self._continue_from(kept, end)
        self._read(0, prompt[:end])
        return True

    def step(self, tokens_B: Ints) -> Floats:
        """Append one token to each of the first rows, or to all; returns logits_BV after it."""
        rows = self._rows[: len(tokens_B)]
        held_B = np.array([row.length for row in rows])
        assert held_B.max() < self.max_length
        self.model.make_room(len(self._rows), int(held_B.max()) + 1, used=max(row.length for row in self._rows))
        logits_BV = self.model.step(
            tokens_B, held_B, is_reading=len(rows) < len(self._rows), adapters_B=self._numbers(len(rows))
        )
        for row, token in zip(rows, tokens_B.tolist(), strict=True):
            row.note_steps([token])
        return logits_BV

    def extend(self, tokens_T: Sequence[int]) -> Floats:
        """Append several tokens to the only row; returns logits_TV after each token."""
        [row] = self._rows
        length = row.length + len(tokens_T)
        assert length <= self.max_length
        self.model.make_room(1, length, used=row.length)
        tokens_1T = np.array([tokens_T], dtype=np.int64)
        logits_BTV = self.model.run(0, tokens_1T, np.array([length]), wanted=len(tokens_T), adapters_B=self._numbers(1))
        row.note_steps(tokens_T)
        logits_TV: Floats = logits_BTV[0]
        return logits_TV

    def rewind(self, count: int) -> None:
        """Forget the only row's last tokens."""
        [row] = self._rows
        row.cut(row.length - count)

    def keep(self, rows: Ints) -> None:
        """Keep only these rows of the batch, in this order."""
        self._rows = [self._rows[place] for place in rows]
        self.model.move(rows, range(len(rows)), used=max(row.length for row in self._rows))

    def replace(self, rows: Ints, prompts: Sequence[Sequence[int]]) -> Floats:
        """Read a prompt into each of these rows, in place of what it holds; returns logits_BV of these rows alone."""
        for place in rows:
            self._rows[place] = Prefix()
        used, longest = max(row.length for row in self._rows), max(map(len, prompts))
        self.model.make_room(len(self._rows), max(longest, used), used=used)
        return np.stack([self._read(place, prompt) for place, prompt in zip(rows.tolist(), prompts, strict=True)])

    def kept(self) -> dict[str, NDArray[Any]]:
        """Return the only row's keys and values, [num_key_value_heads, positions, head_dim]."""
        [row] = self._rows
        return {name: cache[:, : row.length] for name, cache in self.model.row(0).items()}

    def score(self, tokens_T: Sequence[int], *, first: int = 0) -> Floats:
        """Read one text and forget it; returns logits_TV after each token from index `first` on."""
        self._rows = []
        self.model.make_room(1, len(tokens_T), used=0)
        pieces = []
        for begin in range(0, len(tokens_T), PROMPT_CHUNK):
            piece_T = np.asarray(tokens_T[begin : begin + PROMPT_CHUNK], dtype=np.int64)
            lengths = np.array([begin + len(piece_T)])
            wanted = min(int(lengths[0]) - first, len(piece_T))
            logits_TV = self.model.run(0, piece_T[None], lengths, wanted=max(wanted, 1), adapters_B=self._numbers(1))[0]
            pieces.append(logits_TV[: max(wanted, 0)])
        return np.concatenate(pieces)

    def _numbers(self, rows: int) -> Ints:
        """Return the adapter of so many rows."""
        return np.full(rows, self._number)

    def _kept(self, prompt: Sequence[int]) -> int:
        """Count the positions of a prompt that a decoder which keeps prefixes can reuse."""
        return self._rows[0].shared(prompt) if self._keeps_prefix and len(self._rows) == 1 else 0

    def _continue_from(self, kept: int, length: int) -> None:
        """Keep one row with its first `kept` positions, and make room for `length`."""
        self._rows = self._rows[:1] if kept else [Prefix()]
        self._rows[0].cut(kept)
        self.model.make_room(1, length, used=kept)

    def _read(self, place: int, prompt: Sequence[int]) -> Floats:
        """Read the part of a prompt that its row does not hold yet; returns logits_V after the last token."""
        row = self._rows[place]
        while row.length < len(prompt):
            piece = prompt[row.length : row.length + PROMPT_CHUNK]
            logits_V = self.model.read(place, piece, held=row.length, adapter=self._number)
            row.note_read(piece)
        return logits_V


class OpenDecoder(Protocol):
    """Opens a folder: `OnnxDecoder`, or a `functools.partial` of it with the user's options."""

    def __call__(self, folder: Path, /, *, adapter: Path | None = None) -> OnnxDecoder: ...
