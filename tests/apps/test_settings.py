"""The settings begin with R1's advice, become the model's sampling, and allow only known values from the browser."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.turn import Turn
from apps.chat.panels.settings_panel import FILE, SavedSettings, Settings, defaults, restored, settings_panel
from toolkit.errors import InputError

NAMES = [field.name for field in fields(Settings)]


def test_the_defaults_are_r1s_advice_and_fit_the_context() -> None:
    settings = defaults(512)
    assert (settings.system, settings.temperature, settings.top_p, settings.min_p) == ("", 0.6, 0.95, 0.0)
    assert settings.max_new_tokens == 512 and defaults(1_000_000).max_new_tokens == 2048
    assert settings.seed is None and not settings.keeps_feedback


def test_the_panel_has_a_labelled_control_for_each_setting_in_order() -> None:
    with gr.Blocks():
        panel = settings_panel(Settings(seed=7), 4096, "feedback.jsonl")
    assert Settings.of_panel([control.value for control in panel]) == Settings(seed=7)
    assert all(control.label for control in panel)
    assert "feedback.jsonl" in panel[NAMES.index("keeps_feedback")].info


def test_what_the_panel_says_is_what_is_sampled() -> None:
    sampling = Settings.of_panel(["Be brief.", 0, 0.9, 0.1, 7, 320, 64, True]).sampling(seed=5)
    assert (sampling.temperature, sampling.top_p, sampling.min_p) == (0.0, 0.9, 0.1)
    assert (sampling.seed, sampling.max_new_tokens) == (7, 320)
    with pytest.raises(InputError, match=r"top_p \(1\.5\) must be between"):
        Settings.of_panel(["", 0.6, 1.5, 0, None, 320, 0, False]).sampling(seed=5)


def test_an_empty_seed_takes_the_turn_s_own_and_a_given_one_stays() -> None:
    assert [Settings().sampling(seed).seed for seed in (5, 6)] == [5, 6]
    assert [Settings(seed=0).sampling(seed).seed for seed in (5, 6)] == [0, 0]


def test_what_was_kept_comes_back_and_what_cannot_be_read_is_the_default(tmp_path: Path) -> None:
    values = ["Be brief.", 0.0, 0.5, 0.25, 3, 64, 32, True]
    kept = SavedSettings(tmp_path)
    assert restored(kept.read(), 4096) == defaults(4096)
    kept.write(values)
    assert restored(SavedSettings(tmp_path).read(), 4096).panel_values() == values
    (tmp_path / FILE).write_text('{"seed": 3')
    assert restored(kept.read(), 4096) == defaults(4096)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    with pytest.raises(InputError, match=r"settings\.json cannot be written"):
        kept.write(values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-0.1, 1.6, "hot", None, True, float("nan"))),
        *(("top_p", value) for value in (0.0, 1.1)),
        *(("seed", value) for value in (-1, 2**31, "7")),
        *(("max_new_tokens", value) for value in (0, 513)),
        *(("thinking_budget", value) for value in (-1, 513)),
        *(("system", 3), ("keeps_feedback", "yes"), ("unknown", 1)),
    ],
)
def test_a_kept_value_that_is_not_allowed_is_the_default_and_the_others_stay(name: str, value: Any) -> None:
    kept = {"temperature": 0.0, "top_p": 0.5, "max_new_tokens": 64} | {name: value}
    others = {field: kept[field] for field in kept if field != name}
    assert restored(kept, 512) == replace(defaults(512), **others)


def test_a_system_prompt_stands_first_and_an_empty_one_is_not_sent() -> None:
    conversation = Conversation(turns=[Turn(question="a", answer="b", context_room=9)])
    rest = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    conversation.system = "  "
    assert conversation.messages("c") == rest
    conversation.system = "Be brief."
    assert conversation.messages("c") == [{"role": "system", "content": "Be brief."}, *rest]
    conversation.left_out = 1
    assert conversation.messages("c") == [{"role": "system", "content": "Be brief."}, rest[-1]]
