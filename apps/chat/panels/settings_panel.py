"""The chat's settings: a panel of controls, their values as the model takes them, kept from one start to the next.

The values are kept beside the conversations, because a browser keeps them by address, whose port changes with each
start. A value that this model or version does not allow is replaced by the default, which the panel shows. The page is
sent with the values in it: set later, they could undo what the user has already changed.
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
"""Upper end of the slider, unless the model's context is shorter."""
LEAST_TOKENS = 16
LARGEST_SEED = 2**31 - 1
RANGES = {"temperature": (0.0, 1.5), "top_p": (0.05, 1.0), "min_p": (0.0, 0.5), "seed": (0, LARGEST_SEED)}
FILE = "settings.json"
MOST_BYTES = 2**24
"""Most bytes of that file, in which only the system prompt can be long."""

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
    """None draws a new seed for each answer."""
    max_new_tokens: int = 2048
    thinking_budget: int = 0
    """Tokens after which the model must answer; 0 means no budget."""
    keeps_feedback: bool = False

    @classmethod
    def of_panel(cls, values: Sequence[Any]) -> Settings:
        """Read the controls' values, in the panel's order; raises `InputError` if the seed is not a number."""
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
        """Return how to sample an answer, with the given seed if the panel has none."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=seed if self.seed is None else self.seed,
            max_new_tokens=self.max_new_tokens,
        )


def defaults(context: int) -> Settings:
    """Return R1's advice, for a model with this many tokens of context."""
    return Settings(max_new_tokens=min(Settings.max_new_tokens, context))


def restored(stored: Any, context: int) -> Settings:
    """Return the stored settings, with the default for each value that is missing or out of range."""
    kept = stored if isinstance(stored, dict) else {}
    names = [field.name for field in fields(Settings)]
    allowed = {name: kept[name] for name in names if name in kept and _is_allowed(name, kept[name], context)}
    return replace(defaults(context), **allowed)


def settings_panel(start: Settings, context: int, feedback_file: str) -> Panel:
    """Make the controls, for a model with this many tokens of context; `feedback_file` is named at the consent box."""

    def slider(name: str, step: float, info: str) -> gr.Slider:
        low, high = RANGES[name]
        label = name.capitalize().replace("_", "-")
        return gr.Slider(low, high, getattr(start, name), step=step, label=label, info=info)

    system = gr.Textbox(
        start.system,
        label="System prompt",
        info="Sent before the conversation; R1's authors advise leaving it empty",
        max_lines=6,
        elem_id="system",
    )
    with gr.Row():
        temperature = slider("temperature", 0.05, "0 always takes the most likely token")
        top_p = slider("top_p", 0.05, "Samples among the most likely tokens, up to this probability mass")
        min_p = slider("min_p", 0.01, "Drops tokens less likely than this fraction of the most likely one")
    with gr.Row():
        info = "Repeats an answer; leave it empty for a new one each time"
        chosen = None if start.seed is None else str(start.seed)
        seed = gr.Textbox(chosen, label="Seed", info=info, placeholder="random", max_lines=1, elem_id="seed")
        most, info = min(MOST_TOKENS, context), "For thinking and answer together"
        max_new_tokens = gr.Slider(LEAST_TOKENS, most, start.max_new_tokens, step=16, label="Maximum tokens", info=info)
        info = "Tokens after which the model must answer; 0 for no limit"
        thinking_budget = gr.Slider(0, most, start.thinking_budget, step=16, label="Thinking budget", info=info)
    keeps_feedback = gr.Checkbox(
        start.keeps_feedback,
        label="Keep my feedback as training data",
        info=f"Thumbs and corrected answers are then written to {feedback_file}, and go nowhere else",
        elem_id="consent",
    )
    return [system, temperature, top_p, min_p, seed, max_new_tokens, thinking_budget, keeps_feedback]


class SavedSettings:
    """Keeps the panel's latest values in a file of the data folder, under the names of `Settings`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._guard = threading.Lock()

    def read(self) -> Any:
        """Read the file, for `restored`; None if it is missing or cannot be read."""
        try:
            return read_json(self._path, limit_bytes=MOST_BYTES)
        except InputError:
            return None

    def write(self, values: Sequence[Any]) -> None:
        """Write the panel's values; raises `InputError` if the disk refuses."""
        kept = dict(zip([field.name for field in fields(Settings)], values, strict=True))
        with self._guard:
            replace_text(self._path, json.dumps(kept, indent=2) + "\n", mode=0o600)


def remember(page: gr.Blocks, kept: SavedSettings, panel: Panel, context: int) -> None:
    """Store the panel's values when they change, and send them with the page when it is opened again."""
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
    """Read the seed from a text box, because Gradio's number component (6.31) shows an empty value as 0."""
    text = "" if typed is None else str(typed).strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) > LARGEST_SEED:
        raise InputError(
            f"the seed {text[:40]!r} is not a whole number from 0 to {LARGEST_SEED:,}; correct it or leave it empty"
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
