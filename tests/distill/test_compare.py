"""Claims about models side by side: what each measure counts, that differences are paired, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distill.evaluation.compare import (
    ModelComparison,
    compare,
    compare_models,
    comparison_markdown,
    comparison_table,
    problem_measures,
)
from distill.evaluation.evaluate import EvalConfig, evaluate
from distill.evaluation.several_samples import consensus
from distill.problems.families import make_problems
from distill.problems.requests import make_requests
from distill.teachers.respondent import ModelFolder
from tests.distill.completion_server import CompletionServer
from tests.distill.scripted import ScriptedDecoder
from tests.samples import TRACE
from toolkit.cli.main import main
from toolkit.errors import FolderConflict, InputError
from toolkit.figures.ledger import Outcome, build_ledger, ledger_table, read_evaluation
from toolkit.formats.chat_format import ChatFormat, completion_text
from toolkit.generation.generate import Decoder, Sampling
from toolkit.records import Problem, Verdict

PROBLEMS = make_problems("test", per_family=15, seed=3, families=["gcd", "spell_backward"])
GCDS = [problem for problem in PROBLEMS if problem.family == "gcd"]
REQUESTS = make_requests("test")
K = 4
CONFIG = EvalConfig(sampling=Sampling(temperature=0.7, max_new_tokens=160), samples=K)
ENGLISH = "I look at what is asked for and then I say what I have found"
GERMAN = "Ich schaue nach was gefragt ist und dann sage ich was ich gefunden habe"
REFUSAL = "I can't help with that."

Lines = Mapping[str, Sequence[str]]


def lines(right: Sequence[int], *, thought: str = ENGLISH, refuses: str = "harmful") -> dict[str, list[str]]:
    """Write a model's script: `right[n]` of the K samples of problem n give its answer, the others a wrong one each."""
    said = {
        problem.question: [
            completion_text(thought, problem.answer if k < right[n] else f"{'x' * (k + 3)} {7000 + k}")
            for k in range(K)
        ]
        for n, problem in enumerate(PROBLEMS)
    }
    for request in REQUESTS:
        refused = refuses == "all" or (refuses == "harmful" and request.metadata["harmful"])
        helps = "First you look around." if request.metadata["harmful"] else request.answer
        said[request.question] = [completion_text(thought, REFUSAL if refused else helps)]
    return said


def scripted(folder: Path, name: str, script: Lines, digest: str = "") -> ModelFolder:
    model = ModelFolder(folder, lambda path: ScriptedDecoder(path, script), name)
    model.digest = digest or f"digest of {name}"  # several scripts share the tiny student's folder
    return model


def open_nothing(folder: Path) -> Decoder:
    raise AssertionError("a finished evaluation opens no model")


@pytest.fixture(scope="module")
def run(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelComparison]:
    """Compare three models: a clever one, one that solves other problems and refuses everything, another clever one."""
    clever = [4] * 20 + [1] * 10
    other = [0] * 20 + [2] * 10
    models = [
        scripted(tiny_student, "clever", lines(clever)),
        scripted(tiny_student, "other", lines(other, thought=GERMAN, refuses="all")),
        scripted(tiny_student, "as clever", lines(clever[::-1], refuses="none")),
    ]
    out = tmp_path_factory.mktemp("compare") / "out"
    return out, compare_models(models, PROBLEMS, CONFIG, out)


def means(comparison: ModelComparison, model: str) -> dict[str, float]:
    return {measure.name: measure.figures[model].mean for measure in comparison.measures}


