"""Measures how much keys and values in int8 lose at each position, compared with exact ones.

    python -m benchmarks.export.cache_quality [--model runs/demo/student] [--out runs/cache]

The models are small Qwen2 models with random weights and biases like those of published ones, and any that you name.
Each is exported by the default recipe, calibrated on parts of Python's documentation; then it reads other parts as one
text of `POSITIONS`. At each position the float model in torch is compared with the exported one, which reads a few
tokens at a time, so that it attends almost only to its cache: with our kernels and with onnxruntime's. Writes the block
`cache` of docs/explanation/cache.md.

Shapes: T positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from benchmarks.export.documentation import documentation
from export.checks.parity import divergence
from export.pipeline import export_model
from export.presets import int4_config
from export.runtime.decoder import OnnxDecoder
from export.runtime.exported_model import Cache
from export.runtime.machine import processor_name
from toolkit.figures.readme import fill_file
from toolkit.figures.tables import markdown_table, percent
from toolkit.formats.chat_format import REASONING_TEMPLATE, TURN_END, TURN_START, ChatFormat, write_chat_files
from toolkit.model.decoder import load_model
from toolkit.records import write_records

DOCUMENT = Path("docs/explanation/cache.md")
RUNS: dict[str, tuple[Cache, bool]] = {
    "exact": ("exact", True),
    "int8": ("int8", True),
    "exact, onnxruntime's kernels": ("exact", False),
    "int8, onnxruntime's kernels": ("int8", False),
}
"""The cache, and whether our kernels run."""
POSITIONS = (0, 100, 300, 700, 2048, 8192)
BIASES, THETAS = (0.0, 3.0, 10.0, 30.0), (1e4, 1e6)
HEAD_DIM = 128
QUERY_BIAS = 1.0
TOLD = 0.1
"""Standard deviation of the weights that carry attended values into the stream: five times that of the others, so that
the logits depend on them."""
CALIBRATION_TOKENS = 3000
FEW_TOKENS = 16
"""Tokens read at a time; among more, onnxruntime's kernels would use each other's keys exactly."""
PIECE = 512
"""Positions whose distributions are in memory at once."""
Cell = tuple[float, float]
"""Mean KL and same first choice."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.export.cache_quality", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", type=Path, nargs="*", default=[], help="more models to measure")
    parser.add_argument("--out", type=Path, default=Path("runs/cache"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    traces = options.out / "topics.jsonl"
    write_records(traces, documentation())
    sources = {path.resolve().name: path for path in options.model}
    for theta, bias in product(THETAS, BIASES):
        folder = options.out / f"qwen2-theta-{theta:.0e}-biases-{bias:g}"
        if not folder.is_dir():
            write_qwen2(folder, rope_theta=theta, key_bias=bias)
        sources[f"theta {theta:.0e}, key biases {bias:g}"] = folder
    rows = {}
    for name, source in sources.items():
        config = int4_config(source, options.out / f"{source.name}-int4", calibration=traces)
        # no gate: losses are to be shown
        export_model(replace(config, bounds=None, calibration_tokens=CALIBRATION_TOKENS))
        rows[name] = measure(source, config.out)
    text = table(rows)
    print(text)
    fill_file(DOCUMENT, "cache", text)


def write_qwen2(folder: Path, *, rope_theta: float, key_bias: float) -> None:
    """Write a Qwen2 with random weights; `key_bias` is the standard deviation of its keys' biases."""
    texts = [example.answer for example in documentation()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", TURN_START, TURN_END]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=alphabet)
    )
    folder.mkdir(parents=True)
    write_chat_files(folder, tokenizer, template=REASONING_TEMPLATE, eos_token=TURN_END, pad_token=special[0])
    config = Qwen2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=2 * HEAD_DIM,
        intermediate_size=4 * HEAD_DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=POSITIONS[-1],
        rope_theta=rope_theta,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("k_proj.bias"):
            torch.nn.init.normal_(parameter, std=key_bias)
        elif name.endswith("q_proj.bias"):
            torch.nn.init.normal_(parameter, std=QUERY_BIAS)
        elif name.endswith(("v_proj.weight", "o_proj.weight", "embed_tokens.weight")):
            torch.nn.init.normal_(parameter, std=TOLD)
    model.save_pretrained(folder)


@torch.no_grad()
def measure(source: Path, exported: Path) -> dict[str, list[Cell]]:
    """Measure a cell for each of `RUNS` and each range of positions."""
    opened = {name: OnnxDecoder(exported, cache=cache, own_kernels=own) for name, (cache, own) in RUNS.items()}
    ids = long_text(ChatFormat.from_folder(source), min(POSITIONS[-1], opened["exact"].max_length))
    read = {name: log_probs(decoder, ids) for name, decoder in opened.items()}
    kl: dict[str, list[Tensor]] = {name: [] for name in RUNS}
    agrees: dict[str, list[Tensor]] = {name: [] for name in RUNS}
    for float_TV in float_log_probs(load_model(source, torch.float32), ids):
        for name, pieces in read.items():
            found_TV = next(pieces)
            kl[name].append(divergence(float_TV, found_TV))
            agrees[name].append(float_TV.argmax(-1) == found_TV.argmax(-1))
    return {name: cells(torch.cat(kl[name]), torch.cat(agrees[name])) for name in RUNS}


def cells(kl_T: Tensor, agrees_T: Tensor) -> list[Cell]:
    """Average over each range that the text reaches."""
    ranges = [(begin, end) for begin, end in pairwise(POSITIONS) if begin < len(kl_T)]
    return [(float(kl_T[begin:end].mean()), float(agrees_T[begin:end].float().mean())) for begin, end in ranges]


def long_text(chat_format: ChatFormat, length: int) -> list[int]:
    """Return text that calibration does not use: the documentation from its end."""
    ids: list[int] = []
    for example in reversed(documentation()):
        ids += chat_format.encode(example.answer)
        if len(ids) >= length:
            break
    return ids[:length]


def float_log_probs(model: PreTrainedModel, ids: list[int]) -> Iterator[Tensor]:
    """Yield the log-probabilities after each token, [T, V], piece by piece."""
    hidden_TD = model.base_model(torch.tensor([ids])).last_hidden_state[0]
    for piece_TD in hidden_TD.split(PIECE):
        yield model.get_output_embeddings()(piece_TD).log_softmax(-1)


def log_probs(decoder: OnnxDecoder, ids: list[int]) -> Iterator[Tensor]:
    """Yield the same for an exported folder that reads a few tokens at a time."""
    rows = [decoder.start([ids[:1]])]
    for begin in range(1, len(ids), FEW_TOKENS):
        rows.append(decoder.extend(ids[begin : begin + FEW_TOKENS]))
        read_TV = np.concatenate(rows) if sum(map(len, rows)) >= PIECE else None
        if read_TV is not None:
            yield torch.from_numpy(read_TV[:PIECE]).log_softmax(-1)
            rows = [read_TV[PIECE:]]
    yield torch.from_numpy(np.concatenate(rows)).log_softmax(-1)


def table(rows: dict[str, dict[str, list[Cell]]]) -> str:
    """Render KL and same first choice of each run, for each range, as Markdown."""
    cells = [["", "keys and values", *(f"{begin:,}–{end:,}" for begin, end in pairwise(POSITIONS))]]
    for name, measured in rows.items():
        for run, found in measured.items():
            shown = [f"{kl:.4f}, {percent(same)}" for kl, same in found]
            cells.append([name, run, *shown, *["–"] * (len(POSITIONS) - 1 - len(shown))])
    return f"{markdown_table(cells)}\n\n{processor_name()}."


if __name__ == "__main__":
    main()
