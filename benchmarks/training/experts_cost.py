"""Measures the mixture of experts: three ways to balance it, and the cost of its step compared with a dense model's.

    python -m benchmarks.training.experts_cost [--steps 400] [--rows 4] [--rounds 5] [--preset nano] [--out docs/explanation]

The preset's shape is trained on the same chains from the same weights three times: balanced by a bias, by an auxiliary
loss, and not at all. Then one training step (forward and backward pass, no optimizer) is timed with each implementation
of the routed experts, and with dense layers of the width that a token activates; all take turns in one run. Writes
`experts.md` and its figure `experts.svg`.

N tokens, K experts per token, E experts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor, nn
from transformers import DeepseekV3ForCausalLM

from distill.problems.families import make_problems
from distill.teach.corpus import careful_texts
from distill.teach.supervised import packed
from distill.teach.teach import teacher_config
from distill.teach.teacher_recipe import PRESETS, TeachConfig, TeacherShape
from distill.training.completion_loss import labelled
from distill.training.optimizers.muon import MuonAdamW, split_parameters
from toolkit.figures.charts import WIDTH_IN, smoothed
from toolkit.figures.tables import markdown_table
from toolkit.formats.chat_format import ChatFormat
from toolkit.machine.allocator import keep_freed_memory
from toolkit.model import experts
from toolkit.model.balance import BIAS_UPDATE_RATE, ExpertBalance
from toolkit.model.precision import compute_dtype
from toolkit.progress import Progress
from toolkit.sources.model_names import resolve

SEED = 0
AUXILIARY_COEFFICIENT = 0.01
"""Switch Transformers (Fedus et al. 2021), section 2.2."""
LAST_SHARE = 0.1
"""The share of the last steps, over which the table averages."""
BALANCES = {
    "bias": ("by a bias (γ = 0.001)", "#2b6cb0"),
    "auxiliary": ("by an auxiliary loss (α = 0.01)", "#c05621"),
    "none": ("not at all", "#6b7280"),
}
DENSE = "dense, same active width"
IMPLEMENTATIONS = {
    "eager": "transformers' `eager`",
    "grouped_mm": "transformers' `grouped_mm` (its default)",
    experts.NAME: "**ours** (`toolkit/model/experts.py`)",
}
Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainingCurves:
    """The logged values of one training, one per step."""

    losses: list[float] = field(default_factory=list)
    violations: list[list[float]] = field(default_factory=list)
    """Each layer's MaxVio."""


class AuxiliaryLoss:
    """Switch's balance loss of all layers, from the routers' outputs in the last forward pass."""

    def __init__(self, model: nn.Module, balance: ExpertBalance) -> None:
        self._terms: list[Tensor] = []
        for router in balance.routers:
            router.register_forward_hook(lambda _, inputs, outputs: self._terms.append(imbalance(*outputs[::2])))

    def take(self) -> Tensor:
        terms, self._terms = self._terms, []
        return torch.stack(terms).sum()


def imbalance(logits_NE: Tensor, chosen_NK: Tensor) -> Tensor:
    """Compute Σ f_e·P_e, which is 1 if the load is even. f_e is the expert's share of the load × E, P_e its mean share
    of the scores (DeepSeek-V3 report, equations 17 to 20, over the batch; the loss of Switch Transformers, equations 4
    to 6)."""
    experts_count = logits_NE.shape[1]
    load_E = torch.bincount(chosen_NK.flatten(), minlength=experts_count)
    scores_NE = logits_NE.sigmoid()
    share_E = (scores_NE / scores_NE.sum(1, keepdim=True)).mean(0)
    return (experts_count * load_E / chosen_NK.numel() * share_E).sum()


def batches(config: TeachConfig, chat: ChatFormat, steps: int, rows: int) -> list[Batch]:
    """Make packed rows of worked conversations, with the loss on the completions."""
    needed, per_family = steps * rows, 16
    found: list[dict[str, list[int]]] = []
    while len(found) < needed:
        per_family *= 2
        texts = careful_texts(make_problems("train", per_family, SEED, config.families))
        turns = (labelled(*chat.training_ids(t.problem.messages, t.reasoning, t.answer)) for t in texts)
        fitting = [turn for turn in turns if len(turn["input_ids"]) <= config.row_tokens]
        found = packed(fitting, config.row_tokens, 0)
    tensors = [{name: torch.tensor(values) for name, values in row.items()} for row in found[:needed]]
    return [
        {name: torch.stack([row[name] for row in tensors[i : i + rows]]) for name in tensors[0]}
        for i in range(0, needed, rows)
    ]


