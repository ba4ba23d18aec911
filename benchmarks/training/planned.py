"""Compares what `toolkit plan` says with what training takes: peak memory and speed of runs of several kinds.

    python -m benchmarks.training.planned [--cases NAME …]

Each plan and each training is a process of its own. Students have random weights and SmolLM2's tokenizer; the examples
are worked problems. Speed is that of the updates after the first one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toolkit.figures.tables import markdown_table
from toolkit.machine.peak_memory import peak_memory_bytes
from toolkit.sources.model_names import resolve

UPDATES = 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training run to plan and to measure."""

    title: str
    shape: tuple[int, int, int, int, int] = (576, 1536, 30, 9, 3)
    """hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads."""
    train: Mapping[str, Any] = field(default_factory=dict)
    examples: int = 8
    joined: int = 1
    """How many worked problems make one example."""
    environment: Mapping[str, str] = field(default_factory=dict)


CASES = {
    "135m": Case(title="135M, all weights"),
    "135m-fp32": Case(title="135M, all weights, fp32", environment={"ATEN_CPU_CAPABILITY": "avx2"}),
    "135m-lora": Case(title="135M, LoRA of rank 32", train={"lora_rank": 32}),
    "135m-nf4": Case(title="135M, QLoRA", train={"lora_rank": 32, "quantization": "nf4"}),
    "135m-8bit": Case(title="135M, all weights, AdamW in 8 bits", train={"optimizer": "adamw_8bit"}),
    "135m-long": Case(
        title="135M, all weights, examples of 2,000 tokens, checkpointing",
        train={"gradient_checkpointing": True},
        examples=2,
        joined=14,
    ),
    "360m": Case(title="360M, all weights", shape=(960, 2560, 32, 15, 5)),
    "1.7b-lora": Case(
        title="1.7B, LoRA of rank 16", shape=(2048, 8192, 24, 32, 32), train={"lora_rank": 16}, examples=4
    ),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--measure", choices=("plan", "train"), help="measure one in this process and print JSON")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args(arguments)
    if options.measure:
        (name,) = options.cases
        print(json.dumps((_plan if options.measure == "plan" else _train)(CASES[name], options.folder)))
        return
    rows = [["training", "peak, GB", "planned", "tokens/s", "planned"]]
    for name in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            _write_student(CASES[name], Path(folder) / "student")
            planned, taken = (_measured(name, what, Path(folder)) for what in ("plan", "train"))
        rows.append(
            [
                CASES[name].title,
                f"{taken['peak'] / 1e9:.2f}",
                f"{planned['peak'] / 1e9:.2f} ({planned['peak'] / taken['peak'] - 1:+.0%})",
                f"{taken['speed']:.0f}",
                f"{planned['speed']:.0f} ({planned['speed'] / taken['speed'] - 1:+.0%})",
            ]
        )
        print(markdown_table(rows[:1] + rows[-1:]), flush=True)
    print(markdown_table(rows))


def _measured(name: str, what: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.training.planned", "--cases", name, "--measure", what]
    environment = os.environ | dict(CASES[name].environment)
    done = subprocess.run(
        [*command, "--folder", str(folder)], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _write_student(case: Case, folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, layers, heads, kv_heads = case.shape
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=49_152,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for file in resolve("smollm2-135m").glob("*token*"):
        shutil.copy(file, folder)
    shutil.copy(resolve("smollm2-135m") / "chat_template.jinja", folder)


def _examples(case: Case) -> list[Any]:
    from distill.problems.families import FAMILIES, make_problems, worked_example

    count = case.examples * case.joined
    made = [worked_example(problem) for problem in make_problems("train", -(-count // len(FAMILIES)), 0)][:count]
    return [
        replace(parts[0], reasoning="\n".join(part.reasoning for part in parts))
        for parts in (made[start : start + case.joined] for start in range(0, count, case.joined))
    ]


def _config(case: Case) -> Any:
    from distill.recipes.distill_recipe import shipped_recipe

    values = {"batch_examples": case.examples, "epochs": UPDATES, "log_every": 1, "trackers": (), **case.train}
    return replace(shipped_recipe().train, **values)


def _plan(case: Case, folder: Path) -> dict[str, float]:
    from distill.planning.training_plan import Examples, plan_training, shape_of
    from toolkit.voice.student_format import write_student_format

    (folder / "format").mkdir()
    chat_format = write_student_format(folder / "student", folder / "format")
    ids = [chat_format.training_ids(each.messages, each.reasoning, each.answer) for each in _examples(case)]
    found = plan_training(shape_of(str(folder / "student")), _config(case), Examples.tokenized(ids))
    assert found.tokens_per_s is not None, "the machine has room for these"
    return {"peak": found.footprint.peak, "speed": found.tokens_per_s}


def _train(case: Case, folder: Path) -> dict[str, float]:
    from distill.training.journal import LOSS
    from distill.training.train import train

    (folder / "run").mkdir()
    train(folder / "student", _examples(case), _config(case), folder / "run")
    lines = [json.loads(line) for line in (folder / "run" / LOSS).read_text().splitlines()]
    return {"peak": float(peak_memory_bytes()), "speed": lines[-1]["tokens_per_s"]}


if __name__ == "__main__":
    main()
