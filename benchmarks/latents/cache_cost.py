"""Tabulates the cost of latent attention's cache in four variants: bytes, time to decode a token, accuracy.

    python -m benchmarks.latents.cache_cost [--threads 1] [--rounds 5] [--out docs/explanation/latent-attention.md]

Speed: for each shape (`benchmarks.latents.latent_shapes`) a random model decodes one token after another from a cache
with random content: transformers' own attention on its own cache, and ours, on the same weights. All take turns, and
the table shows medians of the whole step and of its attention layers alone, in fp32.

Accuracy: for the nano shape the built-in teacher's traces and its answers to the ledger's problems, calibrated on
traces of other problems; for the random shapes the error of an attention layer's output.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from benchmarks.latents.cache_accuracy import drift, ledger_accuracy, output_error, read_answers, toolkit_json
from benchmarks.latents.latent_shapes import SHAPES, Shape
from toolkit.figures.tables import markdown_table
from toolkit.formats.chat_format import ChatFormat
from toolkit.machine.allocator import keep_freed_memory
from toolkit.model.cache import make_cache
from toolkit.model.decoder import LatentCache, TorchDecoder, load_model
from toolkit.model.latent_basis import latent_layers, trace_rows
from toolkit.runs import replace_text
from toolkit.sources.model_names import resolve
from toolkit.terminal import say

STEPS = 4
"""Tokens per timing."""
CALIBRATION_TOKENS = 2048
"""Random tokens, for random models."""
BF16_BYTES = torch.bfloat16.itemsize
STOCK = "transformers"


@dataclass(frozen=True, kw_only=True)
class CacheVariant:
    """A variant of the cache, by its name in the table."""

    name: str
    int8: bool = False
    share: float = 0.0
    """The projected rank as a share of kv_lora_rank; 0 does not project."""

    def rank(self, kv_lora_rank: int) -> int:
        return int(self.share * kv_lora_rank)

    def cache(self, kv_lora_rank: int, calibration: Sequence[Sequence[int]]) -> LatentCache:
        return LatentCache(int8=self.int8, rank=self.rank(kv_lora_rank), calibration=calibration)


VARIANTS = (
    CacheVariant(name="absorbed"),
    CacheVariant(name="QMLA", int8=True),
    CacheVariant(name="CMLA", share=0.75),
    CacheVariant(name="QMLA + CMLA", int8=True, share=0.75),
)


class TokenTime(NamedTuple):
    """Milliseconds per token: the whole step, and its attention layers."""

    step_ms: float
    attention_ms: float


class AttentionClock:
    """Sums the time of attention layers."""

    def __init__(self, models: Iterable[PreTrainedModel]) -> None:
        self.seconds = 0.0
        self._begun = 0.0
        for layer in (layer for model in models for layer in latent_layers(model)):
            layer.register_forward_pre_hook(self._begin)
            layer.register_forward_hook(self._end)

    def _begin(self, *_: object) -> None:
        self._begun = time.perf_counter()

    def _end(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._begun


@torch.inference_mode()
def decode(model: PreTrainedModel, clock: AttentionClock, cache: DynamicCache, context: int) -> TokenTime:
    """Return the time per token, over `STEPS` tokens after `context` cached ones."""
    begun, clock.seconds = time.perf_counter(), 0.0
    for step in range(STEPS):
        model(
            torch.tensor([[7]]),
            position_ids=torch.tensor([[context + step]]),
            past_key_values=cache,
            use_cache=True,
        )
    seconds = time.perf_counter() - begun
    return TokenTime(step_ms=seconds / STEPS * 1e3, attention_ms=clock.seconds / STEPS * 1e3)


def fill(cache: DynamicCache, model: PreTrainedModel, context: int) -> DynamicCache:
    """Fill a cache with random latents and rotated keys for `context` tokens of one sequence."""
    config = model.config
    for layer in range(config.num_hidden_layers):
        cache.update(
            torch.randn(1, 1, context, config.kv_lora_rank), torch.randn(1, 1, context, config.qk_rope_head_dim), layer
        )
    return cache


def expanded_bytes(model: PreTrainedModel) -> int:
    """Return the bytes per token and layer of multi-head attention with the same heads."""
    config = model.config
    dims: int = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    heads: int = config.num_attention_heads
    return BF16_BYTES * heads * dims


def cached_bytes(model: PreTrainedModel, variant: CacheVariant) -> int:
    """Return the bytes per token and layer of a variant."""
    config = model.config
    rank: int = variant.rank(config.kv_lora_rank) or config.kv_lora_rank
    latent = rank + BF16_BYTES if variant.int8 else BF16_BYTES * rank
    rotated: int = BF16_BYTES * config.qk_rope_head_dim
    return latent + rotated


def times(
    models: dict[str, PreTrainedModel],
    caches: dict[str, DynamicCache],
    context: int,
    rounds: int,
    clock: AttentionClock,
) -> dict[str, TokenTime]:
    """Return each model's median times over the rounds."""
    measured: dict[str, list[TokenTime]] = {name: [] for name in models}
    for turn in range(1 + rounds):  # the first is not timed
        for name, model in models.items():
            one = decode(model, clock, caches[name], context + turn * STEPS)
            if turn:
                measured[name].append(one)
    return {
        name: TokenTime(
            step_ms=statistics.median(one.step_ms for one in all_rounds),
            attention_ms=statistics.median(one.attention_ms for one in all_rounds),
        )
        for name, all_rounds in measured.items()
    }


