"""The one owner of the reasoning format: prompts, loss masks, stop ids and the streaming parser.

A reasoning model's turn, as DeepSeek-R1 writes it (its report, section 2.3.3, and its chat template):

    <|im_start|>user⏎ {question} <|im_end|>⏎ <|im_start|>assistant⏎ <think>⏎     ← prompt
    {reasoning}⏎ </think>⏎ ⏎ {answer} <|im_end|>                                  ← completion, what is trained on

The prompt ends with the opening tag, so a completion has none. Reasoning of earlier turns is left out. A model whose
template does not open the tag (a base model) is served as its own template says, and may open the tag by itself.
Prompt and completion are tokenized apart, in training as in inference, so the ids trained on are the ids served.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from toolkit.errors import InputError
from toolkit.message_fields import whole
from toolkit.records import Message, read_object

OPEN = "<think>"
CLOSE = "</think>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

REASONING_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set content = message['content'] -%}"
    "{%- if message['role'] == 'assistant' and '</think>' in content -%}"
    "{%- set content = content.split('</think>')[-1].lstrip() -%}"
    "{%- endif -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n' -}}{%- endif -%}"
)
"""Jinja chat template (ChatML with R1's rules) that is written beside every model that we train."""

CHAT_FILES = (TOKENIZER, TOKENIZER_CONFIG, TEMPLATE) = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
"""What `ChatFormat.from_folder` and transformers' `AutoTokenizer` read of a model folder."""


@dataclass(frozen=True, kw_only=True)
class Delta:
    """A piece of a streamed turn."""

    kind: Literal["reasoning", "answer"]
    text: str


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A whole turn, split."""

    reasoning: str
    answer: str
    closed: bool
    """False where thinking was opened and never closed: the turn is truncated and has no answer."""


class ChatFormat:
    """A model folder's tokenizer and template: text to ids and back."""

    def __init__(
        self, tokenizer: Tokenizer, template: str, stop_ids: frozenset[int], variables: dict[str, str]
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.stop_ids = stop_ids
        self._variables = variables
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise_exception
        try:
            self._template = environment.from_string(template)
        except TemplateError as error:
            raise InputError(f"the chat template must be valid Jinja: {error}") from error
        self.opens_reasoning = self.render([{"role": "user", "content": "?"}]).endswith(OPEN + "\n")
        """Whether every turn of this model starts inside its reasoning."""

    @classmethod
    def from_folder(cls, folder: Path) -> ChatFormat:
        """Read the tokenizer, its configuration and the chat template of a model folder.

        Raises `InputError` where one of them is missing or unreadable.
        """
        config = read_object(folder / TOKENIZER_CONFIG)
        tokenizer = load_tokenizer(folder / TOKENIZER)
        template_file = folder / TEMPLATE
        template = template_file.read_text(encoding="utf-8") if template_file.is_file() else config.get("chat_template")
        if not isinstance(template, str):
            raise InputError(f"{folder} must hold a chat template ({TEMPLATE}); it has none")
        variables = {name: text for name in ("bos_token", "eos_token") if (text := _token_text(config.get(name)))}
        stop_ids = _stop_ids(folder, tokenizer, variables.get("eos_token"))
        if not stop_ids:
            raise InputError(f"{folder} must name an end-of-text token that its vocabulary holds; it names none")
        return cls(tokenizer, template, stop_ids, variables)

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt text that ends where the model's turn begins."""
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=True, **self._variables)
        except TemplateError as error:
            raise InputError(f"the chat template cannot render {len(messages)} messages: {error}") from error

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(whole(text), add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode([i for i in ids if i not in self.stop_ids], skip_special_tokens=False)
        return text

    def means(self, ids: Sequence[int], reasoning: str, answer: str) -> bool:
        """Whether this model reads these texts, or more of them, in the ids of a turn."""
        read = split_completion(self.decode(ids), opened=self.opens_reasoning)
        return read.reasoning.startswith(reasoning) and read.answer.startswith(answer)

    def taken_up(self, ids: Sequence[int], before_answer: int | None, reasoning: str, answer: str) -> list[int]:
        """The ids of a turn's texts, `before_answer` of them before the answer, to go on from: the same ones here."""
        return list(ids)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return self.encode(self.render(messages))

    def begun_text(self, reasoning: str, answer: str | None) -> str:
        """What this model's turn begins with where it has written so much; `answer`: None while the thought is open."""
        opening = f"{OPEN}\n" if (reasoning or answer is None) and not self.opens_reasoning else ""
        if answer is None:
            return opening + reasoning
        return opening + completion_text(reasoning, answer) if opening or self.opens_reasoning else answer

    def closing_ids(self, written: Sequence[int]) -> list[int]:
        """What closes a thought that stands open after these ids of the model's turn."""
        ending = completion_text("", "")
        return self.encode(ending.removeprefix("\n") if self.decode(written).endswith("\n") else ending)

    def question_ids(self, question: str) -> list[int]:
        """Prompt of a conversation's first question, without a system message (R1's advice)."""
        return self.prompt_ids([{"role": "user", "content": question}])

    def training_ids(self, messages: Sequence[Message], reasoning: str, answer: str) -> tuple[list[int], list[bool]]:
        """Ids of one example, and the loss mask: True on the completion, its end-of-turn token included.

        A special token's name in the completion is text there, so that only its last id ends the turn.
        """
        prompt = self.prompt_ids(messages)
        text: list[int] = self._text_tokenizer.encode(completion_text(reasoning, answer), add_special_tokens=False).ids
        completion = [*text, *self.encode(TURN_END)]
        return prompt + completion, [False] * len(prompt) + [True] * len(completion)

    @cached_property
    def _text_tokenizer(self) -> Tokenizer:
        """A tokenizer of its own, since threads share the other, that takes special tokens' names for text."""
        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        tokenizer.encode_special_tokens = True
        return tokenizer


class ReasoningParser:
    """Splits a stream of text into reasoning and answer, whatever the chunks.

    Opening tag: may be absent (`opened=True`, as R1's template writes it in the prompt) or stand first in the text.
    Only the first closing tag ends the reasoning; any later tag is text of the answer.
    """

    def __init__(self, *, opened: bool) -> None:
        self._state: Literal["start", "reasoning", "gap", "answer"] = "start"
        self._opened = opened
        self._held = ""

    @property
    def closed(self) -> bool:
        """False while the reasoning is open."""
        return self._state in ("gap", "answer") or (self._state == "start" and not self._opened)

    def feed(self, text: str) -> Iterator[Delta]:
        """Yield what is certain by now; the rest (a possible tag) is held back."""
        self._held += text
        if self._state == "start" and not self._leave_start():
            return
        if self._state == "reasoning":
            yield from self._reasoning()
        if self._state == "gap":
            self._held = self._held.lstrip("\n")
            if self._held:
                self._state = "answer"
        if self._state == "answer" and self._held:
            yield Delta(kind="answer", text=self._held)
            self._held = ""

    def finish(self) -> Iterator[Delta]:
        """Yield what was held back at the end of the text."""
        held, self._held = self._held, ""
        if self._state == "start" and held.lstrip() == OPEN:
            held, self._state = "", "reasoning"
        elif self._state == "start":
            self._state = "reasoning" if self._opened else "answer"
        if held and self._state != "gap":
            yield Delta(kind="reasoning" if self._state == "reasoning" else "answer", text=held)

    def _leave_start(self) -> bool:
        head = self._held.lstrip()
        opening = OPEN + "\n"
        if opening.startswith(head) and head != opening:
            return False
        if head.startswith(OPEN):
            self._held = head.removeprefix(OPEN).removeprefix("\n")
            self._state = "reasoning"
        else:
            self._state = "reasoning" if self._opened else "answer"
        return True

    def _reasoning(self) -> Iterator[Delta]:
        before, tag, after = self._held.partition(CLOSE)
        if tag:
            self._state, self._held = "gap", after
            text = before.removesuffix("\n")
        else:
            text, self._held = _split_held(before)
        if text:
            yield Delta(kind="reasoning", text=text)


def completion_text(reasoning: str, answer: str) -> str:
    """What a model writes after a prompt that opened its reasoning."""
    return f"{reasoning}\n{CLOSE}\n\n{answer}"


def split_completion(text: str, *, opened: bool) -> Completion:
    """Split a whole turn as the streaming parser does."""
    parser = ReasoningParser(opened=opened)
    deltas = [*parser.feed(text), *parser.finish()]
    return Completion(
        reasoning="".join(d.text for d in deltas if d.kind == "reasoning"),
        answer="".join(d.text for d in deltas if d.kind == "answer"),
        closed=parser.closed,
    )


def write_chat_files(folder: Path, tokenizer: Tokenizer, *, template: str, eos_token: str, pad_token: str) -> None:
    """Write the `CHAT_FILES`."""
    tokenizer.save(str(folder / TOKENIZER))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eos_token,
        "pad_token": pad_token,
        "clean_up_tokenization_spaces": False,
    }
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    (folder / TEMPLATE).write_text(template)


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`; a crafted file can panic in Rust, which is a BaseException."""
    if not path.is_file():
        raise InputError(f"{path} must exist; it is missing")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 – a panic is no Exception
        raise InputError(f"{path} must be a tokenizer of the tokenizers library: {error}") from None
    tokenizer.no_truncation()  # a file may store both, and would cut or fill up prompts and examples
    tokenizer.no_padding()
    return tokenizer


def _split_held(text: str) -> tuple[str, str]:
    """Hold back the longest tail that may begin `\\n</think>`."""
    ending = "\n" + CLOSE
    for length in range(min(len(ending) - 1, len(text)), 0, -1):
        tail = text[-length:]
        if ending.startswith(tail) or CLOSE.startswith(tail):
            return text[:-length], tail
    return text, ""


def _stop_ids(folder: Path, tokenizer: Tokenizer, eos_token: str | None) -> frozenset[int]:
    found = {tokenizer.token_to_id(text) for text in (eos_token, TURN_END) if text}
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            value = read_object(folder / name).get("eos_token_id")
            found.update(value if isinstance(value, list) else [value])
    return frozenset(i for i in found if isinstance(i, int))


def _token_text(value: Any) -> str | None:
    return value.get("content") if isinstance(value, dict) else value


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
