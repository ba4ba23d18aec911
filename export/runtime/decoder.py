"""An exported folder as a `toolkit.generation.generate.Decoder`, through onnxruntime and numpy alone.

    cache of a layer   float32 or int8 [rows, num_key_value_heads, room, head_dim], key and value
                       row b holds lengths_B[b] positions from the left; what lies right of them is stale

One allocation serves as past and as present, so a step writes its new column in place and copies nothing. Its room
grows by an eighth when it is full: a long context costs memory only as far as it is used.
What onnxruntime works in while it reads prompts, many tokens at once, goes back to the system with the first step behind.
Prompts are read row by row, so rows of different lengths need no padding; steps run all rows at once. Rows that come
and go at different times (`open`, `read`, `swap`, `drop`) lie so that those which are stepped are the first ones.

Shapes: B rows of the batch, T new tokens, S attended tokens, V vocabulary.
"""

from __future__ import annotations

import math
import mmap
import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from export.runtime.cache_place import FEW_ROWS as FEW_ROWS  # noqa: PLC0414 – the scheduler's too
from export.runtime.cache_place import PROMPT_CHUNK, CachePlace
from export.runtime.kernels.library import kernels_digest
from export.runtime.machine import machine_key
from export.runtime.model_config import read_model_config
from export.runtime.prefix_cache import CacheShape, PrefixCache, common_prefix, forget_all
from export.runtime.session import LOGITS_FROM, bind_input, bind_output, check_graph, open_session, releasing
from toolkit.errors import InputError
from toolkit.generation.generate import Floats, Ints
from toolkit.machine.advice import advise
from toolkit.machine.allowance import physical_cores
from toolkit.machine.user_folders import cache_folder
from toolkit.runs import read_manifest

MODEL_FILE = "model.onnx"
INT8_CACHE_FILE = "model.int8-cache.onnx"
"""The same weights with a cache of a quarter of the bytes."""
Cache = Literal["exact", "int8"]
"""How keys and values are kept: as float32, or rounded to a quarter of the bytes."""
SMALLEST_ROOM = 256
"""Positions by which a cache grows at least."""
LEAST_SAVED = 2 * PROMPT_CHUNK
"""Tokens of a prompt, beyond what is on disk already, that are worth a file."""
LEAST_TAKEN_OVER = 32
"""Tokens that a dropped row must share with a prompt to be worth moving."""


