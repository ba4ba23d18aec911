"""Measures the memory that one long example takes in training, with and without what keeps it small.

    python -m benchmarks.training.long_examples [--rounds 1] [--variant NAME]

A random Llama of 4 layers, 128 wide, with SmolLM2's vocabulary makes one update on a single example, in a process for
each variant. The table shows the peak above what the process held with the loaded student, gradients and the
optimizer's state included. It fills the block `peak-memory` of `DOCUMENT`. It needs Linux, where a process can forget
an earlier peak.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.training.rounds import Variant, add_round_options, medians_of_rounds
from toolkit.figures.readme import fill_file
from toolkit.figures.tables import markdown_table
from toolkit.machine.peak_memory import peak_memory_bytes

DOCUMENT = Path("docs/how-to/train-larger-students.md")
BLOCK = "peak-memory"
NO_BOUND = 2**62
SHORT, LONG = 8192, 32_768


@dataclass(frozen=True, kw_only=True)
class MemoryVariant(Variant):
    """A way to train on one example."""

    tokens: int
    long_attention: bool = True
    chunked_head: bool = True
    checkpointing: bool = False
    nf4: bool = False


def _of(title: str, tokens: int, **more: bool) -> MemoryVariant:
    return MemoryVariant(title=title, is_ours=True, keeps_freed_memory=False, tokens=tokens, **more)


VARIANTS = {
    "kept": _of("all weights of attention and all logits kept", SHORT, long_attention=False, chunked_head=False),
    "attention": _of("torch's attention, which keeps none", SHORT, chunked_head=False),
    "head": _of("and the head in chunks", SHORT),
    "checkpointing": _of("and `--gradient-checkpointing`", SHORT, checkpointing=True),
    "long-head": _of("torch's attention, the head in chunks", LONG),
    "long-checkpointing": _of("and `--gradient-checkpointing`", LONG, checkpointing=True),
    "long-nf4": _of("and `--lora --quantization nf4`", LONG, checkpointing=True, nf4=True),
}


def measure(variant: MemoryVariant) -> dict[str, float]:
    """Make one update in this process; return the table's figures."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from distill.pipeline import demo
    from distill.training import completion_loss, document_attention
    from distill.training.completion_loss import IGNORED, LossForward
    from distill.training.optimizers.choice import make_adamw
    from distill.training.packed_rows import collate
    from distill.training.student import load_trainable
    from distill.training.train import _to_train

    if not variant.long_attention:
        document_attention.LONG = NO_BOUND
    # a chunk of 64 MB is to this model what one of 1 GB is to a real one
    completion_loss.LOGITS_BYTES = 2**26 if variant.chunked_head else NO_BOUND
    with tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=49_152,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=LONG,
            tie_word_embeddings=True,
        )
        LlamaForCausalLM(config).save_pretrained(scratch)
        plain = load_trainable(Path(scratch), "nf4" if variant.nf4 else "")
    model: Any = _to_train(plain, replace(demo().train, lora_rank=16 if variant.nf4 else 0))
    causal_lm = model.get_base_model() if variant.nf4 else model
    if variant.checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    forward = LossForward(causal_lm)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_adamw("adamw", [{"params": trained}], learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    ids = torch.randint(3, 49_152, (variant.tokens,)).tolist()
    batch = collate([{"input_ids": ids, "labels": [IGNORED, *ids[1:]]}])
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak of loading
    before = peak_memory_bytes()
    loss = forward(**batch)
    loss.backward()
    optimizer.step()
    return {
        "peak_bytes": peak_memory_bytes() - before,
        "loss": float(loss.detach()) / (variant.tokens - 1),
    }


def table(medians: dict[str, dict[str, float]]) -> str:
    """Render the result as Markdown."""
    rows = [["tokens of the example", "way", "memory above the loaded student, MB", "loss"]]
    for name, row in medians.items():
        variant = VARIANTS[name]
        rows.append([f"{variant.tokens:,}", variant.title, f"{row['peak_bytes'] / 1e6:,.0f}", f"{row['loss']:.4f}"])
    return markdown_table(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and fill it into the document, or with --variant print the JSON of one measurement."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.long_examples", description=__doc__.splitlines()[0]
    )
    add_round_options(parser, VARIANTS, rounds=1, steps=1)
    options = parser.parse_args(arguments)
    if options.variant:
        print(json.dumps([measure(VARIANTS[options.variant])]))
        return 0
    medians = medians_of_rounds(
        [__spec__.name], VARIANTS, options.rounds, lambda found: f"{found[-1]['peak_bytes'] / 1e6:,.0f} MB"
    )
    print(table(medians))
    fill_file(DOCUMENT, BLOCK, table(medians))
    return 0


if __name__ == "__main__":
    sys.exit(main())
