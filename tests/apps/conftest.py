"""A real tiny model that has learned two conversations by heart, for the tests of chat and server."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from toolkit.formats.chat_format import ChatFormat

SUM = ("sum?", "2 and 3 is 5.", "The answer is **5**.")
NAME = ("name?", "Names are short.", "My name is Ada. I count letters.")
"""Question, reasoning and answer."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Rerun a browser test once if it fails; the summary counts it as rerun.

    Browser, server and test share two processors with whatever else runs there, and wait at most a minute for each
    other.
    """
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def learned(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a model that answers both questions in those words."""
    import torch
    from transformers import LlamaForCausalLM

    from export.pipeline import export_model
    from export.presets import int4_config

    chat_format = ChatFormat.from_folder(tiny_student)
    trained = Path(shutil.copytree(tiny_student, tmp_path_factory.mktemp("learned") / "learned"))
    model = LlamaForCausalLM.from_pretrained(tiny_student)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        for question, *said in (SUM, NAME):
            ids, mask = chat_format.training_ids([{"role": "user", "content": question}], *said)
            labels = [token if learned else -100 for token, learned in zip(ids, mask, strict=True)]
            model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(trained)
    out = tmp_path_factory.mktemp("served") / "tiny"
    export_model(replace(int4_config(trained, out), bounds=None))
    return out
