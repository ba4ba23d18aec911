"""Owns the reasoning format: prompts, loss masks, stop ids and the streaming parser.

A reasoning model's turn, as DeepSeek-R1 writes it (its report, section 2.3.3, and its chat template):

    <|im_start|>user⏎ {question} <|im_end|>⏎ <|im_start|>assistant⏎ <think>⏎     ← prompt
    {reasoning}⏎ </think>⏎ ⏎ {answer} <|im_end|>                                  ← completion, what is trained on

The prompt ends with the opening tag, so a completion has none. Reasoning of earlier turns is left out. A model whose
template does not open the tag (a base model) is prompted as its own template says, and may open the tag itself.
Prompt and completion are tokenized separately in training and in inference, so the ids trained on are the ids served.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from toolkit.errors import InputError
from toolkit.field_types import check_type
from toolkit.formats.literal_text import THOUGHT_TAGS, LiteralText, own_outside
from toolkit.formats.message_fields import whole
from toolkit.formats.special_tokens import NAMES, add_configured, special_tokens
from toolkit.formats.templates import TEMPLATE_FILE, ChatTemplate, read_template
from toolkit.formats.tokenizer_bounds import decoded, encoding_of
from toolkit.formats.tokenizer_trial import try_tokenizer
from toolkit.records import Message, read_object

OPEN, CLOSE = THOUGHT_TAGS
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
TOKEN_IDS = range(2**32)
"""The numbers that the tokenizers library accepts as ids."""
CLOSING = f"\n{CLOSE}\n\n"
"""The text between a thought and its answer."""
MARK = "Fortytwo"
"""A word that no template writes."""
_TAGS = re.compile(rf"{OPEN}|(?:\r?\n)?{CLOSE}")

REASONING_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set content = message['content'] -%}"
    "{%- if message['role'] == 'assistant' and content.lstrip().startswith('<think>') and '</think>' in content -%}"
    "{%- set content = content.split('</think>', 1)[1].lstrip() -%}"
    "{%- endif -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n' -}}{%- endif -%}"
)
"""The Jinja chat template (ChatML with R1's rules) that is written beside every model that we train.

It leaves out the thought that an earlier answer begins with, between its tags; other mentions of the tags stay.
"""

ROLE_ORDERS = (("system", "user", "assistant", "user"), ("user", "assistant", "user"), ("user",))
"""Conversations that show what a template writes; some templates refuse a system message."""

CHAT_FILES = (TOKENIZER, TOKENIZER_CONFIG, TEMPLATE) = ("tokenizer.json", "tokenizer_config.json", TEMPLATE_FILE)
"""The files of a model folder that `ChatFormat.from_folder` and transformers' `AutoTokenizer` read."""


@dataclass(frozen=True, kw_only=True)
class Delta:
    """A piece of a streamed turn."""

    kind: Literal["reasoning", "answer"]
    text: str


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A whole turn, split into reasoning and answer."""

    reasoning: str
    answer: str
    closed: bool
    """False if reasoning was opened and never closed: the turn is truncated and has no answer."""


class ChatFormat:
    """Turns text into ids and back with a model folder's tokenizer and template."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        stop_ids: frozenset[int],
        variables: dict[str, str],
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        """`clock`: gives the date to a template that writes it."""
        self.tokenizer = tokenizer
        self.template = template
        self.stop_ids = stop_ids
        self._variables = variables
        self._template = ChatTemplate(template, clock)
        self.opens_reasoning = self.render([{"role": "user", "content": "?"}]).rstrip().endswith(OPEN)
        """Whether every turn of this model starts inside its reasoning."""

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        clock: Callable[[], datetime] = datetime.now,
        *,
        model_folder: Path | None = None,
        template: str | None = None,
    ) -> ChatFormat:
        """Read the tokenizer, its configuration and the chat template of a model folder, as transformers reads them.

        `model_folder`: the one whose configuration names end-of-text ids, if it is another, as an adapter's base is.
        `template`: one to take in place of the folder's. Raises `InputError` if one of them is missing or unreadable.
        """
        config = read_object(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).exists() else {}
        tokenizer = load_tokenizer(folder / TOKENIZER)
        template = read_template(folder, config) if template is None else template
        special = special_tokens(folder, config)
        add_configured(tokenizer, config, special)
        variables = {name: token.content for name, token in special.items() if name in NAMES}
        check_type(variables, dict[str, str], f"the special tokens of {folder / TOKENIZER_CONFIG}")
        stop_ids = _stop_ids(model_folder or folder, tokenizer, variables.get("eos_token"))
        if not stop_ids:
            raise InputError(
                f"{folder} names no end-of-text token of its vocabulary; add eos_token to its tokenizer_config.json"
            )
        return cls(tokenizer, template, stop_ids, variables, clock)

    def with_clock(self, clock: Callable[[], datetime]) -> ChatFormat:
        """The same format, whose template gets the day from another clock."""
        return ChatFormat(self.tokenizer, self.template, self.stop_ids, self._variables, clock)

    def render(self, messages: Sequence[Message], **switches: Any) -> str:
        """Render the prompt up to the beginning of the model's turn, as transformers does."""
        return self._template.render(messages, self._variables, **switches)

    def encode(self, text: str) -> list[int]:
        """Encode the format's own text, in which names of control tokens become those tokens."""
        ids: list[int] = encoding_of(self.tokenizer, whole(text)).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return decoded(self.tokenizer, [i for i in ids if i not in self.stop_ids])

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt's ids. The contents of messages stay text, whatever tokens they name."""
        text, contents = self._literal.rendered(messages, self.render)
        return self._literal.ids(text, own_outside(contents))

    def begun_ids(self, reasoning: str, answer: str | None) -> list[int]:
        """Encode the beginning of a turn in which the model has written so much; `answer`: None while the thought is
        open.

        Thought and answer stay text, whatever tokens they name.
        """
        opening = f"{OPEN}\n" if (reasoning or answer is None) and not self.opens_reasoning else ""
        if answer is None:
            return self._ids_around(opening, reasoning, "", "")
        if opening or self.opens_reasoning:
            return self._ids_around(opening, reasoning, CLOSING, answer)
        return self._ids_around("", "", "", answer)

    def closing_ids(self, written: Sequence[int]) -> list[int]:
        """Return the ids that close a thought which is open after these ids of the model's turn."""
        ending = completion_text("", "")
        return self.encode(ending.removeprefix("\n") if self.decode(written).endswith("\n") else ending)

    def question_ids(self, question: str) -> list[int]:
        """Return the prompt of a conversation's first question, without a system message, as R1's authors advise."""
        return self.prompt_ids([{"role": "user", "content": question}])

    def training_ids(self, messages: Sequence[Message], reasoning: str, answer: str) -> tuple[list[int], list[bool]]:
        """Return the ids of one example and its loss mask, True on the completion with its end-of-turn token.

        A completion begins with the opening tag if the template does not open it. Names of control tokens in it stay
        text, so that only its last id ends the turn.
        """
        prompt = self.prompt_ids(messages)
        opening = "" if self.opens_reasoning else f"{OPEN}\n"
        completion = [*self._ids_around(opening, reasoning, CLOSING, answer), self.end_id]
        return prompt + completion, [False] * len(prompt) + [True] * len(completion)

    def _ids_around(self, opening: str, reasoning: str, closing: str, answer: str) -> list[int]:
        """Encode a turn in which only the tags are the format's own text."""
        end = len(opening) + len(reasoning)
        return self._literal.ids(
            opening + reasoning + closing + answer,
            lambda begin, until: until <= len(opening) or (end <= begin and until <= end + len(closing)),
        )

    @cached_property
    def end_id(self) -> int:
        """The token that ends a turn: the one that the template writes after an answer, else one that is named so."""
        names = {token.content: id for id, token in self.tokenizer.get_added_tokens_decoder().items()}
        names |= {self.tokenizer.id_to_token(id) or "": id for id in self.stop_ids}
        if written := [text for text in names if text and self.after_answer.startswith(text)]:
            return names[max(written, key=len)]
        return names.get(TURN_END, names.get(self._variables.get("eos_token", ""), min(self.stop_ids)))

    @cached_property
    def after_answer(self) -> str:
        """What the template writes between an answer and the end of the next prompt; empty if it changes answers."""
        said = [{"role": role, "content": f"{MARK} {role}"} for role in ("user", "assistant", "user")]
        with suppress(InputError):
            return self.render(said).partition(f"{MARK} assistant")[2]
        return ""

    @cached_property
    def _literal(self) -> LiteralText:
        ends = filter(None, map(self.tokenizer.id_to_token, self.stop_ids))
        return LiteralText(
            self.tokenizer, self.template + self._written(), frozenset((*self._variables.values(), *ends))
        )

    def _written(self) -> str:
        """Return what the template writes around messages of each role that it accepts."""
        texts = []
        for roles in ROLE_ORDERS:
            with suppress(InputError):
                texts.append(self.render([{"role": role, "content": ""} for role in roles]))
        return "\n".join(texts)