def make_model(shape: TeacherShape, chat: ChatFormat, implementation: str) -> Any:
    torch.manual_seed(SEED)
    model: Any = DeepseekV3ForCausalLM(teacher_config(shape, chat)).train()
    model.set_experts_implementation(implementation)
    return model


def learn(
    kind: str, config: TeachConfig, chat: ChatFormat, data: Sequence[Batch], advance: Callable[[], None]
) -> TrainingCurves:
    """Train on each batch once, balanced by `kind`."""
    model, recipe, run = make_model(config.shape, chat, experts.NAME), config.pretrain, TrainingCurves()
    balance = ExpertBalance(model, rate=BIAS_UPDATE_RATE if kind == "bias" else 0.0)
    auxiliary = AuxiliaryLoss(model, balance) if kind == "auxiliary" else None
    optimizer = MuonAdamW(
        *split_parameters(model),
        matrix_lr=recipe.matrix_learning_rate,
        other_lr=recipe.learning_rate,
        weight_decay=config.weight_decay,
        betas=config.adam_betas,
    )
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / recipe.warmup_steps))
    for batch in data:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=compute_dtype() == torch.bfloat16):
            loss = model(**batch, use_cache=False).loss
        (loss + AUXILIARY_COEFFICIENT * auxiliary.take() if auxiliary else loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        warm_up.step()
        optimizer.zero_grad()
        balance.move_biases()
        run.losses.append(float(loss.detach()))
        run.violations.append(list(balance.last_violation))
        advance()
    return run


def dense_shape(shape: TeacherShape) -> TeacherShape:
    """Make all layers dense, with the width that a token activates in the mixture."""
    width = (shape.num_experts_per_tok + shape.n_shared_experts) * shape.moe_intermediate_size
    return replace(shape, first_k_dense_replace=shape.num_hidden_layers, intermediate_size=width)


def step_times(
    shape: TeacherShape, chat: ChatFormat, batch: Batch, dtype: torch.dtype, rounds: int
) -> dict[str, tuple[float, float]]:
    """Return the median milliseconds of the forward and the backward pass by variant; the first round does not count."""
    models = {DENSE: make_model(dense_shape(shape), chat, "eager")}
    models |= {name: make_model(shape, chat, name) for name in IMPLEMENTATIONS}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for turn in range(1 + rounds):
        for name, model in models.items():
            begun = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = model(**batch, use_cache=False).loss
            computed = time.perf_counter()
            loss.backward()
            ended = time.perf_counter()
            model.zero_grad()
            if turn:
                times[name].append((1e3 * (computed - begun), 1e3 * (ended - computed)))
    return {
        name: (statistics.median(first for first, _ in each), statistics.median(second for _, second in each))
        for name, each in times.items()
    }


def figure(runs: dict[str, TrainingCurves], path: Path) -> None:
    """Draw loss and MaxVio over the steps, on a white background: the file is shown on light and dark pages."""
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "experts", "font.size": 10}
    with rc_context(style | {"axes.spines.top": False, "axes.spines.right": False}):
        drawing = Figure(figsize=(WIDTH_IN, 5.2), layout="constrained", facecolor="white")
        upper, lower = drawing.subplots(2, 1, sharex=True)
        for kind, run in runs.items():
            name, color = BALANCES[kind]
            steps = range(1, len(run.losses) + 1)
            upper.plot(steps, smoothed(np.array(run.losses)), color=color, label=name)
            lower.plot(steps, np.array(run.violations), color=color, linewidth=0.5, alpha=0.35)
            lower.plot(steps, smoothed(np.array(run.violations).mean(1)), color=color, linewidth=2)
        upper.set_ylabel("loss (nats), smoothed")
        lower.set_ylabel("MaxVio: layers, and their mean")
        lower.set_xlabel("optimizer step")
        lower.set_ylim(bottom=0)
        for axes in (upper, lower):
            axes.grid(axis="y", color="#dddddd", linewidth=0.7)
        drawing.legend(loc="outside upper left", ncols=len(runs), frameon=False)
        drawing.savefig(path, format="svg", metadata={"Date": None})


