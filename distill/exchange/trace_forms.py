"""Recognizes published data sets of traces by their columns, and reads a question and its answers from a row of each.

    OpenR1-Math          problem, solution, answer, generations, is_reasoning_complete, correctness_math_verify …
    Mixture-of-Thoughts  messages (role, content), num_tokens, source
    OpenThoughts         system, conversations (from, value): 114k with <|begin_of_thought|>, 2 and 3 with <think>
    OpenThoughts         the subset `metadata`: problem, deepseek_reasoning, deepseek_solution, ground_truth_solution …
    s1K                  question, solution, cot_type, thinking_trajectories, attempt
    s1K-1.1              the same with gemini_* and deepseek_* in place of the last two: two teachers
    messages, ShareGPT   conversations whose last turn thinks: in its content, or in a field beside it
    exported traces      what `distill.exchange.export_stage` writes

Questions and references are read by the forms of problems (`distill.problems.published`), thoughts by the forms in
which servers send them (`distill.endpoints.messages`). Whatever the publisher says of an answer is kept apart and
decides nothing.

Sources (`dataset_info` of their cards on huggingface.co/datasets): open-r1/OpenR1-Math-220k (README at 075afe0),
open-r1/Mixture-of-Thoughts, open-thoughts/OpenThoughts-114k (its 1,000 rows: ryanmarten/OpenThoughts-1k-sample),
open-thoughts/OpenThoughts2-1M and OpenThoughts3-1.2M, simplescaling/s1K and s1K-1.1 (commit 2020075).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from distill.endpoints.messages import read_message
from distill.exchange.exported_rows import COLUMNS, OWN_ROW, problem_in, trace_in
from distill.problems.conversations import LeftOut, from_messages
from distill.problems.published import Row, form_of
from toolkit.errors import InputError
from toolkit.formats.message_fields import content_parts
from toolkit.records import Problem, Trace

IMPORTED = "import"
"""The digest in the names of teachers that published data sets name, or do not name."""
UNKNOWN = "unknown"
REFERENCES = ("reference_answer", "expected_answer", "ground_truth")
"""Columns beside a conversation that hold a reference and never an answer of a model."""
LONGEST_FACT = 500
"""Most characters of a text about an answer that is kept beside it."""
_FLAGS = ("correctness_math_verify", "correctness_llama", "is_reasoning_complete", "finish_reasons")
"""Columns of OpenR1-Math with a value for each generation, the two verdicts first."""
BROKEN_REMEDY = "correct the row, or leave such rows out with --broken leave-out"


@dataclass(frozen=True, kw_only=True)
class PublishedTrace:
    """One answer of a row, and what its publisher says of it."""

    read: Callable[[], Trace]
    """Finds its thought, which may take milliseconds. Problem, sample and request are filled in later, unless the row
    is one that we exported."""
    said: dict[str, Any]
    """The publisher's columns about this answer, its verdicts among them."""
    right: bool | None
    """The publisher's verdict, as far as there is one."""


@dataclass(frozen=True, kw_only=True)
class TraceRow:
    """A row in our terms."""

    traces: list[PublishedTrace]
    own: dict[str, Any] = field(default_factory=dict)
    """The question, in the form that `distill.problems.own_form` checks; the answer may be missing."""
    lacks: str = ""
    """Why there is no reference; empty if there is one."""
    problem: Problem | None = None
    """The problem of a row that we exported, in place of `own`."""
    unused: tuple[str, ...] = ()
    """Columns that are kept nowhere."""


@dataclass(frozen=True, kw_only=True)
class TraceForm:
    """One published form: the columns that identify it, and how its rows are read."""

    name: str
    known_by: tuple[str, ...]
    """Columns, in lower case, that every row of this form has."""
    uses: tuple[str, ...]
    """Columns that are read, or that say in another form what is read."""
    read: Callable[[Row], TraceRow]
    fits: Callable[[Row], bool] = lambda row: True
    """An additional test of a row's values."""

    def is_form_of(self, row: Row) -> bool:
        return all(column in row for column in self.known_by) and self.fits(row)


