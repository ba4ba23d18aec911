"""What the user sets of the chat: a panel of controls, their values as the model takes them, kept from day to day.

The values lie beside the conversations, because a browser forgets them with the address, whose port is another one each
time; a value that this model or version does not allow is replaced by the default, and the panel shows it. The page is
sent with the values in it: what came after it could take back what the user had already set.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import gradio as gr

from apps.chat.view.events import quiet
from apps.chat.view.markup import harmless
from toolkit.errors import InputError
from toolkit.formats.message_fields import whole
from toolkit.generation.generate import Sampling
from toolkit.json_files import read_json
from toolkit.runs import replace_text

MOST_TOKENS = 8192
"""The slider's end, where the model's context is not shorter."""
LEAST_TOKENS = 16
LARGEST_SEED = 2**31 - 1
RANGES = {"temperature": (0.0, 1.5), "top_p": (0.05, 1.0), "min_p": (0.0, 0.5), "seed": (0, LARGEST_SEED)}
FILE = "settings.json"
MOST_BYTES = 2**24
"""Of that file; the system prompt is the only text in it."""

Panel = list[Any]
"""One control for each field of `Settings`, in their order."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The values of the panel's controls; the defaults are DeepSeek-R1's advice, which is against a system prompt."""

    system: str = ""
    temperature: float = 0.6
    top_p: float = 0.95
    min_p: float = 0.0
    seed: int | None = None
    """None draws a fresh one for each answer."""
    max_new_tokens: int = 2048
    thinking_budget: int = 0
    """Tokens after which the model must answer; 0 is none."""
    keeps_feedback: bool = False

    @classmethod
    def of_panel(cls, values: Sequence[Any]) -> Settings:
        """From the controls' values, in the panel's order; raises `InputError` where a seed is no number."""
        system, temperature, top_p, min_p, seed, max_new_tokens, thinking_budget, keeps_feedback = values
        return cls(
            system=whole(system or ""),
            temperature=float(temperature),
            top_p=float(top_p),
            min_p=float(min_p),
            seed=_seed_of(seed),
            max_new_tokens=int(max_new_tokens),
            thinking_budget=int(thinking_budget),
            keeps_feedback=bool(keeps_feedback),
        )

    def panel_values(self) -> list[Any]:
        return [getattr(self, field.name) for field in fields(self)]

    def sampling(self, seed: int) -> Sampling:
        """How an answer is drawn, with this seed where the panel has none."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=seed if self.seed is None else self.seed,
            max_new_tokens=self.max_new_tokens,
        )


def defaults(context: int) -> Settings:
    """R1's advice for a model with a context of so many tokens."""
    return Settings(max_new_tokens=min(Settings.max_new_tokens, context))


def restored(stored: Any, context: int) -> Settings:
    """What was kept, with the default for each value that is missing or out of its range."""
    kept = stored if isinstance(stored, dict) else {}
    names = [field.name for field in fields(Settings)]
    allowed = {name: kept[name] for name in names if name in kept and _is_allowed(name, kept[name], context)}
    return replace(defaults(context), **allowed)


def settings_panel(start: Settings, context: int, feedback_file: str) -> Panel:
    """The controls, for a model with a context of so many tokens; `feedback_file` is where consent lets records go."""

    def slider(name: str, step: float, info: str) -> gr.Slider:
        low, high = RANGES[name]
        label = name.capitalize().replace("_", "-")
        return gr.Slider(low, high, getattr(start, name), step=step, label=label, info=info)

    system = gr.Textbox(
        start.system,
        label="System prompt",
        info="Sent before the conversation; R1's authors advise to leave it empty",
        max_lines=6,
        elem_id="system",
    )
    with gr.Row():
        temperature = slider("temperature", 0.05, "0 always takes the likeliest token")
        top_p = slider("top_p", 0.05, "Draws among the likeliest, up to this mass")
        min_p = slider("min_p", 0.01, "Leaves out what is less likely than this share of the likeliest")
    with gr.Row():
        info = "The same answer again; empty for a fresh one each time"
        chosen = None if start.seed is None else str(start.seed)
        seed = gr.Textbox(chosen, label="Seed", info=info, placeholder="fresh", max_lines=1, elem_id="seed")
        most, info = min(MOST_TOKENS, context), "Thinking and answer"
        max_new_tokens = gr.Slider(LEAST_TOKENS, most, start.max_new_tokens, step=16, label="Maximum tokens", info=info)
        info = "Tokens after which it must answer; 0 is none"
        thinking_budget = gr.Slider(0, most, start.thinking_budget, step=16, label="Thinking budget", info=info)
    keeps_feedback = gr.Checkbox(
        start.keeps_feedback,
        label="Keep my feedback as training data",
        info=f"A thumb or a corrected answer is then written to {feedback_file}, and goes nowhere else",
        elem_id="consent",
    )
    return [system, temperature, top_p, min_p, seed, max_new_tokens, thinking_budget, keeps_feedback]


class SavedSettings:
    """The panel's values in a file of the data folder, by the names of `Settings`; the last that were set stay."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._guard = threading.Lock()

    def read(self) -> Any:
        """What is kept, for `restored`; None where there is nothing that can be read."""
        try:
            return read_json(self._path, limit_bytes=MOST_BYTES)
        except InputError:
            return None

    def write(self, values: Sequence[Any]) -> None:
        """Keep the panel's values; raises `InputError` where the disk does not take them."""
        kept = dict(zip([field.name for field in fields(Settings)], values, strict=True))
        with self._guard:
            replace_text(self._path, json.dumps(kept, indent=2) + "\n", mode=0o600)


def remember(page: gr.Blocks, kept: SavedSettings, panel: Panel, context: int) -> None:
    """Keep the panel's values, and send them with the page when it is opened again."""
    advice = gr.Button("Back to R1's advice", size="sm", elem_id="advice")
    private = quiet(advice, queue=False)

    def write(*values: Any) -> None:
        try:
            known = Settings.of_panel(values).panel_values()
            for control, value in zip(panel, known, strict=True):
                control.value = control.postprocess(value)
            page.config = page.get_config_file()
            kept.write(known)
        except InputError as error:
            gr.Warning(harmless(str(error)))

    gr.on([control.change for control in panel], write, panel, None, trigger_mode="always_last", **private)
    advice.click(lambda: [*defaults(context).panel_values()[:-1], gr.skip()], None, panel, **private).then(
        write, panel, None, **private
    )


def _seed_of(typed: str | int | None) -> int | None:
    """A seed's box holds text: the component for numbers (Gradio 6.31) makes 0 of nothing as soon as it is shown."""
    text = "" if typed is None else str(typed).strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) > LARGEST_SEED:
        raise InputError(
            f"the seed ({text[:40]!r}) must be a whole number from 0 to {LARGEST_SEED:,}; or leave it empty"
        )
    return int(text)


def _is_allowed(name: str, value: Any, context: int) -> bool:
    if name in ("system", "keeps_feedback"):
        return isinstance(value, str if name == "system" else bool)
    if name == "seed" and value is None:
        return True
    most = min(MOST_TOKENS, context)
    low, high = (RANGES | {"max_new_tokens": (LEAST_TOKENS, most), "thinking_budget": (0, most)})[name]
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
