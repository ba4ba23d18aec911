"""Measures how fast the student trains, compared with TRL's trainer: same model, same token ids, taking turns.

    python -m benchmarks.training.student_speed [--student smollm2-135m] [--rounds 3] [--steps 6]
                                                [--system-words 0] [--samples 1] [--batch-examples 16]
                                                [--variants defaults,best,best-padding-free,ours …]

Each variant trains in a process of its own (the allocator's settings belong to a process), the variants take turns, and
the table shows medians over the rounds. Tokens/s counts real tokens, prompts included, padding excluded, over whole
steps (loading, forward, backward, clipping, optimizer) after the first two; tokens per CPU second relate them to the
process' own computing time. The table also has the loss of the first step: variants of one batch size see the same
batch, so they must agree on it.

TRL is measured with its defaults and with its best settings: weights in the machine's fast format without autocast, no
checkpointing, PyTorch's fused AdamW (its default), the loss in chunks (its default), freed memory kept, and a batch
padded or flattened into one row without padding, of which the faster counts. `--system-words` gives all examples a
system message of about so many tokens, and `--samples` several answers to each question, as domains and teachers do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.training.rounds import Variant, add_round_options, at_each_step, medians_of_rounds
from toolkit.figures.tables import markdown_table
from toolkit.machine.peak_memory import peak_memory_bytes
from toolkit.sources.model_names import resolve

WARM_UP_STEPS = 2
"""Untimed first steps, which allocate memory, meet new shapes and make the optimizer's state."""


@dataclass(frozen=True, kw_only=True)
class StudentVariant(Variant):
    """A way to train the student."""

    batch_examples: int
    attention: str
    shares: bool = True
    """Whether ours computes once what examples of a row begin with."""
    best: bool = False
    """Whether TRL gets the best settings that it has for this machine."""
    padding_free: bool = False


_DEFAULTS = StudentVariant(
    title="SFTTrainer, its defaults", is_ours=False, batch_examples=8, keeps_freed_memory=False, attention="sdpa"
)
_BEST = replace(
    _DEFAULTS, title="SFTTrainer, its best settings, padded", batch_examples=16, keeps_freed_memory=True, best=True
)
_OURS = StudentVariant(
    title="**ours**", is_ours=True, batch_examples=16, keeps_freed_memory=True, attention="documents"
)
VARIANTS = {
    "defaults": _DEFAULTS,
    "defaults-16": replace(_DEFAULTS, title="the same, batch of 16", batch_examples=16),
    "defaults-kept": replace(
        _DEFAULTS, title="the same, and freed memory kept", batch_examples=16, keeps_freed_memory=True
    ),
    "best": _BEST,
    "best-padding-free": replace(_BEST, title="the same, padding-free", padding_free=True),
    "ours-unkept": replace(_OURS, title="ours, freed memory not kept", keeps_freed_memory=False),
    "ours-sdpa": replace(_OURS, title="ours, torch's attention", attention="sdpa"),
    "ours-whole": replace(_OURS, title="ours, nothing shared", shares=False),
    "ours": _OURS,
}


def measure(
    variant: StudentVariant, student: Path, steps: int, *, system_words: int = 0, samples: int = 1
) -> dict[str, float]:
    """Train `steps` timed steps in this process; return the table's figures."""
    from toolkit.machine.allocator import keep_freed_memory
    from toolkit.voice.student_format import write_student_format

    if variant.keeps_freed_memory:
        keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        chat_format = write_student_format(student, folder)
        examples = _examples(variant.batch_examples * (WARM_UP_STEPS + steps), system_words, samples)
        lengths = [len(chat_format.training_ids(e.messages, e.reasoning, e.answer)[0]) for e in examples]
        make = _our_trainer if variant.is_ours else _trl_trainer
        trainer = make(variant, student, examples, folder)
        ended: list[tuple[float, float]] = []
        at_each_step(trainer, lambda: ended.append((time.monotonic(), time.process_time())))
        trainer.train()
        seconds, cpu_seconds = np.subtract(ended[-1], ended[WARM_UP_STEPS - 1]).tolist()
        tokens = statistics.mean(lengths) * variant.batch_examples * steps
        first_loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return {
        "tokens_per_s": tokens / seconds,
        "tokens_per_cpu_s": tokens / cpu_seconds,
        "peak_bytes": peak_memory_bytes(),
        "first_loss": first_loss,
    }


def table(medians: dict[str, dict[str, float]]) -> str:
    """Render the result as Markdown."""
    base = next(iter(medians.values()))["tokens_per_s"]
    rows = [["variant", "tokens/s", "× the first", "tokens a CPU second", "peak memory, GB", "first loss"]]
    for name, row in medians.items():
        rate = row["tokens_per_s"]
        figures = (f"{rate:.0f}", f"{rate / base:.2f}", f"{row['tokens_per_cpu_s']:.0f}")
        rows.append([VARIANTS[name].title, *figures, f"{row['peak_bytes'] / 1e9:.1f}", f"{row['first_loss']:.4f}"])
    return markdown_table(rows)


