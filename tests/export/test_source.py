"""An export opens its model once and hands down what it has read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from export.checks.parity import Bounds
from export.pipeline import export_model
from export.presets import int4_config
from tests.lora_adapter import write_adapter
from toolkit.formats import chat_format

WIDE = Bounds(max_mean_kl=9.0, min_top1=0.0)
OURS, THEIRS, MODEL = "our tokenizer", "transformers' tokenizer", "float model"
QUICK = {"preset": "quick"}
SIZED_AND_RECOVERED = {"bits_per_weight": 5.0, "recovery": "scales"}


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """Count how often each loader reads each folder, except for models without weights."""
    counts: Counter[tuple[str, str]] = Counter()

    def count(label: str, owner: Any, name: str, folder_of: Callable[[Path], Path]) -> None:
        load = getattr(owner, name)

        def counted(path: Path, **settings: Any) -> Any:
            if settings.get("device_map") != "meta":
                counts[label, folder_of(path).name] += 1
            return load(path, **settings)

        monkeypatch.setattr(owner, name, counted)

    count(OURS, chat_format, "load_tokenizer", lambda path: path.parent)
    count(THEIRS, PreTrainedTokenizerFast, "from_pretrained", Path)
    count(MODEL, AutoModelForCausalLM, "from_pretrained", Path)
    return counts


@pytest.mark.parametrize(
    ("settings", "adapter"),
    [(QUICK, None), ({}, None), (SIZED_AND_RECOVERED, None), ({}, {}), (SIZED_AND_RECOVERED, {"use_dora": True})],
    ids=["quick", "default", "sized and recovered", "adapter", "adapter that PEFT merges"],
)
def test_one_export_loads_a_tokenizer_once_and_the_float_model_once(
    settings: dict[str, Any],
    adapter: dict[str, Any] | None,
    tiny_student: Path,
    traces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loaded: Counter[tuple[str, str]],
) -> None:
    """transformers also reads the tokenizer, as the oracle for chats, and the gate checks the exported copy."""
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "home"))
    folder = None if adapter is None else write_adapter(tiny_student, tmp_path / "adapter", **adapter)
    loaded.clear()
    calibration = None if settings == QUICK else traces
    config = int4_config(tiny_student, tmp_path / "int4", adapter=folder, calibration=calibration, **settings)
    export_model(replace(config, bounds=WIDE))
    source = tiny_student.name
    if adapter:
        assert loaded.pop((MODEL, source)) == 1, "the base, which PEFT merges into"
        [merged] = (tmp_path / "home" / "models").glob("adapter-*")
        source = merged.name
    assert loaded == {(OURS, source): 1, (THEIRS, source): 1, (MODEL, source): 1, (OURS, ".int4.partial"): 1}
