"""Every field that a completion request may hold: what is obeyed, what changes no answer, what must have its neutral
value.

    obeyed      read by `apps.server.requests.protocol`
    harmless    accounts, caches and queues of other servers; taken, and without an effect here
    neutral     would change the answer and nothing here obeys it: only the value that asks for what happens anyway
    the rest    refused, as OpenAI's own server does, with the nearest name: a typing error must not pass for a setting

A null counts as absent. The table for readers is in docs/reference/server.md, and a test compares it with this one.
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
TEXT = (*SHARED, "prompt")
"""Obeyed on the two routes."""

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
    # thoughts, by whichever name
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
"""Neutral beside the others where the model thinks in each turn."""

STREAM_OPTIONS = ("include_usage", "include_obfuscation")
SCHEMA = ("name", "description", "schema", "strict")
"""Of a response format's json_schema."""
PART = ("type", "text", "cache_control", "annotations")
"""Of a part of a content: its text, what tells other servers what to cache, and what they add."""
MESSAGE = ("role", "content", "name", "prefix", *REASONING_FIELDS, REASONING_DETAILS, *PART[2:], "id", "status")
"""Of a message: what is obeyed, and what is known to change no answer. Whatever else one holds (calls of tools, images,
a typing error) the model would have to see, and no template here is given it."""


class FieldRefused(Exception):
    """A field that nothing here obeys; `unknown`: by a name that no server has."""

    def __init__(self, message: str, name: str, *, unknown: bool = False) -> None:
        super().__init__(message)
        self.name, self.unknown = name, unknown


def check_known(value: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    """Raises `FieldRefused` for the first field of a part of a request that is neither known nor empty."""
    for name in value:
        if value[name] and name not in known:
            shown = f"{place}.{_shown(name)}"
            raise FieldRefused(f"{shown} is not supported; leave it out", shown)


def check_fields(body: Mapping[str, Any], obeyed: tuple[str, ...], *, thinks: bool) -> None:
    """Raises `FieldRefused` for the first field whose effect would be missing without a word.

    `thinks`: whether the model thinks in each turn, so that asking for it changes nothing.
    """
    neutral = {**NEUTRAL, **(THINKS if thinks else {})}
    for name, value in body.items():
        if value is None or name in obeyed or name in HARMLESS or value in neutral.get(name, ()):
            continue
        if name in neutral:
            raise FieldRefused(f"{name} ({reprlib.repr(value)}) is not supported; leave it out", name)
        shown = _shown(name)
        near = get_close_matches(shown, [*obeyed, *HARMLESS, *neutral], 1, 0.75)  # slow for long names
        advice = f"is it {near[0]}?" if near else "leave it out"
        raise FieldRefused(f"{shown} is no field of this request; {advice}", shown, unknown=True)


def _shown(name: str) -> str:
    """A name that a client chose, as UTF-8 can hold it, and no longer than a name is."""
    return name[:80].encode(errors="backslashreplace").decode()
