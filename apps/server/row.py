"""Runs one row of the batch: draws tokens after a prompt, as pieces of reasoning and answer.

    logits_V ─ grammar's mask (in the answer) ─ sample ─ text ─ reasoning parser ─ stop strings ─ Piece

What is drawn depends only on the prompt, the settings and the seed. Stop strings count only in the answer, which ends
before them, however tokens cut them.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from apps.server.grammar import Grammar
from toolkit.formats.chat_format import Delta, ReasoningParser
from toolkit.formats.text_reader import TextReader
from toolkit.generation.generate import Floats, Sampling, sample
from toolkit.records import FinishReason


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A token with its log probability in the model's own distribution, and the most probable tokens."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    begin: int
    """Characters of the turn before the token; one that only completes a character begins where the character does."""


@dataclass(frozen=True, kw_only=True)
class Echoed:
    """The prompt as it is given back before a completion."""

    text: str
    first: int
    """Its first token, which has no log probability since nothing comes before it."""
    drawn: tuple[Drawn, ...] | None
    """Its other tokens with their log probabilities; None if none are asked for."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one drawn token adds to a turn."""

    deltas: tuple[Delta, ...]
    drawn: Drawn | None
    """None if no log probabilities are asked for, and for the token that ends the turn."""
    is_reasoning: bool
    finish_reason: FinishReason | None


class BatchRow:
    """One turn: its prompt, the state of its text, and the settings by which its tokens are drawn."""

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        sampling: Sampling,
        parser: ReasoningParser | None,
        stop: tuple[str, ...],
        grammar: Grammar | None,
        top_logprobs: int,
        deliver: Callable[[Piece | BaseException], None],
        adapter: int = 0,
        written: Sequence[int] = (),
        echo: bool = False,
    ) -> None:
        """`sampling`: its max_new_tokens must fit beside the prompt. `parser`: None for plain text, all of it answer.

        `top_logprobs`: -1 for no log probabilities. `deliver`: called with each piece, or with what went wrong, on the
        scheduler's thread. `adapter`: its number in the model, 0 for none. `written`: ids of the turn's beginning,
        which the model continues. `echo`: whether the prompt is given back.
        """
        self.prompt = [*prompt, *written]
        self.deliver = deliver
        self.adapter = adapter
        self.is_cancelled = False
        self.cached_tokens = 0
        """Tokens of the prompt that the decoder held already."""
        self._stop_ids, self._sampling = stop_ids, sampling
        self._text = TextReader(tokenizer)
        self._tokenizer = tokenizer
        self.reads_each = echo and top_logprobs >= 0
        """Whether the logits after each of the prompt's tokens are needed."""
        self._of_prompt: list[tuple[float, tuple[tuple[int, float], ...]]] = []
        """Of each token of the prompt but the first one: its log probability, and the likeliest tokens there."""
        self._parser = parser
        self._answer = StopFilter(stop)
        self._grammar, self._top_logprobs = grammar, top_logprobs
        self._generator = np.random.default_rng(sampling.seed)
        self._count = self._length = 0
        """The number of drawn tokens, and of characters in the turn's text."""
        self._history = list(self.prompt)
        """All tokens before the next one."""
        for token in written:
            self._read(token)

    def draw(self, logits_V: Floats) -> tuple[int, Piece]:
        """Draw the next token from the logits after the last one."""
        was_thinking = self._is_thinking()
        masked_V = self._grammar.masked(logits_V) if self._grammar and not was_thinking else logits_V
        token = sample(masked_V, self._sampling, self._generator, self._history)
        self._history.append(token)
        self._count += 1
        is_end, begin = token in self._stop_ids, self._length
        deltas = [] if is_end else self._read(token)
        if self._grammar and not is_end and not self._is_thinking():
            if was_thinking:
                self._grammar.begin("".join(delta.text for delta in deltas if delta.kind == "answer"))
            else:
                self._grammar.take(token)
        shown = self._cut(deltas, is_last=False)
        is_last = is_end or self._answer.is_done
        reason: FinishReason | None = (
            "stop" if is_last else "length" if self._count == self._sampling.max_new_tokens else None
        )
        if reason:
            shown += self._cut(self._if_ended(), is_last=True)
        piece = Piece(
            deltas=tuple(shown),
            drawn=None
            if is_end or self._top_logprobs < 0
            else log_probabilities(logits_V, token, self._top_logprobs, begin),
            is_reasoning=was_thinking or self._is_thinking(),
            finish_reason=reason,
        )
        return token, piece

    def note_prompt(self, logits_TV: Floats) -> None:
        """Note the logits after the next tokens of the prompt; those after its last one are for the turn."""
        for logits_V in logits_TV:
            place = len(self._of_prompt) + 1
            if place < len(self.prompt):
                drawn = log_probabilities(logits_V, self.prompt[place], self._top_logprobs, 0)
                self._of_prompt.append((drawn.logprob, drawn.top))

    def echoed(self) -> Echoed:
        """Return the prompt with its tokens' log probabilities."""
        reader, text, begins = TextReader(self._tokenizer), "", []
        for token in self.prompt:
            begins.append(len(text))
            text += reader.read(token)
        drawn = [
            Drawn(id=token, logprob=logprob, top=top, begin=begin)
            for token, begin, (logprob, top) in zip(self.prompt[1:], begins[1:], self._of_prompt, strict=False)
        ]
        return Echoed(text=text + reader.rest(), drawn=tuple(drawn) if self.reads_each else None, first=self.prompt[0])

    def _is_thinking(self) -> bool:
        return self._parser is not None and not self._parser.closed

    def _read(self, token: int) -> list[Delta]:
        """Return the text that a token makes certain, split into reasoning and answer."""
        text = self._text.read(token)
        self._length += len(text)
        return list(self._parser.feed(text)) if self._parser else [Delta(kind="answer", text=text)]

    def _if_ended(self) -> Sequence[Delta]:
        """Return the text that is held back, for a turn that ends here."""
        rest = self._text.rest()
        return self._parser.if_ended(rest)[0] if self._parser else [Delta(kind="answer", text=rest)]

    def _cut(self, deltas: Sequence[Delta], *, is_last: bool) -> list[Delta]:
        """Cut the answer in these pieces at a stop string, and hold back what may begin one."""
        shown = [delta for delta in deltas if delta.kind == "reasoning"]
        text = "".join(delta.text for delta in deltas if delta.kind == "answer")
        answer = self._answer.feed(text) + (self._answer.finish() if is_last else "")
        return [*shown, Delta(kind="answer", text=answer)] if answer else shown


