"""A machine that is too small by the plan's figures refuses a student, with the figures, before anything is asked."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.planning import training_plan
from distill.planning.memory_check import Division, check_least, within_memory
from distill.recipes.distill_recipe import shipped_recipe
from tests.distill.launching.test_commands import line, traces
from tests.distill.test_train import examples
from toolkit.cli.main import main
from toolkit.errors import InputError
from toolkit.machine.allowance import Memory
from toolkit.voice.student_format import write_student_format

__all__ = ["traces"]
TRAIN = replace(shipped_recipe().train, batch_examples=4)
ALONE, TWO = Division(here=1, shards=1, everywhere=1), Division(here=2, shards=1, everywhere=2)
LARGE = "Qwen/Qwen2.5-7B-Instruct"

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's own memory is asked")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the machine have so many bytes free."""

    def set_free(size: float) -> None:
        monkeypatch.setattr(
            training_plan, "memory", lambda: Memory(total_bytes=2 * int(size), available_bytes=int(size))
        )

    return set_free


def test_a_machine_that_is_too_small_is_told_by_part(free: Any) -> None:
    free(24e9)
    with pytest.raises(InputError) as refused:
        check_least(Path(LARGE), train=TRAIN, max_tokens=512, division=ALONE)
    told = str(refused.value)
    assert "24.0 GB are free; train adapters (--lora" in told and told.endswith("try all the same with --force")
    parts = {name: float(size) for name, size in re.findall(r"(\w+) ([\d.]+)[,)]", told)}
    total = float(re.search(r"at least ([\d.]+) GB", told)[1])  # type: ignore[index]
    assert {"weights", "optimizer", "gradients"} <= parts.keys() and parts[
        "optimizer"
    ] > 60  # two moments in fp32 at least
    assert sum(parts.values()) - parts["program"] == pytest.approx(total, abs=0.2), "this process is there already"


def test_what_adapters_on_four_bits_take_is_not_refused(free: Any, capsys: pytest.CaptureFixture[str]) -> None:
    free(24e9)
    light = replace(TRAIN, lora_rank=16, quantization="nf4", gradient_checkpointing=True)
    check_least(Path(LARGE), train=light, max_tokens=512, division=ALONE)
    assert not capsys.readouterr().err
    check_least(Path(LARGE), train=replace(light, gradient_checkpointing=False), max_tokens=4096, division=ALONE)
    assert re.search(r"if all examples had 4096 tokens, training would take [\d.]+ GB", capsys.readouterr().err)


def test_processes_of_one_machine_share_its_memory_and_shards_divide_it(free: Any) -> None:
    free(40e9)
    name = Path("Qwen/Qwen2.5-1.5B-Instruct")
    check_least(name, train=TRAIN, max_tokens=64, division=ALONE)
    with pytest.raises(InputError, match="in each of 2 processes"):
        check_least(name, train=TRAIN, max_tokens=64, division=TWO)
    check_least(name, train=TRAIN, max_tokens=64, division=replace(TWO, shards=2))


def test_examples_are_weighed_before_they_are_trained_on(tiny_student: Path, tmp_path: Path, free: Any) -> None:
    write_student_format(tiny_student, tmp_path)
    done: list[int] = []

    def trained(*args: Any) -> dict[str, Any]:
        done.append(len(args[1]))
        return {}

    free(2e9)
    assert within_memory(trained, ALONE)(tiny_student, examples(8), TRAIN, tmp_path, []) == {} and done == [8]
    free(1e6)
    with pytest.raises(
        InputError, match=r"training on examples of up to \d+ tokens takes [\d.]+ GB .* 0\.0 GB are free"
    ):
        within_memory(trained, ALONE)(tiny_student, examples(8), TRAIN, tmp_path, [])
    assert done == [8]


def test_the_command_refuses_before_work_and_force_tries(
    traces: Path, tiny_student: Path, tmp_path: Path, free: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    free(1e3)
    words = line(traces, tiny_student, tmp_path / "out", "--per-problem", "1")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert re.search(r"training .* takes at least [\d.]+ GB .* --force$", said.splitlines()[-1])
    assert not list(tmp_path.iterdir())
    assert main([*words, "--force"]) == 0 and (tmp_path / "out" / "manifest.json").is_file()
