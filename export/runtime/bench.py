"""`toolkit bench DIR [--vs OTHER]`: how fast the runner is on this machine and how much memory it takes.

Every round loads a model in a fresh process, because a process's peak memory never goes down; there it reads a prompt
of each length and decodes greedily after it. Models take turns, so that a machine that slows down slows all of them,
and each round begins with another one, so that none always follows the same one. Figures are medians over the rounds
after a short first one that warms the file cache; a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import psutil

from export.runtime.decoder import OnnxDecoder, OpenDecoder
from export.runtime.kernels.library import kernels_name
from toolkit.errors import InputError
from toolkit.figures.tables import columns
from toolkit.machine.allowance import physical_cores
from toolkit.machine.peak_memory import peak_memory_bytes
from toolkit.progress import Progress
from toolkit.records import Record
from toolkit.runs import folder_bytes, read_manifest
from toolkit.terminal import counted

CONTEXTS = (128, 512, 2048)
SHORT = 128
"""Tokens of the prompt in the round that warms up."""
BANDWIDTH_BYTES = 2**28
"""Bytes that each thread reads: more than any cache holds."""
IDLE_S = 0.5


@dataclass(frozen=True, kw_only=True)
class AtLength(Record):
    """One model's figures for a prompt of `context` tokens. Time to first token starts when the model is loaded."""

    context: int
    prefill_tokens_per_s: float
    time_to_first_token_s: float
    decode_tokens_per_s: float
    bandwidth_share: float
    """Bytes of weights and cache that a step must read, times steps a second, over the machine's bandwidth."""


@dataclass(frozen=True, kw_only=True)
class ModelFigures(Record):
    """One model's medians."""

    model: str
    model_bytes: int
    load_s: float
    at_lengths: list[AtLength]
    peak_memory_bytes: int
    idle_memory_bytes: int
    idle_cpu_share: float
    """Share of one core that an idle model takes."""


@dataclass(frozen=True, kw_only=True)
class Benchmark(Record):
    """All models of one run, the exported folder first."""

    rounds: int
    threads: int
    new_tokens: int
    kernels: str
    """The kernels that ran exported folders, as `TOOLKIT_KERNELS` names them."""
    bandwidth_bytes_per_s: float
    models: list[ModelFigures]
    decode_ratios: dict[str, list[float]]
    """How many times as fast each exported folder decodes as each model after it, one ratio for each length."""
    prefill_ratios: dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Round:
    """One process's measurements, in seconds and bytes; lists have a value for each length."""

    load_s: float
    prefill_s: list[float]
    decode_s: list[float]
    step_bytes: list[int]
    peak_memory_bytes: int
    idle_memory_bytes: int
    idle_cpu_share: float


def run_benchmark(
    folder: Path,
    *,
    versus: Sequence[Path] = (),
    adapter: Path | None = None,
    open_decoder: OpenDecoder = OnnxDecoder,
    contexts: Sequence[int] = CONTEXTS,
    new_tokens: int = 64,
    rounds: int = 3,
) -> Benchmark:
    """Measure an exported folder, with an adapter if one is given, and GGUF files or exported folders beside it.

    Raises `InputError` if one of them cannot be opened or a length doesn't fit the model's context.
    """
    models = [folder, *versus]
    for path in versus:
        if not (path.suffix.lower() == ".gguf" and path.is_file()) and not path.is_dir():
            raise InputError(f"{path} is neither a GGUF file nor an exported folder; give one, such as --vs model.gguf")
    names = [_name(model) for model in models]
    opening = [open_decoder] * len(models)
    if adapter:
        names[0], opening[0] = f"{names[0]} + {_name(adapter)}", partial(open_decoder, adapter=adapter)
    threads = physical_cores()
    measured: list[list[Round]] = [[] for _ in models]
    with Progress("bench, rounds", (rounds + 1) * len(models)) as progress:
        for number, lengths in enumerate([[min(SHORT, *contexts)]] + [list(contexts)] * rounds):
            first = number % len(models)
            for place in [*range(first, len(models)), *range(first)]:
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
                    task = executor.submit(measure_round, models[place], lengths, new_tokens, threads, opening[place])
                    measured[place].append(task.result())
                progress.advance()
    warm = [results[1:] for results in measured]
    bandwidth = read_bandwidth(threads)
    pairs = {
        f"{names[place]} × {names[other]}": (warm[place], warm[other])
        for place, ours in enumerate(models)
        for other in range(place + 1, len(models))
        if ours.is_dir()
    }
    return Benchmark(
        rounds=rounds,
        threads=threads,
        new_tokens=new_tokens,
        kernels=kernels_name(),
        bandwidth_bytes_per_s=bandwidth,
        models=[
            _figures(name, model, results, contexts, new_tokens, bandwidth)
            for name, model, results in zip(names, models, warm, strict=True)
        ],
        decode_ratios={names: _ratios(*pair, lambda r: r.decode_s) for names, pair in pairs.items()},
        prefill_ratios={names: _ratios(*pair, lambda r: r.prefill_s) for names, pair in pairs.items()},
    )


