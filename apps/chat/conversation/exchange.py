"""Conversations ↔ files for people and other programs: JSON with everything, Markdown with the texts.

JSON holds the title, every version of every turn and the path that is shown; reading and writing it again gives the
same bytes. Markdown holds the questions, thoughts and answers of the path under headings:

    # {title}              ## Question        ### Reasoning        ### Answer

A line of text that equals one of the last three headings gets a backslash, which Markdown does not show, in front of
it and of any that it already has, so that the texts can be read back exactly.
"""

from __future__ import annotations

import json
import re
from typing import Any, get_args

from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.store import COLUMNS, record_of, turn_of
from apps.chat.conversation.turn import Cut, State, Turn
from toolkit.errors import InputError
from toolkit.formats.chat_format import TOKEN_IDS
from toolkit.json_files import parse_json

FORMAT = "reasoning-edge conversation"
VERSION = 1
MOST = 2**48
"""Most tokens or seconds; a database column and a float hold these exactly."""
MOST_TURNS = 10_000
"""Most turns of an import; so many are stored and shown in seconds."""

HEADINGS = {"question": "## Question", "reasoning": "### Reasoning", "answer": "### Answer"}
_HEADING = re.compile(r"^(## Question|### Reasoning|### Answer)$", re.MULTILINE)
_LIKE_A_HEADING = re.compile(r"^(\\*(?:## Question|### Reasoning|### Answer))$", re.MULTILINE)
_ESCAPED = re.compile(r"^\\(\\*(?:## Question|### Reasoning|### Answer))$", re.MULTILINE)

TYPES: dict[str, type | tuple[type, ...]] = {
    "question": str,
    "state": str,
    "cut": (str, type(None)),
    "reasoning": str,
    "answer": str,
    "token_ids": list,
    "tokens_before_answer": (int, type(None)),
    "first_token_s": (int, float, type(None)),
    "answering_s": (int, float, type(None)),
    "last_token_s": (int, float),
    "ended_s": (int, float, type(None)),
    "model": str,
    "settings": dict,
}


def to_json(conversation: Conversation) -> str:
    """Write a whole conversation; `parent` and `shown` are indices into the list of turns."""
    place: dict[Turn | None, int | None] = {turn: i for i, turn in enumerate(conversation.all_turns)} | {None: None}
    document = {
        "format": FORMAT,
        "version": VERSION,
        "title": conversation.title,
        "shown": place[conversation.turns[-1]] if conversation.turns else None,
        "turns": [{"parent": place[turn.parent]} | record_of(turn) for turn in conversation.all_turns],
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def to_markdown(conversation: Conversation) -> str:
    """Write the texts of the path."""
    parts = [f"# {conversation.title}"]
    for turn in conversation.turns:
        for name, heading in HEADINGS.items():
            text = getattr(turn, name)
            if text or name == "question":
                parts += [heading, _LIKE_A_HEADING.sub(r"\\\1", text)]
    return "\n\n".join(parts) + "\n"


def conversation_of(text: str) -> Conversation:
    """Read either format; raises `InputError` if the text is in neither."""
    return _of_json(text) if text.lstrip().startswith("{") else _of_markdown(text)


def _of_json(text: str) -> Conversation:
    try:
        document = parse_json(text, "the conversation")
        json.dumps(document, ensure_ascii=False).encode()  # an escaped half of a character cannot be stored
    except UnicodeEncodeError as error:
        raise InputError(f"the conversation holds half of a character: {error}; export it again") from None
    except InputError as error:
        raise InputError(f"{error}; paste the whole file") from None
    if document.get("format") != FORMAT or document.get("version") != VERSION:
        raise InputError(
            f"unknown format {document.get('format')!r}, version {document.get('version')!r}: expected {FORMAT!r}, "
            f"version {VERSION}; export the conversation from this chat"
        )
    if not isinstance(document.get("title"), str) or not isinstance(document.get("turns"), list):
        raise InputError("the file needs a title and a list of turns; export the conversation again")
    _refuse_too_many(len(document["turns"]))
    conversation = Conversation(title=document["title"])
    for i, record in enumerate(document["turns"]):
        turn = turn_of(_checked(record, i))
        turn.parent = _turn_at(conversation, record.get("parent"), f"the parent of turn {i}")
        conversation.all_turns.append(turn)
    if shown := _turn_at(conversation, document.get("shown"), "the shown turn"):
        conversation.show(shown)
    return conversation


def _checked(record: Any, place: int) -> dict[str, Any]:
    """Return the record if every column is there with its type; a turn that was running becomes stopped."""
    if not isinstance(record, dict):
        raise InputError(f"turn {place} is not an object; export the conversation again")
    for name in COLUMNS:
        if name not in record or not isinstance(record[name], TYPES[name]):
            raise InputError(
                f"{name} of turn {place} is missing or of the wrong type ({record.get(name)!r:.60}); "
                "export the conversation again"
            )
        if isinstance(record[name], (int, float)) and abs(record[name]) > MOST:
            raise InputError(f"{name} of turn {place} is larger than {MOST}; export the conversation again")
    ids, before_answer = record["token_ids"], record["tokens_before_answer"]
    is_known = record["state"] in get_args(State) and record["cut"] in (None, *get_args(Cut))
    if not is_known or not all(i is None or (type(i) is int and i in TOKEN_IDS) for i in ids):
        raise InputError(f"turn {place} has an unknown state, cut or token id; export the conversation again")
    if before_answer is not None and not 0 <= before_answer <= len(ids):
        raise InputError(
            f"tokens_before_answer of turn {place} ({before_answer}) is not within its {len(ids)} tokens; "
            "export the conversation again"
        )
    return record if record["state"] in ("done", "stopped") else record | {"state": "stopped"}


def _refuse_too_many(turns: int) -> None:
    if turns > MOST_TURNS:
        raise InputError(f"{turns:,} questions are too many to import at once, at most {MOST_TURNS:,}; import a part")


def _turn_at(conversation: Conversation, place: Any, what: str) -> Turn | None:
    if place is None:
        return None
    if not isinstance(place, int) or not 0 <= place < len(conversation.all_turns):
        raise InputError(
            f"{what} ({place!r:.60}) is not the number of an earlier turn (0 to {len(conversation.all_turns) - 1}); "
            "export the conversation again"
        )
    return conversation.all_turns[place]


def _of_markdown(text: str) -> Conversation:
    """Read a chain of turns; all of them are done, and none has token ids."""
    _refuse_too_many(sum(heading == HEADINGS["question"] for heading in _HEADING.findall(text)))
    head, *parts = _HEADING.split(text + "\n")
    bodies = [body.removeprefix("\n\n").removesuffix("\n\n") for body in parts[1::2]]
    pairs = list(zip(parts[::2], bodies, strict=True))
    if not pairs or pairs[0][0] != HEADINGS["question"]:
        raise InputError(f"the text needs a line {HEADINGS['question']!r} first; paste an exported conversation")
    names = {heading: name for name, heading in HEADINGS.items()}
    conversation = Conversation(title=head.strip().removeprefix("# "))
    for heading, body in pairs:
        texts = _ESCAPED.sub(r"\1", body)
        if heading == HEADINGS["question"]:
            parent = conversation.turns[-1] if conversation.turns else None
            turn = Turn(question=texts, context_room=0, parent=parent, state="done", ended_at=0.0)
            conversation.turns.append(turn)
        else:
            setattr(conversation.turns[-1], names[heading], texts)
    conversation.all_turns = conversation.turns.copy()
    return conversation
