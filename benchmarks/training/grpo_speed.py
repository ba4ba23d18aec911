"""Measures a step of GRPO against TRL's own trainer: same weights, prompts, sizes and precision, taking turns.

    python -m benchmarks.training.grpo_speed [--rounds 3] [--steps 3] [--out docs/notes/reinforcement.md]

TRL's `GRPOTrainer` runs unchanged, on transformers' stock modules and `model.generate`, with the same arguments as
ours. No completion may end early, so that both sample the same number of tokens: end-of-text is disabled, and text
after an answer costs as much as any other. (So our advantage in real runs, where finished rows leave the batch, does
not show.) Ours draws no group again.

Each measurement is a process of its own, since the allocator's settings belong to a process; its first steps are not
timed. Sampling is the decoding alone, rewards are computed by the same functions, and training is the rest of a step:
both log-probabilities, the loss, its gradient and the update.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.training.rounds import Variant, add_round_options, at_each_step, medians_of_rounds
from toolkit.figures.readme import fill_file
from toolkit.figures.tables import markdown_table
from toolkit.sources.model_names import resolve

if TYPE_CHECKING:
    from distill.reinforcement.grpo import GrpoConfig
    from toolkit.records import Problem

BLOCK = "grpo-speed"
"""The block to fill in the file that --out names."""
WARM_UP_STEPS = 1
"""Untimed first steps, which allocate memory, meet new shapes and make the optimizer's state."""
SEED = 7


VARIANTS = {
    "trl": Variant(title="TRL's GRPOTrainer on stock modules", is_ours=False, keeps_freed_memory=False),
    "trl-kept": Variant(title="the same, and freed memory kept", is_ours=False, keeps_freed_memory=True),
    "ours": Variant(title="**ours**", is_ours=True, keeps_freed_memory=True),
}
PARTS = ("sampling", "rewards")


@dataclass(frozen=True, kw_only=True)
class StepSize:
    """The size of a step: groups, completions per group, tokens per completion."""

    groups: int
    group_size: int
    tokens: int