class ReasoningParser:
    """Splits a stream of text into reasoning and answer, whatever its chunks are.

    The opening tag may be absent (`opened=True`: R1's template writes it in the prompt) or come first in the text.
    The first closing tag ends the reasoning, unless further tags were opened within it and are all closed later: the
    text after the first closing tag is then held back until that is known. White space after it is left out except
    for the indentation of the answer's first line, and so is a repeated closing tag; later tags are text of the answer.
    """

    def __init__(self, *, opened: bool) -> None:
        self._state: Literal["start", "opened", "reasoning", "doubt", "gap", "answer"] = "start"
        self._opened = opened
        self._held = ""
        self._depth = 1
        """How many tags are open, the first one included."""
        self._place = 0
        """Where in the held text the search for the next tag begins."""

    @property
    def closed(self) -> bool:
        """Whether the reasoning is closed, or there was none."""
        return self._state in ("doubt", "gap", "answer") or (self._state == "start" and not self._opened)

    def feed(self, text: str) -> Iterator[Delta]:
        """Yield the text that is certain now; what may be a tag is held back."""
        self._held += text
        if self._state == "start":
            self._leave_start()
        if self._state == "opened":
            self._leave_opening()
        if self._state in ("reasoning", "doubt"):
            yield from self._reasoning()
        if self._state == "gap":
            rest = _behind_gap(self._held)
            if rest and not CLOSE.startswith(rest.lstrip()):
                self._held, self._state = rest, "answer"
        if self._state == "answer" and self._held:
            yield Delta(kind="answer", text=self._held)
            self._held = ""

    def finish(self) -> Iterator[Delta]:
        """Yield what is held back at the end of the text."""
        held, self._held = self._held, ""
        match self._state:
            case "start":
                self._state = "reasoning" if self._opened else "answer"
            case "opened":
                held, self._state = "", "reasoning"
            case "doubt":  # the tag opened within the reasoning was only mentioned
                held, self._state = _behind_gap(held.partition(CLOSE)[2]), "answer"
            case "gap":
                held, self._state = _behind_gap(held), "answer"
        if held:
            yield Delta(kind="reasoning" if self._state == "reasoning" else "answer", text=held)

    def if_ended(self, rest: str = "") -> tuple[tuple[Delta, ...], bool]:
        """Return what would follow if the text ended with this rest, and whether the reasoning would be closed."""
        ended = copy(self)
        return (*ended.feed(rest), *ended.finish()), ended.closed

    def _leave_start(self) -> None:
        head = self._held.lstrip()
        if head.startswith(OPEN):
            self._held, self._state = head.removeprefix(OPEN), "opened"
        elif not OPEN.startswith(head):
            self._state = "reasoning" if self._opened else "answer"

    def _leave_opening(self) -> None:
        rest = self._held.lstrip(" \t")
        if rest not in ("", "\r"):
            self._held, self._state = rest.removeprefix("\r").removeprefix("\n"), "reasoning"

    def _reasoning(self) -> Iterator[Delta]:
        """Yield the text before the tag that ends the reasoning, or may end it."""
        text = ""
        while self._depth and (found := _TAGS.search(self._held, self._place)):
            self._depth += 1 if found[0] == OPEN else -1
            self._place = found.end()
            if self._depth == 0 or (found[0] != OPEN and self._state == "reasoning"):
                text += self._held[: found.start()]
                begin = found.start() if self._depth else found.end()
                self._held, self._place = self._held[begin:], len(found[0])
                self._state = "doubt" if self._depth else "gap"
        if self._state == "reasoning":
            text, self._held = _split_held(self._held)
            self._place = 0
        if text:
            yield Delta(kind="reasoning", text=text)


