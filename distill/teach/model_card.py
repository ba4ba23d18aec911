"""Renders the model card of a teacher: what it is, how it was made, and its measured abilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.teach.stage_table import StageTable
from toolkit.figures.ledger import Evaluation
from toolkit.figures.tables import markdown_table

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# The built-in teacher

A small `DeepseekV3ForCausalLM` that thinks step by step inside `<think>` … `</think>` before it answers: multi-head
latent attention with low-rank queries and decoupled rotary positions, a first dense layer, then routed experts with a
shared one, balanced by a bias without an auxiliary loss. It knows the procedural tasks named below, a few requests that
it refuses or answers, and nothing else.

{shape}

## Training

Made by `toolkit teach --preset nano` from random weights in the stages of the DeepSeek-R1 report, on problems that
reasoning-gym draws and text that programs write in many habits (`distill/teach/corpus.py`); no other data. Test problems are
kept out by the hash of their question.

{stages}

## Evaluation

{problems} held-out problems, one greedy answer each of at most {limit} tokens, graded by each task's own scorer; 95 %
bootstrap intervals.

{families}

Mean reasoning {reasoning:.0f} tokens; truncated {truncated:.1%}; {bytes:.1f} MB of weights in bf16.

## What each stage does

{seeds} after one pretraining, the first of which is this model; {samples} at temperature {temperature} a problem and a
request; every figure is a mean with its 95 % bootstrap interval. "Harmful refused" should rise, "harmless refused" stay near 0.

{table}

## Limits

It answers questions in the wording and range of its tasks only; anything else gets a confident wrong answer. It is a
teacher for the toolkit's demonstration and tests, not an assistant.
"""
STAGE_HEAD = ("stage", "made from", "tokens", "last loss", "reward", "minutes since its last start")


def teacher_card(
    shape: Mapping[str, Any],
    stages: Mapping[str, Mapping[str, Any]],
    evaluation: Evaluation,
    table: StageTable,
    *,
    samples: int,
    temperature: float,
) -> str:
    """Render the card.

    `stages`: each stage's measurements, from its manifest; `samples` and `temperature`: those of the evaluations in
    `table`; `evaluation`: the model's row of a ledger.
    """
    low, high = evaluation.interval
    families = [
        (name, f"{score['accuracy']:.1%}", f"{score['interval'][0]:.1%} – {score['interval'][1]:.1%}")
        for name, score in evaluation.families.items()
    ]
    everything = ("**all**", f"**{evaluation.accuracy:.1%}**", f"{low:.1%} – {high:.1%}")
    return CARD.format(
        shape=", ".join(f"{name} {value}" for name, value in shape.items()) + ".",
        stages=markdown_table([STAGE_HEAD, *(_stage_cells(name, facts) for name, facts in stages.items())]),
        problems=evaluation.problems,
        samples=f"{samples} answers" if samples > 1 else "one answer",
        temperature=temperature,
        limit=evaluation.protocol["max_new_tokens"],
        families=markdown_table([("family", "accuracy", "interval"), *families, everything]),
        reasoning=evaluation.mean_reasoning_tokens,
        truncated=evaluation.truncation_rate,
        bytes=evaluation.bytes / 1e6,
        seeds=f"{table.seeds} seeds" if table.seeds > 1 else "One seed",
        table=table.markdown(),
    )


def _stage_cells(name: str, facts: Mapping[str, Any]) -> tuple[str, ...]:
    if not facts:  # a given base
        return (name, "a model that was given", "–", "–", "–", "–")
    reinforced = "preflight_reward" in facts
    source = f"{facts['updates']:,} updates" if reinforced else f"{facts['examples']:,} texts"
    reward = f"{facts['preflight_reward']:.2f} → {facts['final_reward']:.2f}" if reinforced else "–"
    figures = (f"{facts['tokens']:,}", f"{facts['final_loss']:.3f}", reward, f"{facts['seconds'] / 60:.0f}")
    return (name, source, *figures)