def read_trace_row(values: Mapping[str, Any], where: str, reference_field: str = "") -> tuple[str, TraceRow]:
    """Return the name of a row's form, and the row in our terms.

    `reference_field`: the column of the reference, in place of the form's own. Raises `InputError` naming the row and
    what it lacks, `LeftOut` if it holds no trace that can be used.
    """
    row = {column.lower(): value for column, value in values.items() if value is not None}
    form = next((form for form in TRACE_FORMS if form.is_form_of(row)), None)
    if form is None:
        raise InputError(_unknown(values, row, where))
    try:
        read = form.read(row)
    except InputError as error:
        raise InputError(f"{where} is not a row of {form.name}: its {error}; {BROKEN_REMEDY}") from error
    if reference_field:
        read = _with_reference(read, values, reference_field, where)
    if not read.traces:
        raise LeftOut("no answer")
    return form.name, _with_facts(read, row, (*form.uses, reference_field.lower()))


def _unknown(values: Mapping[str, Any], row: Row, where: str) -> str:
    """Say which column a row lacks to have the form that it resembles most."""
    columns = {column.lower() for column in values}
    shares = [(sum(column in columns for column in form.known_by) / len(form.known_by), form) for form in TRACE_FORMS]
    share, nearest = max(shares, key=lambda each: each[0])
    if share <= 0.5 and not (share and len(nearest.known_by) == 1):
        names = ", ".join(form.name for form in TRACE_FORMS)
        return (
            f"{where} has no known form of traces: its columns with a value are {', '.join(row) or 'none'}; known "
            f"forms are {names}; rename the columns to those of one"
        )
    lacks = ", ".join(
        f"{column!r} is empty" if column in columns else f"no {column!r}"
        for column in nearest.known_by
        if column not in row
    )
    return f"{where} is not a row of {nearest.name}: {lacks}; {BROKEN_REMEDY}"


def _with_reference(read: TraceRow, values: Mapping[str, Any], column: str, where: str) -> TraceRow:
    if column not in values:
        raise InputError(f"--reference-field: {where} has no column {column!r}; it has {', '.join(values)}")
    if read.problem is not None:
        raise InputError(f"--reference-field: {where} is an exported trace, which brings its reference; leave it out")
    answer = values[column]
    has_one = answer is not None and bool(str(answer).strip())
    return replace(
        read, own=read.own | {"answer": answer if has_one else None}, lacks="" if has_one else f"no {column}"
    )


def _with_facts(read: TraceRow, row: Row, used: tuple[str, ...]) -> TraceRow:
    """Keep what else a row says with each of its answers, as far as it is a number, a flag or a short text."""
    rest = {column: value for column, value in row.items() if column not in used}
    facts = {column: value for column, value in rest.items() if _is_fact(value)}
    traces = [replace(each, said=each.said | facts) for each in read.traces]
    return replace(read, traces=traces, unused=tuple(column for column in rest if column not in facts))


def _is_fact(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= LONGEST_FACT)


def _exported(row: Row) -> TraceRow:
    verdicts = {name: row[name] for name in ("correct", "verifier") if name in row}
    trace = trace_in(row)
    published = PublishedTrace(read=lambda: trace, said=verdicts, right=row.get("correct"))
    return TraceRow(problem=problem_in(row), traces=[published])


def _openr1(row: Row) -> TraceRow:
    """Read a row with several generations; some have flags of two verifiers, some of one."""
    generations = row["generations"]
    if not isinstance(generations, list):
        raise InputError(f"generations ({generations!r:.80}) must be a list of texts")
    for name in _FLAGS:
        if isinstance(row.get(name), list) and len(row[name]) != len(generations):
            raise InputError(
                f"{name} ({len(row[name])} values) must have one for each of {len(generations)} generations"
            )
    traces = []
    for place, text in enumerate(generations):
        said = {name: row[name][place] for name in _FLAGS if isinstance(row.get(name), list)}
        is_cut = said.get("is_reasoning_complete") is False
        verdicts = [said.get(name) for name in _FLAGS[:2] if said.get(name) is not None]
        traces.append(
            published_trace(
                {"content": text},
                teacher="deepseek-ai/DeepSeek-R1",
                finish_reason=said.get("finish_reasons") or ("length" if is_cut else None),
                said=said,
                right=any(verdicts) if verdicts else None,
            )
        )
    own, lacks = _problem_values(row, question=row["problem"], family=row.get("problem_type"))
    return TraceRow(own=own, lacks=lacks, traces=traces)


