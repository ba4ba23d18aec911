"""`toolkit bench DIR`: how fast the runner is on this machine and how much memory it takes.

Every round reads one prompt and then decodes greedily, in a fresh process, because peak memory belongs to a process and
never goes down again. Figures are medians over the rounds after a first one that warms the file cache.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from export.session import OnnxDecoder, physical_cores
from toolkit.progress import Progress
from toolkit.records import Record
from toolkit.runs import folder_bytes


@dataclass(frozen=True, kw_only=True)
class Round:
    """One process's measurements."""

    load_s: float
    time_to_first_token_s: float
    decode_s: float
    peak_memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Benchmark(Record):
    """Medians over the rounds. Time to first token starts when the model is loaded."""

    prompt_tokens: int
    new_tokens: int
    rounds: int
    threads: int
    folder_bytes: int
    load_s: float
    prefill_tokens_per_s: float
    time_to_first_token_s: float
    decode_tokens_per_s: float
    peak_memory_bytes: int


def run_benchmark(folder: Path, *, prompt_tokens: int = 128, new_tokens: int = 128, rounds: int = 3) -> Benchmark:
    """Measure an exported folder. Raises `InputError` where it cannot be opened or the lengths don't fit its context."""
    measured: list[Round] = []
    with Progress("bench, rounds", rounds + 1) as progress:
        for _ in range(rounds + 1):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
                measured.append(executor.submit(measure_round, folder, prompt_tokens, new_tokens).result())
            progress.advance()
    warm = measured[1:]
    first_token_s = median(r.time_to_first_token_s for r in warm)
    return Benchmark(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
        threads=physical_cores(),
        folder_bytes=folder_bytes(folder),
        load_s=median(r.load_s for r in warm),
        prefill_tokens_per_s=prompt_tokens / first_token_s,
        time_to_first_token_s=first_token_s,
        decode_tokens_per_s=(new_tokens - 1) / median(r.decode_s for r in warm),
        peak_memory_bytes=int(median(r.peak_memory_bytes for r in warm)),
    )


def measure_round(folder: Path, prompt_tokens: int, new_tokens: int) -> Round:
    """Load, read a prompt of that many tokens, decode that many; runs in a process of its own."""
    started = time.perf_counter()
    decoder = OnnxDecoder(folder)
    loaded = time.perf_counter()
    prompt = np.random.default_rng(0).integers(0, decoder.config.vocab_size, prompt_tokens).tolist()
    logits_BV = decoder.start([prompt])
    first_token = time.perf_counter()
    for _ in range(new_tokens - 1):
        logits_BV = decoder.step(logits_BV.argmax(-1))
    return Round(
        load_s=loaded - started,
        time_to_first_token_s=first_token - loaded,
        decode_s=time.perf_counter() - first_token,
        peak_memory_bytes=_peak_memory_bytes(),
    )


def table(benchmark: Benchmark) -> str:
    """The figures as lines for a terminal."""
    rows = (
        ("load", f"{benchmark.load_s:.2f} s"),
        ("prefill", f"{benchmark.prefill_tokens_per_s:.0f} tokens/s ({benchmark.prompt_tokens} tokens)"),
        ("time to first token", f"{benchmark.time_to_first_token_s:.3f} s"),
        ("decode", f"{benchmark.decode_tokens_per_s:.0f} tokens/s ({benchmark.new_tokens} tokens)"),
        ("peak memory", f"{benchmark.peak_memory_bytes / 1e6:.0f} MB"),
        ("folder", f"{benchmark.folder_bytes / 1e6:.0f} MB"),
        ("threads", str(benchmark.threads)),
        ("rounds", f"{benchmark.rounds}, medians"),
    )
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


def _peak_memory_bytes() -> int:
    """Linux's getrusage counts what the parent had before exec; /proc starts anew with the program."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
