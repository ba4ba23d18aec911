"""Measures what a smaller latent cache changes in a model's next tokens, its answers, and a random layer's output.

Next tokens are compared along a model's own traces, each token fed as it was sampled, so that an early difference does
not count again; answers are those of `toolkit eval`, which runs as a separate process.
"""

# Shapes: B batch, T tokens of the answers, V vocabulary.

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.model.cache import make_cache
from toolkit.model.decoder import TorchDecoder
from toolkit.model.latent_basis import latent_layers, trace_rows

Answer = tuple[list[int], list[int]]
"""Token ids of the prompt and of the completion."""
BATCH = 32
ERROR_CONTEXT, ERROR_STEPS = 256, 8


class Drift(NamedTuple):
    """The distance of next-token distributions from those of the exact cache; KL in nats."""

    mean_kl: float
    same_first: float
    """Share of tokens at which the most probable next token is the same."""
    tokens: int


def read_answers(traces: Path, chat_format: ChatFormat) -> list[Answer]:
    """Read the prompts and completions of a folder of traces."""
    answers = []
    for ids, is_completion in trace_rows(traces, chat_format):
        first = is_completion.index(True)
        answers.append((ids[:first], ids[first:]))
    return answers


def drift(exact: TorchDecoder, smaller: TorchDecoder, answers: Sequence[Answer]) -> Drift:
    """Measure the drift along these answers, over every token after the first, which still comes from exact values."""
    divergences, same = [], []
    ordered = sorted(answers, key=lambda answer: len(answer[1]))
    for start in range(0, len(ordered), BATCH):
        batch = ordered[start : start + BATCH]
        expected_BTV, found_BTV = _log_probabilities(exact, batch), _log_probabilities(smaller, batch)
        fed_BT = torch.tensor([[t < len(ids) - 1 for t in range(expected_BTV.shape[1])] for _, ids in batch])
        divergence_BT = (expected_BTV.exp() * (expected_BTV - found_BTV)).sum(-1)
        divergences.append(divergence_BT[fed_BT])
        same.append((expected_BTV.argmax(-1) == found_BTV.argmax(-1))[fed_BT])
    divergence, agrees = torch.cat(divergences), torch.cat(same)
    return Drift(mean_kl=float(divergence.mean()), same_first=float(agrees.double().mean()), tokens=divergence.shape[0])


def _log_probabilities(decoder: TorchDecoder, answers: Sequence[Answer]) -> Tensor:
    """Return log-probabilities [B, T, V] after each completion token but the last; shorter rows repeat their last."""
    decoder.start([prompt for prompt, _ in answers])
    steps = []
    for t in range(max(len(ids) for _, ids in answers) - 1):
        logits_BV = decoder.step(np.array([ids[min(t, len(ids) - 1)] for _, ids in answers]))
        steps.append(torch.from_numpy(logits_BV).double().log_softmax(-1))
    return torch.stack(steps, dim=1)


@torch.inference_mode()
def output_error(exact: TorchDecoder, smaller: TorchDecoder) -> float:
    """Measure the relative error of the first attention layer's output, whose input is exact, on random tokens."""
    model = exact.model
    ids = torch.randint(model.config.vocab_size, (1, ERROR_CONTEXT + ERROR_STEPS))
    outputs = []
    for decoder in (exact, smaller):
        seen: list[Tensor] = []
        hook = latent_layers(model)[0].register_forward_hook(lambda module, args, out, seen=seen: seen.append(out[0]))
        kept = make_cache(model.config.num_hidden_layers, decoder.make_layer)
        for chunk in ids.split([ERROR_CONTEXT, *[1] * ERROR_STEPS], dim=1):
            model(input_ids=chunk, past_key_values=kept, use_cache=True, logits_to_keep=1)
        hook.remove()
        outputs.append(torch.cat(seen[1:], dim=1))
    expected, found = outputs
    return float((found - expected).norm() / expected.norm())


def toolkit_json(*arguments: str) -> dict[str, object]:
    """Run a toolkit command as a separate process; raises `InputError` with its output if it fails."""
    command = [sys.executable, "-m", "toolkit", *arguments, "--json"]
    ended = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if ended.returncode != 0:
        raise InputError(f"toolkit {' '.join(arguments)} failed with exit code {ended.returncode}: {ended.stdout}")
    facts: dict[str, object] = json.loads(ended.stdout)
    return facts


def ledger_accuracy(model: str, flags: Sequence[str], out: Path) -> float:
    """Measure the accuracy on the ledger's problems with these cache options of `toolkit eval`."""
    accuracy = toolkit_json("eval", model, *flags, "--out", str(out))["accuracy"]
    assert isinstance(accuracy, float)
    return accuracy