def _s1k(*teachers: tuple[str, str, str]) -> Callable[[Row], TraceRow]:
    """Make a reader of rows with one thought and one attempt of each teacher: (name, thoughts' column, prefix)."""

    def read(row: Row) -> TraceRow:
        traces = []
        for teacher, column, prefix in teachers:
            thoughts, attempts = _listed(row.get(column)), _listed(row.get(f"{prefix}attempt"))
            if len(thoughts) != len(attempts):
                raise InputError(
                    f"{column} ({len(thoughts)} values) must have one for each {prefix}attempt ({len(attempts)})"
                )
            said = _kept(row, f"{prefix}grade")
            grade = str(said.get(f"{prefix}grade", "")).strip().lower()
            traces += [
                published_trace(
                    {"reasoning": thought, "content": attempt},
                    teacher=teacher,
                    said=said,
                    right={"yes": True, "no": False}.get(grade),
                )
                for thought, attempt in zip(thoughts, attempts, strict=True)
            ]
        own, lacks = _problem_values(row, question=row["question"], family=row.get("cot_type"))
        return TraceRow(own=own, lacks=lacks, traces=traces)

    return read


def _openthoughts_metadata(row: Row) -> TraceRow:
    message = {"reasoning": row["deepseek_reasoning"], "content": row["deepseek_solution"]}
    solved = {"question": row["problem"], "cot_type": row.get("domain", UNKNOWN)}
    if "ground_truth_solution" in row and "test_cases" not in row:
        solved["solution"] = row["ground_truth_solution"]
    own, lacks = _problem_values(solved, question=row["problem"], family=row.get("domain"))
    trace = published_trace(message, teacher="deepseek-ai/DeepSeek-R1", said={})
    return TraceRow(own=own, lacks="its tests are in another form" if "test_cases" in row else lacks, traces=[trace])


def _conversation(column: str, teacher: str = UNKNOWN) -> Callable[[Row], TraceRow]:
    """Make a reader of conversations: the last question is the problem's, and what follows it is the trace."""

    def read(row: Row) -> TraceRow:
        messages = row[column]
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise InputError(f"{column} ({messages!r:.80}) must be a list of objects with 'role' and 'content'")
        said = [_message(message) for message in messages]
        answers = list(_last_answers(said))
        asked = said[: len(said) - len(answers)]
        own = from_messages([*asked, {"role": "assistant", "content": "?"}], row.get("system"))
        if not answers:
            raise LeftOut("no answer to the last question")
        from_messages([*asked, *answers, {"role": "assistant", "content": "?"}])  # refuses other speakers and pictures
        family = next((row[name] for name in ("domain", "source", "family") if isinstance(row.get(name), str)), "")
        reference = next((row[name] for name in REFERENCES if str(row.get(name, "")).strip()), None)
        own = {**own, "answer": reference, "family": family or None} | _kept(row, "split")
        trace = published_trace(answers[-1], teacher=teacher, said={})
        return TraceRow(own=own, lacks="" if reference is not None else "none is published", traces=[trace])

    return read


def _thinks_as_sky_t1(row: Row) -> bool:
    turns = row["conversations"]
    return isinstance(turns, list) and "<|begin_of_thought|>" in str(turns[-1:])


