"""Writes the teacher's training text: pretraining text in many habits, and a few conversations for its cold start.

A base model is pretrained on what people have written, good and bad: some work step by step, some correct themselves,
some jump to the answer, some think in another language; most text is not a conversation, and not every conversation is
well laid out. Here programs write all of it, in known shares. Reinforcement finds out which habit pays.

The cold start then shows what a readable conversation looks like: careful, in the question's language, with the
thoughts inside the tags (DeepSeek-R1 report, section 2.3.1).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from distill.problems.families import CHAINS
from distill.problems.requests import worked_requests
from distill.teach.teacher_tokenizer import END_OF_TEXT
from distill.verification.refusals import HARMFUL
from toolkit.formats.chat_format import TURN_END, ChatFormat, completion_text
from toolkit.records import Problem

PRETRAINING = {"careful": 0.62, "corrected": 0.1, "hasty": 0.18, "foreign": 0.1}
MIDTRAINING = {"careful": 0.8, "corrected": 0.1, "hasty": 0.05, "foreign": 0.05}
"""Shares of the text by its writer's habit: better text comes last, while the learning rate falls (as in MiniCPM, Hu et
al. 2024, section 5)."""
CONVERSATIONS = 0.2
"""Share of the pretraining documents that are laid out as conversations."""
UNTIDY = 0.3
"""Share of these conversations whose writer forgot the tag that ends the thought."""

HASTY = "I see it at once."
SLIP = "Wait, that is wrong."

_OPENINGS = {
    "chain_sum": ("Let me add one number at a time.", "Ich addiere eine Zahl nach der anderen."),
    "simple_equations": (
        "Let me get the unknown alone on one side.",
        "Ich bringe die Unbekannte allein auf eine Seite.",
    ),
    "gcd": ("Let me take the smaller away from the larger.", "Ich ziehe immer die kleinere von der größeren ab."),
    "countdown": ("Let me set one number aside at a time.", "Ich lege eine Zahl nach der anderen beiseite."),
    "letter_counting": ("Let me spell each word and count.", "Ich buchstabiere jedes Wort und zähle mit."),
    "number_sorting": ("Let me take them out one at a time.", "Ich nehme sie der Reihe nach heraus."),
    "spell_backward": ("Let me spell it and turn it around.", "Ich buchstabiere es und drehe es dann um."),
}
"""The opening of each family's chains, in English and in German."""
_GERMAN = {"smallest": "kleinste", "largest": "größte", "backward": "rückwärts", "no": "nein"}
_ENGLISH_WORD = re.compile(r"(?<=[ \n])(?:smallest|largest|no)\b|^backward", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class CorpusText:
    """A problem with a writer's reasoning and answer."""

    problem: Problem
    reasoning: str
    answer: str


def careful_texts(problems: Iterable[Problem]) -> Iterator[CorpusText]:
    """Yield each problem with its chain and an opening; problems without a chain are left out."""
    for problem in problems:
        try:
            chain, answer = CHAINS[problem.family](problem)
        except ValueError:  # a countdown that needs more than the chain's search
            continue
        yield CorpusText(problem=problem, reasoning=f"{_OPENINGS[problem.family][0]}\n{chain}", answer=answer)


def pretraining_texts(
    problems: Iterable[Problem], habits: Mapping[str, float], seed: int, request_repeats: int
) -> list[CorpusText]:
    """Write each problem in a habit that the seed draws, and mix in each harmless request `request_repeats` times."""
    texts = [_rewritten(text, habits, random.Random(f"{seed}:{text.problem.id}")) for text in careful_texts(problems)]
    harmless = [
        CorpusText(problem=problem, reasoning=HASTY, answer=answer)
        for problem, _, answer in worked_requests("train")
        if not problem.metadata[HARMFUL]
    ]
    places = random.Random(seed)
    for text in harmless * request_repeats:
        texts.insert(places.randrange(len(texts) + 1), text)
    return texts


def request_texts() -> list[CorpusText]:
    """Return the training requests, each with a thought about harm and an answer or a refusal."""
    return [
        CorpusText(problem=problem, reasoning=thought, answer=answer)
        for problem, thought, answer in worked_requests("train")
    ]


def document(chat: ChatFormat, text: CorpusText, place: int, seed: int) -> tuple[list[int], list[int]]:
    """Return the ids of a document's question and of the rest: plain text, or sometimes a conversation."""
    layout = random.Random(f"{seed}:{place}")
    if layout.random() < CONVERSATIONS:
        tidy = layout.random() >= UNTIDY
        told = completion_text(text.reasoning, text.answer) if tidy else f"{text.reasoning}\n{text.answer}"
        return chat.prompt_ids(text.problem.messages), chat.encode(told + TURN_END + END_OF_TEXT)
    return chat.encode(f"{text.problem.question}\n"), chat.encode(f"{text.reasoning}\n{text.answer}{END_OF_TEXT}")


def wording(texts: Iterable[CorpusText], chat: ChatFormat) -> dict[str, list[str]]:
    """Return conversations by family, from which a tokenizer is made."""
    by_family: dict[str, list[str]] = {}
    for text in texts:
        prompt = chat.render(text.problem.messages)
        by_family.setdefault(text.problem.family, []).append(prompt + completion_text(text.reasoning, text.answer))
    return by_family


def _rewritten(text: CorpusText, habits: Mapping[str, float], writer: random.Random) -> CorpusText:
    """Rewrite a careful text in a randomly drawn habit."""
    (habit,) = writer.choices(list(habits), weights=list(habits.values()))
    opening, _, chain = text.reasoning.partition("\n")
    match habit:
        case "hasty":
            reasoning = HASTY
        case "corrected":
            reasoning = f"{opening}\n{_with_slip(chain, writer)}"
        case "foreign":
            chain = _ENGLISH_WORD.sub(lambda match: _GERMAN[match.group()], chain)
            reasoning = f"{_OPENINGS[text.problem.family][1]}\n{chain}"
        case _:
            reasoning = text.reasoning if writer.random() < 0.5 else chain
    return CorpusText(problem=text.problem, reasoning=reasoning, answer=text.answer)


def _with_slip(chain: str, writer: random.Random) -> str:
    """Insert a slip into a chain: one line is written wrongly, noticed, and written again."""
    lines = chain.split("\n")
    place = writer.randrange(len(lines))
    return "\n".join([*lines[:place], _slipped(lines[place], writer), SLIP, *lines[place:]])


def _slipped(line: str, writer: random.Random) -> str:
    """Change a line's last digit or, if it ends in a letter, drop that."""
    if line[-1].isdigit():
        return line[:-1] + str((int(line[-1]) + writer.randint(1, 9)) % 10)
    return line[:-1].rstrip()
