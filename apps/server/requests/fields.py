"""Lists every field that a completion request may hold: obeyed, harmless, or accepted only with a neutral value.

    obeyed      is read by `apps.server.requests.protocol`
    harmless    is about accounts, caches and queues of other servers; accepted without an effect here
    neutral     would change the answer and is not obeyed: accepted only with the value that changes nothing
    the rest    is refused with the nearest name, as by OpenAI's own server: a misspelt setting must not pass

A null counts as absent. The table for readers is in docs/reference/server.md; a test compares it with this one.
Sources: OpenAI's API reference (chat and completions); the request fields of vLLM, SGLang, llama-server, Ollama, LM
Studio.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from toolkit.formats.message_fields import REASONING_DETAILS, REASONING_FIELDS

SHARED = (
    *("model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "repeat_penalty", "n", "seed", "stop", "stream", "stream_options", "logprobs"),
)
CHAT = (*SHARED, "messages", "top_logprobs", "response_format", "continue_final_message", "add_generation_prompt")
TEXT = (*SHARED, "prompt", "echo", "return_tokens_as_token_ids")
"""Fields obeyed on the two routes."""

HARMLESS = (
    *("user", "safety_identifier", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls", "cache_prompt", "keep_alive", "ttl", "request_id", "rid"),
)

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    # OpenAI
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
    # reasoning, by various names
    "chat_template_kwargs": ({},),
    "enable_thinking": (),
    "include_reasoning": (True,),
    "reasoning": (),
    "reasoning_budget": (-1,),
    "reasoning_format": ("auto", "deepseek", "parsed"),
    "separate_reasoning": (True,),
    "think": (),
    "thinking": (),
    "thinking_budget": (),
    "thinking_budget_tokens": (-1,),
    "thinking_token_budget": (),
    # vLLM, SGLang
    "allowed_token_ids": (),
    "bad_words": ([],),
    "chat_template": (),
    "documents": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "min_tokens": (0,),
    "priority": (0,),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "truncate_prompt_tokens": (-1,),
    "use_beam_search": (False,),
    # llama-server, Ollama, LM Studio
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "format": ("",),
    "grammar": ("",),
    "id_slot": (-1,),
    "json_schema": (),
    "mirostat": (0,),
    "n_predict": (-1,),
    "n_probs": (0,),
    "num_ctx": (),
    "num_predict": (-1,),
    "options": ({},),
    "repeat_last_n": (-1,),
    "samplers": (),
    "tfs_z": (1,),
    "timings_per_token": (False,),
    "top_n_sigma": (-1,),
    "typical_p": (1,),
    "xtc_probability": (0,),
}
THINKS: Mapping[str, tuple[Any, ...]] = {
    "chat_template_kwargs": ({}, {"enable_thinking": True}, {"thinking": True}),
    "enable_thinking": (True,),
    "think": (True,),
    "thinking": ({"type": "enabled"},),
}
"""Further neutral values if the model thinks in every turn."""

STREAM_OPTIONS = ("include_usage", "include_obfuscation")
SCHEMA = ("name", "description", "schema", "strict")
"""Fields of a response format's json_schema."""
PART = ("type", "text", "cache_control", "annotations")
"""Fields of a part of a content: its text, cache hints for other servers, and what servers add."""
MESSAGE = ("role", "content", "name", "prefix", *REASONING_FIELDS, REASONING_DETAILS, *PART[2:], "id", "status")
"""Fields of a message that are obeyed or are known to change no answer. Any other (tool calls, images, a misspelt name)
would have to reach the model, and no template here is given it."""


class FieldRefused(Exception):
    """A field is not obeyed here; `unknown`: no known server has a field of this name."""

    def __init__(self, message: str, name: str, *, unknown: bool = False) -> None:
        super().__init__(message)
        self.name, self.unknown = name, unknown


def check_known(value: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    """Raise `FieldRefused` for the first field of a part of a request that is neither known nor empty."""
    for name in value:
        if value[name] and name not in known:
            shown = f"{place}.{_shown(name)}"
            raise FieldRefused(f"{shown} is not supported; leave it out", shown)


def check_fields(body: Mapping[str, Any], obeyed: tuple[str, ...], *, thinks: bool) -> None:
    """Raise `FieldRefused` for the first field whose effect would silently be missing.

    `thinks`: whether the model thinks in every turn, so that asking for it changes nothing.
    """
    neutral = {**NEUTRAL, **(THINKS if thinks else {})}
    for name, value in body.items():
        if value is None or name in obeyed or name in HARMLESS or value in neutral.get(name, ()):
            continue
        if name in neutral:
            raise FieldRefused(f"{name} ({reprlib.repr(value)}) is not supported; leave it out", name)
        shown = _shown(name)
        near = get_close_matches(shown, [*obeyed, *HARMLESS, *neutral], 1, 0.75)  # slow for long names
        advice = f"did you mean {near[0]}?" if near else "leave it out"
        raise FieldRefused(f"unknown field {shown}; {advice}", shown, unknown=True)


def _shown(name: str) -> str:
    """Return a client's name for a field in valid UTF-8, cut to the length of a name."""
    return name[:80].encode(errors="backslashreplace").decode()
