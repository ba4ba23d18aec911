"""The gate's greedy text is the float model's likeliest tokens, whatever a folder's generation_config.json asks for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from export.checkpoint.source import float_model
from export.checkpoint.tensors import Checkpoint
from export.checks.parity import Bounds, greedy_completions
from export.pipeline import export_model
from export.presets import int4_config
from toolkit.errors import InputError

PROMPT = list(range(3, 30))
WIDE = Bounds(max_mean_kl=9.0, min_top1=0.0)


def likeliest(folder: Path, prompt: list[int], count: int) -> list[int]:
    """Return greedy tokens; reads the whole text at each step, without a cache."""
    model, ids = float_model(Checkpoint(folder)), list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_tokens_are_the_likeliest_of_every_architecture(checkpoint_folder: Path) -> None:
    prompts = [PROMPT, PROMPT[:5], PROMPT[9:20]]
    found = greedy_completions(float_model(Checkpoint(checkpoint_folder)), prompts)
    assert found == [likeliest(checkpoint_folder, prompt, len(row)) for prompt, row in zip(prompts, found, strict=True)]


@pytest.mark.parametrize(
    "settings",
    [
        {"num_return_sequences": 3, "num_beams": 3},
        {"stop_strings": ["the"]},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"repetition_penalty": 1.8},
        {"no_repeat_ngram_size": 1},
        {"do_sample": True, "temperature": 2.0},
        {"min_new_tokens": 5, "suppress_tokens": [5, 6, 7]},
        {"forced_bos_token_id": 9, "max_length": 8},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_no_setting_of_generation_steers_them(settings: dict[str, Any], tiny_student: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_student, tmp_path / "model"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2]} | settings))
    found, expected = (greedy_completions(float_model(Checkpoint(name)), [PROMPT]) for name in (folder, tiny_student))
    assert found == expected


def test_a_folder_that_asks_for_beams_and_stop_strings_is_exported(tiny_student: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_student, tmp_path / "model"))
    asked = {"eos_token_id": [2], "num_beams": 4, "num_return_sequences": 2, "stop_strings": ["a"]}
    (folder / "generation_config.json").write_text(json.dumps(asked))
    measured = [
        export_model(replace(int4_config(source, tmp_path / out), bounds=WIDE))["measured"]["parity"]
        for source, out in ((folder, "a"), (tiny_student, "b"))
    ]
    assert measured[0] == measured[1]


@pytest.mark.parametrize("context", [32, 128])
def test_a_context_that_the_gate_s_questions_fill_is_refused_before_any_work(
    context: int, tiny_student: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_student, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": context}))
    if context == 128:
        export_model(replace(int4_config(folder, tmp_path / "out"), bounds=WIDE))
        return
    with pytest.raises(InputError, match=r"max_position_embeddings \(32\) must exceed the \d+ tokens of a question"):
        export_model(int4_config(folder, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
