"""Data sets are read in their published forms: small ones here, with the columns of their cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from distill.problems.problem_set import read_problems
from distill.problems.published import FORMS
from distill.verification.verdicts import score_answer
from toolkit.errors import InputError
from toolkit.records import Problem
from toolkit.terminal import counted

GSM8K = [
    {"question": "Natalia sold 48 clips in April and half as many in May. How many in all?", "answer": ("She sold 48/2 = "
                                                                                                        "<<48/2=24>>24 "
                                                                                                        "in May.\nIn all "
                                                                                                       "48+24 = <<48+24=72>>72.\n#### 72")},
    {"question": "A car costs $1,250 and its tyres 84. How much is both?", "answer": "1250+84 = 1334\n#### 1,334"},
    {"question": "Weng earns $12 an hour. How much for 50 minutes?", "answer": "12/60*50 = 10\n#### $10"},
    {"question": "It falls by 3 from 1. What is it?", "answer": "1-3 = -2\n#### -2"},
    {"question": "How many are none?", "answer": "None.\n#### 0"},
]  # fmt: skip
MATH = [
    {"problem": "What is $1+1$?", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{2}$."},
    {"problem": "Half of one?", "level": "Level 2", "type": "Prealgebra", "solution": "So $x=\\boxed{\\frac{1}{2}}$."},
    {"problem": "Is 4 even?", "level": "Level 1", "type": "Number Theory", "solution": "$\\boxed{\\text{even}}$"},
    {"problem": "Both?", "level": "Level 3", "type": "Algebra", "solution": "$\\boxed{1}$ and $\\boxed{2}$"},
    {"problem": "Show it.", "level": "Level 5", "type": "Geometry", "solution": "Obvious."},
    {"problem": "How many?", "level": "Level 5", "type": "Counting & Probability", "solution": "$\\fbox{12}$, or \\boxed 7"},
    {"problem": "A set?", "level": "Level 5", "type": "Algebra", "solution": ("$\\boxed{\\{1,2\\}}$, again "
                                                                             "$\\boxed{\\{1,2\\}}$")},
]  # fmt: skip
MATH_500 = [
    {"problem": f"Add {i} to 1.", "solution": f"$\\boxed{{{i + 1}}}$", "answer": str(i + 1), "subject": "Algebra",
     "level": 2, "unique_id": f"test/algebra/{i}.json"}
    for i in range(5)
]  # fmt: skip
AIME_2024 = [
    {"ID": f"2024-I-{i}", "Problem": f"Find $x_{i}$.", "Solution": "See below.", "Answer": answer}
    for i, answer in enumerate((204, 33, 0, 999, 25), start=1)
]
AIME_2025 = [
    {
        "id": i,
        "problem": f"Find $y_{i}$.",
        "solution": "",
        "answer": answer,
        "url": "https://example.org",
        "year": "2025",
    }
    for i, answer in enumerate(("070", "588", "016", "000", "117"))
]
NUMINA = [
    {"source": "synthetic_math", "problem": "Twice 3?", "solution": "It is $\\boxed{6}$.", "messages": [{"role": "user", "content": "Twice 3?"}]},
    {"source": "olympiads", "problem": "Prove that 1 = 1.", "solution": "Clear.", "messages": [{"role": "user", "content": "?"}]},
    {"source": "cn_k12", "problem": "Thrice 3?", "solution": "$9$, so $\\boxed{9}$", "messages": [{"role": "user", "content": "?"}]},
]  # fmt: skip
NUMINA_15 = [
    {"problem": f"Task {i}", "solution": "Worked.", "answer": answer, "problem_type": "Algebra", "question_type": kind,
     "problem_is_valid": valid, "solution_is_valid": "Yes", "source": "olympiads", "synthetic": False}
    for i, (answer, kind, valid) in enumerate(
        (("42", "math-word-problem", "Yes"), ("proof", "proof", "Yes"), ("", "math-word-problem", "Yes"),
         ("B", "MCQ", "Yes"), ("notfound", "other", "Yes"), ("7", "math-word-problem", "Incomplete"))
    )
]  # fmt: skip
OPEN_R1 = [
    {"problem": "What is $6\\cdot 7$?", "solution": "It is 42.", "answer": "42", "problem_type": "Algebra",
     "question_type": "math-word-problem", "source": "olympiads", "uuid": "a", "is_reasoning_complete": [True, True],
     "generations": ["<think>\n6*7\n</think>\n\n42", "<think>?</think>42"], "correctness_math_verify": [True, True],
     "correctness_llama": None, "finish_reasons": None, "correctness_count": 2,
     "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "<think>?</think>42"}]}
]  # fmt: skip
S1K = [
    {"solution": "128", "question": "How many?", "cot_type": "math", "source_type": "AIME", "metadata": "{'a': 1}", "cot": None, "thinking_trajectories": ["…"], "attempt": "128"},
    {"solution": "Then\nso $\\boxed{5}$", "question": "Which?", "cot_type": "math", "source_type": "Omni", "metadata": "{}", "cot": None, "thinking_trajectories": ["…"], "attempt": "5"},
    {"solution": "First.\nSecond.", "question": "Why?", "cot_type": "science", "source_type": "quant", "metadata": "{}", "cot": None, "thinking_trajectories": ["…"], "attempt": "So."},
]  # fmt: skip
ARC = [
    {"id": "Mercury_1", "question": "Which is a star?", "choices": {"text": ["Earth", "Sun"], "label": ["A", "B"]}, "answerKey": "B"},
    {"id": "NYSED_2", "question": "Which is wet?", "choices": {"text": ["water", "sand", "air"], "label": ["1", "2", "3"]}, "answerKey": "1"},
]  # fmt: skip
MMLU = [
    {"question": "Capital of France?", "subject": "geography", "choices": ["Rome", "Paris", "Bonn", "Oslo"], "answer": 1},
    {"question": "2 + 2?", "subject": "mathematics", "choices": ["1", "2", "3", "4"], "answer": 3},
]  # fmt: skip
MMLU_PRO = [
    {"question_id": 70, "question": "Which?", "options": ["x", "y", "z"], "answer": "C", "answer_index": 2, "cot_content": "", "category": "law", "src": ""},
]  # fmt: skip
SHARE_GPT = [
    {"id": "a", "conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "<think>\nEasy.\n</think>\n\n4"}, {"from": "human", "value": "Twice that?"}, {"from": "gpt", "value": "<think>4*2</think>8"}]},
    {"id": "b", "conversations": [{"from": "human", "value": "Hello?"}]},
    {"id": "c", "conversations": [{"from": "human", "value": "Weather?"}, {"from": "function_call", "value": "{}"}, {"from": "gpt", "value": "Sun."}]},
]  # fmt: skip
MESSAGES = [
    {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "Adding.\n</think>\n4"}]},
    {"messages": [{"role": "user", "content": "3 + 3?"}, {"role": "assistant", "content": "6"}]},
    {"messages": [{"role": "system", "content": "Say nothing."}]},
]
ALPACA = [
    {"instruction": "Translate to French.", "input": "Cheese", "output": "Fromage", "text": "…"},
    {"instruction": "Name a colour.", "input": "", "output": "Red", "text": "…"},
    {"instruction": "Say nothing.", "input": "", "output": "", "text": "…"},
]


def written(path: Path, rows: list[dict[str, Any]], suffix: str) -> Path:
    if suffix == "parquet":
        Dataset.from_list(rows).to_parquet(path / "data.parquet")
    elif suffix == "json":
        (path / "data.json").write_text(json.dumps(rows))
    else:
        (path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path / f"data.{suffix}"


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize(
    ("rows", "name", "answers", "left_out"),
    [
        (GSM8K, "GSM8K", ["72", "1,334", "$10", "-2", "0"], []),
        (MATH, "MATH", ["2", r"\frac{1}{2}", r"\text{even}", r"\{1,2\}"], ["no boxed answer (1)", "several boxed answers (2)"]),
        (MATH_500, "MATH", ["1", "2", "3", "4", "5"], []),
        (AIME_2024, "AIME", ["204", "33", "0", "999", "25"], []),
        (AIME_2025, "AIME", ["70", "588", "16", "0", "117"], []),
        (NUMINA, "NuminaMath", ["6", "9"], ["no boxed answer (1)"]),
        (NUMINA_15, "NuminaMath", ["42", "B"], ["proof (1)", "no boxed answer (2)", "marked as not valid (1)"]),
        (OPEN_R1, "OpenR1-Math", ["42"], []),
        (S1K, "s1K", ["128", "5"], ["no boxed answer (1)"]),
        (ARC, "multiple choice", ["B", "1"], []),
        (MMLU, "multiple choice", ["B", "D"], []),
        (MMLU_PRO, "multiple choice", ["C"], []),
        (SHARE_GPT, "ShareGPT", ["8"], ["no answer to the last question (1)", ("'function_call' speaks or "
                                                                              "calls tools (1)")]),
        (MESSAGES, "messages", ["4", "6"], ["no question (1)"]),
        (ALPACA, "Alpaca", ["Fromage", "Red"], ["no answer (1)"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_published_form_is_read_as_it_is(
    rows: list[dict[str, Any]],
    name: str,
    answers: list[str],
    left_out: list[str],
    suffix: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    problems = read_problems(written(tmp_path, rows, suffix))
    assert [problem.answer for problem in problems] == answers
    said = capsys.readouterr().err
    read = f"problems: {len(answers)} of {counted(len(rows), 'row')} in {tmp_path}/data.{suffix}, read as {name};"
    assert read in said
    assert all(reason in said for reason in left_out), said
    assert len(problems) + sum(int(reason[-2]) for reason in left_out) == len(rows)


def problem_in(rows: list[dict[str, Any]], folder: Path, index: int = 0) -> Problem:
    return read_problems(written(folder, rows, "jsonl"))[index]


def test_right_answers_to_published_problems_are_right(tmp_path: Path) -> None:
    for rows, index, right in (
        (GSM8K, 0, r"So the answer is \boxed{72}."),
        (GSM8K, 1, r"\boxed{1334}"),
        (MATH, 1, r"\boxed{0.5}"),
        (AIME_2025, 0, r"\boxed{70}"),
        (MMLU, 0, r"\boxed{B}"),
    ):
        problem = problem_in(rows, tmp_path, index)
        assert score_answer(problem, right) == 1.0
        assert score_answer(problem, r"\boxed{71}") == 0.0


def test_choices_stand_below_their_question(tmp_path: Path) -> None:
    problem = problem_in(MMLU, tmp_path)
    assert problem.question == (
        "Capital of France?\n\nA) Rome\nB) Paris\nC) Bonn\nD) Oslo\n\nAnswer with the letter of the right choice."
    )
    assert problem.family == "geography"
    with pytest.raises(InputError, match=r"line 1 is not a problem: its answer \(7\) must name one of the choices"):
        problem_in([MMLU[0] | {"answer": 7}], tmp_path)
    unlabelled: list[dict[str, Any]] = [
        ARC[0],
        ARC[0] | {"question": "Which?", "answerKey": ""},
        ARC[1] | {"answerKey": None},
    ]
    for suffix in ("jsonl", "parquet"):
        assert len(read_problems(written(tmp_path, unlabelled, suffix))) == 1
    assert len(read_problems(written(tmp_path, [MMLU[0], MMLU[1] | {"answer": -1}], "jsonl"))) == 1
    with pytest.raises(InputError, match=r"its choices \('Rome'\) must be a list of at least 2 texts"):
        problem_in([MMLU[0] | {"choices": "Rome"}], tmp_path)


@pytest.mark.parametrize(
    ("choices", "key", "label"),
    [
        (["Rome", "Paris"], "b", "B"),
        (["Rome", "Paris"], "(B)", "B"),
        (["Rome", "Paris"], "B. Paris", "B"),
        (["Rome", "Paris"], "paris", "B"),
        (["Rome", "Paris"], "1", "B"),
        (["1", "2", "3"], "3", "C"),
        (["1", "2", "3"], 1, "B"),
        ({"A": "Rome", "B": "Paris", "C": None}, "Paris", "B"),
        (["1", "2", "3"], "2", None),
        (["Rome", "Rome"], "Rome", None),
        (["Rome", "Paris"], True, None),
        (["Rome", "Paris"], 2, None),
        (["Rome"], 0, None),
    ],
)
def test_the_right_choice_is_found_however_it_is_named(
    choices: Any, key: Any, label: str | None, tmp_path: Path
) -> None:
    rows = [{"question": "Which?", "choices": choices, "answer": key}]
    if label is not None:
        assert problem_in(rows, tmp_path).answer == label
    else:
        with pytest.raises(InputError, match=r"line 1 is not a problem: its (answer|choices)"):
            problem_in(rows, tmp_path)


def test_the_last_question_of_a_conversation_follows_what_was_said(tmp_path: Path) -> None:
    problem = problem_in(SHARE_GPT, tmp_path)
    assert problem.question == "Twice that?"
    assert problem.history == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
    ]
    chunks = [{"role": "user", "content": [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]}]
    read = problem_in([{"messages": [*chunks, {"role": "assistant", "content": "4"}], "system": "Add."}], tmp_path)
    assert (read.question, read.history) == ("2 + 2?", [{"role": "system", "content": "Add."}])
    with pytest.raises(InputError, match=r"line 1 is not a problem: its messages \('2 \+ 2\?'\) must be a list"):
        problem_in([{"messages": "2 + 2?"}], tmp_path)


def test_input_of_an_instruction_stands_below_it(tmp_path: Path) -> None:
    assert problem_in(ALPACA, tmp_path).question == "Translate to French.\n\nCheese"
    assert problem_in(ALPACA, tmp_path, 1).question == "Name a colour."


def test_families_of_published_problems_are_their_subjects(tmp_path: Path) -> None:
    for rows, families in (
        (GSM8K, {"gsm8k"}),
        (MATH_500, {"Algebra"}),
        (AIME_2024, {"aime"}),
        (NUMINA, {"synthetic_math", "cn_k12"}),
        (S1K, {"math"}),
    ):
        assert {problem.family for problem in read_problems(written(tmp_path, rows, "jsonl"))} == families


def test_a_file_may_hold_rows_of_several_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [GSM8K[0], {"question": "2 + 2?", "answer": "4"}, MATH[0]]
    assert [problem.answer for problem in read_problems(written(tmp_path, rows, "jsonl"))] == ["72", "4", "2"]
    assert "read as GSM8K (1), question and answer (1), MATH (1);" in capsys.readouterr().err


def test_a_heading_is_no_final_answer(tmp_path: Path) -> None:
    answer = "#### Plan\nAsk.\n#### Conclusion\nIt depends."
    assert problem_in([{"question": "What now?", "answer": answer}], tmp_path).answer == answer
    assert problem_in([{"question": "What now?", "answer": "Ask.\r\n#### 7 \r\n"}], tmp_path).answer == "7"


def test_hashes_are_found_where_the_line_ends_of_a_solution_were_lost(tmp_path: Path) -> None:
    lost = [{**row, "answer": row["answer"].replace("\n", " ")} for row in GSM8K]
    assert [problem.answer for problem in read_problems(written(tmp_path, lost, "jsonl"))] == [
        "72",
        "1,334",
        "$10",
        "-2",
        "0",
    ]
    spoken_of = "A heading is #### and a name, as in #### 4 ways"
    assert problem_in([{"question": "What is a heading?", "answer": spoken_of}], tmp_path).answer == spoken_of


def test_each_form_stands_in_the_documents_table() -> None:
    table = (Path(__file__).parents[2] / "docs" / "reference" / "problems.md").read_text()
    named_otherwise = {"multiple choice", "question and answer", "problem and answer", "problem and solution"}
    assert [form.name for form in FORMS if form.name not in named_otherwise and f"| {form.name}" not in table] == []
    assert "| others | `problem` with `answer` or `solution` |" in table


def test_an_own_id_with_leading_zeros_is_no_answer_sheet(tmp_path: Path) -> None:
    assert problem_in([{"id": "7", "problem": "Which agent?", "answer": "007"}], tmp_path).answer == "007"
