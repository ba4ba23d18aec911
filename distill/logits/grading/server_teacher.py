"""A teacher behind a server that gives the log-probabilities of prompts, in the older form of OpenAI's completions.

    POST …/completions  {"prompt": [ids], "echo": true, "logprobs": K, "max_tokens": 1,
                         "return_tokens_as_token_ids": true}
    → "tokens", "token_logprobs", "top_logprobs": one entry for each token of the prompt, then for what was generated

vLLM and `toolkit serve` answer so, and name tokens as `token_id:N`; by texts alone, as other servers name them, a
candidate whose text several tokens share counts to the tail. llama-server ignores `echo` (llama.cpp#27174) and
llama-cpp-python takes no ids, which is found out before training. The teacher's tokenizer and template are read from a
folder, since the server gives neither; that they are those of its model is found out from the texts that it names.

What a server says is checked before it is learned from: log-probabilities are numbers of at most 0, one of each token
but the first, of the very tokens that were sent.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

from httpx2 import HTTPError

from distill.logits.grading.teacher_events import candidate_events
from distill.logits.grading.turns import UNBOUNDED, Aligner, Grades, Places, StudentTurn
from distill.logits.vocabularies.alignment import Span
from distill.logits.vocabularies.bridge import Bridge
from toolkit.errors import InputError, Unreachable
from toolkit.generation.endpoint import KEY_VARIABLE, first_line, locate, open_client

BY_ID = "token_id:"
ROUNDED = 1e-3
"""How far above 0 a log-probability may be rounded."""
ALIKE = 0.5
"""The least share of a prompt's tokens that a server must name as the tokenizer does; it may treat spaces otherwise."""
AT_ONCE = 8
"""Requests that wait for the server together."""
SPACES = " \n▁Ġ"
"""What servers write for a space at a token's beginning, or leave out."""
BUSY, WAITS_S = (429, 503), (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Statuses of a server that is busy, and how long to wait before it is asked again."""


class ServerTeacher:
    """A server that grades."""

    def __init__(self, url: str, model: str, aligner: Aligner, *, top_k: int, key: str = KEY_VARIABLE) -> None:
        """`top_k`: the candidates to ask for of each token."""
        self._url, self._model, self._aligner, self._top_k, self._key = url, model, aligner, top_k, key
        self.bridge: Bridge = aligner.bridge
        tokenizer = aligner.teacher.tokenizer
        self._ids: dict[str, int | None] = {}
        for id in range(self.bridge.teacher_rows):
            text = tokenizer.decode([id], skip_special_tokens=False)
            self._ids[text] = None if text in self._ids else id
        self._longest = UNBOUNDED
        self._classes: list[int] = self.bridge.teacher_class_V.tolist()

    def check(self) -> None:
        """Raise `InputError` if the server gives no log-probabilities of prompts; asks it once."""
        self._longest = locate(f"{self._url}#{self._model}", self._key).max_length or UNBOUNDED
        prompt = self._aligner.teacher.question_ids("1 + 1 =")
        [found] = asyncio.run(self._ask([prompt]))
        self._read(found, prompt)
        [by_texts] = asyncio.run(self._ask([prompt], by_id=False))
        self._check_texts(by_texts, prompt)

    def grade(self, turns: Sequence[StudentTurn]) -> list[Grades | None]:
        found: list[Grades | None] = [None] * len(turns)
        asked = self._aligner.asked(turns, self._longest - 2)
        end = min(self._aligner.teacher.stop_ids)
        sent = [[*prompt, *places.teacher, end] for _, prompt, places in asked]
        answers = asyncio.run(self._ask(sent))
        for (number, prompt, places), ids, answer in zip(asked, sent, answers, strict=True):
            logprobs, tops = self._read(answer, ids)
            facts = self._aligner.facts(turns[number], places)
            after = len(prompt)
            events = candidate_events(
                [self._masses(places, span, logprobs[after:], tops[after:]) for span in places.spans],
                [_written(span, logprobs[after:]) for span in places.spans],
                facts,
            )
            found[number] = Grades(facts=facts, events=events)
        return found

    async def _ask(self, prompts: Sequence[Sequence[int]], *, by_id: bool = True) -> list[Any]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def ask(prompt: Sequence[int]) -> Any:
            body = {"model": self._model, "prompt": list(prompt), "max_tokens": 1, "temperature": 0}
            body |= {"echo": True, "logprobs": self._top_k, "return_tokens_as_token_ids": by_id}
            async with gate:
                for wait_s in (*WAITS_S, 0.0):
                    answer = await client.post("completions", json=body)
                    if answer.status_code not in BUSY or not wait_s:
                        break
                    await asyncio.sleep(wait_s)
            if answer.status_code != 200:
                raise InputError(
                    f"{self._url} refuses to give log-probabilities of a prompt (status {answer.status_code}): "
                    f"{answer.text[:300]}; choose another server, or learn from its texts alone"
                )
            return answer.json()

        try:
            async with open_client(self._url, key=self._key) as client:
                return await asyncio.gather(*map(ask, prompts))
        except HTTPError as error:
            raise Unreachable(f"{self._url} must be a server that answers: {first_line(error)}; start it") from error

    def _read(self, answer: Any, prompt: Sequence[int]) -> tuple[list[float], list[Mapping[str, float]]]:
        """Return of each token of a prompt its log-probability, and its position's candidates."""
        count = len(prompt)
        try:
            logprobs = answer["choices"][0]["logprobs"]
            names, values, tops = (logprobs[name] for name in ("tokens", "token_logprobs", "top_logprobs"))
            if min(len(names), len(values), len(tops)) < count:
                raise ValueError(f"{len(values)} tokens instead of {count}")
            for place in range(1, count):  # of the first token there is nothing to say
                _check_logprobs([values[place], *tops[place].values()], place)
            self._check_same(names[:count], prompt)
            return [0.0, *map(float, values[1:count])], tops[:count]
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"{self._url} gives no log-probabilities of prompts (echo and logprobs of /completions: {error}); "
                "choose a server that does (vLLM, toolkit serve), or learn from its texts alone"
            ) from error

    def _check_same(self, names: Sequence[str], prompt: Sequence[int]) -> None:
        """Raise `ValueError` if a server speaks of other tokens than it was sent: one more, or a part of them."""
        for place, (name, id) in enumerate(zip(names, prompt, strict=True)):
            if name.startswith(BY_ID) and name != f"{BY_ID}{id}":
                raise ValueError(f"token {place} of the prompt is {id}, and it speaks of {name[:40]!r}")

    def _check_texts(self, answer: Any, prompt: Sequence[int]) -> None:
        """Raise `InputError` if a server's texts of tokens are not those of the tokenizer; control tokens and names by
        ids say nothing."""
        decode, texts = self._aligner.teacher.tokenizer.decode, self.bridge.teacher_bytes
        names = answer["choices"][0]["logprobs"]["tokens"]
        told = [
            (str(name).strip(SPACES), decode([id]).strip(SPACES))
            for name, id in zip(names, prompt, strict=False)
            if texts[id] is not None and not str(name).startswith(BY_ID)
        ]
        other = [pair for pair in told if pair[0] != pair[1]]
        if len(other) > (1 - ALIKE) * len(told):
            raise InputError(
                f"the tokenizer of logits.tokenizer is not that of {self._url}, which reads {other[0][0]!r:.40} where "
                f"the tokenizer wrote {other[0][1]!r:.40}; name the folder of the model that is served"
            )

    def _id(self, name: str) -> int | None:
        """Return the token that a server names; None if it is not clear which one that is."""
        number = name.removeprefix(BY_ID)
        if number != name and number.isdecimal():
            return int(number) if int(number) < self.bridge.teacher_rows else None
        return self._ids.get(name)

    def _masses(
        self, places: Places, span: Span, logprobs: Sequence[float], tops: Sequence[Mapping[str, float]]
    ) -> dict[int, float]:
        """Sum the probabilities of a position's candidates by class; the written token may be among them or not."""
        candidates = {self._id(text): logprob for text, logprob in tops[span.teacher_begin].items()}
        if span.teacher_end > span.teacher_begin:
            candidates[places.teacher[span.teacher_begin]] = logprobs[span.teacher_begin]
        masses: dict[int, float] = {}
        for id, logprob in candidates.items():
            if id is not None:
                masses[self._classes[id]] = masses.get(self._classes[id], 0.0) + math.exp(logprob)
        return masses


def _check_logprobs(values: Sequence[Any], place: int) -> None:
    """Raise `ValueError` for what is no log-probability; -inf is one."""
    for value in values:
        if not isinstance(value, (int, float)) or not value <= ROUNDED:
            raise ValueError(f"token {place} has the log-probability {value}")


def _written(span: Span, logprobs: Sequence[float]) -> tuple[float, float]:
    if span.teacher_begin == span.teacher_end:
        return 0.0, 0.0
    return logprobs[span.teacher_begin], sum(logprobs[span.teacher_begin + 1 : span.teacher_end])
