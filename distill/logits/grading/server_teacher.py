"""A teacher behind a server that gives the log-probabilities of prompts, in the older form of OpenAI's completions.

    POST …/completions  {"prompt": [ids], "echo": true, "logprobs": K, "max_tokens": 1}
    → "tokens", "token_logprobs", "top_logprobs": one entry for each token of the prompt, then for what was generated

vLLM, `toolkit serve` and llama-cpp-python's server answer so; llama-server ignores `echo` (llama.cpp#27174), which is
found out before training. The teacher's tokenizer and template are read from a folder, since the server gives neither.
A candidate whose text several tokens share, such as a part of a character, counts to the tail.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

from httpx2 import HTTPError

from distill.logits.grading.events import candidate_events
from distill.logits.grading.turns import Aligner, Grades, Places, StudentTurn
from distill.logits.vocabularies.alignment import Span
from distill.logits.vocabularies.bridge import Bridge
from toolkit.errors import InputError, Unreachable
from toolkit.generation.endpoint import KEY_VARIABLE, first_line, open_client

AT_ONCE = 8
"""Requests that wait for the server together."""


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
        self._classes: list[int] = self.bridge.teacher_class_V.tolist()

    def check(self) -> None:
        """Raise `InputError` if the server gives no log-probabilities of prompts; asks it once."""
        prompt = self._aligner.teacher.question_ids("1 + 1 =")
        [found] = asyncio.run(self._ask([prompt]))
        self._read(found, len(prompt))

    def grade(self, turns: Sequence[StudentTurn]) -> list[Grades | None]:
        found: list[Grades | None] = [None] * len(turns)
        asked: list[tuple[int, list[int], Places]] = []
        for number, turn in enumerate(turns):
            places = self._aligner.places(turn)
            if places is not None and places.spans:
                asked.append((number, self._aligner.teacher.prompt_ids(list(turn.messages)), places))
        end = min(self._aligner.teacher.stop_ids)
        answers = asyncio.run(self._ask([[*prompt, *places.teacher, end] for _, prompt, places in asked]))
        for (number, prompt, places), answer in zip(asked, answers, strict=True):
            logprobs, tops = self._read(answer, len(prompt) + len(places.teacher) + 1)
            facts = self._aligner.facts(turns[number], places)
            after = len(prompt)
            events = candidate_events(
                [self._masses(places, span, logprobs[after:], tops[after:]) for span in places.spans],
                [_written(span, logprobs[after:]) for span in places.spans],
                facts,
            )
            found[number] = Grades(facts=facts, events=events)
        return found

    async def _ask(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def ask(prompt: Sequence[int]) -> Any:
            body = {"model": self._model, "prompt": list(prompt), "max_tokens": 1, "temperature": 0}
            async with gate:
                answer = await client.post("completions", json=body | {"echo": True, "logprobs": self._top_k})
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

    def _read(self, answer: Any, count: int) -> tuple[list[float], list[Mapping[str, float]]]:
        """Return of each token of a prompt its log-probability, and its position's candidates."""
        try:
            logprobs = answer["choices"][0]["logprobs"]
            values, tops = logprobs["token_logprobs"], logprobs["top_logprobs"]
            if len(values) < count or len(tops) < count or any(top is None for top in tops[1:count]):
                raise ValueError(f"{len(values)} tokens instead of {count}")
            return [0.0 if value is None else float(value) for value in values[:count]], tops[:count]
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"{self._url} gives no log-probabilities of prompts (echo and logprobs of /completions: {error}); "
                "choose a server that does (vLLM, toolkit serve), or learn from its texts alone"
            ) from error

    def _masses(
        self, places: Places, span: Span, logprobs: Sequence[float], tops: Sequence[Mapping[str, float]]
    ) -> dict[int, float]:
        """Sum the probabilities of a position's candidates by class; the written token may be among them or not."""
        candidates = {self._ids.get(text): logprob for text, logprob in tops[span.teacher_begin].items()}
        if span.teacher_end > span.teacher_begin:
            candidates[places.teacher[span.teacher_begin]] = logprobs[span.teacher_begin]
        masses: dict[int, float] = {}
        for id, logprob in candidates.items():
            if id is not None:
                masses[self._classes[id]] = masses.get(self._classes[id], 0.0) + math.exp(logprob)
        return masses


def _written(span: Span, logprobs: Sequence[float]) -> tuple[float, float]:
    if span.teacher_begin == span.teacher_end:
        return 0.0, 0.0
    return logprobs[span.teacher_begin], sum(logprobs[span.teacher_begin + 1 : span.teacher_end])
