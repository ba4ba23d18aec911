"""Claims about a row of the ledger: what is counted, that nothing depends on batches, that runs resume and conflict."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest

from distill.evaluation.evaluate import EvalConfig, evaluate_model
from distill.problems.families import make_problems
from distill.problems.problem_set import problems_digest
from distill.teachers.respondent import decode_speed, weight_bytes
from tests.distill.bigram import BigramDecoder
from toolkit.errors import FolderConflict, InputError
from toolkit.figures.ledger import Evaluation, read_evaluation, read_outcomes
from toolkit.formats.chat_format import ChatFormat
from toolkit.generation.generate import Decoder, Floats, Ints, Sampling
from toolkit.records import Problem, Trace, Verdict, read_records

CONFIG = EvalConfig(sampling=Sampling(temperature=0.0, max_new_tokens=24), batch_size=8)
PROBLEMS = make_problems("test", per_family=4, seed=1, families=["gcd", "spell_backward"])


def open_bigram(folder: Path) -> Decoder:
    return BigramDecoder(320)


def open_torch(folder: Path) -> Decoder:
    decoder: Decoder = pytest.importorskip("toolkit.model.decoder").TorchDecoder.open(folder)
    return decoder


def open_nothing(folder: Path) -> Decoder:
    raise AssertionError("a finished evaluation opens no model")


def found(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation's figures without its speed."""
    return replace(evaluation, tokens_per_s=0.0, batch_tokens_per_s=None, batch_size=1)


class Reciter:
    """A model that recites: prompt to completion, then end-of-turn for ever."""

    max_length = 4096

    def __init__(self, lines: dict[tuple[int, ...], list[int]]) -> None:
        self._lines = lines
        self._rows: list[Iterator[int]] = []

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        self._rows = [self._said(prompt) for prompt in prompts]
        return self._logits(self._rows)

    def step(self, tokens_B: Ints) -> Floats:
        return self._logits(self._rows)

    def keep(self, rows: Ints) -> None:
        self._rows = [self._rows[row] for row in rows]

    def replace(self, rows: Ints, prompts: Sequence[Sequence[int]]) -> Floats:
        said = [self._said(prompt) for prompt in prompts]
        for row, ids in zip(rows, said, strict=True):
            self._rows[row] = ids
        return self._logits(said)

    def _said(self, prompt: Sequence[int]) -> Iterator[int]:
        return chain(self._lines[tuple(prompt)], repeat(2))

    def _logits(self, rows: Sequence[Iterator[int]]) -> Floats:
        return np.eye(320, dtype=np.float32)[[next(row) for row in rows]]


class Breaking(BigramDecoder):
    """A model that is interrupted when its third batch starts."""

    starts = 0

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        self.starts += 1
        if self.starts == 3:
            raise KeyboardInterrupt
        return super().start(prompts)


class Counting(BigramDecoder):
    """A model that counts its steps."""

    steps = 0

    def step(self, tokens_B: Ints) -> Floats:
        self.steps += 1
        return super().step(tokens_B)


def answering(folder: Path, out: Path, reply: dict[str, str]) -> Evaluation:
    """Evaluate a model that recites the answers of `reply`."""
    chat_format = ChatFormat.from_folder(folder)
    lines = {
        tuple(chat_format.question_ids(question)): [*chat_format.encode(text), 2] for question, text in reply.items()
    }

    return evaluate_model(folder, lambda _: Reciter(lines), PROBLEMS, CONFIG, out)


def test_right_wrong_truncated_and_empty_are_counted_apart(tiny_student: Path, tmp_path: Path) -> None:
    gcds = [p for p in PROBLEMS if p.family == "gcd"]
    words = [p for p in PROBLEMS if p.family == "spell_backward"]
    reply = {p.question: f"a\n</think>\n\n{p.answer}" for p in gcds}
    reply |= {words[0].question: words[0].answer}  # never closes its thinking
    reply |= {words[1].question: "a\n</think>\n\n"}
    reply |= {words[2].question: "a\n</think>\n\nwrong"}
    reply |= {words[3].question: f"a\n</think>\n\nThe answer is {words[3].answer.upper()}."}
    row = answering(tiny_student, tmp_path / "out", reply)
    assert row.accuracy == 5 / 8
    assert row.families["gcd"]["accuracy"] == 1.0
    assert row.families["spell_backward"] == {"accuracy": 0.25, "interval": [0.0, 0.75], "problems": 4}
    assert row.truncation_rate == 1 / 8
    reasons = [outcome.verdict.reason for outcome in read_outcomes(tmp_path / "out")]
    assert sorted(reasons) == ["correct"] * 5 + ["empty", "truncated", "wrong"]