def test_each_measure_counts_what_the_models_said(run: tuple[Path, ModelComparison]) -> None:
    clever, other, third = (means(run[1], name) for name in ("clever", "other", "as clever"))
    assert clever["accuracy"] == pytest.approx((20 * 1 + 10 * 0.25) / 30)
    for family in ("gcd", "spell_backward"):
        shares = [1 if n < 20 else 0.25 for n, problem in enumerate(PROBLEMS) if problem.family == family]
        assert clever[f"accuracy: {family}"] == pytest.approx(sum(shares) / 15)
    # one right answer and three different wrong ones: the first of the four, which is the right one, is taken
    assert clever[f"maj@{K}"] == 1.0 and other[f"maj@{K}"] == pytest.approx(10 / 30)
    assert clever[f"pass@{K}"] == 1.0 and other[f"pass@{K}"] == pytest.approx(10 / 30)  # two of four samples of ten
    assert clever[f"agreement of {K} samples"] == pytest.approx((20 * 1 + 10 * 0.25) / 30)
    assert other[f"agreement of {K} samples"] == pytest.approx((20 * 0.25 + 10 * 0.5) / 30)
    assert clever["language consistency"] > 0.95 and other["language consistency"] < 0.05
    refusals = [(m["harmful requests refused"], m["harmless requests refused"]) for m in (clever, other, third)]
    assert refusals == [(1.0, 0.0), (1.0, 1.0), (0.0, 0.0)]
    assert clever["thinking not closed"] == clever["ran into the limit"] == 0.0


def test_a_row_with_several_samples_says_avg_pass_and_maj(run: tuple[Path, ModelComparison]) -> None:
    (folder,) = (run[0] / "problems").glob("other-*")
    row = read_evaluation(folder)
    assert {name: score["accuracy"] for name, score in row.at_k.items()} == {
        name: pytest.approx(means(run[1], "other")[name]) for name in (f"pass@{K}", f"maj@{K}")
    }
    head, _, cells, *_ = ledger_table(build_ledger({"other": folder})).splitlines()
    assert head.split()[:4] == ["stage", f"avg@{K}", f"pass@{K}", f"maj@{K}"]
    assert re.findall(r"[\d.]+ % \[", cells) == [f"{100 * share:.1f} % [" for share in (row.accuracy, 1 / 3, 1 / 3)]


def test_a_difference_is_paired_and_none_where_its_interval_holds_0(run: tuple[Path, ModelComparison]) -> None:
    comparison = run[1]
    assert list(comparison.models) == ["clever", "other", "as clever"]
    accuracy = comparison.measures[0]
    assert accuracy.figures["clever"].difference is None and not accuracy.figures["clever"].differs
    # 20 problems by +1 and 10 by −1/4, resampled by plain numpy
    differences = np.array([-1.0] * 20 + [0.25] * 10)
    chosen = np.random.default_rng(8).integers(30, size=(20_000, 30))
    low, high = np.quantile(differences[chosen].mean(axis=1), [0.025, 0.975])
    found = accuracy.figures["other"]
    assert found.difference == pytest.approx(differences.mean()) and found.differs
    assert found.difference_interval == pytest.approx([low, high], abs=0.02)
    # the same problems solved in another order: the mean is equal, and the interval holds 0
    third = accuracy.figures["as clever"]
    assert third.difference == pytest.approx(0.0) and not third.differs
    harmless = next(m for m in comparison.measures if m.name == "harmless requests refused").figures
    assert harmless["other"].differs and not harmless["as clever"].differs


def test_the_tables_say_no_difference_and_the_protocol(run: tuple[Path, ModelComparison]) -> None:
    out, comparison = run
    figures, differences, *notes = comparison_table(comparison).split("\n\n")
    head, _, first, *_ = figures.splitlines()
    assert head.split() == ["of", "clever", "other", "as", "clever"]
    assert first.startswith("accuracy") and "75.0 % [" in first
    assert all(len(line) == len(head) for line in figures.splitlines()), "columns are aligned"
    row = next(line for line in differences.splitlines() if line.startswith("accuracy "))
    assert row.count("no difference [") == 1 and "−58.3 [−" in row
    assert "30 problems (digest" in notes[0] and f"{len(REQUESTS)} requests" in notes[0]
    assert f"{K} samples a problem, temperature 0.7, top-p 0.95, at most 160 new tokens, seed 0" in notes[0]
    assert "Fewer than 20 problems, so the intervals are too narrow: accuracy: gcd" in notes[-1]
    assert "thinking not closed" in figures
    assert (out / "comparison.md").read_text() == comparison_markdown(comparison)
    assert len({line.count("|") for line in comparison_markdown(comparison).split("\n\n")[0].splitlines()}) == 1


