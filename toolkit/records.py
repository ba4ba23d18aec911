"""Defines the records that pass between stages, and the append-only file that keeps them.

`*.jsonl` layout: one JSON object on each line, UTF-8, `\\n` at its end. A record is written by one `write` call and
synced to disk in batches, so `kill -9` at any moment can tear only the last line; opening the file for appending moves
a torn line aside and keeps the rest.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from toolkit.disk import BINARY
from toolkit.errors import InputError
from toolkit.field_types import field_types, fits, in_words
from toolkit.json_files import MOST_BYTES, parse_json, read_json

FinishReason = Literal["stop", "length", "content_filter", "tool_calls", "error"]
"""Why a turn ended; only one that ended with "stop" is whole. Our decoders give the first two, servers all."""
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Message = dict[str, str]
"""A message: its `role` and `content`."""
ROLES = ("system", "user", "assistant")
TRAIN = "train.jsonl"
"""The file in a student's folder with the examples that it was trained on; its export is calibrated on them."""
TRAINED_ON = "trained_on.json"
"""The file in a student's folder, and in its exports, with the digests of the questions that it was trained on."""


class Record:
    """A frozen dataclass that reads itself from a JSON object and refuses unknown or missing keys."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Raises `InputError` if a key is unknown (naming the nearest), a required one is missing, or a value does not
        have its field's type."""
        names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        for key in values:
            if key not in names:
                nearest = get_close_matches(key, names, n=1)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known keys are {', '.join(names)}"
                raise InputError(f"{cls.__name__} has no key {key!r}{hint}")
        try:
            record = cls(**values)
        except TypeError as error:
            raise InputError(f"{cls.__name__} is incomplete: {error}") from error
        kinds = field_types(cls)  # type: ignore[arg-type]
        for key, value in values.items():
            if not fits(value, kinds[key]):
                raise InputError(f"{key} ({value!r:.60}) of a {cls.__name__} must be {in_words(kinds[key])}")
        return record

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload, no-any-return]


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, kw_only=True)
class Asked(Record):
    """A question, with what was said before it."""

    question: str
    history: list[Message] = field(default_factory=list)
    """A system prompt, and earlier questions with their answers."""

    def __post_init__(self) -> None:
        if not isinstance(self.history, list) or not all(map(_is_message, self.history)):
            raise InputError(
                f"history ({self.history!r}) must be a list of messages, each with a role ({', '.join(ROLES)}) and a "
                "text as content"
            )

    @property
    def messages(self) -> list[Message]:
        """The conversation up to the model's turn."""
        return [*self.history, {"role": "user", "content": self.question}]

    @property
    def transcript(self) -> str:
        """The question as text, after what was said before it."""
        return "\n\n".join([*(f"{said['role']}: {said['content']}" for said in self.history), self.question])

    @property
    def exact_text(self) -> str:
        """The text by which questions are compared: the messages without white space around them and at line ends."""
        texts = [text for message in self.messages for text in (message["role"], message["content"])]
        lines = [[line.rstrip() for line in text.strip().splitlines()] for text in texts]
        return unicodedata.normalize("NFC", json.dumps(lines, ensure_ascii=False))


@dataclass(frozen=True, kw_only=True)
class Problem(Asked):
    """A question with its reference answer; `metadata` holds whatever else the family's scorer needs."""

    id: str
    family: str
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict)
    split: Split | None = None
    """The split that the data set itself puts the problem into, if it has splits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split not in (None, *SPLITS):
            raise InputError(f"split ({self.split!r}) must be one of {', '.join(SPLITS)}, or left out")

    def to_dict(self) -> dict[str, Any]:
        """Leave out an absent split, so that the files and digests of problems without one stay as they were."""
        values = super().to_dict()
        if self.split is None:
            del values["split"]
        return values

    @classmethod
    def create(
        cls,
        *,
        family: str,
        question: str,
        answer: str,
        metadata: dict[str, Any] | None = None,
        history: list[Message] | None = None,
        split: Split | None = None,
    ) -> Self:
        """Make a problem whose id is the hash of its question and of what was said before it."""
        asked = Asked(question=question, history=history or [])
        return cls(
            **vars(asked),
            id=content_hash(asked.transcript),
            family=family,
            answer=answer,
            metadata=metadata or {},
            split=split,
        )

    def set_apart(self) -> Self:
        """Return the problem with an id that differs from that of a question with other case or white space."""
        exact = hashlib.sha256(self.exact_text.encode()).hexdigest()[:8]
        return replace(self, id=f"{content_hash(self.transcript)}-{exact}")


@dataclass(frozen=True, kw_only=True)
class Trace(Record):
    """One sampled answer to one problem, as text, because teacher and student may tokenize differently."""

    problem_id: str
    sample: int
    reasoning: str
    answer: str
    finish_reason: FinishReason
    closed: bool
    """Whether the reasoning was closed; if it was not, the trace is truncated and `answer` is empty."""
    prompt_tokens: int | None
    reasoning_tokens: int | None
    completion_tokens: int | None
    """None if a server does not count them."""
    teacher: str
    """The teacher as name@digest."""
    request_hash: str
    """Hash of everything that shaped this sample: teacher digest, prompt, sampling settings, seed."""

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))  # its values are immutable, so a deep copy would be wasted on many records a second


BY_A_PERSON = "feedback@"
"""The prefix of `teacher` in traces that a person approved or wrote."""


@dataclass(frozen=True, kw_only=True)
class Verdict(Record):
    """Whether a trace's answer is right, and who said so."""

    problem_id: str
    sample: int
    correct: bool
    reason: Literal["correct", "wrong", "truncated", "filtered", "tool_call", "broken_off", "empty"]
    """The last five are for traces that are not a whole answer: see `distill.verification.wholeness`."""
    score: float
    verifier: str
    version: str
    reference_read: str = ""
    """How the reference was read, so that a person can see why; empty if nothing was compared with one."""
    answer_read: str = ""