def balance_table(runs: dict[str, TrainingCurves]) -> str:
    layers = range(1, 1 + len(next(iter(runs.values())).violations[0]))
    rows = [["balanced", "loss", "MaxVio, mean", *(f"layer {layer} of experts" for layer in layers)]]
    for kind, run in runs.items():
        last = -max(1, round(LAST_SHARE * len(run.losses)))
        by_layer = np.array(run.violations[last:]).mean(0)
        figures = [statistics.mean(run.losses[last:]), by_layer.mean(), *by_layer]
        rows.append([BALANCES[kind][0], *(f"{value:.3f}" for value in figures)])
    return markdown_table(rows)


def time_table(times: dict[str, dict[str, tuple[float, float]]]) -> str:
    rows = [["precision", "feed-forward layers", "forward, ms", "backward, ms", "× dense"]]
    for precision, by_variant in times.items():
        dense = sum(by_variant[DENSE])
        for name, (forward, backward) in by_variant.items():
            title = IMPLEMENTATIONS.get(name, name)
            ratio = (forward + backward) / dense
            rows.append([precision, title, f"{forward:.0f}", f"{backward:.0f}", f"{ratio:.2f}"])
    return markdown_table(rows)


PAGE = """# The mixture of experts

`toolkit teach` trains transformers' `DeepseekV3`: sigmoid scores, a bias that only affects the choice, groups masked with
−∞, weights from the unbiased scores, a shared expert. `tests/toolkit/test_experts.py` compares the layer with loops over tokens,
`tests/toolkit/test_balance.py` the bias with its formula. This page was written, on a machine that does nothing else, by

```sh
python -m benchmarks.training.experts_cost --steps {steps} --rows {rows} --rounds {rounds} --preset {preset}
```

## Balance

The shape of that preset ({n_routed_experts} experts, {num_experts_per_tok} per token) is trained three times from the same weights \
on the same batches ({rows} rows of {row_tokens} tokens, {steps} steps).
MaxVio is (greatest load − mean load) / mean load over the tokens of one update, padding included. The table shows means over the \
last {last:.0%} of the steps:

{balances}

![Loss and MaxVio over the steps, balanced by a bias, by an auxiliary loss and not at all](experts.svg)

- By a bias: after each update b_e += γ · sign(mean load − load_e), with the loads of all micro-batches and processes (Wang et al. \
2024; DeepSeek-V3 report, section 2.1.2). In training each log line has every layer's MaxVio (`max_violation_by_layer`).
- By an auxiliary loss: α Σ f_e·P_e a layer, over the batch (Switch Transformers, section 2.2, on V3's normalized scores). The loss \
shown is without it.

## The price of a step

The table shows the forward and backward pass of {timed_rows} rows of {row_tokens} tokens with {threads} threads, medians of {rounds} rounds in which \
the variants take turns.
The dense model has the same attention and, in every layer, the width that a token activates.

{times}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.experts_cost", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--steps", type=int, default=400, help="updates of each training; default: %(default)s")
    parser.add_argument("--rows", type=int, default=4, help="rows an update; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each variant; default: %(default)s")
    parser.add_argument("--preset", choices=PRESETS, default="nano", help="shape and recipe; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("docs/explanation"), help="folder; default: %(default)s")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    config, chat = PRESETS[options.preset](), ChatFormat.from_folder(resolve("builtin"))
    data = batches(config, chat, options.steps, options.rows)
    with Progress("train", len(BALANCES) * options.steps) as progress:
        runs = {kind: learn(kind, config, chat, data, progress.advance) for kind in BALANCES}
    timed_rows = config.pretrain.batch_size
    repeats = -(-timed_rows // options.rows)
    batch = {name: values.repeat(repeats, 1)[:timed_rows] for name, values in data[0].items()}
    times = {
        name: step_times(config.shape, chat, batch, dtype, options.rounds)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    options.out.mkdir(parents=True, exist_ok=True)
    figure(runs, options.out / "experts.svg")
    page = PAGE.format(
        **vars(options),
        n_routed_experts=config.shape.n_routed_experts,
        num_experts_per_tok=config.shape.num_experts_per_tok,
        row_tokens=config.row_tokens,
        last=LAST_SHARE,
        timed_rows=timed_rows,
        threads=torch.get_num_threads(),
        balances=balance_table(runs),
        times=time_table(times),
    )
    (options.out / "experts.md").write_text(page, encoding="utf-8")
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
