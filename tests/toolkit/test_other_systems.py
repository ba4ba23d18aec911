"""What runs where Windows or macOS would refuse what Linux allows; `tests/refusing/sitecustomize.py` refuses it here.

All commands of one process, in turn: most of the time is that of importing torch.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from distill.verification.code.confine import REFUSED
from distill.verification.code.sandbox import strongest_level
from tests.samples import TRACE
from tests.toolkit.test_models import hub  # noqa: F401 – a fixture
from toolkit.errors import InputError
from toolkit.records import Problem, write_records

ROOT = Path(__file__).parents[2]
SAME = {"1/2": "0.5", "(x+1)^2": "x^2 + 2x + 1", "7": "7", r"\sqrt{12}": r"2\sqrt{3}", "naïve – ✓": "naïve – ✓"}
"""References, and right answers that some of only math-verify knows to be the same."""
RUN = "import sys, json; from toolkit.cli.main import main; print(*[main(words) for words in json.loads(sys.argv[1])])"
OFF = "runs on onnxruntime's kernels, which are slower (TOOLKIT_KERNELS=onnxruntime switches ours off)"
CODE = [{"call": "add", "args": [2, 3], "returns": 5}]


def refused(system: str, command: Sequence[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Run a process that refuses what `system` refuses."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"} | environment
    variables |= {"REFUSING": system, "PYTHONPATH": str(ROOT / "tests" / "refusing"), "PYTHONWARNDEFAULTENCODING": "1"}
    variables |= {"TOOLKIT_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0", "TOOLKIT_KERNELS": "onnxruntime"}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def write_inputs(folder: Path) -> None:
    problems = [
        Problem.create(family="user", question=f"{i}: {reference}?", answer=reference)
        for i in range(4)
        for reference in SAME
    ]
    write_records(folder / "problems.jsonl", problems)
    write_records(
        folder / "traces.jsonl",
        [
            replace(
                TRACE,
                problem_id=problem.id,
                reasoning="Both are the same …",
                answer=SAME[problem.answer],
                request_hash=problem.id,
            )
            for problem in problems
        ],
    )
    code = Problem.create(
        family="user", question="Write add(a, b).", answer="def add(a, b): return a + b", metadata={"tests": CODE}
    )
    write_records(folder / "code.jsonl", [code])


@pytest.fixture(scope="module")
def made(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all commands."""
    folder = tmp_path_factory.mktemp("windows")
    write_inputs(folder)
    return folder


def test_every_stage_ends_where_windows_would_refuse(made: Path, hub: str) -> None:  # noqa: F811 – the fixture
    model, problems, small = "owner/tiny", str(made / "problems.jsonl"), ["--max-new-tokens", "4"]
    out = {name: str(made / name) for name in ("traces", "student", "int4", "int8", "eval")}
    commands = [
        ["doctor"],
        ["pull", model],
        ["traces", "--teacher", model, "--problems", problems, *small, "--out", out["traces"]],
        ["distill", "--student", model, "--traces", str(made / "traces.jsonl"), "--out", out["student"]],
        ["export", out["student"], "--int4", "--fast", "--no-parity", "--out", out["int4"]],
        ["export", out["student"], "--int8", "--out", out["int8"]],
        ["verify", out["int8"]],
        ["bench", out["int8"], "--contexts", "8", "--new-tokens", "2", "--rounds", "1", "--prepacked"],
        ["eval", out["int8"], "--problems", str(made / "code.jsonl"), *small, "--out", out["eval"]],
    ]
    said, errors = refused("windows", ["-c", RUN, json.dumps(commands)], made, HF_ENDPOINT=hub).communicate()
    assert said.splitlines()[-1] == "0 0 0 0 0 0 0 0 2", errors
    assert "✓ python" in said
    assert "nor limit and end one with all that it started; leave out problems with tests" in errors
    assert "our kernels do not run here, so the three bits of --fast are widened at each start" in errors
    assert errors.count(OFF) == 1, "bench says that our kernels are off"
    verdicts = [json.loads(line) for line in (made / "student" / "verdicts.jsonl").read_text("utf-8").splitlines()]
    assert verdicts and all(verdict["correct"] for verdict in verdicts)
    assert {path.name for path in made.glob(".*")} == {".traces"}, "nothing half-made is left"


@pytest.mark.parametrize(
    ("words", "health"),
    [
        (["serve", "{int8}", "--port", "0", "--prepacked"], "/health"),
        (["chat", "{int8}", "--data", "{data}", "--no-browser", "--prefix-cache", "1GB"], "/health"),
    ],
    ids=["serve", "chat"],
)
def test_servers_start_where_windows_would_refuse(words: list[str], health: str, made: Path) -> None:
    if not (made / "int8").is_dir():
        pytest.skip("the stages before it failed")
    words = [word.format(int8=made / "int8", data=made / "data") for word in words]
    with refused("windows", ["-m", "toolkit", *words], made) as process:
        assert process.stdout and process.stderr
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        try:
            assert found, process.stderr.read()
            assert httpx2.get(found.group() + health, timeout=60).status_code == 200
            process.terminate()
            assert OFF in process.stderr.read()
        finally:
            process.terminate()


MATHEMATICS = (
    "from distill.verification.mathematics.equivalence import equivalent; print(equivalent('(x+1)^2', 'x^2+2x+1'))"
)
LIMIT = (
    "import os, sys; from distill.verification.code import confine; "
    "confine.limit(sys.argv[1], 9, os.getppid()); print('on')"
)


def test_mathematics_and_what_is_not_confined_run_where_macos_refuses_a_limit_of_memory(tmp_path: Path) -> None:
    assert refused("macos", ["-c", MATHEMATICS], tmp_path).communicate()[0] == "True\n"
    assert refused("macos", ["-c", LIMIT, "none"], tmp_path).communicate()[0] == "on\n"
    assert refused("macos", ["-c", LIMIT, "landlock"], tmp_path).wait() == REFUSED


def test_a_worker_whose_system_limits_no_memory_is_watched(tmp_path: Path) -> None:
    program = MATHEMATICS.replace("'x^2+2x+1'", "'9**9**9**9'") + "; print(equivalent('1/2', '0.5'))"
    assert refused("macos", ["-c", program], tmp_path).communicate()[0] == "False\nTrue\n"


def test_code_is_refused_before_anybody_is_asked_where_nothing_can_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    strongest_level.cache_clear()
    monkeypatch.delattr(os, "killpg")
    with pytest.raises(InputError, match=r"\w+ cannot confine programs that a model wrote, nor limit and end"):
        strongest_level()
