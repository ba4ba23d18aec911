"""Turns pieces of turns into OpenAI's responses: whole ones, and the chunks of a stream.

Reasoning is given beside the answer under both names that clients read (`reasoning_content` from DeepSeek and
llama.cpp, `reasoning` from vLLM). So are the log probabilities of its tokens, beside those of the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from apps.server.row import BatchRow, Drawn, Echoed, Piece

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Head:
    """The fields that all parts of one response share."""

    id: str
    created: int
    model: str
    is_chat: bool
    by_id: bool = False
    """Whether log probabilities name tokens by their ids."""

    def envelope(self, *, is_chunk: bool, **fields: Any) -> Json:
        kind = "text_completion" if not self.is_chat else "chat.completion.chunk" if is_chunk else "chat.completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, **fields}


@dataclass(kw_only=True)
class CompletionChoice:
    """One answer as far as it has been generated."""

    index: int
    reasoning: str = ""
    answer: str = ""
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    finish_reason: str | None = None
    drawn: list[tuple[Drawn, bool]] = field(default_factory=list)
    """Each token with its log probabilities, and whether it belongs to the thought."""
    echoed: Echoed | None = None
    """The prompt, if it is given back."""

    def add(self, piece: Piece) -> None:
        for delta in piece.deltas:
            if delta.kind == "reasoning":
                self.reasoning += delta.text
            else:
                self.answer += delta.text
        self.completion_tokens += 1
        self.reasoning_tokens += piece.is_reasoning
        self.finish_reason = piece.finish_reason
        if piece.drawn:
            self.drawn.append((piece.drawn, piece.is_reasoning))


def usage(choices: Sequence[CompletionChoice], prompts: Sequence[BatchRow]) -> Json:
    """Count the tokens of a response; `prompts`: one turn for each prompt, however many choices it has."""
    prompt_tokens = sum(len(turn.prompt) for turn in prompts)
    completion_tokens = sum(choice.completion_tokens for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(turn.cached_tokens for turn in prompts)},
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens_details": {"reasoning_tokens": sum(choice.reasoning_tokens for choice in choices)},
    }


def whole_choice(head: Head, choice: CompletionChoice, tokenizer: Tokenizer) -> Json:
    """Return one entry of `choices` of a whole response."""
    facts = {"index": choice.index, "finish_reason": choice.finish_reason}
    if not head.is_chat:
        text = choice.echoed.text if choice.echoed else ""
        logprobs = _text_logprobs(choice.drawn, tokenizer, choice.echoed, by_id=head.by_id)
        return {**facts, "text": text + choice.answer, "logprobs": logprobs}
    reasoning = choice.reasoning or None
    message = {"role": "assistant", "content": choice.answer, "reasoning_content": reasoning, "reasoning": reasoning}
    return {**facts, "message": message, "logprobs": _chat_logprobs(choice.drawn, tokenizer)}


def chunk_choices(head: Head, index: int, piece: Piece, tokenizer: Tokenizer) -> list[Json]:
    """Return the entries of `choices` for one piece, each of which becomes a chunk; none if it brought nothing."""
    drawn = [(piece.drawn, piece.is_reasoning)] if piece.drawn else []
    logprobs = _chat_logprobs(drawn, tokenizer) if head.is_chat else _text_logprobs(drawn, tokenizer, by_id=head.by_id)
    parts: list[Json] = []
    for delta in piece.deltas:
        if not head.is_chat:
            parts.append({"text": delta.text})
        elif delta.kind == "reasoning":
            parts.append({"delta": {"reasoning_content": delta.text, "reasoning": delta.text}})
        else:
            parts.append({"delta": {"content": delta.text}})
    if (piece.finish_reason or logprobs) and not parts:
        parts.append({"delta": {}} if head.is_chat else {"text": ""})
    for part in parts:
        part |= {"index": index, "logprobs": None, "finish_reason": None}
    if parts:
        parts[0]["logprobs"] = logprobs
        parts[-1]["finish_reason"] = piece.finish_reason
    return parts


def _chat_logprobs(drawn: Sequence[tuple[Drawn, bool]], tokenizer: Tokenizer) -> Json | None:
    if not drawn:
        return None

    def entry(token: int, logprob: float) -> Json:
        text = _token_text(tokenizer, token)
        known = None if "\ufffd" in text else list(text.encode())  # part of a character has no text of its own
        return {"token": text, "logprob": logprob, "bytes": known}

    def entries(of_reasoning: bool) -> list[Json]:
        return [
            {**entry(token.id, token.logprob), "top_logprobs": [entry(*other) for other in token.top]}
            for token, is_reasoning in drawn
            if is_reasoning == of_reasoning
        ]

    return {"content": entries(False), "reasoning_content": entries(True), "refusal": None}


def _text_logprobs(
    drawn: Sequence[tuple[Drawn, bool]], tokenizer: Tokenizer, echoed: Echoed | None = None, *, by_id: bool = False
) -> Json | None:
    """Return the lists of OpenAI's older form, of the prompt's tokens too if they are echoed with log probabilities."""
    of_prompt = echoed.drawn if echoed else None
    if not drawn and of_prompt is None:
        return None

    def name(token: int) -> str:
        return f"token_id:{token}" if by_id else _token_text(tokenizer, token)

    after = len(echoed.text) if echoed else 0
    tokens = [*(of_prompt or ()), *(token for token, _ in drawn)]
    begins = [*(token.begin for token in of_prompt or ()), *(after + token.begin for token, _ in drawn)]
    first = [echoed.first] if echoed and of_prompt is not None else []
    return {
        "tokens": [*map(name, first), *(name(token.id) for token in tokens)],
        "token_logprobs": [*(None for _ in first), *(token.logprob for token in tokens)],
        "top_logprobs": [*(None for _ in first), *({name(i): lp for i, lp in token.top} for token in tokens)],
        "text_offset": [*(0 for _ in first), *begins],
    }


def _token_text(tokenizer: Tokenizer, token: int) -> str:
    text: str = tokenizer.decode([token], skip_special_tokens=False)
    return text