def measure(
    shape: Shape, contexts: Sequence[int], rounds: int, answers: Mapping[str, Sequence[str]]
) -> list[list[str]]:
    """Measure one shape and return its rows of the table; `answers`: the last cells, by name."""
    torch.manual_seed(0)
    stock = shape.make(shape.layers).eval()
    model = copy.deepcopy(stock, {id(weight): weight for weight in stock.parameters()})
    config = stock.config
    calibration = torch.randint(config.vocab_size, (CALIBRATION_TOKENS // 256, 256)).tolist()
    decoders = {
        variant.name: TorchDecoder(model, variant.cache(config.kv_lora_rank, calibration)) for variant in VARIANTS
    }
    models = {STOCK: stock} | dict.fromkeys(decoders, model)
    clock = AttentionClock([stock, model])
    measured = []
    for context in contexts:
        caches = {STOCK: fill(DynamicCache(config=config), stock, context)}
        for name, decoder in decoders.items():
            caches[name] = fill(make_cache(config.num_hidden_layers, decoder.make_layer), stock, context)
        measured.append(times(models, caches, context, rounds, clock))
    exact = next(iter(decoders.values()))
    whole = expanded_bytes(stock)
    title = f"{shape.name}, {shape.layers} layer{'s' if shape.layers > 1 else ''}"
    rows = []
    for variant in (CacheVariant(name=STOCK), *VARIANTS):
        size = cached_bytes(stock, variant)
        name = f"{variant.name}, rank {variant.rank(config.kv_lora_rank)}" if variant.share else variant.name
        speeds = [_speed(one[STOCK], one[variant.name]) for one in measured]
        error = f"{output_error(exact, decoders[variant.name]):.1e}" if variant.int8 or variant.share else "–"
        rows.append(
            [title, name, f"{size:,} ({size / whole:.1%})", *speeds, error, *answers.get(variant.name, ("–", "–"))]
        )
        say("  ".join(rows[-1]))
    return rows


def measure_answers(model: str, folder: Path, per_family: int) -> dict[str, tuple[str, str]]:
    """Return the last cells for a model: its next tokens (on traces not calibrated on) and its ledger accuracy."""
    traces = {}
    for seed, name in enumerate(("calibration", "held-out")):
        traces[name] = folder / name
        options = ("--per-family", str(per_family), "--seed", str(seed), "--out", str(traces[name]))
        toolkit_json("traces", "--teacher", model, *options)
    source = resolve(model)
    chat_format = ChatFormat.from_folder(source)
    loaded = load_model(source, torch.float32).eval()
    rows = [ids for ids, _ in trace_rows(traces["calibration"], chat_format)]
    answers = read_answers(traces["held-out"], chat_format)
    exact, cells = TorchDecoder(loaded), {}
    for variant in VARIANTS:
        rank = variant.rank(loaded.config.kv_lora_rank)
        flags = ["--cache", "int8"] if variant.int8 else []
        if rank:
            flags += ["--cache-rank", str(rank), "--cache-calibration", str(traces["calibration"])]
        out = folder / f"eval-{variant.name.replace(' ', '').lower()}"
        accuracy = ledger_accuracy(model, flags, out)
        shown = "–"
        if flags:
            moved = drift(exact, TorchDecoder(loaded, variant.cache(loaded.config.kv_lora_rank, rows)), answers)
            shown = f"{moved.same_first:.2%}, {moved.mean_kl:.1e}"
        cells[variant.name] = (shown, f"{accuracy:.1%}")
        say(f"{variant.name}: {', '.join(cells[variant.name])}")
    return cells


def _speed(stock: TokenTime, ours: TokenTime) -> str:
    step, attention = stock.step_ms / ours.step_ms, stock.attention_ms / ours.attention_ms
    return f"{ours.step_ms:.1f} ms, {step:.1f} × ({attention:.1f} ×)"


def document(rows: Sequence[Sequence[str]], contexts: Sequence[int], threads: int, rounds: int) -> str:
    """Render the page: what was measured, how, and the table."""
    heads = ["shape", "cache", "bytes per token and layer", *(f"{context:,} tokens" for context in contexts)]
    heads += ["error of attention", "same next token, KL in nats", "ledger"]
    return PAGE.format(
        table=markdown_table([heads, *rows]), threads=f"{threads} thread{'s' if threads > 1 else ''}", rounds=rounds
    )


PAGE = """\
# Latent attention

DeepSeek's attention caches one latent and one rotated key per token and layer, shared by all heads. transformers expands the
whole prefix into every head's keys and values at each step. Here a step reads the cache directly, in one of four variants:

- **absorbed** (`toolkit/model/mla.py`): the exact cache. Same weights, same logits (`tests/toolkit/test_mla.py`).
- **QMLA** (`toolkit/model/latents.py`): the latent in int8 with one step size per token. The step sizes are factored out of the
  sums, and the codes are multiplied in int8 with the query (and the softmax's weights) as two int8 digits: exact to 16 bits.
- **CMLA** (`toolkit/model/latent_basis.py`): the latent projected to a lower rank. The basis is fitted to traces so that keys
  and values change least; the projection back is folded into `kv_b_proj`.
- **QMLA + CMLA**: both.

Training and the first pass over a prompt use exact values. To decode with a smaller cache:

```sh
toolkit traces --out runs/calibration
toolkit eval builtin --cache int8
toolkit eval builtin --cache int8 --cache-rank 48 --cache-calibration runs/calibration
```

{table}

Made by `python -m benchmarks.latents.cache_cost`, on {threads}, medians of {rounds} rounds in which all take turns. Times are
milliseconds per token of the whole model, then how many times faster that is than transformers' own module and cache, and in
brackets the same for the attention layers alone. The models are random, with few layers, in fp32; feed-forward layers are dense
with the width that a token activates in the mixture, and at short contexts reading them is most of a step. Bytes count numbers
that are not int8 as bf16; in brackets is their share of what multi-head attention with the
same heads would cache (bf16).

*Error of attention* is the relative error of a layer's output in the random model. Random weights make latents that use
all dimensions equally, so a lower rank cannot leave anything out: CMLA's figure there is a worst case. The last
two columns are of the trained model of the nano shape, the built-in teacher: next tokens along its own traces (not those
calibrated on, every token read from the smaller cache, compared with the exact one, fp32), and its accuracy on the ledger's
problems, greedy.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--per-family", type=int, default=60, help="problems a family, for calibration and for traces")
    parser.add_argument("--work", type=Path, default=Path("runs/latent-attention"), help="traces and evaluations")
    parser.add_argument("--out", type=Path, help="Markdown file to write besides")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    answers = measure_answers("builtin", options.work, options.per_family) if "nano" in options.shapes else {}
    rows = []
    for name in options.shapes:
        rows += measure(SHAPES[name], options.contexts, options.rounds, answers if name == "nano" else {})
    page = document(rows, options.contexts, options.threads, options.rounds)
    if options.out:
        replace_text(options.out, page)
    print(page)


if __name__ == "__main__":
    main()