def _examples(count: int, system_words: int, samples: int) -> list[Any]:
    """Return chains of thought that our program writes, of all families."""
    from distill.problems.families import FAMILIES, make_problems, worked_example

    problems = make_problems("train", -(-count // len(FAMILIES)), 0)
    examples = [worked_example(problem) for problem in problems[:count]]
    if system_words:
        said = {"role": "system", "content": " ".join(["Answer", "each", "question", "with", "care."] * system_words)}
        said["content"] = " ".join(said["content"].split()[:system_words])
        examples = [replace(example, history=[said]) for example in examples]
    if samples > 1:  # the same question with the thoughts of others, which are as long
        asked = [examples[n - n % samples] for n in range(count)]
        examples = [
            replace(example, question=one.question, history=one.history)
            for example, one in zip(examples, asked, strict=True)
        ]
    return examples


def _our_trainer(variant: StudentVariant, student: Path, examples: Sequence[Any], folder: Path) -> Any:
    from transformers import AutoTokenizer

    from distill.pipeline import demo
    from distill.training.packed_rows import batch_of
    from distill.training.student import load_student
    from distill.training.train import StudentTrainer, tokenize, trainer_arguments
    from toolkit.formats.chat_format import ChatFormat

    config = replace(demo().train, batch_examples=variant.batch_examples, log_every=1)
    chat_format = ChatFormat.from_folder(folder)
    model = load_student(student, chat_format)
    model.set_attn_implementation(variant.attention)
    trainer = StudentTrainer(
        model,
        config,
        args=trainer_arguments(config, folder),
        train_dataset=tokenize(examples, chat_format),
        processing_class=AutoTokenizer.from_pretrained(folder, local_files_only=True),
    )
    if not variant.shares:
        trainer.data_collator = partial(batch_of, row_tokens=config.row_tokens)
    return trainer


def _trl_trainer(variant: StudentVariant, student: Path, examples: Sequence[Any], folder: Path) -> Any:
    """Make an unchanged `SFTTrainer`; only the processor is set, that it reports to no one, and the best settings."""
    import torch
    from datasets import Dataset
    from huggingface_hub import constants
    from transformers import AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from toolkit.formats.chat_format import ChatFormat
    from toolkit.model.precision import compute_dtype

    constants.HF_HUB_DISABLE_TELEMETRY = True
    chat_format = ChatFormat.from_folder(folder)
    pairs = [chat_format.training_ids(e.messages, e.reasoning, e.answer) for e in examples]
    dataset = Dataset.from_dict(
        {"input_ids": [ids for ids, _ in pairs], "completion_mask": [[int(m) for m in mask] for _, mask in pairs]}
    )
    settings: dict[str, Any] = {}
    if variant.best:
        dtype = str(compute_dtype()).removeprefix("torch.")
        settings = {"model_init_kwargs": {"dtype": dtype}, "bf16": False, "gradient_checkpointing": False}
        settings |= {"padding_free": variant.padding_free, "max_length": None}
    arguments = SFTConfig(
        output_dir=str(folder / "defaults"),
        use_cpu=not torch.cuda.is_available(),
        per_device_train_batch_size=variant.batch_examples,
        num_train_epochs=1,
        completion_only_loss=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
        data_seed=0,
        **settings,
    )
    return SFTTrainer(
        model=str(student),
        args=arguments,
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(folder, local_files_only=True),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, or with --variant the JSON of one measurement."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.student_speed", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--student", default="smollm2-135m", help="model to train; default: %(default)s")
    parser.add_argument("--system-words", type=int, default=0, help="of a system message; default: %(default)s")
    parser.add_argument("--samples", type=int, default=1, help="answers to each question; default: %(default)s")
    parser.add_argument("--batch-examples", type=int, default=0, help="of all variants; default: each its own")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="those to measure; default: all")
    add_round_options(parser, VARIANTS, rounds=3, steps=6)
    options = parser.parse_args(arguments)
    student = resolve(options.student)
    texts = {"system_words": options.system_words, "samples": options.samples}
    if options.variant:
        variant = VARIANTS[options.variant]
        if options.batch_examples:
            variant = replace(variant, batch_examples=options.batch_examples)
        print(json.dumps([measure(variant, student, options.steps, **texts)]))
        return 0
    command = [__spec__.name, "--student", str(student), "--steps", str(options.steps)]
    for name in ("system_words", "samples", "batch_examples"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    medians = medians_of_rounds(
        command, options.variants.split(","), options.rounds, lambda found: f"{found[-1]['tokens_per_s']:.0f} tokens/s"
    )
    print(table(medians))
    return 0


if __name__ == "__main__":
    sys.exit(main())
