"""Makes two vocabularies comparable: classes of tokens to which both sides give a probability.

    student token   12  ─┐                                a student that packs digits, a teacher that does not:
    student token   1   ─┼─ class {1 | 1, 12, 123, …}     after the same text both say how likely it is that
    student token   123 ─┤                                the next text begins with 1
    teacher token   1   ─┘

A token whose bytes the other vocabulary writes with one token stands beside that one; any other stands beside the first
token with which the other side writes its bytes. Connected tokens are a class (each is rooted at its shortest prefix,
so classes do not run together), and a class's probability is the sum over its tokens on either side. This is the finest
partition over which both next-token distributions say the same kind of thing, so nothing is paired by rank or
similarity, and no mass is left unmatched to be suppressed by the softmax (the failure of exact-match losses that
X-Token, arXiv 2605.21699, names; its P-KL projects the student by such rules too, with soft weights). Two sides with
one vocabulary have a class for each token: then a divergence over classes is the plain one.

Ends of turns are one class. All other control tokens of either side are one class, which texts do not contain. Rows
beyond the last token, which some models have as padding (Qwen2.5: 151,936 and 152,064 rows for the same tokens), are no
part of either distribution.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from distill.logits.vocabularies.token_bytes import token_bytes
from toolkit.errors import InputError

LEAST_SHARED = 0.5
"""The least share of a student's tokens that must lie in a class with a teacher's; below it, nothing is taught."""


@dataclass(frozen=True, eq=False)
class Bridge:
    """The classes of two vocabularies."""

    student_class_V: Tensor
    """The class of each of the student's tokens; as many as its tokenizer has ids."""
    teacher_class_V: Tensor
    classes: int
    is_identity: bool
    """Whether both vocabularies are one, with a class for each token."""
    student_bytes: Sequence[bytes | None]
    teacher_bytes: Sequence[bytes | None]
    members_C: Tensor
    """How many tokens of both sides are in each class."""

    @property
    def student_rows(self) -> int:
        return len(self.student_class_V)

    @property
    def teacher_rows(self) -> int:
        return len(self.teacher_class_V)


def build_bridge(
    student: Tokenizer, teacher: Tokenizer, student_ends: Collection[int], teacher_ends: Collection[int], name: str
) -> Bridge:
    """Bridge two tokenizers; `*_ends`: ids that end a turn. `name` is the teacher's in errors.

    Raises `InputError` if a vocabulary cannot be read as bytes, or if the two have too little in common.
    """
    student_bytes = token_bytes(student, "the student")
    if _are_one(student, teacher) and set(student_ends) == set(teacher_ends):
        return identity(student_bytes)
    teacher_bytes = token_bytes(teacher, name)
    beside = _first_tokens(student_bytes, teacher, teacher_bytes)
    back = _first_tokens(teacher_bytes, student, student_bytes)
    return _connected(student_bytes, teacher_bytes, beside, back, student_ends, teacher_ends, name)


def bridge_to_seen(
    student: Tokenizer,
    seen: Sequence[bytes | None],
    student_ends: Collection[int],
    seen_ends: Collection[int],
    *,
    is_same: bool,
) -> Bridge:
    """Bridge a student to a vocabulary of which only the tokens that were seen are known, by their bytes.

    Where the other side's tokenizer would say which token comes first, the longest token that was seen does. `is_same`:
    the vocabulary is the student's own, so that only equal tokens stand beside each other.
    """
    student_bytes = token_bytes(student, "the student")
    if is_same:
        beside: Sequence[int | None] = [None] * len(student_bytes)
        equal = _by_bytes(student_bytes)
        back: Sequence[int | None] = [None if written is None else equal.get(written) for written in seen]
    else:
        beside = _longest_prefixes(student_bytes, seen)
        back = _first_tokens(seen, student, student_bytes)
    return _connected(student_bytes, seen, beside, back, student_ends, seen_ends, "these traces", least_shared=0.0)


def identity(student_bytes: Sequence[bytes | None]) -> Bridge:
    """Return the bridge of a vocabulary to itself."""
    rows = len(student_bytes)
    classes_V = torch.arange(rows)
    return Bridge(
        student_class_V=classes_V,
        teacher_class_V=classes_V,
        classes=rows,
        is_identity=True,
        student_bytes=student_bytes,
        teacher_bytes=student_bytes,
        members_C=torch.full((rows,), 2),
    )


