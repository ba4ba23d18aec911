"""The export stage: a run's traces → a data set that `datasets.load_dataset(out)` reads.

    out/
    ├── README.md                     the data set's card
    ├── data/train-00000.parquet …    the rows, split by split: `distill.exchange.exported_rows`
    └── manifest.json

Traces pass one by one; in memory are numbers for problems and verdicts, and one row group of each split. A trace
without a verdict in the run is verified here, if its problem has a reference.
"""

from __future__ import annotations

import shutil
from collections import Counter
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.exchange.dataset_card import CARD, DatasetFacts, card_of
from distill.exchange.dataset_files import DATA, DatasetFiles, schema
from distill.exchange.exported_rows import row_of
from distill.exchange.run_files import ProblemsOnDisk, RunFiles, VerdictsOnDisk
from distill.store.sharded_store import ASKED
from distill.verification.verdicts import check_gradable, grade, has_reference
from toolkit.errors import InputError
from toolkit.figures.ledger import PROBLEMS, VERDICTS
from toolkit.progress import Progress
from toolkit.records import Problem, Trace, Verdict, number_of, read_object
from toolkit.runs import (
    Stage,
    check_out,
    finish,
    is_complete,
    partial_folder,
    read_manifest,
    replace_text,
    say_done,
)
from toolkit.terminal import counted, say

COMMANDS = {"import": "toolkit traces import", "eval": "toolkit eval", "distill": "toolkit distill"}


@dataclass(kw_only=True)
class _Exported:
    """What became of the traces."""

    facts: DatasetFacts
    asked: set[int] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)
    mended: int = 0
    verified: int = 0


def export_traces(run: Path, out: Path, *, verify: bool = True) -> Path:
    """Run the stage into `out`, or do nothing if `out` holds this export already; return `out`.

    `verify`: whether traces without a verdict are verified. Raises `InputError` if `run` is no run with traces, or a
    line of it cannot be read.
    """
    check_out(out)
    files = RunFiles.of(run)
    schema()
    digest, lines = files.digest()
    stage = Stage(name="export-traces", config={"verify": verify}, inputs={"run": digest})
    if is_complete(out, stage):
        say_done(out)
        return out
    folder = partial_folder(out, stage, cheap=(DATA, CARD))
    shutil.rmtree(folder / DATA, ignore_errors=True)
    exported = _Exported(facts=_facts(files, out))
    data = DatasetFiles(folder)
    with (
        closing(ProblemsOnDisk(files.folder / PROBLEMS)) as problems,
        closing(data),
        _verdicts(files) as verdicts,
        Progress("export", lines) as progress,
    ):
        for trace in files.traces():
            progress.advance()
            problem = problems.problem(trace.problem_id)
            if problem is None:
                exported.left_out["of no problem of the run"] += 1
                continue
            verdict = verdicts.verdict(trace) if verdicts else None
            if verdict is None and verify and has_reference(problem):
                verdict = _verified(exported, problem, trace)
            _append(data, exported, problem, trace, verdict)
    facts = exported.facts
    if not data.rows:
        raise InputError(f"{run} holds no trace of its problems; collect some first")
    facts.traces, facts.bytes, facts.files_bytes = data.rows, data.bytes, data.size_bytes()
    facts.problems = len(exported.asked)
    replace_text(folder / CARD, card_of(facts))
    _say(exported, run)
    finish(folder, out, stage, _measured(exported))
    return out


def _facts(files: RunFiles, out: Path) -> DatasetFacts:
    manifest = read_manifest(files.folder) or {}
    asked = read_object(files.folder / ASKED) if (files.folder / ASKED).is_file() else {}
    config = manifest.get("config", {})
    sampling: dict[str, Any] = asked.get("sampling") or config.get("sampling") or {}
    stage = str(manifest.get("stage", "traces"))
    return DatasetFacts(name=out.name, stage=COMMANDS.get(stage, f"toolkit {stage}"), sampling=sampling)


def _verdicts(files: RunFiles) -> Any:
    path = files.folder / VERDICTS
    return closing(VerdictsOnDisk(path)) if path.is_file() else nullcontext()


def _verified(exported: _Exported, problem: Problem, trace: Trace) -> Verdict:
    check_gradable([problem])
    exported.verified += 1
    return grade(problem, trace)


def _append(data: DatasetFiles, exported: _Exported, problem: Problem, trace: Trace, verdict: Verdict | None) -> None:
    row = row_of(problem, trace, verdict)
    data.append(row)
    facts, split = exported.facts, row["split"]
    exported.mended += row["reasoning"] != trace.reasoning or row["answer"] != trace.answer
    exported.asked.add(number_of(problem.id))
    facts.teachers[trace.teacher] += 1
    facts.finish_reasons[trace.finish_reason] += 1
    if verdict is not None:
        facts.verifiers[row["verifier"]] += 1
        (facts.correct if verdict.correct else facts.wrong)[split] += 1


def _measured(exported: _Exported) -> dict[str, Any]:
    facts = exported.facts
    return {
        "traces": sum(facts.traces.values()),
        "problems": facts.problems,
        "splits": dict(facts.traces),
        "correct": sum(facts.correct.values()),
        "wrong": sum(facts.wrong.values()),
        "left_out": dict(exported.left_out),
        "mended": exported.mended,
    }


def _say(exported: _Exported, run: Path) -> None:
    facts = exported.facts
    splits = ", ".join(f"{facts.traces[split]} {split}" for split in facts.splits)
    text = f"export: {counted(sum(facts.traces.values()), 'trace')} of {counted(facts.problems, 'problem')}; {splits}"
    text += f"; {sum(facts.correct.values())} right, {sum(facts.wrong.values())} wrong"
    if exported.verified:
        text += f" ({exported.verified} verified now)"
    if exported.left_out:
        text += "; left out: " + ", ".join(f"{reason} ({count})" for reason, count in exported.left_out.items())
    say(text)
    if exported.mended:
        say(f"export: {exported.mended} had half a surrogate pair, which UTF-8 lacks; U+FFFD stands in its place")
    if "test" in facts.splits:
        say(f"export: the split test holds {facts.traces['test']}, which are not for training")
