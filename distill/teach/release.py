"""Ends a run of stages: measures each stage on held-out problems and requests, and releases the last one with a card.

out/eval/<stage>     sampled as the DeepSeek-R1 report advises
        /ledger      the last stage, by the protocol of every ledger row
out/teacher          the last stage's weights and README.md
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from distill.evaluation.evaluate import evaluate_model
from distill.problems.families import LEDGER_SEED, make_problems
from distill.problems.requests import make_requests
from distill.teach.model_card import teacher_card
from distill.teach.stage_table import stage_table
from distill.teach.stages import STAGES
from distill.teach.teacher_recipe import TeachConfig
from toolkit.figures.ledger import read_evaluation
from toolkit.formats.chat_format import CHAT_FILES
from toolkit.model.decoder import TorchDecoder
from toolkit.records import Problem
from toolkit.runs import Stage, finish, folder_digest, is_complete, partial_folder, read_manifest


def evaluate_stage(config: TeachConfig, model: Path, out: Path) -> Path:
    """Measure a stage's model on the held-out problems and requests."""
    problems = _held_out(config) + make_requests("test", config.eval_requests)
    evaluate_model(model, TorchDecoder.open, problems, config.evaluation, out)
    return out


def measure_ledger_row(config: TeachConfig, model: Path, out: Path) -> Path:
    """Measure a model by the protocol of every ledger row: only problems, one greedy answer each."""
    greedy = replace(config.evaluation.sampling, temperature=0.0)
    protocol = replace(config.evaluation, sampling=greedy, samples=1)
    evaluate_model(model, TorchDecoder.open, _held_out(config), protocol, out)
    return out


def _held_out(config: TeachConfig) -> list[Problem]:
    return make_problems("test", config.eval_per_family, LEDGER_SEED, config.families)


def release(
    config: TeachConfig,
    models: Mapping[str, Sequence[Path]],
    evaluations: Mapping[str, Sequence[Path]],
    ledger_row: Path,
    out: Path,
) -> Path:
    """Write the last stage's model of the first seed with its card, as it ships; rebuilt from the stages each time."""
    last = models[STAGES[-1]][0]
    stage = Stage(name="teach.teacher", config={}, inputs={"model": folder_digest(last)})
    if (read_manifest(out) or {}).get("stage") == stage.name:
        shutil.rmtree(out)
    is_complete(out, stage)  # raises if `out` holds something else
    folder = partial_folder(out, stage)
    for name in ("config.json", "generation_config.json", "model.safetensors", *CHAT_FILES):
        shutil.copy2(last / name, folder / name)
    measured = {name: (read_manifest(folders[0]) or {}).get("measured", {}) for name, folders in models.items()}
    table = stage_table(evaluations)
    evaluation = read_evaluation(ledger_row)
    protocol = config.evaluation
    card = teacher_card(
        asdict(config.shape),
        measured,
        evaluation,
        table,
        samples=protocol.samples,
        temperature=protocol.sampling.temperature,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    finish(folder, out, stage, measured | {"eval": evaluation.to_dict(), "table": table.to_dict()})
    return out