def test_the_file_holds_every_figure(run: tuple[Path, ModelComparison]) -> None:
    out, comparison = run
    facts = json.loads((out / "comparison.json").read_text())
    assert facts == json.loads(json.dumps(comparison.to_dict()))
    assert [len(measure["figures"]) for measure in facts["measures"]] == [3] * len(facts["measures"])
    assert facts["protocol"]["samples"] == K and facts["models"]["other"] == "digest of other"


def test_a_comparison_is_read_where_it_is_done_and_takes_another_model(
    run: tuple[Path, ModelComparison], tiny_student: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(run[0], out)
    held = [ModelFolder(tiny_student, open_nothing, name) for name in ("clever", "other")]
    for model in held:
        model.digest = f"digest of {model.name}"
    again = compare_models(held, PROBLEMS, CONFIG, out)
    assert again.measures[0].figures["other"] == run[1].measures[0].figures["other"]
    new = scripted(tiny_student, "new", lines([4] * 30))
    assert means(compare_models([*held, new], PROBLEMS, CONFIG, out), "new")["accuracy"] == 1.0
    with pytest.raises(FolderConflict, match=r"inputs\.problems .* choose another --out"):
        compare_models(held, PROBLEMS[1:], CONFIG, out)
    with pytest.raises(FolderConflict, match=r"config\.seed \(0\) must equal this run's \(1\)"):
        compare_models(held, PROBLEMS, replace(CONFIG, sampling=replace(CONFIG.sampling, seed=1)), out)


def test_evaluations_that_do_not_compare_are_refused(
    run: tuple[Path, ModelComparison], tiny_student: Path, tmp_path: Path
) -> None:
    folders = {part: next((run[0] / part).glob("clever*")) for part in ("problems", "requests")}
    fewer = scripted(tiny_student, "fewer", lines([4] * 30))
    evaluate(fewer, PROBLEMS[:10], CONFIG, tmp_path / "problems")
    evaluate(fewer, REQUESTS, CONFIG, tmp_path / "requests")
    with pytest.raises(InputError, match=r"fewer and clever were measured with different problems \("):
        compare(
            {"clever": folders["problems"], "fewer": tmp_path / "problems"},
            {"clever": folders["requests"], "fewer": tmp_path / "requests"},
        )
    greedy = EvalConfig(sampling=Sampling(temperature=0.0, max_new_tokens=160))
    evaluate(fewer, PROBLEMS, greedy, tmp_path / "greedy")
    with pytest.raises(
        InputError, match=r"fewer and clever were measured with different protocols .*'temperature': 0\.0"
    ):
        compare(
            {"clever": folders["problems"], "fewer": tmp_path / "greedy"},
            {"clever": folders["requests"], "fewer": tmp_path / "requests"},
        )


def test_the_same_model_twice_is_refused_before_anything_is_asked(tiny_student: Path, tmp_path: Path) -> None:
    twins = [ModelFolder(tiny_student, open_nothing, name) for name in ("one", "two")]
    with pytest.raises(
        InputError, match=r"two and one are the same model \(digest [0-9a-f]{16}\); name each model once"
    ):
        compare_models(twins, PROBLEMS, CONFIG, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_two_models_of_one_name_are_told_apart(tiny_student: Path, tmp_path: Path) -> None:
    models = [
        scripted(tiny_student, "student", lines([right] * 30), digest) for right, digest in ((4, "a1"), (0, "b2"))
    ]
    config = EvalConfig(sampling=Sampling(temperature=0.0, max_new_tokens=160))
    comparison = compare_models(models, PROBLEMS[:3], config, tmp_path / "out")
    assert means(comparison, "student@a1")["accuracy"] == 1.0 and means(comparison, "student@b2")["accuracy"] == 0.0
    assert not any("maj@" in measure.name or "agreement" in measure.name for measure in comparison.measures)


def outcome(problem: Problem, sample: int, answer: str, correct: bool, *, closed: bool = True) -> Outcome:
    trace = replace(
        TRACE,
        problem_id=problem.id,
        sample=sample,
        answer=answer,
        finish_reason="stop" if closed else "length",
        closed=closed,
    )
    reason = "truncated" if not closed else "correct" if correct else "wrong"
    verdict = Verdict.from_dict(
        {"problem_id": problem.id, "sample": sample, "correct": correct, "reason": reason}
        | {"score": float(correct), "verifier": "v", "version": "1"}
    )
    return Outcome(problem=problem, trace=trace, verdict=verdict)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["12", "The answer is 12.", "\\boxed{12.0}", "13"], (1.0, 0.75)),  # one answer, however it is written
        (["13", "12", "13", "12"], (0.0, 0.5)),  # equally many: the first one
        (["12", "13", "14", "13"], (0.0, 0.5)),
        (["I can't tell", "no idea", "12"], (1.0, 1 / 3)),  # who says no number has no vote
        (["I can't tell", "no idea"], (0.0, 0.0)),
        (["", "", "12"], (1.0, 1 / 3)),  # truncated ones neither
    ],
)
def test_the_majority_is_of_answers_as_verdicts_read_them(answers: list[str], expected: tuple[float, float]) -> None:
    problem = replace(GCDS[0], answer="12")
    samples = [outcome(problem, k, text, "12" in text, closed=bool(text)) for k, text in enumerate(answers)]
    assert consensus(samples) == expected