def completion_text(reasoning: str, answer: str) -> str:
    """Return the completion of a prompt that opened the reasoning."""
    return reasoning + CLOSING + answer


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
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (folder / TEMPLATE).write_text(template, encoding="utf-8", newline="\n")


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`. A crafted file can panic in Rust, which raises a BaseException, or abort the process, so
    `try_tokenizer` tries it first."""
    if not path.exists():
        raise InputError(
            f"{path} is missing; let transformers write it: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    try_tokenizer(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 – a panic is no Exception
        raise InputError(f"{path} must be a tokenizer of the tokenizers library: {error}; get it again") from None
    tokenizer.no_truncation()  # the file may store both, which would cut or pad prompts and examples
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):  # left over from training: a text would get other ids each time
        tokenizer.model.dropout = None
    return tokenizer


def _behind_gap(text: str) -> str:
    """Return the text after a closing tag from its first line on; a single blank is no indentation."""
    said = text.lstrip()
    while said.startswith(CLOSE):
        text = said.removeprefix(CLOSE)
        said = text.lstrip()
    _, is_below, indent = text[: len(text) - len(said)].rpartition("\n")
    return indent + said if said and is_below and indent != " " else said


def _split_held(text: str) -> tuple[str, str]:
    """Split off the longest tail that may begin a tag, or the line end before one."""
    longest = f"\r\n{CLOSE}"
    for length in range(min(len(longest) - 1, len(text)), 0, -1):
        tail = text[-length:]
        if any(tag.startswith(tail) and tag != tail for tag in (longest, longest[1:], CLOSE, OPEN)):
            return text[:-length], tail
    return text, ""


def _stop_ids(folder: Path, tokenizer: Tokenizer, eos_token: str | None) -> frozenset[int]:
    found = {tokenizer.token_to_id(text) for text in (eos_token, TURN_END) if text}
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            value = read_object(folder / name).get("eos_token_id")
            check_type(value, int | list[int] | None, f"eos_token_id in {folder / name}")
            found.update(value if isinstance(value, list) else [value])
    return frozenset(i for i in found if isinstance(i, int) and i in TOKEN_IDS and tokenizer.id_to_token(i) is not None)
