"""Rows are read from every kind of file, and a file that cannot be read whole is refused with its line."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from distill.problems.own_form import ReadingOptions
from distill.problems.problem_set import read_problems
from distill.problems.splits import split_of
from toolkit.errors import InputError
from toolkit.records import Problem

ROWS = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(10, 16)]
QUESTIONS = [row["question"] for row in ROWS]
PAIRS = [(row["question"], row["answer"]) for row in ROWS]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(rows: list[dict[str, Any]], delimiter: str) -> str:
    return "".join(delimiter.join(cells) + "\n" for cells in [list(rows[0]), *([*row.values()] for row in rows)])


def pairs(problems: list[Problem]) -> list[tuple[str, str]]:
    return [(problem.question, problem.answer) for problem in problems]


def write_parquet(path: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def save(path: Path, splits: dict[str, list[dict[str, Any]]]) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()}).save_to_disk(path)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "mine.jsonl": lambda path: path.write_text(lines(ROWS)),
    "mine.ndjson": lambda path: path.write_text(lines(ROWS)),
    "mine.txt": lambda path: path.write_text(lines(ROWS)),
    "bom.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + lines(ROWS).encode()),
    "crlf.jsonl": lambda path: path.write_bytes(lines(ROWS).replace("\n", "\r\n").encode()),
    "blank.jsonl": lambda path: path.write_text("\n\n" + lines(ROWS).replace("\n", "\n\n")),
    "mine.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines(ROWS).encode())),
    "list.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "list.jsonl": lambda path: path.write_text("\n" + json.dumps(ROWS, indent=1)),
    "lines.json": lambda path: path.write_text(lines(ROWS)),
    "under.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS})),
    "list.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "mine.csv": lambda path: path.write_text(table(ROWS, ",")),
    "excel.csv": lambda path: path.write_bytes(b"\xef\xbb\xbf" + table(ROWS, ";").replace("\n", "\r\n").encode()),
    "padded.csv": lambda path: path.write_text(table(ROWS, ",").replace("\n", ",,\n")),
    "mine.tsv": lambda path: path.write_text(table(ROWS, "\t")),
    "mine.csv.gz": lambda path: path.write_bytes(gzip.compress(table(ROWS, ",").encode())),
    "mine.parquet": write_parquet,
    "folder": lambda path: write_parquet(path / "data" / "rows-00000-of-00001.parquet"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_problems(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    assert pairs(read_problems(tmp_path / name)) == PAIRS


def test_a_dataset_on_disk_gives_the_same_problems(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "dataset")
    assert pairs(read_problems(tmp_path / "dataset")) == PAIRS
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds neither data files .* nor a data set that `save_to_disk` wrote"):
        read_problems(tmp_path / "empty")
    next((tmp_path / "dataset").glob("*.arrow")).unlink()
    with pytest.raises(InputError, match="is not a data set that `save_to_disk` wrote"):
        read_problems(tmp_path / "dataset")


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen([sys.executable, "-c", f"open({str(pipe)!r}, 'w').write({lines(ROWS)!r})"]):
        assert pairs(read_problems(pipe)) == PAIRS


def test_cells_with_delimiters_and_line_ends_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text('question,answer,metadata\n"Sum\n1,2?",3,"{""source"": ""me""}"\n\n"Say ""x""",x,\n')
    first, second = read_problems(path)
    assert (first.question, first.metadata, second.question) == ("Sum\n1,2?", {"source": "me"}, 'Say "x"')