def _are_one(student: Tokenizer, teacher: Tokenizer) -> bool:
    return student.get_vocab(with_added_tokens=True) == teacher.get_vocab(with_added_tokens=True)


def _first_tokens(
    tokens: Sequence[bytes | None], other: Tokenizer, other_bytes: Sequence[bytes | None]
) -> list[int | None]:
    """Return the token of the other vocabulary beside which each of these stands."""
    equal = _by_bytes(other_bytes)
    found: list[int | None] = [None if written is None else equal.get(written) for written in tokens]
    open_places = [place for place, written in enumerate(tokens) if written and found[place] is None]
    texts = [(tokens[place] or b"").decode(errors="replace") for place in open_places]
    encodings = other.encode_batch(texts, add_special_tokens=False)
    unwritten = []
    for place, encoding in zip(open_places, encodings, strict=True):
        first = encoding.ids[0] if encoding.ids else None
        begins = None if first is None or first >= len(other_bytes) else other_bytes[first]
        if begins and (tokens[place] or b"").startswith(begins):
            found[place] = first
        else:
            unwritten.append(place)
    for place, prefix in zip(
        unwritten, _longest_prefixes([tokens[place] for place in unwritten], other_bytes), strict=True
    ):
        found[place] = prefix
    return found


def _longest_prefixes(tokens: Sequence[bytes | None], other: Sequence[bytes | None]) -> list[int | None]:
    """Return the longest token of the other vocabulary with which the bytes of each of these begin."""
    known = _by_bytes(other)
    return [
        next((known[written[:n]] for n in range(len(written), 0, -1) if written[:n] in known), None)
        if written
        else None
        for written in tokens
    ]


def _by_bytes(tokens: Sequence[bytes | None]) -> dict[bytes, int]:
    """Map bytes to the first token that writes them."""
    found: dict[bytes, int] = {}
    for id, written in enumerate(tokens):
        if written:
            found.setdefault(written, id)
    return found


def _connected(
    student_bytes: Sequence[bytes | None],
    teacher_bytes: Sequence[bytes | None],
    beside: Sequence[int | None],
    back: Sequence[int | None],
    student_ends: Collection[int],
    teacher_ends: Collection[int],
    name: str,
    least_shared: float = LEAST_SHARED,
) -> Bridge:
    """Make classes of what is connected: the student's tokens come first, the teacher's behind them."""
    rows = len(student_bytes)
    parent = list(range(rows + len(teacher_bytes)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def join(one: int, other: int) -> None:
        parent[root(one)] = root(other)

    for place, other in enumerate(beside):
        if other is not None:
            join(place, rows + other)
    for place, other in enumerate(back):
        if other is not None:
            join(rows + place, other)
    twins = _by_bytes(student_bytes)
    for id, written in enumerate(student_bytes):
        if written:
            join(id, twins[written])
    ends = {*student_ends, *(rows + id for id in teacher_ends)}
    texts = [*student_bytes, *teacher_bytes]
    others = [node for node, written in enumerate(texts) if not written and node not in ends]
    for group in (sorted(ends), others):
        for node in group[1:]:
            join(node, group[0])
    numbers: dict[int, int] = {}
    classes = torch.tensor([numbers.setdefault(root(node), len(numbers)) for node in range(len(parent))])
    student_class_V, teacher_class_V = classes[:rows], classes[rows:]
    has_teacher_C = torch.zeros(len(numbers), dtype=torch.bool)
    has_teacher_C[teacher_class_V] = True
    written_V = torch.tensor([bool(written) for written in student_bytes])
    shared = float(has_teacher_C[student_class_V[written_V]].float().mean())
    if shared < least_shared:
        raise InputError(
            f"the vocabulary of {name} cannot be bridged: only {shared:.0%} of the student's tokens begin with one of "
            "its tokens; choose another teacher, or learn from its texts alone"
        )
    return Bridge(
        student_class_V=student_class_V,
        teacher_class_V=teacher_class_V,
        classes=len(numbers),
        is_identity=False,
        student_bytes=student_bytes,
        teacher_bytes=teacher_bytes,
        members_C=torch.bincount(classes, minlength=len(numbers)),
    )