def test_programs_have_no_majority(tiny_student: Path, tmp_path: Path) -> None:
    code = Problem.create(family="user", question="Say hello", answer="x", metadata={"tests": [{"code": "assert 1"}]})
    both = [[outcome(p, k, "12", True) for k in range(2)] for p in (GCDS[0], code)]
    assert list(problem_measures(both)["maj@2"]) == [GCDS[0].id]
    assert "maj@2" not in problem_measures(both[1:])


def test_toolkit_eval_compares_a_folder_with_an_endpoint(
    tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"question": p.question, "answer": p.answer}) + "\n" for p in GCDS[:4]))
    monkeypatch.chdir(tmp_path)
    with CompletionServer(
        ScriptedDecoder(tiny_student, lines([4] * 30)), ChatFormat.from_folder(tiny_student)
    ) as server:
        words = ["eval", server.url, "--against", str(tiny_student), "--problems", str(problems)]
        assert main([*words, "--max-new-tokens", "150"]) == 0
        text = capsys.readouterr().out
        asked = len(server.bodies)
        assert main([*words, "--max-new-tokens", "150", "--json"]) == 0
        assert len(server.bodies) == asked == 4 + len(REQUESTS)
        assert main([*words, "--max-new-tokens", "140"]) == 0, "another question is another folder's"
        assert main([*words, "--against", server.url]) == 2
    assert f"{server.url}#tiny and {server.url}#tiny are the same model" in capsys.readouterr().err
    assert len(list(tmp_path.glob("runs/compare/problems-*"))) == 2
    (written,) = [line for line in text.splitlines() if line.startswith("as Markdown: runs/compare/problems-")]
    folder = (tmp_path / written.removeprefix("as Markdown: ")).parent
    facts = json.loads((folder / "comparison.json").read_text())
    assert facts["measures"][0]["figures"][f"{server.url}#tiny"]["mean"] == 1.0
    assert facts["measures"][0]["figures"]["tiny_student"]["mean"] == 0.0
    assert "100.0 % [" in text
