"""Turns feedback into data: an answer that the user approved or corrected → a problem and a trace for training.

    folder/problems.jsonl    the question, with the approved or corrected answer as its reference
    folder/traces.jsonl      what the model thought, and that answer

`toolkit distill --traces folder/traces.jsonl` reads both and grades each trace against its reference again. A question
whose answer is corrected later gets the new reference, so that the old trace is graded wrong and dropped. A problem
keeps the system prompt and what was said before its question: the student is trained on the conversation as it was.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.turn import Turn
from toolkit.errors import InputError
from toolkit.records import (
    BY_A_PERSON,
    AppendLog,
    Problem,
    Trace,
    content_hash,
    mend_torn_line,
    read_records,
    write_records,
)

FEEDBACK = "feedback"
"""Name of the folder, beside the chats."""
PROBLEMS, TRACES = "problems.jsonl", "traces.jsonl"
FAMILY = "feedback"


def keep(folder: Path, conversation: Conversation, turn: Turn, *, teacher: str, answer: str, reasoning: str) -> Trace:
    """Append a turn of the conversation with the given answer and reasoning; returns the trace.

    Raises `InputError` if the answer is empty or truncated, or the folder cannot be written.
    """
    if not answer.strip():
        raise InputError("an empty answer cannot be kept; write the answer that you want")
    is_cut = turn.state == "stopped" or turn.cut is not None
    if is_cut and answer.strip() == turn.answer.strip():
        raise InputError("a truncated answer cannot be kept; let the model continue it, or correct it")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(PermissionError):  # another user's folder, or a disk without owners
            folder.chmod(0o700)
        history = conversation.history(turn)
        problem = Problem.create(family=FAMILY, question=turn.question, answer=answer.strip(), history=history)
        problem = _set_problem(folder / PROBLEMS, problem)
        trace = _trace(turn, problem, _samples(folder / TRACES, problem), teacher, answer.strip(), reasoning.strip())
        with AppendLog(folder / TRACES) as traces:
            traces.append(trace)
    except OSError as error:
        raise InputError(f"cannot write feedback to {folder}: {error.strerror}; make it writable") from error
    return trace


def _set_problem(path: Path, problem: Problem) -> Problem:
    """Add a problem, or give the one with the same question the new answer; one rename makes the change atomic.

    Returns the problem, with an id of its own if another question differs only in case or white space.
    """
    known = {kept.id: kept for kept in read_records(path, Problem)} if path.exists() else {}
    if problem.id in known and known[problem.id].exact_text != problem.exact_text:
        problem = problem.set_apart()
    aside = path.with_suffix(".partial")
    write_records(aside, list((known | {problem.id: problem}).values()))
    aside.replace(path)
    return problem


def _samples(path: Path, problem: Problem) -> int:
    """Count the traces of a problem that are already there."""
    mend_torn_line(path)
    return sum(trace.problem_id == problem.id for trace in read_records(path, Trace)) if path.exists() else 0


def _trace(turn: Turn, problem: Problem, sample: int, teacher: str, answer: str, reasoning: str) -> Trace:
    return Trace(
        problem_id=problem.id,
        sample=sample,
        reasoning=reasoning,
        answer=answer,
        finish_reason="stop",
        closed=True,
        prompt_tokens=0,
        reasoning_tokens=turn.reasoning_tokens,
        completion_tokens=turn.tokens,
        teacher=f"{BY_A_PERSON}{teacher}",
        request_hash=content_hash(f"{teacher}\n{problem.transcript}\n{reasoning}\n{answer}\n{sample}"),
    )