def _message(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return a turn with the names of fields that servers use."""
    names = {"from": "role", "value": "content"}
    return {names.get(key, key): value for key, value in said.items() if value is not None}


def _last_answers(said: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the turns after the user's last one."""
    last = max((place for place, turn in enumerate(said) if _is_user(turn)), default=len(said) - 1)
    yield from said[last + 1 :]


def _is_user(turn: Mapping[str, Any]) -> bool:
    return str(turn.get("role")).lower() in ("user", "human", "prompter")


def published_trace(
    message: Mapping[str, Any],
    *,
    teacher: str,
    said: dict[str, Any],
    finish_reason: Any = None,
    right: bool | None = None,
) -> PublishedTrace:
    """Return an answer, to be read as a server's message is; raises `InputError` if it holds no text."""
    try:
        content_parts(message)
    except TypeError as error:
        raise InputError(f"answer ({message.get('content')!r:.80}) cannot be read: {error}") from error
    return PublishedTrace(read=partial(_read, message, teacher, finish_reason), said=said, right=right)


def _read(message: Mapping[str, Any], teacher: str, finish_reason: Any) -> Trace:
    """Read an answer; one whose thought is not closed was cut."""
    read = read_message(message, finish_reason)
    cut = read.finish_reason == "error" and finish_reason is None and not read.closed
    return Trace(
        problem_id="",
        sample=0,
        reasoning=read.reasoning,
        answer=read.answer,
        finish_reason="length" if cut else read.finish_reason,
        closed=read.closed,
        prompt_tokens=None,
        reasoning_tokens=None,
        completion_tokens=None,
        teacher=f"{teacher}@{IMPORTED}",
        request_hash="",
    )


def _problem_values(row: Row, *, question: Any, family: Any) -> tuple[dict[str, Any], str]:
    """Read question and reference by the forms of problems; a reference that cannot be compared is none."""
    form = form_of(row)
    lacks = "none is published"
    if form is not None:
        try:
            return form.read(row), ""
        except LeftOut as reason:
            lacks = str(reason)
    return {"question": question, "family": family} | _kept(row, "split"), lacks


def _kept(row: Row, *names: str) -> dict[str, Any]:
    return {name: row[name] for name in names if name in row}


def _listed(value: Any) -> list[Any]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) for text in values):
        raise InputError(f"thought or attempt ({value!r:.80}) must be a text")
    return values


_S1K_USES = (
    *("question", "solution", "cot_type", "thinking_trajectories", "attempt", "gemini_grade", "deepseek_grade"),
    *("gemini_thinking_trajectory", "gemini_attempt", "deepseek_thinking_trajectory", "deepseek_attempt"),
)
_TALK_USES = ("messages", "conversations", "system", "split", *REFERENCES)

TRACE_FORMS = (
    TraceForm(name="exported traces", known_by=OWN_ROW, uses=tuple(column.name for column in COLUMNS), read=_exported),
    TraceForm(
        name="OpenR1-Math",
        known_by=("problem", "generations"),
        uses=("problem", "solution", "answer", "problem_type", "generations", "messages", "split", *_FLAGS),
        read=_openr1,
    ),
    TraceForm(
        name="s1K-1.1",
        known_by=("question", "deepseek_thinking_trajectory", "deepseek_attempt"),
        uses=_S1K_USES,
        read=_s1k(
            ("deepseek-ai/DeepSeek-R1", "deepseek_thinking_trajectory", "deepseek_"),
            ("gemini-2.0-flash-thinking-exp", "gemini_thinking_trajectory", "gemini_"),
        ),
    ),
    TraceForm(
        name="s1K",
        known_by=("question", "thinking_trajectories", "attempt"),
        uses=_S1K_USES,
        read=_s1k(("gemini-2.0-flash-thinking-exp", "thinking_trajectories", "")),
    ),
    TraceForm(
        name="OpenThoughts-114k metadata",
        known_by=("problem", "deepseek_reasoning", "deepseek_solution"),
        uses=("problem", "deepseek_reasoning", "deepseek_solution", "ground_truth_solution"),
        read=_openthoughts_metadata,
    ),
    TraceForm(
        name="Mixture-of-Thoughts",
        known_by=("messages", "num_tokens", "source"),
        uses=_TALK_USES,
        read=_conversation("messages", "deepseek-ai/DeepSeek-R1"),
    ),
    TraceForm(
        name="OpenThoughts3",
        known_by=("conversations", "difficulty", "domain"),
        uses=_TALK_USES,
        read=_conversation("conversations", "Qwen/QwQ-32B"),
    ),
    TraceForm(
        name="OpenThoughts-114k",
        known_by=("conversations", "system"),
        uses=_TALK_USES,
        read=_conversation("conversations", "deepseek-ai/DeepSeek-R1"),
        fits=_thinks_as_sky_t1,
    ),
    TraceForm(name="messages", known_by=("messages",), uses=_TALK_USES, read=_conversation("messages")),
    TraceForm(name="ShareGPT", known_by=("conversations",), uses=_TALK_USES, read=_conversation("conversations")),
)
"""Tried in this order: a form with more identifying columns comes before one that shares some of them."""
