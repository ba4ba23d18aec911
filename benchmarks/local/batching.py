"""Tokens a second of continuous and of static batches, on answers of very different lengths.

    python -m benchmarks.local.batching [--model smollm2-135m] [--answers 96] [--rows 16] [--threads 1] [--peer]

Lengths are log-normal, as those of reasoning are: most answers are short, some are ten times as long. Each answer ends
at its length, whatever the model would say, so all ways write the same number of tokens: `continuous` replaces rows
that end (`distill.local.continuous`), `static` runs batch after batch, each to its longest row, without rows that have
ended (`toolkit.generation.generate.decode`), and `--peer` adds transformers' own `generate_batch`. Seconds are those
of this process's CPU time, beside which others may run. Prints one JSON line for each way.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from distill.local.causal_model import open_causal_model
from distill.local.continuous import complete_each
from toolkit.generation.generate import Decoder, Floats, Ints, Sampling, complete
from toolkit.model.decoder import TorchDecoder
from toolkit.sources.model_names import resolve

STOP = 0
SAMPLING = Sampling(temperature=0.6, top_p=0.95, max_new_tokens=1_000_000)


@dataclass(frozen=True)
class Answer:
    """A prompt, and how long its answer is."""

    prompt: list[int]
    seed: int
    length: int


class Ending:
    """Passes everything on to a decoder, and makes a stop token certain where an answer has its length."""

    def __init__(self, decoder: Decoder, answers: Sequence[Answer]) -> None:
        self.max_length = decoder.max_length
        self._decoder = decoder
        self._lengths = {tuple(answer.prompt): answer.length for answer in answers}
        self._left = np.empty(0, dtype=np.int64)

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        self._left = self._lengths_of(prompts)
        return self._ended(self._decoder.start(prompts), self._left)

    def step(self, tokens_B: Ints) -> Floats:
        self._left = self._left - 1
        return self._ended(self._decoder.step(tokens_B), self._left)

    def keep(self, rows: Ints) -> None:
        self._left = self._left[rows]
        self._decoder.keep(rows)

    def replace(self, rows: Ints, prompts: Sequence[Sequence[int]]) -> Floats:
        self._left[rows] = self._lengths_of(prompts)
        return self._ended(self._decoder.replace(rows, prompts), self._left[rows])

    def _lengths_of(self, prompts: Sequence[Sequence[int]]) -> Ints:
        return np.array([self._lengths[tuple(prompt)] for prompt in prompts])

    def _ended(self, logits_BV: Floats, left_B: Ints) -> Floats:
        logits_BV = logits_BV.copy()
        logits_BV[:, STOP] = np.where(left_B <= 1, 1e9, -1e9)
        return logits_BV


def draw_answers(count: int, longest: int) -> list[Answer]:
    generator = np.random.default_rng(0)
    lengths = generator.lognormal(4.0, 1.0, count).astype(int).clip(4, longest)
    prompts = [generator.integers(1000, 40_000, generator.integers(20, 120)).tolist() for _ in range(count)]
    answers = [
        Answer(prompt, seed, int(length)) for seed, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]
    return sorted(answers, key=lambda answer: -len(answer.prompt))


def continuous(decoder: TorchDecoder, answers: Sequence[Answer], rows: int) -> int:
    ending = Ending(decoder, answers)
    return sum(len(row.ids) for _, row in complete_each(ending, answers, SAMPLING, frozenset({STOP}), rows=rows))


def static(decoder: TorchDecoder, answers: Sequence[Answer], rows: int) -> int:
    ending, tokens = Ending(decoder, answers), 0
    for begin in range(0, len(answers), rows):
        batch = answers[begin : begin + rows]
        sampling = replace(SAMPLING, max_new_tokens=decoder.max_length)
        done = complete(ending, [one.prompt for one in batch], sampling, frozenset({STOP}), [one.seed for one in batch])
        tokens += sum(len(row.ids) for row in done)
    return tokens


def peer(decoder: TorchDecoder, answers: Sequence[Answer], rows: int) -> int:
    """Let transformers batch continuously; its rows share one random generator."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    config = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.95, top_k=0, eos_token_id=-1, pad_token_id=0, max_new_tokens=8192
    )
    batching = ContinuousBatchingConfig(max_batch_tokens=512, num_blocks=512, use_cuda_graph=False)
    manager = decoder.model.init_continuous_batching(config, batching)
    manager.start()
    for answer in answers:
        manager.add_request(answer.prompt, max_new_tokens=answer.length)
    tokens = sum(len(_next(manager).generated_tokens) for _ in answers)
    manager.stop(block=True)
    return tokens


def _next(manager: object) -> object:
    while (result := manager.get_result(timeout=60)) is None:  # type: ignore[attr-defined]
        pass
    return result


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, float | str]]:
    torch.set_num_threads(arguments.threads)
    decoder = open_causal_model(resolve(arguments.model))
    answers = draw_answers(arguments.answers, arguments.longest)
    ways = [continuous, static, *([peer] if arguments.peer else [])]
    for way in ways:
        begun, cpu = time.monotonic(), time.process_time()
        tokens = way(decoder, answers, arguments.rows)
        cpu_s, wall_s = time.process_time() - cpu, time.monotonic() - begun
        yield {
            "way": way.__name__,
            "rows": arguments.rows,
            "tokens": tokens,
            "longest": max(answer.length for answer in answers),
            "cpu_s": round(cpu_s, 1),
            "wall_s": round(wall_s, 1),
            "tokens_per_cpu_s": round(tokens / cpu_s, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--answers", type=int, default=96)
    parser.add_argument("--longest", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", action="store_true")
    for line in measure(parser.parse_args()):
        print(json.dumps(line))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
