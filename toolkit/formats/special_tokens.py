"""Reads the special tokens of a tokenizer's configuration and adds them to its vocabulary, as transformers does.

tokenizer.json           the vocabulary, with tokens added to it
tokenizer_config.json    bos_token, eos_token … , extra_special_tokens, and added_tokens_decoder: tokens with their flags
special_tokens_map.json  the names again, read if the configuration describes no added tokens
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from toolkit.records import read_object

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The variables by which templates know them."""
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
DESCRIBED = "added_tokens_decoder"
_LISTS = ("extra_special_tokens", "additional_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, AddedToken]:
    """Return the special tokens by name; a token that is only listed has its text as its name."""
    named = dict(config)
    if DESCRIBED not in config and (folder / SPECIAL_TOKENS_MAP).is_file():
        named |= read_object(folder / SPECIAL_TOKENS_MAP)
    found = {name: _token(value, special=True) for name, value in named.items() if name.endswith("_token")}
    more: Any = next((named[name] for name in _LISTS if named.get(name)), [])
    for value in more.values() if isinstance(more, dict) else more if isinstance(more, list) else []:
        token = _token(value, special=True)
        found[str(token)] = token
    return {name: token for name, token in found.items() if token is not None}


def add_configured(tokenizer: Tokenizer, config: Mapping[str, Any], special: Mapping[str, AddedToken]) -> None:
    """Add the special tokens, and those that the configuration describes differently from the vocabulary.

    Tokens that the vocabulary does not hold are left out: the model has no row for them.
    """
    there = tokenizer.get_added_tokens_decoder().values()
    known = set(map(repr, there))
    described = config.get(DESCRIBED)
    entries = [_token(entry) for entry in described.values()] if isinstance(described, dict) else []
    tokens = [token for token in entries if token is not None and repr(token) not in known]
    names = {token.content for token in (*there, *tokens)}
    tokens += [token for token in special.values() if token.content not in names]
    tokenizer.add_tokens([token for token in tokens if tokenizer.token_to_id(token.content) is not None])


def _token(value: Any, **flags: bool) -> AddedToken | None:
    """Read a token of a configuration: its text, or an object with its flags."""
    if isinstance(value, str) and value:
        return AddedToken(value, **flags)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        return None
    return AddedToken(
        value["content"], **{name: value[name] for name in _FLAGS if isinstance(value.get(name), bool)} | flags
    )
