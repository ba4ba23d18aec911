"""Runs lm-evaluation-harness against `toolkit serve`, and compares what it finds with what we find.

    python -m benchmarks.harness.harness MODEL DIR … [--problems 84]

    runs/harness/problems.json  choices.json     some of the ledger's problems, as the tasks beside this file read them
    own_problems.yaml    answers by /v1/chat/completions       beside `toolkit eval` on the same problems
    own_choices.yaml     likelihoods by /v1/completions        beside torch's, of the float model

MODEL is a float model, each DIR an export of it: in fp32 its likelihoods are torch's. The harness has an environment of
its own, and no network is used once that is made. Fills a block of docs/how-to/evaluate.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from distill.problems.families import ledger_problems
from toolkit.figures.readme import fill_file
from toolkit.figures.tables import markdown_table, percent
from toolkit.formats.chat_format import ChatFormat
from toolkit.machine.environment import interpreter
from toolkit.model.decoder import load_model
from toolkit.records import Message, Problem, read_jsonl

DOCUMENT, BLOCK = Path("docs/how-to/evaluate.md"), "lm-eval"
TASKS, DATA = Path(__file__).parent, Path("runs/harness")
REQUIREMENTS = ("lm-eval[api]==0.4.13", "transformers")
NUMBERS = ("chain_sum", "simple_equations", "gcd")
"""Families whose answers are whole numbers, of which wrong choices are near ones."""
CONTEXT = 8192
NEAR = (-11, -10, -2, -1, 1, 2, 10, 11)
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}


def write_data(count: int) -> None:
    """Write problems and choices: equally many of each family of numbers."""
    problems = [p for family in NUMBERS for p in [q for q in ledger_problems() if q.family == family][: count // 3]]
    DATA.mkdir(parents=True, exist_ok=True)
    rows = [{"question": problem.question, "answer": problem.answer} for problem in problems]
    (DATA / "problems.json").write_text(json.dumps(rows), encoding="utf-8")
    choices = [_choices(problem, random.Random(n)) for n, problem in enumerate(problems)]
    (DATA / "choices.json").write_text(json.dumps(choices), encoding="utf-8")


def _choices(problem: Problem, chance: random.Random) -> dict[str, Any]:
    right = int(problem.answer)
    numbers = [right, *(right + step for step in chance.sample(NEAR, 3))]
    chance.shuffle(numbers)
    return {"question": problem.question, "choices": [str(n) for n in numbers], "gold": numbers.index(right)}


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve an exported folder; yields the API's address."""
    command = [sys.executable, "-m", "toolkit", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            for line in server.stdout:
                if found := re.search(r"http://\S+/v1", line):
                    yield found[0]
                    return
        finally:
            server.terminate()


def harness(python: Path, kind: str, task: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Run a task and return its samples."""
    out = DATA / "out"
    arguments = ",".join(f"{name}={value}" for name, value in settings.items())
    command = [python, "-m", "lm_eval", "run", "--model", kind, "--model_args", arguments, "--tasks", task]
    command += ["--include_path", TASKS, "--apply_chat_template", "--output_path", out, "--log_samples"]
    subprocess.run([str(word) for word in command], check=True, env=os.environ | OFFLINE, stdout=subprocess.DEVNULL)
    newest = max(out.rglob(f"samples_{task}_*.jsonl"), key=lambda path: path.stat().st_mtime)
    return [values for _, values in read_jsonl(newest)]


def ours(folder: Path) -> float:
    """Return the accuracy that `toolkit eval` finds on the same problems."""
    command = [sys.executable, "-m", "toolkit", "eval", str(folder), "--problems", str(DATA / "problems.json")]
    command += ["--split", "all", "--include-trained", "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout)["accuracy"])


@torch.no_grad()
def likelihoods(folder: Path, samples: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Return each choice's log-likelihood by torch in fp32. The harness counts white space that ends a prompt to it."""
    chat_format, model = ChatFormat.from_folder(folder), load_model(folder, torch.float32)
    found = []
    for sample in samples:
        messages: list[Message] = [{"role": "user", "content": sample["doc"]["question"]}]
        prompt = chat_format.prompt_ids(messages)
        begin = len(chat_format.encode(chat_format.render(messages).rstrip()))
        values = []
        for choice in sample["doc"]["choices"]:
            ids = [*prompt, *chat_format.encode(choice)]
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            values.append(sum(float(logs[n - 1, ids[n]]) for n in range(begin, len(ids))))
        found.append(values)
    return found


def answered(python: Path, folder: Path, settings: dict[str, Any]) -> list[str]:
    """Return the table's row of the task whose answers are compared."""
    settings = settings | {"base_url": f"{settings['base_url']}/chat/completions"}
    samples = harness(python, "local-chat-completions", "own_problems", settings)
    right = sum(sample["exact_match"] for sample in samples) / len(samples)
    return ["`own_problems`", "`/v1/chat/completions`", percent(right), f"`toolkit eval`: {percent(ours(folder))}", ""]


def chosen(python: Path, folder: Path, model: Path, settings: dict[str, Any]) -> list[str]:
    """Return the table's row of the task whose likelihoods are compared."""
    tokenizer = {"tokenizer_backend": "huggingface", "tokenizer": folder, "max_length": CONTEXT}
    settings = settings | tokenizer | {"base_url": f"{settings['base_url']}/completions"}
    samples = harness(python, "local-completions", "own_choices", settings)
    right = sum(sample["acc"] for sample in samples) / len(samples)
    theirs = [float(each[0][0]) for sample in samples for each in sample["resps"]]
    exact = likelihoods(model, samples)
    same = [values.index(max(values)) == sample["doc"]["gold"] for values, sample in zip(exact, samples, strict=True)]
    most = max(abs(a - b) for a, b in zip(theirs, [value for values in exact for value in values], strict=True))
    by_torch = f"torch in fp32: {percent(sum(same) / len(same))}"
    return ["`own_choices`", "`/v1/completions`", percent(right), by_torch, f"{most:.2g} nats"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--problems", type=int, default=84)
    parser.add_argument("--home", type=Path, default=DATA / "environment", help="the harness's environment")
    options = parser.parse_args()
    write_data(options.problems)
    python = interpreter(options.home, REQUIREMENTS).absolute()
    rows = [["served", "task", "asks", "lm-evaluation-harness", "here", "likelihoods differ by at most"]]
    for folder in options.folders:
        with served(folder) as address:
            settings = {"model": folder.name, "base_url": address, "num_concurrent": 4}
            for row in (answered(python, folder, settings), chosen(python, folder, options.model, settings)):
                rows.append([folder.name, *row])
    table = markdown_table(rows)
    print(table)
    fill_file(DOCUMENT, BLOCK, table)


if __name__ == "__main__":
    main()
