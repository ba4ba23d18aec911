"""From a model to a row of the ledger: the same frozen problems for teacher, base, student and int4 student.

Whatever the model, it gets the question in its own chat template, its answer is read by the same rules, and the
protocol is the same. A model whose template opens no reasoning is graded on everything it writes.

Two speeds are measured apart. `tokens_per_s` is what one person waits for: one stream, the prompt's reading left out,
a fixed number of tokens (end-of-text ignored, so that every model does the same work), median over the first few
problems, which are the same for every row. `batch_tokens_per_s` is what the evaluation itself ran at.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np

from distill.traces import sample_traces
from distill.verify import VERIFIER, VERSION, grade
from toolkit.chat_format import ChatFormat
from toolkit.errors import InputError
from toolkit.generate import GREEDY, Decoder, Sampling, decode
from toolkit.intervals import mean_interval
from toolkit.ledger import PROBLEMS, TRACES, VERDICTS, Evaluation, Score, correct_shares, read_evaluation
from toolkit.records import Problem, write_records
from toolkit.runs import Stage, finish, folder_digest, is_complete, partial_folder

SPEED_PROMPTS = 6
"""The first one warms up and is not counted."""
SPEED_TOKENS = 48
WEIGHT_SUFFIXES = (".safetensors", ".onnx", ".data", ".bin", ".gguf")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How every row of a ledger is measured."""

    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0, max_new_tokens=320))
    samples: int = 1
    batch_size: int = 64
    """Changes the time that an evaluation takes, not what it finds."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.batch_size < 1:
            raise InputError(f"samples ({self.samples}) and batch_size ({self.batch_size}) must be at least 1")
        if self.samples > 1 and self.sampling.temperature == 0.0:
            raise InputError(
                f"samples ({self.samples}) must be 1 where temperature is 0, since all would be equal; raise temperature"
            )


def evaluate_model(
    folder: Path, open_decoder: Callable[[Path], Decoder], problems: Sequence[Problem], config: EvalConfig, out: Path
) -> Evaluation:
    """Measure a model folder into the run folder `out`, or read the row where `out` holds it already.

    Broken off, it goes on where it stopped. Raises `FolderConflict` where `out` holds another run, `InputError` where
    the model folder has no tokenizer or template, or no room for the prompts.
    """
    stage = Stage(
        name="eval",
        config={"samples": config.samples, **asdict(config.sampling), "verifier": f"{VERIFIER} {VERSION}"},
        inputs={"model": folder_digest(folder), "problems": problems_digest(problems)},
    )
    if is_complete(out, stage):
        return read_evaluation(out)
    chat_format = ChatFormat.from_folder(folder)
    decoder = open_decoder(folder)
    partial = partial_folder(out, stage)
    write_records(partial / PROBLEMS, list(problems))
    evaluation = evaluate(decoder, chat_format, problems, config, partial, model=folder)
    finish(partial, out, stage, evaluation.to_dict())
    return evaluation


def evaluate(
    decoder: Decoder,
    chat_format: ChatFormat,
    problems: Sequence[Problem],
    config: EvalConfig,
    out: Path,
    *,
    model: Path,
) -> Evaluation:
    """Measure an open decoder; writes traces.jsonl and verdicts.jsonl into the existing folder `out`.

    `model` is the folder that the decoder was opened on: its name, digest and bytes go into the row.
    """
    digest = folder_digest(model)
    resumed = (out / TRACES).exists()
    started = time.perf_counter()
    traces = sample_traces(
        decoder,
        chat_format,
        problems,
        config.sampling,
        samples=config.samples,
        batch_size=config.batch_size,
        path=out / TRACES,
        teacher=f"{model.name}@{digest}",
        label=f"evaluating {model.name}",
    )
    sampling_s = time.perf_counter() - started
    by_id = {problem.id: problem for problem in problems}
    verdicts = [grade(by_id[trace.problem_id], trace) for trace in traces]
    write_records(out / VERDICTS, verdicts)
    completion_tokens = [trace.completion_tokens for trace in traces]
    shares = correct_shares(verdicts)
    return Evaluation(
        model=model.name,
        model_digest=digest,
        problems_digest=problems_digest(problems),
        problems=len(by_id),
        protocol={"samples": config.samples, **asdict(config.sampling)},
        accuracy=float(np.mean(list(shares.values()))),
        interval=mean_interval(list(shares.values())),
        families=family_scores(problems, shares),
        mean_reasoning_tokens=float(np.mean([trace.reasoning_tokens for trace in traces])),
        mean_completion_tokens=float(np.mean(completion_tokens)),
        truncation_rate=float(np.mean([verdict.reason == "truncated" for verdict in verdicts])),
        limit_rate=float(np.mean([trace.finish_reason == "length" for trace in traces])),
        tokens_per_s=decode_speed(decoder, [chat_format.question_ids(p.question) for p in problems[:SPEED_PROMPTS]]),
        batch_tokens_per_s=None if resumed else sum(completion_tokens) / sampling_s,
        batch_size=config.batch_size,
        bytes=weight_bytes(model),
    )


def family_scores(problems: Sequence[Problem], shares: dict[str, float]) -> dict[str, Score]:
    """Accuracy by family, families in the order in which the problems name them."""
    by_family = defaultdict(list)
    for problem in problems:
        by_family[problem.family].append(shares[problem.id])
    return {
        family: Score(accuracy=float(np.mean(values)), interval=mean_interval(values), problems=len(values))
        for family, values in by_family.items()
    }


def decode_speed(decoder: Decoder, prompts: Sequence[Sequence[int]]) -> float:
    """Tokens a second of one greedy stream after its first token; see the module's docstring."""
    rates = []
    for prompt in prompts:
        sampling = replace(GREEDY, max_new_tokens=SPEED_TOKENS)
        stamps = [time.perf_counter() for _ in decode(decoder, [prompt], sampling, frozenset())]
        rates.append((len(stamps) - 1) / (stamps[-1] - stamps[0]))
    return median(rates[1:] or rates)


def problems_digest(problems: Sequence[Problem]) -> str:
    """One digest for a test set, whatever the order of its problems."""
    lines = sorted(json.dumps(problem.to_dict(), sort_keys=True) for problem in problems)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def weight_bytes(folder: Path) -> int:
    """Bytes of the files that hold a model's weights."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.name.endswith(WEIGHT_SUFFIXES))