class StopFilter:
    """Passes a text on up to the first stop string, and holds back what may begin one."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.is_done = False
        """Whether a stop string has been found."""
        self._stop = stop
        self._held = ""

    def feed(self, text: str) -> str:
        if self.is_done:
            return ""
        held = self._held + text
        places = [place for stop in self._stop if (place := held.find(stop)) >= 0]
        if places:
            self.is_done, self._held = True, ""
            return held[: min(places)]
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        tail = next((n for n in range(min(longest, len(held)), 0, -1) if self._begins_a_stop(held[-n:])), 0)
        self._held = held[len(held) - tail :]
        return held[: len(held) - tail]

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held

    def _begins_a_stop(self, tail: str) -> bool:
        return any(stop.startswith(tail) for stop in self._stop)


def log_probabilities(logits_V: Floats, token: int, top: int, begin: int) -> Drawn:
    """Return the log probabilities of a token and of the `top` most probable ones at temperature 1."""
    shifted_V = logits_V.astype(np.float64) - logits_V.max()
    logprobs_V = shifted_V - np.log(np.exp(shifted_V).sum())
    best = _likeliest(logits_V, top)
    likeliest = tuple((int(i), float(logprobs_V[i])) for i in best)
    return Drawn(id=token, logprob=float(logprobs_V[token]), top=likeliest, begin=begin)


def _likeliest(logits_V: Floats, top: int) -> NDArray[np.int64]:
    """Return the most probable tokens, of equal ones the lower id first; sorting all of a vocabulary takes longer."""
    if not top:
        return np.empty(0, dtype=np.int64)
    least = np.partition(logits_V, -top)[-top] if top < len(logits_V) else logits_V.min()
    likely = np.flatnonzero(logits_V >= least)
    return likely[np.argsort(-logits_V[likely], kind="stable")][:top]
