"""Training on two processes is training on one with the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distill import many_processes
from tests.distill.many_processes import (
    EXPERTS_PER_TOKEN,
    GLOBAL_ROWS,
    N_ROUTED_EXPERTS,
    OPTIMIZERS,
    ROW_TOKENS,
    STEPS,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the result of two processes that torchrun started."""
    folder = tmp_path_factory.mktemp("two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*torchrun, "-m", many_processes.__name__, str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )
    assert sorted(path.name for path in folder.iterdir()) == ["parts", "result.json", "staged", "trained"]
    assert (folder / "staged" / "manifest.json").is_file() and (folder / "staged" / "model.safetensors").is_file()
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


@pytest.fixture(scope="module")
def one(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    trained = many_processes.trained(tmp_path_factory.mktemp("one") / "trained", 1)
    return {"trained": trained, "staged": many_processes.logged(taught / "pretrain")}


def test_two_processes_log_the_losses_of_one(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert two["trained"]["wrapped"] == "DistributedDataParallel"
    mine, theirs = ([line["loss"] for line in each["trained"]["log"]] for each in (one, two))
    assert len(theirs) == STEPS, "only the first process writes"
    # the two halves of a gradient are added in another order, and Muon rounds its matrices to bf16
    assert theirs == pytest.approx(mine, abs=2e-4)
    assert theirs[-1] != theirs[0]


def test_a_checkpoint_gets_its_state_when_all_processes_have_written_their_parts(two: dict[str, Any]) -> None:
    """Otherwise one that was killed meanwhile would be taken for whole, and could not be read."""
    assert two["parts"] == ["part 0", "part 1"]


def test_every_process_moves_the_biases_by_the_loads_of_all(one: dict[str, Any], two: dict[str, Any]) -> None:
    first, second = two["trained"]["biases of both"]
    assert first == second
    theirs, mine = np.array(first), np.array(one["trained"]["biases"])
    assert theirs[0].any()
    # sums of another order may decide a near tie of the router otherwise, and so on which side of the mean a load is
    assert np.mean(np.abs(theirs - mine) > 1e-6) < 0.1


def test_violations_of_each_layer_are_those_of_the_global_batch(one: dict[str, Any], two: dict[str, Any]) -> None:
    mine, theirs = ([line["max_violation_by_layer"] for line in each["trained"]["log"]] for each in (one, two))
    # sums of another order may decide a near tie of the router otherwise: each token so moved changes a load by one
    a_token = N_ROUTED_EXPERTS / (GLOBAL_ROWS * ROW_TOKENS * EXPERTS_PER_TOKEN)
    assert len(theirs) == len(mine)
    assert all(len(layers) == 2 for layers in mine)
    assert theirs == [pytest.approx(layers, abs=2.5 * a_token) for layers in mine]


def test_a_log_line_says_how_fast_and_how_well_used(one: dict[str, Any]) -> None:
    for line in one["trained"]["log"]:
        assert 0 < line["tokens_per_s"] < line["flops_per_s"]
        assert line["mfu"] >= 0


def test_a_stage_of_the_teacher_runs_on_two_processes(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert len(two["staged"]) == len(one["staged"]) > 1
    assert two["staged"][-1] < two["staged"][0]
    # in bf16: a gradient of half the batch is rounded by itself
    assert two["staged"] == pytest.approx(one["staged"], abs=3e-2)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_sharded_model_learns_as_a_whole_one(optimizer: str, two: dict[str, Any]) -> None:
    found = two["sharded"][optimizer]
    assert found["held"] < 0.6 * found["values"], "each of two processes holds half"
    tolerance = 1e-5 if optimizer == "adamw" else 2e-4  # Muon rounds its matrices to bf16
    assert found["sharded"] == pytest.approx(found["whole"], abs=tolerance)
    assert found["whole"][-1] != found["whole"][0]