@pytest.mark.parametrize("name", ["problems.json", "problems.jsonl"])
def test_separators_of_unicode_end_no_line_of_json(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows = [{"question": f"What\u2028is {n}\x85?", "answer": f"{n}\u2029"} for n in range(3)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert [problem.question for problem in read_problems(path)] == [row["question"] for row in rows]


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.csv"])
def test_carriage_returns_alone_end_lines(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    text = lines(ROWS) if name.endswith("jsonl") else table(ROWS, ",")
    path.write_bytes(text.replace("\r\n", "\n").replace("\n", "\r").encode())
    assert len(read_problems(path)) == len(read_problems(_with(tmp_path / f"n-{name}", text)))


def _with(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


BROKEN = {
    "latin.jsonl": ("Où?".encode("latin-1"), r"latin.jsonl line 1 is not UTF-8 at its byte 2 \(0xf9\)"),
    "mine.xlsx": (b"PK\x03\x04\xff\xff", "is a ZIP file, not UTF-8 text.*known kinds of files are .jsonl"),
    "packed.jsonl": (gzip.compress(lines(ROWS).encode()), "is a gzip file that is not named .gz, not UTF-8 text"),
    "wide without a mark.jsonl": (lines(ROWS).encode("utf-16-le"), "is UTF-16, not UTF-8 text"),
    "wide.jsonl": (lines(ROWS).encode("utf-16"), "is UTF-16, not UTF-8 text; save it as UTF-8"),
    "cut.jsonl": (lines(ROWS).encode()[:-20], "line 6 must be JSON"),
    "twice.jsonl": (b'{"question": "a", "question": "b", "answer": "c"}', "line 1 must be JSON: the key 'question'"),
    "half.jsonl": (b'{"question": "\\ud83d", "answer": "c"}', "line 1 holds half of a surrogate pair"),
    "deep.jsonl": (b"[" * 100_000, "must be JSON"),
    "list.jsonl": (b'{"question": "a", "answer": "b"}\n["a", "b"]\n', "line 2 must be a JSON object, not list"),
    "nan.jsonl": (b'{"question": "a", "answer": NaN}', r"line 1 is not a problem: its 'answer' \(nan\)"),
    "null.jsonl": (
        b'{"question": null, "answer": "b"}',
        "line 1 is not a problem: its 'question' is empty; each needs",
    ),
    "empty.jsonl": (b"", "holds no problem"),
    "empty.jsonl.gz": (b"", "holds no problem"),
    "blank.csv": (b"\n\n", "holds no problem"),
    "header.csv": (b"question,answer\n", "holds no problem"),
    "torn.jsonl.gz": (
        gzip.compress(lines(ROWS * 9).encode())[:-12],
        "is a gzip file that is cut off or damaged after line",
    ),
    "plain.jsonl.gz": (lines(ROWS).encode(), "is a gzip file that is cut off or damaged after line"),
    "flipped.csv.gz": (
        gzip.compress(table(ROWS, ",").encode())[:-8] + b"\0" * 8,
        "is a gzip file that is cut off or damaged after line",
    ),
    "bomb.jsonl.gz": (gzip.compress(b" " * 2**23), r"unpacks to more than 200 times its size"),
    "bomb.json.gz": (gzip.compress(b"[" + b"\n" * 2**23), r"unpacks to more than 200 times its size"),
    "one.json": (b'{"question": "a", "answer": "b"}', "must hold a list of problems; it holds one object"),
    "text.json": (b'"question"', "must hold a list of objects, not str"),
    "two.json": (json.dumps({"easy": ROWS, "hard": ROWS}).encode(), "one list of problems, or one for each split"),
    "item.json": (b'[{"question": "a", "answer": "b"}, 5]', "item.json item 2 must be a JSON object, not int"),
    "short.csv": (b"question,answer\na,b\na\n", r"short.csv line 3 has 1 cell, but there are 2 columns \("),
    "long.csv": (b"question,answer\na,b\nWhat, then?,b\n", "long.csv line 3 has 3 cells"),
    "quote.csv": (b'question,answer\na,b\n"a,b\n', "quote.csv line 3 is not a valid row of a CSV file"),
    "columns.csv": (b"question,answer,answer\na,b,c\n", "has several columns named 'answer'"),
    "nan.csv": (b"question,answer\na,NaN\n", "nan.csv line 2 is not a problem: its 'answer' is empty; each needs"),
    "tests.jsonl": (
        b'{"question": "a", "answer": "b", "tests": [{"stdin": "1", "stdout": "1"}]}',
        "line 1 is not a problem: its 'tests' belong in its 'metadata'",
    ),
    "cell.csv": (b"question,answer\na,\n", "cell.csv line 2 is not a problem: its 'answer' is empty; each needs"),
    "cells.csv": (
        b"question,answer,level\n,,3\n",
        "line 2 is not a problem: its 'question' is empty and its 'answer' is",
    ),
    "none.jsonl": (b'{"question": "a"}', "line 1 is not a problem: it has no 'answer'; each needs a question and an"),
    "words.txt": (
        b"What is 1 + 1? 2\n",
        "words.txt line 1 must be JSON: .*; known kinds of files are .jsonl, .*, .csv",
    ),
    "torn.parquet": (b"PAR1" + b"\0" * 40, "is not a complete parquet file"),
    "empty.parquet": (b"", "is not a complete parquet file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_refused_with_its_place(name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_problems(tmp_path / name)


def test_rows_that_lack_something_are_counted_and_the_first_three_named(tmp_path: Path) -> None:
    path = tmp_path / "gaps.csv"
    path.write_text("question,answer\n1+1?,2\n1+2?,\n,4\n1+4?,\n1+5?,6\n1+6?,\n")
    with pytest.raises(
        InputError, match=r"gaps\.csv line 3 is not a problem: its 'answer' is empty; 4 rows lack"
    ) as no:
        read_problems(path)
    places = ", ".join(f"{path} line {number}" for number in (3, 4, 5))
    assert f"4 rows lack a question or an answer ({places} and 1 more); each needs" in str(no.value)


def test_missing_cells_of_a_parquet_file_are_named(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "nan.parquet", [{"question": "a", "answer": 1.5}, {"question": "b", "answer": float("nan")}]
    )
    with pytest.raises(InputError, match=r"nan.parquet row 2 is not a problem: its 'answer' \(nan\)"):
        read_problems(tmp_path / "nan.parquet")
    write_parquet(tmp_path / "null.parquet", [{"question": "a", "answer": "b"}, {"question": None, "answer": "b"}])
    with pytest.raises(InputError, match=r"null\.parquet row 2 is not a problem: its 'question' is empty"):
        read_problems(tmp_path / "null.parquet")


def test_a_date_in_the_metadata_is_its_text(tmp_path: Path) -> None:
    rows = [{"question": "When?", "answer": date(2024, 2, 29), "metadata": {"asked": date(2025, 1, 1)}}]
    write_parquet(tmp_path / "dates.parquet", rows)
    (problem,) = read_problems(tmp_path / "dates.parquet")
    assert (problem.answer, problem.metadata) == ("2024-02-29", {"asked": "2025-01-01"})


def test_columns_of_one_name_in_a_parquet_file_are_refused(tmp_path: Path) -> None:
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"]), pyarrow.array(["c"])]
    parquet.write_table(
        pyarrow.Table.from_arrays(columns, names=["question", "answer", "answer"]), tmp_path / "a.parquet"
    )
    with pytest.raises(InputError, match="several columns named 'answer'"):
        read_problems(tmp_path / "a.parquet")


@pytest.mark.parametrize("layout", ["data/{}-00000-of-00001.parquet", "{}.jsonl", "{}/part.csv", "my_{}.json.gz"])
def test_a_folder_of_files_has_the_splits_that_their_names_say(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, rows in (("train", ROWS[:3]), ("dev", ROWS[3:4]), ("test", ROWS[4:])):
        path = tmp_path / layout.format(split)
        write_parquet(path, rows)
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(json.dumps(rows).encode()))
        elif path.suffix != ".parquet":
            path.write_text(lines(rows) if path.suffix == ".jsonl" else table(rows, ","))
    (tmp_path / "README.md").write_text("# Data\n")
    (tmp_path / "notes.txt").write_text("See README.\n")
    problems = {problem.question: split_of(problem) for problem in read_problems(tmp_path)}
    assert list(map(problems.get, QUESTIONS)) == ["train"] * 3 + ["validation"] + ["test"] * 2
    said = capsys.readouterr().err
    assert "3 train, 1 validation, 2 test (by the data set's own splits)" in said
    assert "that are not read: 1, for example notes.txt" in said


def test_splits_of_a_json_object_and_of_a_dataset_are_kept(tmp_path: Path) -> None:
    splits = {"train": ROWS[:3], "valid": ROWS[3:4], "test": ROWS[4:]}
    (tmp_path / "mine.json").write_text(json.dumps(splits))
    save(tmp_path / "dataset", splits)
    save(tmp_path / "parts", splits)
    (tmp_path / "parts" / "dataset_dict.json").unlink()
    for name in ("mine.json", "dataset", "parts"):
        problems = read_problems(tmp_path / name)
        split_of_question = {problem.question: problem.split for problem in problems}
        assert list(map(split_of_question.get, QUESTIONS)) == ["train"] * 3 + ["validation"] + ["test"] * 2


def test_a_part_that_names_no_split_beside_others_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "dataset", {"train": ROWS[:3], "extra": ROWS[3:]})
    with pytest.raises(
        InputError, match=r"named after splits \('train'\) and others \('extra'\); name all after splits \(train"
    ):
        read_problems(tmp_path / "dataset")
    save(tmp_path / "subjects", {"algebra": ROWS[:3], "geometry": ROWS[3:]})
    assert {problem.split for problem in read_problems(tmp_path / "subjects")} == {None}
    assert "(algebra, geometry) is named after a split; the hash of each question decides" in capsys.readouterr().err
    save(tmp_path / "whole", {"train": ROWS})
    assert {problem.split for problem in read_problems(tmp_path / "whole")} == {None}
    assert "has only a train split" in capsys.readouterr().err


def test_a_rows_own_split_is_kept_and_an_unknown_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        lines([row | {"split": split} for row, split in zip(ROWS, ("train", "dev", "eval", None), strict=False)])
    )
    assert [problem.split for problem in read_problems(path)] == ["train", "validation", "test", None]
    path.write_text(lines([ROWS[0] | {"split": "tset"}]))
    with pytest.raises(InputError, match=r"line 1 is not a problem: its split \('tset'\) is unknown; use one of train"):
        read_problems(path)
    save(tmp_path / "dataset", {"train": [ROWS[0] | {"split": "test"}], "test": [ROWS[1] | {"split": "test"}]})
    with pytest.raises(InputError, match=r"split \(test\) contradicts the row's part of the data set \(train\)"):
        read_problems(tmp_path / "dataset")


def test_columns_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": row["question"], "reward": {"truth": row["answer"]}, "ability": "math"} for row in ROWS]
    path = tmp_path / "mine.jsonl"
    path.write_text(lines(rows))
    assert pairs(read_problems(path, ReadingOptions(question_field="prompt", answer_field="reward.truth"))) == PAIRS
    assert "read as prompt and reward.truth" in (said := capsys.readouterr().err)
    assert "unused columns: 'ability' (rows: 6)" in said
    with pytest.raises(InputError, match=r"line 1 .*has no known form.*name the columns with --question-field"):
        read_problems(path)
    path.write_text(lines([row | {"solution": "7"} for row in ROWS[:1]]).replace('"answer"', '"level"'))
    with pytest.raises(InputError, match=r"columns with a value are question, level, solution; .*--answer-field"):
        read_problems(path)
    path.write_text(lines(rows))
    wrong = ReadingOptions(question_field="promt", answer_field="reward.truth")
    with pytest.raises(InputError, match=r"--question-field: .*line 1 has no column 'promt'; .*mean 'prompt'"):
        read_problems(path, wrong)
    wrong = ReadingOptions(question_field="promt", answer_field="truth")
    with pytest.raises(
        InputError, match=r"--question-field and --answer-field: .* no column 'promt' and no column 'truth"
    ):
        read_problems(path, wrong)
    (tmp_path / "named.csv").write_text("prompt,truth\n1+1?,\n")
    with pytest.raises(InputError, match=r"named\.csv line 2 is not a problem: its 'truth' is empty"):
        read_problems(tmp_path / "named.csv", ReadingOptions(question_field="prompt", answer_field="truth"))
    conversation = [{"prompt": [{"role": "user", "content": row["question"]}], "answer": row["answer"]} for row in ROWS]
    write_parquet(tmp_path / "mine.parquet", conversation)
    assert pairs(read_problems(tmp_path / "mine.parquet", ReadingOptions(question_field="prompt"))) == PAIRS


def test_a_misspelt_key_does_not_pass_without_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(lines([ROWS[0] | {"metdata": {}, "level": 3}, ROWS[1] | {"metdata": {}}, ROWS[2] | {"id": "a-7"}]))
    read_problems(path)
    said = capsys.readouterr().err
    assert "'metdata' (rows: 2; did you mean 'metadata'?), 'level' (rows: 1), 'id' (rows: 1)" in said
    path.write_text(lines([ROWS[0], {"question": "Why?", "anwser": "So."}]))
    with pytest.raises(InputError, match="line 2 is not a problem: it has 'anwser' but no 'answer'"):
        read_problems(path)
    path.write_text(lines([{"qestion": "Why?", "anwser": "So."}]))
    with pytest.raises(
        InputError, match="'qestion' but no 'question', and 'anwser' but no 'answer'; rename the columns"
    ):
        read_problems(path)


def test_nulls_that_datasets_writes_stand_for_absent_fields(tmp_path: Path) -> None:
    tests = [{"call": "f", "args": [1], "returns": None}], [{"stdin": "1\n", "stdout": "1\n"}]
    rows: list[dict[str, Any]] = [
        {"question": "Write f.", "answer": "def f(x): pass", "metadata": {"tests": tests[0]}},
        {"question": "Echo.", "answer": "print(input())", "metadata": {"tests": tests[1], "source": "me"}},
        {"question": "2 + 2?", "answer": "4", "family": "sums", "history": [{"role": "user", "content": "Hi"}]},
        {"question": "3 + 3?", "answer": "6", "split": "train"},
    ]
    from datasets import Dataset

    columns: dict[str, Any] = {column: None for row in rows for column in row}
    dataset = Dataset.from_list([columns | row for row in rows])
    dataset.save_to_disk(tmp_path / "dataset")
    dataset.to_parquet(tmp_path / "mine.parquet")
    dataset.to_json(tmp_path / "mine.jsonl")
    for name in ("dataset", "mine.parquet", "mine.jsonl"):
        problems = read_problems(tmp_path / name)
        assert [problem.metadata.get("tests") for problem in problems] == [*tests, None, None], name
        assert [(problem.family, len(problem.history)) for problem in problems[1:3]] == [("user", 0), ("sums", 1)]
        assert problems[1].metadata["source"] == "me"
        assert [problem.split for problem in problems] == [None, None, None, "train"]


def test_answers_that_are_no_texts_are_read_as_people_write_them(tmp_path: Path) -> None:
    answers = [True, 4, 4.5, 10**30, [1, "a"], {"x": 1}]
    (tmp_path / "mine.jsonl").write_text(
        lines([{"question": f"Question {i}?", "answer": answer} for i, answer in enumerate(answers)])
    )
    read = [problem.answer for problem in read_problems(tmp_path / "mine.jsonl")]
    assert read == ["True", "4", "4.5", str(10**30), '[1, "a"]', '{"x": 1}']
    nothings: list[Any] = [[], {}, "", " "]
    for empty in nothings:
        (tmp_path / "mine.jsonl").write_text(lines([{"question": "a", "answer": empty}]))
        with pytest.raises(InputError, match="its 'answer'"):
            read_problems(tmp_path / "mine.jsonl")


def test_a_missing_file_is_no_hub_id_and_an_unreachable_hub_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mine\.jsonl does not exist; give a file, a folder, or a data set's id"):
        read_problems(tmp_path / "mine.jsonl")
    with pytest.raises(InputError, match="give a file, a folder, or a data set's id"):
        read_problems(tmp_path / "mine")
    for hub_id in ("openai/gsm8k:main", "HuggingFaceH4/MATH-500"):
        with pytest.raises(InputError, match=r"cannot be loaded from the Hugging Face hub: .*Hub") as refused:
            read_problems(Path(hub_id))
        assert "\n" not in str(refused.value)


READ_FROM_HUB = """
from pathlib import Path
from distill.problems.problem_set import read_problems
print([(problem.answer, problem.split) for problem in read_problems(Path("owner/sums:main"))])
"""


def test_a_data_set_of_the_hub_is_read_with_its_splits(tmp_path: Path) -> None:
    """Without a network it is read from the cache of an earlier download, which `datasets` itself writes here."""
    from datasets import load_dataset

    for split, rows in (("train", ROWS[:4]), ("test", ROWS[4:])):
        write_parquet(tmp_path / f"{split}.parquet", rows)
    files = {split: str(tmp_path / f"{split}.parquet") for split in ("train", "test")}
    load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "built"))
    (info,) = (tmp_path / "built").rglob("dataset_info.json")
    cached = tmp_path / "home" / "datasets" / "owner___sums" / "main" / "0.0.0" / "abc"
    cached.mkdir(parents=True)
    for path in info.parent.glob("*.arrow"):
        path.rename(cached / path.name.replace("parquet", "sums"))
    facts = json.loads(info.read_text()) | {"config_name": "main", "dataset_name": "sums"}
    (cached / info.name).write_text(json.dumps(facts))
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READ_FROM_HUB], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    split_of_row = ["train"] * 4 + ["test"] * 2
    assert done.stdout.strip() == repr([(row["answer"], split) for row, split in zip(ROWS, split_of_row, strict=True)])
