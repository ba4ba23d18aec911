"""Plans students of 7B, 14B and 32B on paper, beside what others publish, for docs/how-to/plan.md.

    python -m benchmarks.training.paper_plans

One example of 2,048 tokens on each GPU, computed again in the backward pass; adapters of rank 16 on all linear layers;
AdamW with fp32 masters and moments. Nothing is trained. Published figures are those of the pages named in the document.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distill.planning.devices import device
from distill.planning.footprint import Footprint, PackedRow, footprint
from distill.planning.training_plan import equal_examples, plan_training, shape_of
from distill.recipes.distill_recipe import shipped_recipe
from toolkit.figures.readme import fill_file
from toolkit.figures.tables import markdown_table

DOCUMENT = Path("docs/how-to/plan.md")
GB = 1e9
TOKENS, TRAINED = 2048, 1740
BASE = replace(shipped_recipe().train, gradient_checkpointing=True, batch_examples=1, row_tokens=4096)
GPUS = (24, 48, 80)
"""In GB; the plan may take all of them."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to train, and how many GPUs divide the student."""

    name: str
    settings: dict[str, Any]
    shards: int = 1


WAYS = (
    Way(name="QLoRA", settings={"lora_rank": 16, "quantization": "nf4"}),
    Way(name="LoRA", settings={"lora_rank": 16}),
    Way(name="full", settings={}),
    Way(name="full, on 8", settings={}, shards=8),
)
PUBLISHED = {  # LLaMA-Factory (estimates for 7B, 14B, 30B) and Unsloth (absolute minimum), in GB
    ("7B", "QLoRA"): ("6", "5"),
    ("7B", "LoRA"): ("16", "19"),
    ("7B", "full"): ("120", "–"),
    ("14B", "QLoRA"): ("12", "8.5"),
    ("14B", "LoRA"): ("32", "33"),
    ("14B", "full"): ("240", "–"),
    ("32B", "QLoRA"): ("24 (30B)", "26"),
    ("32B", "LoRA"): ("64 (30B)", "76"),
    ("32B", "full"): ("600 (30B)", "–"),
}
TORCHTUNE = {"QLoRA": (7.4, 2413), "LoRA": (16.2, 3083)}
"""Peak memory in GiB and tokens/s of Llama 3.1 8B on one RTX 4090, two sequences of 2,048 tokens."""


def planned(name: str, settings: dict[str, Any], *, tokens: int, trained: int, shards: int = 1) -> Footprint:
    row = PackedRow(lengths=(TOKENS,) * (tokens // TOKENS), trained_tokens=trained)
    train = replace(BASE, **settings)
    return footprint(
        shape_of(name),
        train,
        torch.bfloat16,
        row,
        rows=1,
        shards=shards,
        on_gpu=True,
    )


def sizes() -> str:
    rows = [["student", "way", "GB on each GPU", "fits", "weights", "optimizer", "LLaMA-Factory", "Unsloth"]]
    for size in ("7B", "14B", "32B"):
        for way in WAYS:
            found = planned(
                f"Qwen/Qwen2.5-{size}-Instruct", way.settings, tokens=TOKENS, trained=TRAINED, shards=way.shards
            )
            gpu = next((f"{gb} GB" for gb in GPUS if found.peak <= gb * GB), "–")
            fits = f"{way.shards} × {gpu}" if way.shards > 1 and gpu != "–" else gpu
            parts = [f"{value / GB:,.1f}" for value in (found.weights, found.optimizer)]
            rows.append(
                [size, way.name, f"{found.peak / GB:,.1f}", fits, *parts, *PUBLISHED.get((size, way.name), ("–", "–"))]
            )
    return markdown_table(rows)


def torchtune() -> str:
    """Compare with torchtune's measured speed and memory, which leaves the CUDA context out."""
    name, gpu = "meta-llama/Llama-3.1-8B-Instruct", device("RTX 4090")
    rows = [["Llama 3.1 8B on an RTX 4090", "GB, torchtune", "GB, planned", "tokens/s, torchtune", "tokens/s, planned"]]
    for way, (gib, speed) in TORCHTUNE.items():
        settings = next(each for each in WAYS if each.name == way).settings | {"lora_rank": 8}
        found = planned(name, settings, tokens=2 * TOKENS, trained=2 * TOKENS)
        train = replace(BASE, batch_examples=2, **settings)
        plan = plan_training(shape_of(name), train, equal_examples(100, TOKENS), gpu=gpu)
        memory = (found.peak - found.program) / GB
        rows.append([way, f"{gib * 2**30 / GB:.1f}", f"{memory:.1f}", f"{speed:,}", f"{plan.tokens_per_s:,.0f}"])
    return markdown_table(rows)


def main() -> None:
    for block, table in (("plans-on-paper", sizes()), ("plan-torchtune", torchtune())):
        print(table, end="\n\n")
        fill_file(DOCUMENT, block, table)


if __name__ == "__main__":
    main()
