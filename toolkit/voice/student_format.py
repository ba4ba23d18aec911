"""Writes the chat files of a student that learns to reason: its own tokenizer, and the template of its voice.

    tokenizer.json  tokenizer_config.json  chat_template.jinja  (and tokenizer.model … for other programs)
    generation_config.json      the ids that end a text; the student's weights bring the same later

The configuration stays the student's own, with its special tokens. Two things are set: transformers reads
`tokenizer.json` as it is, and texts are decoded as they are.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from toolkit.formats.chat_format import (
    REASONING_TEMPLATE,
    TEMPLATE,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TURN_END,
    ChatFormat,
    load_tokenizer,
    write_chat_files,
)
from toolkit.formats.special_tokens import SPECIAL_TOKENS_MAP, special_tokens
from toolkit.records import read_object
from toolkit.voice.student_voice import Voice, end_token, find_voice

OTHER_FILES = (SPECIAL_TOKENS_MAP, "added_tokens.json", "tokenizer.model")
"""What other programs read beside the tokenizer; llama.cpp converts some architectures by the last."""
GENERATION_CONFIG = "generation_config.json"
LEFT_OUT = ("chat_template", "auto_map", "tokenizer_file", "name_or_path")
"""Settings that name another template, code, or places on another machine."""


def write_student_format(student: Path, folder: Path, voice: Voice | None = None) -> ChatFormat:
    """Write the student's chat files into `folder`, and return that chat format, which ends turns as the student does.

    `voice`: the student's, if it is known. Raises `InputError` if its own template does not allow for thoughts.
    """
    voice = voice or find_voice(student)
    tokenizer = load_tokenizer(student / TOKENIZER)
    if voice.form == "chatml":
        write_chat_files(folder, tokenizer, template=REASONING_TEMPLATE, eos_token=TURN_END, pad_token=TURN_END)
        return ChatFormat.from_folder(folder)
    tokenizer.save(str(folder / TOKENIZER))
    (folder / TEMPLATE).write_text(voice.template, encoding="utf-8", newline="\n")
    for name in OTHER_FILES:
        if (student / name).is_file():
            shutil.copyfile(student / name, folder / name)
    _write_config(student, folder, voice)
    chat_format = ChatFormat.from_folder(folder, model_folder=student)
    chat_format.stop_ids |= {chat_format.end_id}
    path = student / GENERATION_CONFIG
    settings = read_object(path) if path.is_file() else {}
    settings["eos_token_id"] = sorted(chat_format.stop_ids)
    (folder / GENERATION_CONFIG).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return chat_format


def _write_config(student: Path, folder: Path, voice: Voice) -> None:
    path = student / TOKENIZER_CONFIG
    config = read_object(path) if path.exists() else {}
    config = {name: value for name, value in config.items() if name not in LEFT_OUT}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if voice.own and "eos_token" not in special_tokens(student, config):
        config["eos_token"] = end_token(voice.own)
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