def measure_round(
    model: Path, contexts: Sequence[int], new_tokens: int, threads: int, open_decoder: OpenDecoder = OnnxDecoder
) -> Round:
    """Load a model, then read a prompt of each length and decode after it; runs in a process of its own."""
    if model.suffix.lower() == ".gguf":
        from export.runtime import llama_cpp

        llama_cpp.library()  # imported before the clock starts, as onnxruntime is with this file
    started = time.perf_counter()
    max_length = max(contexts) + new_tokens
    read, append, vocab_size, step_bytes = _open(model, threads, max_length, open_decoder)
    loaded = time.perf_counter()
    generator = np.random.default_rng(0)
    prefill_s, decode_s = [], []
    for context in contexts:
        prompt = generator.integers(0, vocab_size, context).tolist()
        begun = time.perf_counter()
        token = read(prompt)
        first_token = time.perf_counter()
        for _ in range(new_tokens - 1):
            token = append(token)
        decode_s.append(time.perf_counter() - first_token)
        prefill_s.append(first_token - begun)
    process = psutil.Process()
    before = sum(process.cpu_times()[:2])
    time.sleep(IDLE_S)
    idle_cpu_share = (sum(process.cpu_times()[:2]) - before) / IDLE_S
    peak, idle = peak_memory_bytes(), process.memory_info().rss
    return Round(
        load_s=loaded - started,
        prefill_s=prefill_s,
        decode_s=decode_s,
        step_bytes=[
            step_bytes(context + new_tokens // 2) for context in contexts
        ],  # last, because it takes memory for a GGUF
        peak_memory_bytes=peak,
        idle_memory_bytes=idle,
        idle_cpu_share=idle_cpu_share,
    )


def read_bandwidth(threads: int) -> float:
    """Measure the bytes a second that so many threads together read from memory; the best of five tries."""
    arrays = [np.ones(BANDWIDTH_BYTES // 8, dtype=np.uint64) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            begun = time.perf_counter()
            list(pool.map(np.max, arrays))
            best = max(best, threads * BANDWIDTH_BYTES / (time.perf_counter() - begun))
    return best


def table(benchmark: Benchmark) -> str:
    """Lay the figures out for a terminal, with a column for each model."""
    rows: list[tuple[str, list[str]]] = [
        ("", [model.model for model in benchmark.models]),
        ("size", [f"{model.model_bytes / 1e6:.0f} MB" for model in benchmark.models]),
        ("load", [f"{model.load_s:.2f} s" for model in benchmark.models]),
    ]
    for place, first in enumerate(benchmark.models[0].at_lengths):
        lengths = [model.at_lengths[place] for model in benchmark.models]
        name = counted(first.context, "token")
        rows += [
            (f"prefill, {name}", [f"{at.prefill_tokens_per_s:.0f} tokens/s" for at in lengths]),
            (f"first token, {name}", [f"{at.time_to_first_token_s:.3f} s" for at in lengths]),
            (f"decode, {name}", [f"{at.decode_tokens_per_s:.1f} tokens/s" for at in lengths]),
            ("  of the bandwidth", [f"{100 * at.bandwidth_share:.0f} %" for at in lengths]),
        ]
    rows += [
        ("peak memory", [f"{model.peak_memory_bytes / 1e6:.0f} MB" for model in benchmark.models]),
        ("idle memory", [f"{model.idle_memory_bytes / 1e6:.0f} MB" for model in benchmark.models]),
        ("idle processor", [f"{100 * model.idle_cpu_share:.0f} %" for model in benchmark.models]),
    ]
    lines = [columns([(name, *cells) for name, cells in rows], right=range(1, 1 + len(benchmark.models)))]
    for names in benchmark.decode_ratios:
        for what, ratios in (("decode", benchmark.decode_ratios[names]), ("prefill", benchmark.prefill_ratios[names])):
            lines.append(f"{what}, {names}: " + ", ".join(f"{ratio:.2f}" for ratio in ratios))
    lines.append(
        f"{counted(benchmark.threads, 'thread')}, {counted(benchmark.new_tokens, 'new token')}, "
        f"{counted(benchmark.rounds, 'round')}, medians; kernels: {benchmark.kernels}; "
        f"this machine reads {benchmark.bandwidth_bytes_per_s / 1e9:.1f} GB/s"
    )
    return "\n".join(line.rstrip() for line in lines)


def _open(
    model: Path, threads: int, max_length: int, open_decoder: OpenDecoder
) -> tuple[Callable[[list[int]], int], Callable[[int], int], int, Callable[[int], int]]:
    """Return functions that read a prompt and append a token (both return the next), vocab_size, and a step's bytes."""
    if model.suffix.lower() == ".gguf":
        from export.runtime.llama_cpp import LlamaCpp

        other = LlamaCpp(model, threads=threads, max_length=max_length)
        return other.read, other.append, other.vocab_size, other.step_bytes
    decoder = open_decoder(model)
    if max_length > decoder.max_length:
        raise InputError(
            f"the longest prompt with its new tokens ({max_length}) must fit the model's context "
            f"({decoder.max_length}); give smaller --contexts"
        )
    weights = (read_manifest(model) or {}).get("measured", {}).get("step_bytes", folder_bytes(model))
    return (
        lambda prompt: int(decoder.start([prompt])[0].argmax()),
        lambda token: int(decoder.step(np.array([token]))[0].argmax()),
        decoder.model.vocab_size,
        lambda context: int(weights + decoder.model.position_bytes * context),
    )


def _name(model: Path) -> str:
    return model.stem if model.is_file() else model.resolve().name


def _figures(
    name: str, model: Path, rounds: Sequence[Round], contexts: Sequence[int], new_tokens: int, bandwidth: float
) -> ModelFigures:
    at_lengths = []
    for place, context in enumerate(contexts):
        prefill_s = median(r.prefill_s[place] for r in rounds)
        tokens_per_s = (new_tokens - 1) / median(r.decode_s[place] for r in rounds)
        at_lengths.append(
            AtLength(
                context=context,
                prefill_tokens_per_s=context / prefill_s,
                time_to_first_token_s=prefill_s,
                decode_tokens_per_s=tokens_per_s,
                bandwidth_share=rounds[0].step_bytes[place] * tokens_per_s / bandwidth,
            )
        )
    return ModelFigures(
        model=name,
        model_bytes=model.stat().st_size if model.is_file() else folder_bytes(model),
        load_s=median(r.load_s for r in rounds),
        at_lengths=at_lengths,
        peak_memory_bytes=int(median(r.peak_memory_bytes for r in rounds)),
        idle_memory_bytes=int(median(r.idle_memory_bytes for r in rounds)),
        idle_cpu_share=median(r.idle_cpu_share for r in rounds),
    )


def _ratios(ours: Sequence[Round], theirs: Sequence[Round], seconds: Callable[[Round], list[float]]) -> list[float]:
    """Compute how many times as fast ours is, for each length."""
    pairs = list(zip(ours, theirs, strict=True))
    lengths = range(len(seconds(ours[0])))
    return [median(seconds(other)[place] / seconds(our)[place] for our, other in pairs) for place in lengths]
