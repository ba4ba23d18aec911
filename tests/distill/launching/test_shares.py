"""Each process takes its part of a batch; together they are the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate.data_loader import prepare_data_loader  # type: ignore[import-untyped]
from torch.utils.data import DataLoader

from distill.launching.shared_job import check_processes
from distill.training.completion_loss import IGNORED
from distill.training.packed_rows import batch_of, shared_out, undivided
from tests.distill.test_train import tiny_recipe
from toolkit.errors import InputError


def rows(*lengths: int) -> list[dict[str, list[int]]]:
    return [
        {"input_ids": [100 * i + j for j in range(length)], "labels": [IGNORED, *range(1, length)]}
        for i, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_parts_of_a_batch_are_the_batch(processes: int) -> None:
    made = rows(9, 30, 4, 12, 12, 7)
    parts = shared_out(made, processes)
    assert sorted(row["input_ids"][0] for part in parts for row in part) == [0, 100, 200, 300, 400, 500]
    if processes == 2:
        assert [sum(len(row["input_ids"]) for row in part) for part in parts] == [37, 37]


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_the_batches_are_those_of_one_process_and_the_last_one_is_not_filled_up(rank: int) -> None:
    loader: DataLoader[Any] = DataLoader(list(range(26)), batch_size=4)  # type: ignore[arg-type]
    prepared = prepare_data_loader(loader, num_processes=3, process_index=rank, put_on_device=False)
    assert [batch.tolist() for batch in undivided(prepared)] == [batch.tolist() for batch in loader]
    assert len(prepared) == len(loader) == 7


def test_processes_make_equally_many_passes() -> None:
    made = rows(30, 6, 7, 8)
    batches = [batch_of(made, rank, 2, row_tokens=10) for rank in range(2)]
    assert [len(batch["rows"]) for batch in batches] == [3, 3]
    learned = [int((batch["labels"] != IGNORED).sum()) for batch in batches]
    assert sum(learned) == sum(length - 1 for length in (30, 6, 7, 8))
    filler: Any = batches[0]["rows"][-1]
    assert filler["labels"].tolist() == [[IGNORED]] and filler["input_ids"].shape == (1, 1)


def test_more_processes_than_examples_of_a_batch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe()
    check_processes(recipe, 4, sharded=True, here=True)
    with pytest.raises(InputError, match=r"a batch of 4 examples cannot be divided among 5 processes; use at most 4"):
        check_processes(recipe, 5, sharded=False, here=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"3 processes need as many GPUs, and this machine has 2"):
        check_processes(recipe, 3, sharded=False, here=True)
    check_processes(recipe, 3, sharded=False, here=False)