class OnnxDecoder:
    """The model of an exported folder with its cache; see `toolkit.generation.generate.Decoder`."""

    def __init__(
        self,
        folder: Path,
        *,
        cache: Cache | Literal["auto"] = "auto",
        keeps_prefix: bool = False,
        prefix_bytes: int = 0,
        prepacked: bool = False,
        own_kernels: bool = True,
    ) -> None:
        """`cache`: auto for what the export has chosen for the folder.

        `keeps_prefix`: what a single prompt begins with is not computed again where the cache holds it already, as
        it does from turn to turn of a chat. The kept positions may differ from fresh ones by the rounding of int8.

        `prefix_bytes`: the same from one process to the next, bit for bit, by files that take so many bytes at most; see
        `export.runtime.prefix_cache`. 0 keeps none.

        `prepacked`: weights are mapped from a copy that is made once in the cache folder. `own_kernels`: False for
        onnxruntime's, whatever the processor. See `export.runtime.session`.

        Raises `InputError` where the folder is not an exported one, or its files are damaged or unsafe.
        """
        cache = chosen_cache(folder) if cache == "auto" else cache
        model_path = folder / (INT8_CACHE_FILE if cache == "int8" else MODEL_FILE)
        if cache == "int8" and (folder / MODEL_FILE).is_file() and not model_path.is_file():
            fault = (read_manifest(folder) or {}).get("measured", {}).get("int8_cache_fault")
            why = f"keep it exact, because {fault}" if fault else "export again with traces to calibrate it on"
            raise InputError(f"{model_path} must exist to keep the cache in int8; {why}")
        if not model_path.is_file():
            raise InputError(
                f"{model_path} must exist; make the folder with: toolkit export MODEL --int4 --out {folder}"
            )
        self.config = read_model_config(folder)
        self.max_length = self.config.max_position_embeddings
        self._session = open_session(model_path, threads=physical_cores(), prepacked=prepacked, own_kernels=own_kernels)
        self._kernels = kernels_digest() if own_kernels else ""
        check_graph(self._session, self.config, model_path, has_int8_cache=cache == "int8")
        names = [f"{layer}.{kind}" for layer in range(self.config.num_hidden_layers) for kind in ("key", "value")]
        self._cache_dtype = np.dtype(np.int8 if cache == "int8" else np.float32)
        no_rows = np.empty((0, self.config.num_key_value_heads, 0, self.config.head_dim), dtype=self._cache_dtype)
        self._cache: dict[str, NDArray[Any]] = dict.fromkeys(names, no_rows)
        self.position_bytes = len(names) * self.config.num_key_value_heads * self.config.head_dim * no_rows.itemsize
        """Of the cache, for one position of one row."""
        self._lengths_B: Ints = np.zeros(0, dtype=np.int64)
        self._binding: ort.IOBinding | None = None
        self._binding_rows = (0, 0)
        self._releasing = releasing()
        self._has_read = False
        """Whether a prompt was read since memory was given back."""
        self._keeps_prefix = keeps_prefix
        self._held: list[int] = []
        """The tokens whose keys and values the cache's only row holds; empty where it has several rows."""
        self._whole = 0
        """Its first positions that were read by whole chunks from the start on, as any other process reads them."""
        self._prefixes = self._open_prefixes(folder, cache, prefix_bytes) if prefix_bytes else None
        self._places: list[CachePlace] = []
        """Of the rows that come and go, the dropped ones last."""
        self._changes = 0

    @property
    def cache_bytes(self) -> int:
        """Of all rows and positions that there is room for."""
        return sum(cache.nbytes for cache in self._cache.values())

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        """Forget everything, read the prompts; returns logits_BV after each prompt's last token.

        A decoder that keeps prefixes forgets only what a single prompt doesn't begin with.
        """
        longest = max(len(prompt) for prompt in prompts)
        if longest > self.max_length:
            raise InputError(
                f"the prompt ({longest} tokens) must fit the model's context ({self.max_length}); shorten it"
            )
        self._places, self._has_read = [], True
        kept = common_prefix(self._held, prompts[0][:-1]) if self._keeps_prefix and len(prompts) == 1 else 0
        self._make_room(len(prompts), longest, used=kept)
        self._whole = min(self._whole, kept - kept % PROMPT_CHUNK)
        if self._prefixes and len(prompts) == 1 and self._prefixes.known(prompts[0][:-1]) - kept >= PROMPT_CHUNK:
            self._whole = self._prefixes.load(prompts[0][:-1], self._first_row(), step=PROMPT_CHUNK)
            kept = max(kept, self._whole)
        self._lengths_B = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        self._held = list(prompts[0]) if len(prompts) == 1 else []
        logits_BV = np.empty((len(prompts), self.config.vocab_size), dtype=np.float32)
        for row, prompt in enumerate(prompts):
            for begin in range(kept, len(prompt), PROMPT_CHUNK):
                tokens_T = np.asarray(prompt[begin : begin + PROMPT_CHUNK], dtype=np.int64)
                lengths = np.array([begin + len(tokens_T)])
                logits_BV[row] = self._run(tokens_T[None], lengths, row, wanted=1)[0, 0]
                if begin == self._whole and len(tokens_T) == PROMPT_CHUNK:
                    self._whole += PROMPT_CHUNK
        if self._prefixes and len(prompts) == 1:
            self._save_prefix(prompts[0][: self._whole])
        return logits_BV

    def read_ahead(self, prompt: Sequence[int]) -> bool:
        """Read one more chunk of what a single prompt begins with; False where no whole one is left before its end.

        For a decoder that keeps prefixes: `start` goes on from there, and reads what it would have read.
        """
        kept = common_prefix(self._held, prompt)
        end = kept + PROMPT_CHUNK
        if not self._keeps_prefix or end >= len(prompt) or len(prompt) > self.max_length:
            return False
        self._places, self._has_read = [], True
        self._make_room(1, end, used=kept)
        self._whole = min(self._whole, kept - kept % PROMPT_CHUNK)
        self._lengths_B = np.array([end])
        self._held = list(prompt[:end])
        self._run(np.array([prompt[kept:end]], dtype=np.int64), self._lengths_B, 0, wanted=1)
        if kept == self._whole:
            self._whole = end
        return True

    def step(self, tokens_B: Ints) -> Floats:
        """Append one token to each of the first rows, which are all rows but where some still read their prompt.

        Returns logits_BV after it.
        """
        lengths_B = self._lengths_B[: len(tokens_B)] + 1
        assert lengths_B.max() <= self.max_length
        self._make_room(len(self._lengths_B), int(lengths_B.max()), used=self._used())
        self._lengths_B[: len(tokens_B)] = lengths_B
        for place, token in zip(self._places, tokens_B, strict=False):
            place.tokens.append(int(token))
        if self._held:
            self._held.append(int(tokens_B[0]))
        tokens_B1 = np.ascontiguousarray(tokens_B, dtype=np.int64)[:, None]
        releases = self._has_read and len(tokens_B) == len(self._lengths_B)
        self._has_read = self._has_read and not releases
        return self._run(tokens_B1, lengths_B, 0, wanted=1, releases=releases)[:, 0]

    def open(self, prompt: Sequence[int], *, by_chunks: bool = False) -> int:
        """Add a last row for a prompt; returns how many of its tokens it holds already, which a dropped row has left.

        Otherwise it takes the place that was dropped first. Positions that are taken over are those that our own
        kernels would make again, where prompts are read by more than `FEW_ROWS` tokens at once: more are left to be read,
        and none that was stepped is taken. `by_chunks`: those that any kernels make again, which are read by whole
        `PROMPT_CHUNK`s.
        """
        row = len(self._lengths_B)
        self._held = []
        if row == len(self._places):
            self._places.append(CachePlace())
        dropped = range(row, len(self._places))
        shared = {i: self._places[i].again(prompt, by_chunks=by_chunks) for i in dropped}
        best = max(dropped, key=lambda i: shared[i])
        kept = shared[best] if shared[best] >= LEAST_TAKEN_OVER else 0
        self._exchange(row, best if kept else min(dropped, key=lambda i: self._places[i].changed))
        place = self._places[row]
        del place.tokens[kept:]
        place.read, place.whole = kept, min(place.whole, kept - kept % PROMPT_CHUNK)
        self._lengths_B = np.append(self._lengths_B, kept)
        return kept

    def read(self, row: int, tokens_T: Sequence[int]) -> Floats:
        """Append a piece of a prompt to one row while the others hold theirs; returns logits_V after the piece."""
        length = int(self._lengths_B[row]) + len(tokens_T)
        assert length <= self.max_length
        self._make_room(len(self._places), length, used=self._used())
        self._lengths_B[row] = length
        place = self._places[row]
        place.note(tokens_T)
        self._has_read = True
        logits_V: Floats = self._run(np.array([tokens_T], dtype=np.int64), np.array([length]), row, wanted=1)[0, 0]
        return logits_V

    def swap(self, first: int, second: int) -> None:
        """Let two rows change places."""
        self._exchange(first, second)
        self._lengths_B[[first, second]] = self._lengths_B[[second, first]]

    def drop(self) -> None:
        """Let the last row go; its place in the cache stays, and its tokens until another row takes it."""
        self._lengths_B = self._lengths_B[:-1]
        self._changes += 1
        self._places[len(self._lengths_B)].changed = self._changes

    def forget(self) -> None:
        """Forget all rows and what dropped ones have left."""
        self._lengths_B = self._lengths_B[:0]
        self._places = []

    def extend(self, tokens_T: Sequence[int]) -> Floats:
        """Append several tokens to the only row; returns logits_TV after each."""
        length = int(self._lengths_B[0]) + len(tokens_T)
        assert len(self._lengths_B) == 1 and length <= self.max_length
        self._make_room(1, length, used=length - len(tokens_T))
        self._lengths_B = np.array([length])
        self._held += tokens_T
        logits_BTV = self._run(np.array([tokens_T], dtype=np.int64), self._lengths_B, 0, wanted=len(tokens_T))
        logits_TV: Floats = logits_BTV[0]
        return logits_TV

    def rewind(self, count: int) -> None:
        """Forget the only row's last tokens."""
        self._lengths_B = self._lengths_B - count
        del self._held[len(self._held) - count :]

    def keep(self, rows: Ints) -> None:
        """Keep only these rows of the batch, in this order."""
        self._lengths_B = self._lengths_B[rows]
        self._held = []
        used = int(self._lengths_B.max())
        for cache in self._cache.values():
            cache[: len(rows), :, :used] = cache[rows, :, :used]

    def kept(self) -> dict[str, NDArray[Any]]:
        """What the only row's cache holds, [num_key_value_heads, positions, head_dim]."""
        return {name: cache[0, :, : self._lengths_B[0]] for name, cache in self._cache.items()}

    def score(self, tokens_T: Sequence[int], *, first: int = 0) -> Floats:
        """Read one text; returns logits_TV after each of its tokens from `first` on."""
        self._make_room(1, len(tokens_T), used=0)
        self._lengths_B = np.array([len(tokens_T)])
        self._held, self._places = [], []
        pieces = []
        for begin in range(0, len(tokens_T), PROMPT_CHUNK):
            piece_T = np.asarray(tokens_T[begin : begin + PROMPT_CHUNK], dtype=np.int64)
            lengths = np.array([begin + len(piece_T)])
            wanted = min(int(lengths[0]) - first, len(piece_T))
            logits_TV = self._run(piece_T[None], lengths, 0, wanted=max(wanted, 1))[0]
            pieces.append(logits_TV[: max(wanted, 0)])
        return np.concatenate(pieces)

    def _open_prefixes(self, folder: Path, cache: Cache, max_bytes: int) -> PrefixCache:
        heads, head_dim = self.config.num_key_value_heads, self.config.head_dim
        shape = CacheShape(names=tuple(self._cache), heads=heads, head_dim=head_dim, dtype=self._cache_dtype)
        key = machine_key(folder, cache, PROMPT_CHUNK, self._kernels)
        return PrefixCache(prefix_folder(), key, shape, max_bytes=max_bytes)

    def _save_prefix(self, tokens: Sequence[int]) -> None:
        """Keep what was read of a prompt on disk, where it is enough more than what is there."""
        assert self._prefixes
        if len(tokens) - self._prefixes.known(tokens) >= LEAST_SAVED:
            self._prefixes.save(tokens, self._first_row())

    def _first_row(self) -> dict[str, NDArray[Any]]:
        return {name: cache[0] for name, cache in self._cache.items()}

    def _used(self) -> int:
        """Positions of the longest row, dropped ones among them."""
        return max([int(self._lengths_B.max(initial=0)), *(len(place.tokens) for place in self._places)])

    def _exchange(self, first: int, second: int) -> None:
        """Let two places change what they hold."""
        if first == second:
            return
        there, here = [first, second], [second, first]
        used = max(len(self._places[place].tokens) for place in there)
        if used:
            for cache in self._cache.values():
                cache[there, :, :used] = cache[here, :, :used]
        self._places[first], self._places[second] = self._places[second], self._places[first]

    def _make_room(self, rows: int, length: int, *, used: int) -> None:
        """Have a cache of so many rows and positions at least; the first `used` positions of each row stay."""
        has_rows, _, has_length, _ = next(iter(self._cache.values())).shape
        if rows <= has_rows and length <= has_length:
            return
        room = has_length
        if length > has_length:
            room = min(length + max(length // 8, SMALLEST_ROOM), self.max_length)
        self._binding = None
        shape = (max(rows, has_rows), self.config.num_key_value_heads, room, self.config.head_dim)
        for name, old in self._cache.items():  # one layer exists twice at a time
            self._cache[name] = _own_pages(shape, old.dtype)
            self._cache[name][:has_rows, :, :used] = old[:, :, :used]

    def _run(self, tokens_BT: Ints, lengths_B: Ints, first_row: int, *, wanted: int, releases: bool = False) -> Floats:
        """Run new tokens of the rows from `first_row` on, whose lengths include them.

        `releases`: memory goes back to the system. Returns logits_BTV after the last `wanted` tokens.
        """
        rows = len(tokens_BT)
        logits_from = np.array([-wanted])
        mask_BS = (np.arange(lengths_B.max()) < lengths_B[:, None]).astype(np.int64)
        logits_BTV = np.empty((rows, wanted, self.config.vocab_size), dtype=np.float32)
        binding = self._bound_cache(first_row, rows)
        bind_input(binding, "input_ids", tokens_BT)
        bind_input(binding, "attention_mask", mask_BS)
        bind_input(binding, LOGITS_FROM, logits_from)
        bind_output(binding, "logits", logits_BTV)
        self._session.run_with_iobinding(binding, self._releasing if releases else None)
        return logits_BTV

    def _bound_cache(self, first_row: int, rows: int) -> ort.IOBinding:
        """Past and present bound to these rows of the cache; as good as free where the last run had the same."""
        if self._binding is None or self._binding_rows != (first_row, rows):
            self._binding, self._binding_rows = self._session.io_binding(), (first_row, rows)
            for name, cache in self._cache.items():
                view = cache[first_row : first_row + rows]
                bind_input(self._binding, f"past_key_values.{name}", view)
                bind_output(self._binding, f"present.{name}", view)
        return self._binding


OpenDecoder = Callable[[Path], OnnxDecoder]
"""How a folder is opened: `OnnxDecoder` itself, or with the options that a user gave (`functools.partial`)."""


def chosen_cache(folder: Path) -> Cache:
    """The cache that an exported folder was compared with its float model in; exact where it does not say."""
    manifest = read_manifest(folder) or {}
    asked = manifest.get("config", {}).get("cache")  # of a folder that was compared before, or never
    return "int8" if manifest.get("measured", {}).get("cache", asked) == "int8" else "exact"


def prefix_folder() -> Path:
    """Where `prefix_bytes` keeps its files, of all models."""
    return cache_folder() / "prefixes"


def forget_prefixes() -> None:
    """Remove what `prefix_bytes` has kept of any prompt; who goes on from it now reads it anew."""
    forget_all(prefix_folder())


def _own_pages(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array of zeros in pages of its own, which go back to the system with it; a heap would keep what caches leave."""
    size_bytes = math.prod(shape) * dtype.itemsize
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    pages = mmap.mmap(-1, size_bytes, **private)
    advise(pages, "MADV_HUGEPAGE")
    return np.frombuffer(pages, dtype=dtype).reshape(shape)