def test_a_base_model_is_graded_on_all_it_writes(tiny_student: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_student, base)
    template = (base / "chat_template.jinja").read_text().replace("<think>\\n", "")
    (base / "chat_template.jinja").write_text(template)
    row = answering(base, tmp_path / "out", {p.question: f"I say {p.answer}" for p in PROBLEMS})
    assert (row.accuracy, row.truncation_rate, row.mean_reasoning_tokens) == (1.0, 0.0, 0.0)


def test_samples_of_one_problem_count_as_one_observation(tiny_student: Path, tmp_path: Path) -> None:
    config = EvalConfig(sampling=Sampling(temperature=1.0, max_new_tokens=8), samples=3, batch_size=5)
    row = evaluate_model(tiny_student, open_bigram, PROBLEMS, config, tmp_path / "out")
    assert row.problems == 8 and row.families["gcd"]["problems"] == 4
    assert len(read_records(tmp_path / "out" / "verdicts.jsonl", Verdict)) == 24
    with pytest.raises(InputError, match=r"samples \(3\) must be 1 at temperature 0"):
        replace(CONFIG, samples=3)
    with pytest.raises(InputError, match=r"samples \(3\) must be 1 with top_k 1"):
        replace(config, sampling=replace(config.sampling, top_k=1))


@pytest.mark.parametrize("open_decoder", [open_bigram, open_torch])
def test_the_batch_size_does_not_change_the_outcome(
    tiny_student: Path, tmp_path: Path, open_decoder: Callable[[Path], Decoder]
) -> None:
    rows, traces = [], []
    for batch_size in (1, 3, 8):
        out = tmp_path / str(batch_size)
        rows.append(
            found(evaluate_model(tiny_student, open_decoder, PROBLEMS, replace(CONFIG, batch_size=batch_size), out))
        )
        traces.append([outcome.trace for outcome in read_outcomes(out)])
    assert rows[0] == rows[1] == rows[2]
    assert traces[0] == traces[1] == traces[2]


def test_a_finished_evaluation_is_read_and_other_problems_are_refused(
    tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    first = evaluate_model(tiny_student, open_bigram, PROBLEMS, CONFIG, out)
    assert "already done" not in capsys.readouterr().err
    assert evaluate_model(tiny_student, open_nothing, PROBLEMS, CONFIG, out) == first == read_evaluation(out)
    assert f"already done: {out} (made 20" in capsys.readouterr().err
    with pytest.raises(FolderConflict, match=f"{problems_digest(PROBLEMS)}.*{problems_digest(PROBLEMS[1:])}"):
        evaluate_model(tiny_student, open_nothing, PROBLEMS[1:], CONFIG, out)


def test_a_broken_evaluation_goes_on_and_finds_the_same(
    tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = evaluate_model(tiny_student, open_bigram, PROBLEMS, CONFIG, tmp_path / "whole")

    config = replace(CONFIG, batch_size=2)
    out = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        evaluate_model(tiny_student, lambda _: Breaking(320), PROBLEMS, config, out)
    assert not out.exists()
    assert len(read_records(tmp_path / ".broken.partial" / "traces.jsonl", Trace)) == 4
    resumed = evaluate_model(tiny_student, open_bigram, PROBLEMS, config, out)
    assert found(resumed) == found(whole)
    assert f"resuming {out}, which holds 4 of {len(PROBLEMS)} answers" in capsys.readouterr().err
    assert resumed.batch_tokens_per_s is None


def test_speed_is_of_a_fixed_number_of_tokens_whatever_the_model_says() -> None:
    decoder = Counting(320)
    assert decode_speed(decoder, [[1, 2], [3, 4]]) > 0
    assert decoder.steps == 2 * 47


def test_bytes_are_those_of_the_weights_alone(tmp_path: Path) -> None:
    for name, size in (("model.onnx", 3), ("model.onnx.data", 50), ("tokenizer.json", 700), ("train.jsonl", 9000)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert weight_bytes(tmp_path) == 53


def test_a_digest_does_not_depend_on_the_order_of_the_problems() -> None:
    assert problems_digest(PROBLEMS) == problems_digest(PROBLEMS[::-1])
    changed = replace(PROBLEMS[0], answer="0")
    assert isinstance(changed, Problem) and problems_digest(PROBLEMS) != problems_digest([changed, *PROBLEMS[1:]])