@dataclass(frozen=True, kw_only=True)
class Example(Asked):
    """One line of a training set: a curated trace with its question, and where it came from."""

    problem_id: str
    family: str
    reasoning: str
    answer: str
    sample: int
    teacher: str

    @classmethod
    def of(cls, problem: Problem, *, reasoning: str, answer: str, sample: int, teacher: str) -> Self:
        """Make the line for one answer to a problem."""
        return cls(
            problem_id=problem.id,
            family=problem.family,
            question=problem.question,
            history=problem.history,
            reasoning=reasoning,
            answer=answer,
            sample=sample,
            teacher=teacher,
        )

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))  # as in a trace: nobody changes the history of an example


def _is_message(said: Any) -> bool:
    return (
        isinstance(said, dict)
        and said.keys() == {"role", "content"}
        and said["role"] in ROLES
        and isinstance(said["content"], str)
    )


def content_hash(text: str) -> str:
    """Return 16 hex digits of the text's SHA-256; case, white space and Unicode forms are folded: variants collide."""
    return hashlib.sha256(" ".join(unicodedata.normalize("NFC", text).split()).casefold().encode()).hexdigest()[:16]


def number_of(text: str) -> int:
    """Return a number of 64 bits that is the text's own, among some millions of them."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest(), "little")


def read_object(path: Path) -> dict[str, Any]:
    """Read a file of one JSON object. Raises `InputError` if it holds anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def read_jsonl(path: Path, *, torn_end: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object). Raises `InputError`, which names the line, for anything but a JSON object.

    With `torn_end` a last line without its `\\n` is left out: a process may be writing it, or was killed while it did.
    """
    try:
        with path.open("rb") as file:
            lines = iter(lambda: file.readline(MOST_BYTES), b"")
            for number, line in enumerate(lines, start=1):
                if not line.strip() or (torn_end and not line.endswith(b"\n")):
                    continue
                if len(line) == MOST_BYTES:
                    raise InputError(
                        f"{path} line {number} has {MOST_BYTES} bytes or more, which no record has; get the file again"
                    )
                value = parse_json(line, f"{path} line {number}", constants=True)
                if not isinstance(value, dict):
                    raise InputError(f"{path} line {number} must be a JSON object, not {type(value).__name__}")
                yield number, value
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def stream_records(path: Path, kind: type[R], *, torn_end: bool = False) -> Iterator[R]:
    """Yield the records of one kind in a jsonl file as they are read; `torn_end` is passed to `read_jsonl`."""
    for number, values in read_jsonl(path, torn_end=torn_end):
        try:
            yield kind.from_dict(values)
        except InputError as error:
            raise InputError(f"{path} line {number}: {error}") from error


def read_records(path: Path, kind: type[R], *, torn_end: bool = False) -> list[R]:
    """Read a whole jsonl file as records of one kind; `torn_end` is passed to `read_jsonl`."""
    return list(stream_records(path, kind, torn_end=torn_end))


def write_records(path: Path, records: Iterator[Record] | list[Any]) -> None:
    """Write a whole jsonl file at once, inside a stage's temporary folder."""
    with path.open("wb") as file:
        for record in records:
            file.write(record_line(record))


def record_line(record: Record) -> bytes:
    """Return a record as a line of jsonl. Half a surrogate pair, which UTF-8 cannot encode, is written as an escape."""
    return (json.dumps(record.to_dict(), ensure_ascii=False) + "\n").encode(errors="backslashreplace")


class AppendLog:
    """A jsonl file open for appending, which survives `kill -9` as the module describes."""

    def __init__(self, path: Path, *, sync_every_s: float = 1.0) -> None:
        mend_torn_line(path)
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | BINARY, 0o644)
        self._sync_every_s = sync_every_s
        self._synced_at = time.monotonic()

    def append(self, record: Record) -> int:
        """Write one record by one system call, and return its bytes; if a full disk takes only a part, that part is cut
        off again."""
        line = record_line(record)
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            error.filename = str(self._path)
            raise
        if time.monotonic() - self._synced_at >= self._sync_every_s:
            self.sync()
        return len(line)

    def sync(self) -> None:
        """Return when what was appended would survive a loss of power."""
        os.fsync(self._descriptor)
        self._synced_at = time.monotonic()

    def close(self) -> None:
        os.fsync(self._descriptor)
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def mend_torn_line(path: Path) -> None:
    """Move a last line without its `\\n` to `<path>.torn` and cut it off the file."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        start = size
        while start > 0:
            step = min(65536, start)
            file.seek(start - step)
            newline = file.read(step).rfind(b"\n")
            if newline >= 0:
                start = start - step + newline + 1
                break
            start -= step
        if start == size:
            return
        file.seek(start)
        torn = file.read()
        with path.with_name(path.name + ".torn").open("ab") as aside:
            aside.write(torn + b"\n")
        file.truncate(start)
        os.fsync(file.fileno())