class Stopwatch:
    """Sums the seconds spent in calls, by name, and notes them after each step; a nested call counts only once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.ended: list[dict[str, float]] = []

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun, before = time.monotonic(), sum(self.seconds.values())
            try:
                return call(*args, **kwargs)
            finally:
                inside = sum(self.seconds.values()) - before
                self.seconds[name] += time.monotonic() - begun - inside

        return timed

    def end_step(self) -> None:
        self.ended.append({"step": time.monotonic()} | {name: self.seconds[name] for name in PARTS})

    def steps(self) -> list[dict[str, float]]:
        """Return the seconds of each timed step and of its parts."""
        pairs = zip(self.ended[WARM_UP_STEPS - 1 :], self.ended[WARM_UP_STEPS:], strict=False)
        found = [{name: after[name] - before[name] for name in after} for before, after in pairs]
        return [step | {"training": step["step"] - sum(step[name] for name in PARTS)} for step in found]


def measure(variant: Variant, model: Path, size: StepSize, steps: int) -> list[dict[str, float]]:
    """Train `steps` timed steps in this process; return the seconds of each step."""
    from distill.problems.families import FAMILIES, make_problems
    from distill.teach.teacher_recipe import nano
    from toolkit.machine.allocator import keep_freed_memory

    if variant.keeps_freed_memory:
        keep_freed_memory()
    completions = size.groups * size.group_size
    config = replace(
        nano().reason_rl,
        steps=WARM_UP_STEPS + steps,
        groups=size.groups,
        group_size=size.group_size,
        micro_batch=completions,
        max_new_tokens=size.tokens,
        attempts=1,
        seed=SEED,
    )
    problems = make_problems("train", -(-config.steps * config.groups // len(FAMILIES)), SEED)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as scratch:
        make = _our_trainer if variant.is_ours else _stock_trainer
        trainer = make(model, problems, config, Path(scratch), watch)
        at_each_step(trainer, watch.end_step)
        trainer.train()
        lengths = [log["completions/mean_length"] for log in trainer.state.log_history if "loss" in log]
    assert lengths == [size.tokens] * config.steps, "every completion must have the same length"
    return watch.steps()


def table(medians: dict[str, dict[str, float]]) -> str:
    """Render the result as Markdown."""
    stock = medians["trl"]["step"]
    rows = [["trainer", "s a step", *PARTS, "training", "× as fast"]]
    for name, row in medians.items():
        seconds = (row[part] for part in ("step", *PARTS, "training"))
        rows.append([VARIANTS[name].title, *(f"{value:.2f}" for value in (*seconds, stock / row["step"]))])
    return markdown_table(rows)


def caption(size: StepSize, rounds: int, steps: int) -> str:
    """Describe what the table shows."""
    import torch

    from toolkit.runs import versions

    used = versions()
    return (
        f"Medians of {rounds} × {steps} steps: {size.groups} groups of {size.group_size} completions of {size.tokens} "
        f"tokens, {torch.get_num_threads()} threads, torch {used['torch']}, transformers {used['transformers']}, "
        f"TRL {used['trl']}."
    )


def _our_trainer(model: Path, problems: Sequence[Problem], config: GrpoConfig, folder: Path, watch: Stopwatch) -> Any:
    """Make our trainer as `distill.teach.teach` does, but with end-of-text disabled in its sampler."""
    import torch

    from distill.reinforcement.grpo import make_trainer
    from toolkit.model.balance import ExpertBalance
    from toolkit.model.decoder import load_model
    from toolkit.model.experts import compute_experts

    loaded = load_model(model, torch.float32)
    compute_experts(loaded)
    trainer = make_trainer(loaded, model, problems, config, folder, callbacks=[ExpertBalance(loaded, rate=0.0)])
    sampler = trainer._sampler
    sampler._chat_format.stop_ids = frozenset()
    setattr(sampler, "groups", watch.around("sampling", sampler.groups))  # noqa: B010 - it is a method
    setattr(sampler, "_parts", watch.around("rewards", sampler._parts))  # noqa: B010
    return trainer


def _stock_trainer(model: Path, problems: Sequence[Problem], config: GrpoConfig, folder: Path, watch: Stopwatch) -> Any:
    """Make TRL's trainer with the same rewards; its end-of-text is a token beyond the model's vocabulary."""
    import torch
    from datasets import Dataset
    from huggingface_hub import constants
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.grpo_trainer import GRPOTrainer

    from distill.reinforcement.grpo import REWARDS, trainer_arguments

    constants.HF_HUB_DISABLE_TELEMETRY = True
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True)
    loaded.generation_config.eos_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True, padding_side="left")
    tokenizer.add_special_tokens({"eos_token": "<|never|>"})
    assert tokenizer.eos_token_id >= loaded.config.vocab_size

    def reward(completions: list[Any], index: list[int], **kwargs: Any) -> list[float]:
        texts = [turns[0]["content"] for turns in completions]
        return [
            sum(weight * REWARDS[name](problems[i], text) for name, weight in config.weights.items())
            for i, text in zip(index, texts, strict=True)
        ]

    rows = [
        {"prompt": [{"role": "user", "content": problem.question}], "index": index}
        for index, problem in enumerate(problems)
    ]
    trainer = GRPOTrainer(
        model=loaded,
        reward_funcs=watch.around("rewards", reward),
        args=trainer_arguments(config, folder),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    setattr(trainer, "_generate_single_turn", watch.around("sampling", trainer._generate_single_turn))  # noqa: B010
    return trainer


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and write it to --out, or with --variant print the JSON of one measurement."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.grpo_speed", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", default="builtin", help="model to reinforce; default: %(default)s")
    parser.add_argument("--groups", type=int, default=16, help="problems a step; default: %(default)s")
    parser.add_argument("--group-size", type=int, default=8, help="completions a problem; default: %(default)s")
    parser.add_argument("--tokens", type=int, default=80, help="of each completion; default: %(default)s")
    add_round_options(parser, VARIANTS, rounds=3, steps=3)
    parser.add_argument("--out", type=Path, help=f"Markdown file whose block {BLOCK} gets the table")
    options = parser.parse_args(arguments)
    model = resolve(options.model)
    size = StepSize(groups=options.groups, group_size=options.group_size, tokens=options.tokens)
    if options.variant:
        print(json.dumps(measure(VARIANTS[options.variant], model, size, options.steps)))
        return 0
    sizes = [f"--groups={size.groups}", f"--group-size={size.group_size}", f"--tokens={size.tokens}"]
    medians = medians_of_rounds(
        [__spec__.name, "--model", str(model), *sizes, f"--steps={options.steps}"],
        VARIANTS,
        options.rounds,
        lambda found: " ".join(f"{step['step']:.1f}" for step in found) + " s a step",
    )
    text = f"{table(medians)}\n\n{caption(size, options.rounds, options.steps)}"
    print(text)
    if options.out is not None:
        fill_file(options.out, BLOCK, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
