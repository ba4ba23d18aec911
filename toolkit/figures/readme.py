"""Writes a run's figures between two marks of a text, so that nobody copies a number by hand.

<!-- ledger:demo -->                the ledger of a run folder named demo: two tables and the protocol
<!-- /ledger:demo -->
<!-- transcript:demo -->            what its int4 student wrote for the first problem that it solved
<!-- /transcript:demo -->
"""

from __future__ import annotations

import re
from pathlib import Path

from toolkit.errors import InputError
from toolkit.figures.ledger import Ledger, Outcome, ledger_markdown, read_outcomes
from toolkit.runs import replace_text


def write_figures(path: Path, run: Path, ledger: Ledger) -> None:
    """Fill the blocks of a run (by its folder's name) in a Markdown file.

    Raises `InputError` if the file has no block for this run, or the run has no solved problem to show.
    """
    name = run.resolve().name
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    filled = fill(text, f"ledger:{name}", ledger_markdown(ledger))
    if filled is None:
        raise InputError(f"{path} lacks the marks <!-- ledger:{name} --> and <!-- /ledger:{name} -->; add them")
    solved = next((outcome for outcome in read_outcomes(run / "eval" / "int4") if outcome.verdict.correct), None)
    if solved is None:
        raise InputError(
            f"{run} has no problem that its int4 student solved, so there is no transcript to show; leave --readme out"
        )
    replace_text(path, fill(filled, f"transcript:{name}", transcript(solved)) or filled)


def fill_file(path: Path, block: str, content: str) -> None:
    """Replace a block of a file; raises `InputError` if the file is missing or has no such block."""
    if not path.is_file():
        raise InputError(f"{path} is missing; create it with the marks <!-- {block} --> and <!-- /{block} -->")
    filled = fill(path.read_text(encoding="utf-8"), block, content)
    if filled is None:
        raise InputError(f"{path} lacks the marks <!-- {block} --> and <!-- /{block} -->; add them")
    replace_text(path, filled)


def fill(text: str, block: str, content: str) -> str | None:
    """Return the text with a block's content replaced, or None if it has no such block."""
    pattern = rf"(<!-- {re.escape(block)} -->\n).*?(<!-- /{re.escape(block)} -->)"
    filled, count = re.subn(pattern, lambda marks: f"{marks[1]}{content.rstrip()}\n{marks[2]}", text, flags=re.DOTALL)
    return filled if count else None


def transcript(outcome: Outcome) -> str:
    """Format one turn as a text block: the question, the reasoning inside its tags, the answer."""
    question, trace = outcome.problem.transcript, outcome.trace
    return f"```text\n> {question}\n\n<think>\n{trace.reasoning}\n</think>\n\n{trace.answer}\n```"
